"""How every command of the project starts and ends, and how it reports a user's mistake.

A mistake is printed as one line, ``error: ...``, on stderr, and the exit code is 2. Any exception that is not caught
here is a bug of ours, so its traceback is shown.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError

from data_schemas.errors import REMOTE, RunFailed, UserError
from data_schemas.io.text import one_line
from data_schemas.settings import first_mistake, redacted

INTERRUPTED = 130
LONGEST = 4000
"""Most characters of a message. It is large because messages list names that should be readable in full."""


def version_line() -> str:
    """Name and version of the installed package."""
    return f"instructar {version('instructar')}"


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(version_line())
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]


def share_cores() -> None:
    """Let torch's threads (GNU OpenMP) sleep soon when they wait for each other, unless the environment says otherwise.

    To be called before torch is imported. By default they spin 30 times as long, which is no faster on an idle machine,
    and takes a fifth of the speed where other programs want the cores too.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def run(command: Callable[[], object]) -> None:
    """Run a command to its end. A user's mistake becomes one line on stderr and exit code 2."""
    share_cores()
    try:
        _check_arguments(sys.argv[1:])
        command()
        sys.stdout.flush()
    except ValidationError as error:
        _fail(first_mistake(error))
    except BrokenPipeError:  # the reader closed the pipe, as ``head`` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python reports the closed pipe at exit
        sys.exit(1)
    except (UserError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
        _fail(_told(error), 1 if isinstance(error, RunFailed) else 2)
    except RecursionError:
        _fail("what was given is nested too deeply; write it flatter")
    except KeyboardInterrupt:
        _stop()
    except SystemExit as left:
        # typer turns Ctrl-C into a SystemExit
        if isinstance(getattr(left.__context__, "__cause__", None), KeyboardInterrupt):
            _stop()
        raise
    except Exception as error:
        # torch raises RuntimeError when memory is short
        if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", str(error)):
            why = str(error) or type(error).__name__
            _fail(f"not enough memory ({why}); make batches, pictures or the model smaller")
        if type(error).__module__.partition(".")[0] in REMOTE:
            _fail(f"{type(error).__name__}: {error}; check the address, the network and the credentials")
        raise


def _told(error: UserError | OSError) -> str:
    """A mistake in our own words, or what the system refused and of which file."""
    if isinstance(error, UserError) or error.filename is None or error.strerror is None:
        return str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}; mend that, or give another place"


def _check_arguments(arguments: list[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"argument {argument}: not UTF-8 text; rename what it names") from error


def _stop() -> NoReturn:
    say("interrupted")
    sys.exit(INTERRUPTED)


def _fail(message: str, code: int = 2) -> NoReturn:
    say(f"error: {message}")
    sys.exit(code)


def say(message: str) -> None:
    """Print one line on stderr, without control characters or passwords; very long words are cut in the middle."""
    plain = str(message).encode(errors="backslashreplace").decode()
    short = re.sub(r"\S{300,}", lambda word: f"{word[0][:120]}…{word[0][-60:]}", plain)
    print(one_line(redacted(short), LONGEST), file=sys.stderr, flush=True)
