"""The curation as a Prefect flow run, from a file of settings: python -m chaos.flow settings.yaml"""

import sys
from pathlib import Path

import yaml

from flows import engine
from flows.curate import curate_instructar
from pipeline.config import CurationConfig

if __name__ == "__main__":
    engine.RANGE = 5  # a task for each part, so that the server is asked all the time
    curate_instructar(CurationConfig.model_validate(yaml.safe_load(Path(sys.argv[1]).read_text())))
