"""What a storage's library raises is one line that names the address, without the passwords in it."""

import fsspec
import pytest

from data_schemas.errors import UserError
from data_schemas.io.new_folders import new_folder
from data_schemas.io.storage import reaching, shown, url_to_fs
from data_schemas.shards import expand_shards, read_members


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("foo://x/*.tar", "foo://x/*.tar: there is no protocol 'foo'"),
        ("gs://bucket/*.tar", "gs://bucket/*.tar: Please install gcsfs"),
        ("http://me:secret@localhost:1/*.tar?token=secret", "http://***@localhost:1/*.tar?...: cannot be read"),
    ],
)
def test_what_cannot_be_reached_is_one_line(url, words):
    with pytest.raises(UserError) as told:
        expand_shards(url)
    assert words in str(told.value)
    assert "secret" not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_bucket_without_credentials(monkeypatch):
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(UserError, match=r"s3://no-bucket/\*\.tar: cannot be read \(.*credentials.*\); check"):
        expand_shards("s3://no-bucket/*.tar")


def test_a_bucket_that_breaks_while_it_is_read(tmp_path):
    class Broken(Exception):
        """No OSError: storages have errors of their own."""

    with (
        pytest.raises(UserError, match=r"s3://b/x: cannot be read \(gone at http://\*\*\*@h/\); check"),
        reaching("s3://b/x"),
    ):
        raise Broken("gone at http://a:b@h/")
    with pytest.raises(Broken), reaching("/disk/x"):
        raise Broken("our own bug")
    with pytest.raises(FileNotFoundError), reaching("s3://b/x"):
        raise FileNotFoundError
    with pytest.raises(UserError, match="no such shard"):
        list(read_members("memory://nothing.tar"))
    assert url_to_fs(str(tmp_path))[1] == str(tmp_path)


def test_addresses_are_shown_on_one_line():
    assert shown("a\nb\x1b[31m") == "a b [31m"
    assert shown("s3://k:p@b/x") == "s3://***@b/x"


def test_an_out_folder_is_the_same_however_it_is_written(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert {new_folder(out) for out in ("~/made", f"file://{tmp_path}/made", f"{tmp_path}/made")} == {tmp_path / "made"}
    with pytest.raises(UserError, match="there is no user 'nobody-of-this-name'"):
        new_folder("~nobody-of-this-name/made")
