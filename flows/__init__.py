"""Prefect flows: which stage after which, on which engine, cached how."""

import logging
import os

from data_schemas.errors import UserError

# Nothing phones home by default; whoever wants Prefect's telemetry sets these before.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# The temporary server of a flow without one gets 20 seconds by default; a loaded machine needs more.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")


def _worth_telling(record: logging.LogRecord) -> bool:
    """A stage says what came of its parts: not a line a part that ended well, and no trace of a user's mistake."""
    if record.exc_info and isinstance(record.exc_info[1], UserError):
        record.exc_info = None
    return record.levelno > logging.INFO or not record.getMessage().startswith("Finished in state")


logging.getLogger("prefect.task_runs").addFilter(_worth_telling)
