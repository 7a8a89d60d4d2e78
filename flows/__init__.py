"""Prefect flows: which stage after which, on which engine, cached how."""

import os

# Nothing phones home by default; whoever wants Prefect's telemetry sets these before.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
