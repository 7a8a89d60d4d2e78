"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that names the thing and says what to do. Commands print it and exit with
    code 2; flows end in a failed state with it. Anything else that is raised is our own bug.
    """
