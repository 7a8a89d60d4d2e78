"""What several files of tests share: a small curation run on the packaged photographs, and torch on one thread."""

import shutil

import pytest
import torch
from small.curation import small_config

from pipeline.curate import curate
from pipeline.report.results import write_results


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """(result, places) of an undisturbed run; read only."""
    result = curate(small_config(tmp_path_factory.mktemp("runs")))
    return result, write_results(result)


@pytest.fixture
def copied(small_run, tmp_path):
    """A copy of the undisturbed run that a test may change."""
    shutil.copytree(small_run[0].run.config.root, tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path


@pytest.fixture(scope="module")
def one_thread():
    """The tiny models have nothing to share: threads that wait for each other would take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
