"""The exceptions that end a command with one line."""


class UserError(ValueError):
    """An input from the user (an option, a file, a setting) cannot be used.

    The message is one line that names the input and says what to do. Commands print it and exit with code 2; Prefect
    flows end as failed with it. Any other exception is a bug of ours.
    """


class RunFailed(UserError):
    """What was asked for could be done, but too much of it failed. Commands exit with code 1."""
