"""Files in a bucket of a real S3 server."""

import fsspec
import pytest

from data_schemas.errors import UserError
from data_schemas.io.storage import url_to_fs, write_file


def test_what_another_machine_writes_is_seen_at_once(bucket):
    fs, folder = url_to_fs(f"{bucket}/folder")
    other = fsspec.filesystem("s3", skip_instance_cache=True)
    other.pipe_file(f"{folder}/a", b"1")
    assert fs.ls(folder, detail=False) == [f"{folder}/a"]
    other.pipe_file(f"{folder}/b", b"2")
    other.pipe_file(f"{folder}/a", b"111")
    assert fs.exists(f"{folder}/b")
    assert fs.size(f"{folder}/a") == 3
    assert fs.open(f"{folder}/a", "rb").read() == b"111"


def test_a_bucket_whose_name_is_mistyped_is_not_made(bucket):
    fs, path = url_to_fs("s3://no-such-bucket/run/file")
    with pytest.raises(UserError, match="there is no bucket 'no-such-bucket'"):
        write_file(fs, path, b"1")
    assert not fs.exists("no-such-bucket")
