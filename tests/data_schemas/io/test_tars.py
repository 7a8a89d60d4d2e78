"""Tars from anywhere: folders are part of an id, nothing is read before its size is known, none leaves its folder."""

import io
import os
import resource
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_schemas.errors import UserError
from data_schemas.io import tars
from data_schemas.io.tars import expand_shards, file_name, read_members, sample_ids
from data_schemas.shards import read_distinct


def tar_of(path, *members, format=tarfile.PAX_FORMAT):
    """A tar of (name, content or a ready TarInfo) in order."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            entry = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            entry.name = name
            data = content if isinstance(content, bytes) else b""
            if isinstance(content, bytes):
                entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return str(path)


def special(kind: bytes, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo()
    entry.type, entry.linkname = kind, link
    return entry


def refused(url: str) -> str:
    messages = []
    for read in (lambda: list(read_members(url)), lambda: sample_ids(url)):
        with pytest.raises(UserError) as told:
            read()
        messages.append(str(told.value))
    assert messages[0] == messages[1], "headers alone tell as much"
    assert "\n" not in messages[0]
    assert messages[0].startswith(url)
    return messages[0].removeprefix(url)


def test_the_folder_is_part_of_the_id(tmp_path):
    url = tar_of(tmp_path / "a.tar", ("x/0001.a.png", b"1"), ("x/0001.json", b"2"), ("y/0001.json", b"3"),
                 ("./z/v1.0/0001.json", b"4"), ("0001.json", b"5"))  # fmt: skip
    assert list(read_members(url)) == [
        ("x/0001", {"a.png": b"1", "json": b"2"}), ("y/0001", {"json": b"3"}), ("z/v1.0/0001", {"json": b"4"}),
        ("0001", {"json": b"5"}),
    ]  # fmt: skip
    assert sample_ids(url) == ["x/0001", "y/0001", "z/v1.0/0001", "0001"]


def test_what_a_mac_adds_is_passed_over(tmp_path):
    url = tar_of(
        tmp_path / "a.tar", ("._0001.json", b"mac"), ("0001.json", b"1"), (".DS_Store", b"x"), ("x", special(b"5")),
        ("__MACOSX/x/._0002.json", b"mac"), ("__MACOSX/0003.json", b"mac"), ("x/._0002.json", b"mac"),
        ("x/0002.json", b"2"),
    )  # fmt: skip
    assert list(read_members(url)) == [("0001", {"json": b"1"}), ("x/0002", {"json": b"2"})]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("0001.json", special(tarfile.SYMTYPE, "/etc/passwd"))], "'0001.json' is a link to '/etc/passwd'; pack"),
        ([("0001.a.png", b"1"), ("0001.json", special(tarfile.LNKTYPE, "0001.a.png"))], "is a link to '0001.a.png'"),
        ([("0001.json", special(tarfile.GNUTYPE_SPARSE))], "is stored with holes (sparse)"),
        ([("0001.json", special(tarfile.FIFOTYPE))], "is a pipe or device"),
        ([("0001.json", special(tarfile.CHRTYPE))], "is a pipe or device"),
        ([("1.json", b""), ("2.json", b""), ("1.txt", b"")], "sample 1 is there twice"),
        ([("1.json", b"a"), ("1.json", b"b")], "sample 1: member 'json' is there twice"),
        ([("a\u202eb.json", b"")], "a sample named 'a b'"),
        ([("a\nb.json", b"")], "a sample named 'a b'"),
        ([("a" * 600 + ".json", b"")], "at most 500 characters"),
        ([("b\udcff.json", b"")], "UTF-8 text"),
        ([(f"1.{k}", b"") for k in range(1001)], "more than 1000 members"),
    ],
)  # fmt: skip
def test_members_that_cannot_be_used(tmp_path, members, words):
    assert words in refused(tar_of(tmp_path / "a.tar", *members))


def claiming(path, size: int, kind: bytes = tarfile.REGTYPE, name: str = "0001.target.png") -> str:
    """A tar of one header that claims ``size`` bytes, and not much behind it."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    path.write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
    return str(path)


@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_header_is_not_taken_for_the_end(tmp_path, cut):
    """tarfile ends there without an error, so that all samples behind it would be lost without a word."""
    path = tmp_path / "a.tar"
    url = tar_of(path, *((f"{k}.json", b"{}") for k in range(3)), format=tarfile.USTAR_FORMAT)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"2.json") + 100] if cut else data.replace(b"2.json", b"9.json"))
    assert "cut short or damaged (a damaged header)" in refused(url)


@pytest.mark.parametrize(
    ("size", "kind", "words"),
    [
        (3 * 10**9, tarfile.REGTYPE, "has 3000000000 bytes, more than the limit of 256000000"),
        (9 * 10**15, tarfile.REGTYPE, "more than the limit"),
        (-512, tarfile.REGTYPE, "damaged"),
        (3 * 10**9, tarfile.GNUTYPE_LONGNAME, "at most 1000000 are read"),
        (3 * 10**9, tarfile.XHDTYPE, "at most 1000000 are read"),
        (-512, tarfile.XHDTYPE, "at most 1000000 are read"),
        (3 * 10**9, tarfile.XGLTYPE, "at most 1000000 are read"),
        (2 * 10**7, b"j", "has 20000000 bytes, more than the limit of 10000000"),
    ],
)
def test_a_size_that_is_claimed_is_checked_before_it_is_read(tmp_path, size, kind, words):
    name = "0001.json" if kind == b"j" else "0001.target.png"
    url = claiming(tmp_path / "a.tar", size, tarfile.REGTYPE if kind == b"j" else kind, name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refused(url)
    assert words in message or (size < 0 and "more than the limit" in message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_sample_is_bounded_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MAX_SAMPLE", 1000)
    url = tar_of(tmp_path / "a.tar", *((f"1.{k}.png", bytes(400)) for k in range(3)))
    assert "sample 1: more than 1000 members or 1000 bytes" in refused(url)
    url = tar_of(tmp_path / "b.tar", *((f"{k}.png", bytes(400)) for k in range(30)))
    assert len(sample_ids(url)) == 30


def test_pipes_folders_and_names_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "data").mkdir()
    for pattern, words in {
        f"{tmp_path}/*.tar": "pipe.tar: is a pipe, socket or device",
        f"{tmp_path}/data": f"data: is a folder, not a shard; give a glob such as '{tmp_path}/data/*.tar'",
        f"{tmp_path}/data/": f"'{tmp_path}/data/*.tar'",
        f"{tmp_path}/none-*.tar": "no shard matches",
        f"{tmp_path}/a\0b": "no shard matches",
        "a" * 5000: "no shard matches",
        f"{tmp_path}/\udcff*.tar": "no shard matches",
    }.items():
        with pytest.raises(UserError) as told:
            expand_shards(pattern)
        assert words in str(told.value)
        assert len(str(told.value)) < 600
    with pytest.raises(UserError, match="is a pipe"):
        sample_ids(str(tmp_path / "pipe.tar"))


def test_a_name_with_brackets_is_taken_as_it_is(tmp_path):
    (tmp_path / "run[1]").mkdir()
    path = tar_of(tmp_path / "run[1]/a.tar", ("1.json", b"1"))
    assert expand_shards(path) == [path]


def test_a_sample_in_two_shards_is_named_with_both(tmp_path):
    one = tar_of(tmp_path / "1.tar", ("a.json", b"1"), ("b.json", b"1"))
    two = tar_of(tmp_path / "2.tar", ("b.json", b"1"))
    with pytest.raises(UserError, match=rf"{two}: sample b is there twice, in {one} too"):
        list(read_distinct([one, two]))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=300), unique=True, max_size=8))
def test_two_ids_never_share_a_file_and_none_leaves_the_folder(ids):
    names = [file_name(sample_id) for sample_id in ids]
    assert len(set(names)) == len(ids)
    for name in names:
        assert not {"/", "\\", "\0"} & set(name)
        assert not name.startswith(".")
        assert len(os.fsencode(name.encode(errors="surrogateescape").decode(errors="surrogateescape"))) <= 200


def test_how_ids_become_file_names():
    expected = {"train-0001": "train-0001", "x/0001": "x%2F0001", "x%2F0001": "x%252F0001", "..": "%2E.", "猫": "猫"}
    assert {sample_id: file_name(sample_id) for sample_id in expected} == expected
    assert file_name("a" * 400) != file_name("a" * 401)
