"""A short ``make chaos``: a curation that is killed at random moments ends like one that is not."""

import pytest
from chaos.__main__ import chaos


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(tmp_path):
    done = chaos("local", kills=3, seed=1, folder=tmp_path)
    assert sum(done["killed"].values()) == 3
