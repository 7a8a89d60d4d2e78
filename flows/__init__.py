"""Prefect flows: they run the stages in order, on Prefect's task runner, with results cached between runs."""

import logging
import os

from data_schemas.commands import share_cores
from data_schemas.errors import UserError

# Prefect's telemetry is off by default; set these variables beforehand to turn it on.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# Seconds that Prefect's temporary server may take to start; the default of 20 is too short on a busy machine.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")
share_cores()


def _worth_telling(record: logging.LogRecord) -> bool:
    """Log filter: drops the line that Prefect logs for each successful part, and the traceback of a user's mistake."""
    if record.exc_info and isinstance(record.exc_info[1], UserError):
        record.exc_info = None
    return record.levelno > logging.INFO or not record.getMessage().startswith("Finished in state")


logging.getLogger("prefect.task_runs").addFilter(_worth_telling)
