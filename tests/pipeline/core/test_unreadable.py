"""A storage that does not answer: tried again, then one line; never "missing", which would make finished work again."""

import errno

import pytest
from fsspec.implementations.local import LocalFileSystem
from troubled.runs import config, contents

from data_schemas.io import storage
from data_schemas.io.storage import Unreadable
from pipeline.core.parts import PartPictures
from pipeline.curate import curate


@pytest.fixture
def failing(monkeypatch):
    """Has reads of files whose path holds a text fail so many times; ``failing.tried`` counts them."""

    def fail(text, times):
        real_cat, real_bytes = LocalFileSystem.cat_file, PartPictures._bytes
        fail.left, fail.tried = times, 0

        def trouble(path):
            if text in str(path) and fail.left:
                fail.left, fail.tried = fail.left - 1, fail.tried + 1
                raise OSError(errno.EIO, "Input/output error")

        def cat_file(self, path, *rest, **options):
            trouble(path)
            return real_cat(self, path, *rest, **options)

        def bytes_(self, start, size):
            trouble(self._store.path(self._part, "tar"))
            return real_bytes(self, start, size)

        monkeypatch.setattr(LocalFileSystem, "cat_file", cat_file)
        monkeypatch.setattr(PartPictures, "_bytes", bytes_)

    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.01))
    return fail


def test_a_storage_that_fails_for_a_while_costs_nothing(tmp_path, failing):
    curate(config(tmp_path))
    before = contents(tmp_path)
    failing("synthesis/", times=2)
    assert all(s.cached for made in curate(config(tmp_path)).summaries.values() for s in made)
    assert failing.tried == 2
    assert contents(tmp_path) == before


def test_a_storage_that_goes_on_failing_ends_the_run_and_nothing_is_made_again(tmp_path, failing):
    curate(config(tmp_path))
    before = contents(tmp_path)
    failing("synthesis/", times=100)
    with pytest.raises(Unreadable, match=r"synthesis.*part-0000.*cannot be read .*Input/output error.*same command"):
        curate(config(tmp_path))
    assert contents(tmp_path) == before


def test_a_picture_that_cannot_be_read_is_no_error_of_its_sample(tmp_path, failing):
    curate(config(tmp_path))
    failing(".tar", times=100)
    with pytest.raises(Unreadable, match=r"part-0000.\.tar cannot be read"):
        curate(config(tmp_path), again="matting")
    failing(".tar", times=0)
    result = curate(config(tmp_path))
    assert all(summary.counts == {"ok": 4} for summary in result.summaries["matting"])
