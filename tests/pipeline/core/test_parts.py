"""A part is whole or not there; a fingerprint changes with its ingredients and with nothing else."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from data_schemas.io.files import sweep
from data_schemas.schema import Column
from data_schemas.tables import verdict_schema
from pipeline.core import parts
from pipeline.core.parts import DamagedPart, PartStore, fingerprint
from pipeline.core.tar_writer import write_tar

SCHEMA = verdict_schema("toy", 1, (Column("score", pa.float64(), "A number.", "number"),))
ids = st.text("abcdef0123456789", min_size=4, max_size=8)
values = st.dictionaries(ids, st.floats(-10, 10), min_size=1, max_size=6)


def rows(scores):
    return [
        {"sample_id": i, "status": "ok", "error_code": None, "error_message": None, "model": "m", "score": s}
        for i, s in scores.items()
    ]


def files(scores):
    return {i: {"target.png": repr(s).encode(), "alpha.png": i.encode()} for i, s in scores.items()}


@settings(deadline=None, max_examples=40)
@given(scores=values)
def test_what_is_committed_is_read_back_and_is_the_same_bytes_each_time(tmp_path_factory, scores):
    stores = [PartStore(str(tmp_path_factory.mktemp("run")), "toy", "f", SCHEMA) for _ in range(2)]
    for store in stores:
        store.commit("part-00000", rows(scores), files(scores), "input")
    part = stores[0].read("part-00000", "input")
    assert part.rows() == rows(scores)
    pictures = stores[0].pictures("part-00000", part)
    assert {i: dict(pictures.of(i)) for i in pictures.entries} == files(scores)
    for suffix in ("parquet", "tar"):
        contents = [open(s.path("part-00000", suffix), "rb").read() for s in stores]
        assert contents[0] == contents[1]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), suffix=st.sampled_from(["parquet", "tar"]), how=st.sampled_from(["flip", "cut", "gone"]))
def test_any_damage_to_a_part_is_seen(tmp_path_factory, data, suffix, how):
    store = PartStore(str(tmp_path_factory.mktemp("run")), "toy", "f", SCHEMA)
    store.commit("p", rows({"aaaa": 1.5, "bbbb": -2.0}), files({"aaaa": 1.5, "bbbb": -2.0}), "input")
    path = store.path("p", suffix)
    content = bytearray(open(path, "rb").read())
    if how == "gone":
        os.remove(path)
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        if how == "flip":
            content[place] ^= 0xFF
        else:
            del content[place:]
        open(path, "wb").write(bytes(content))
        os.utime(path, (1e9, 1e9))  # a write shows in the entry, however soon it comes after another
    found = store.read("p", "input")
    # a flipped bit in padding that no reader uses may leave the rows as they were; nothing else may pass
    assert found is None or (suffix == "parquet" and found.rows() == rows({"aaaa": 1.5, "bbbb": -2.0}))


def test_a_part_made_from_other_input_is_not_whole(tmp_path):
    store = PartStore(str(tmp_path), "toy", "f", SCHEMA)
    store.commit("p", rows({"aaaa": 1.0}), None, "first input")
    assert store.read("p", "first input") is not None
    assert store.read("p", "second input") is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda v: st.lists(v, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), json_values, max_size=4), json_values, json_values)
def test_a_fingerprint_depends_on_content_and_not_on_order(config, old, new):
    backwards = dict(reversed(list(config.items())))
    assert fingerprint(config=config, model=old) == fingerprint(model=old, config=backwards)
    if repr(old) != repr(new):
        assert fingerprint(config=config, model=old) != fingerprint(config=config, model=new)


def test_a_fingerprint_has_a_fixed_value():
    assert fingerprint(stage="toy", version=1, config={"size": 256}, model="none", inputs={}) == "985b45e67db599b5"


def test_parts_work_on_any_fsspec_file_system():
    store = PartStore("memory://bucket/run", "toy", "f", SCHEMA)
    store.commit("p", rows({"aaaa": 1.0}), files({"aaaa": 1.0}), "input")
    assert store.read("p", "input").rows() == rows({"aaaa": 1.0})
    assert store.url("p", "tar") == "memory:///bucket/run/toy/f/p.tar"


@pytest.mark.parametrize(
    ("fetched", "asked"),
    [
        (False, ["range of aaaa", "range of bbbb"]),  # both pictures of a sample in one request
        (True, ["all"]),
    ],
)
def test_pictures_in_a_bucket_take_few_requests(monkeypatch, fetched, asked):
    scores = {"aaaa": 1.5, "bbbb": -2.0}
    store = PartStore("memory://requests/run", "toy", "f", SCHEMA)
    pictures = store.pictures("p", store.commit("p", rows(scores), files(scores), "input"))
    tar, seen = store.path("p", "tar"), []
    begins = {min(entry.offset for entry in own.values()): sample_id for sample_id, own in pictures.entries.items()}
    cat_file, get_file = store.fs.cat_file, store.fs.get_file

    def cat(path, start=None, end=None):
        seen.append(f"range of {begins[start]}")
        return cat_file(path, start=start, end=end)

    def get(path, local):
        assert path == tar
        seen.append("all")
        return get_file(path, local)

    monkeypatch.setattr(store.fs, "cat_file", cat)
    monkeypatch.setattr(store.fs, "get_file", get)
    if fetched:
        pictures.fetch()
    assert {i: dict(pictures.of(i)) for i in scores} == files(scores)
    assert seen == asked


def test_a_damaged_picture_in_a_bucket_is_read_again_once_it_is_mended():
    store = PartStore("memory://damage/run", "toy", "f", SCHEMA)
    pictures = store.pictures("p", store.commit("p", rows({"aaaa": 1.5}), files({"aaaa": 1.5}), "input"))
    whole = store.fs.cat_file(store.path("p", "tar"))
    store.fs.pipe_file(store.path("p", "tar"), whole.replace(b"aaaa\0", b"aaab\0"))
    with pytest.raises(DamagedPart, match=r"aaaa\.alpha\.png is damaged"):
        pictures.read("aaaa", "alpha.png")
    store.fs.pipe_file(store.path("p", "tar"), whole)
    assert pictures.read("aaaa", "alpha.png") == b"aaaa"


def test_a_process_killed_before_the_last_write_leaves_no_part(tmp_path):
    """The Parquet file is the mark: kill -9 while it is being written, and the part is simply not there."""
    script = (
        "import sys, time, pipeline.core.parts as p\n"
        "from data_schemas.tables import verdict_schema\n"
        "store = p.PartStore(sys.argv[1], 'toy', 'f', verdict_schema('toy', 1, ()))\n"
        "real = p.os.fsync\n"
        "def slow(descriptor):\n"
        "    if 'parquet' in p.os.readlink(f'/proc/self/fd/{descriptor}'):\n"
        "        print('writing', flush=True); time.sleep(60)\n"
        "    real(descriptor)\n"
        "p.os.fsync = slow\n"
        "row = dict(sample_id='a', status='ok', error_code=None, error_message=None, model='m')\n"
        "store.commit('p', [row], {'a': {'x.png': b'1'}}, 'input', {'samples': {'a': 1.0}})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = PartStore(str(tmp_path), "toy", "f", verdict_schema("toy", 1, ()))
    assert os.path.exists(store.path("p", "tar"))
    assert store.read("p") is None


def test_the_tar_is_the_one_that_webdataset_writes():
    members = {"aaaa": {"target.png": b"x" * 700, "alpha.png": b"y"}, "bbbb": {"json": b"{}"}}
    own, theirs = io.BytesIO(), io.BytesIO()
    write_tar(own, members.items())
    with wds.TarWriter(theirs, encoder=False, mtime=0, user="instructar", group="instructar") as writer:
        for key, named in members.items():
            writer.write({"__key__": key, **named})
    assert own.getvalue() == theirs.getvalue()


def whole_part(tmp_path, scores):
    store = PartStore(str(tmp_path), "toy", "f", SCHEMA)
    return store, store.commit("p", rows(scores), files(scores), "input")


def test_a_tar_that_nobody_wrote_since_is_not_opened_again(tmp_path, monkeypatch):
    store, part = whole_part(tmp_path, {"aaaa": 1.5})
    os.chmod(store.path("p", "tar"), 0)
    monkeypatch.setattr(parts, "file_sha256", None)  # would be called to compare the content
    assert store.read("p", "input") == part


def test_a_note_about_another_tar_does_not_vouch_for_this_one(tmp_path, monkeypatch):
    """A commit over a part was killed after the new tar and its notes, so the Parquet file is still the old one."""
    store, _ = whole_part(tmp_path, {"aaaa": 1.5})
    real = parts.write_file

    def killed_at_the_parquet_file(fs, path, data):
        if path.endswith(".parquet"):
            raise KeyboardInterrupt
        real(fs, path, data)

    monkeypatch.setattr(parts, "write_file", killed_at_the_parquet_file)
    with pytest.raises(KeyboardInterrupt):
        store.commit("p", rows({"aaaa": -2.0}), files({"aaaa": -2.0}), "input")
    assert store.read("p") is None
    assert store.read("p", "input") is None


def test_a_part_whose_note_has_no_digest_is_hashed_once_and_read(tmp_path, monkeypatch):
    store, part = whole_part(tmp_path, {"aaaa": 1.5})
    status = os.stat(store.path("p", "tar"))
    earlier = {"samples": {"aaaa": 1.0}, "tar_seen": f"{status.st_size} {status.st_mtime_ns}"}
    (tmp_path / "toy" / "f" / "p.notes.json").write_text(json.dumps(earlier))
    assert store.read("p", "input") == part
    assert store.notes("p")["samples"] == {"aaaa": 1.0}
    assert store.notes("p")["tar_seen"] != earlier["tar_seen"]
    monkeypatch.setattr(parts, "file_sha256", None)
    assert store.read("p", "input") == part


def test_a_picture_is_read_without_the_others(tmp_path):
    scores = {"aaaa": 1.5, "bbbb": -2.0}
    store, part = whole_part(tmp_path, scores)
    path = store.path("p", "tar")
    start, size, _ = part.entries["bbbb"]["target.png"]
    content = bytearray(open(path, "rb").read())
    content[: start - 512], content[start + size :] = bytes(start - 512), bytes(len(content) - start - size)
    open(path, "wb").write(bytes(content))
    assert store.pictures("p", part).of("bbbb")["target.png"] == files(scores)["bbbb"]["target.png"]


def test_damage_that_leaves_the_entry_as_it_was_is_seen_where_a_picture_is_read(tmp_path):
    store, part = whole_part(tmp_path, {"aaaa": 1.5})
    path, start = store.path("p", "tar"), part.entries["aaaa"]["target.png"][0]
    entry = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(b"X")
    os.utime(path, ns=(entry.st_atime_ns, entry.st_mtime_ns))
    with pytest.raises(DamagedPart, match=r"p\.tar: aaaa\.target\.png is damaged"):
        store.pictures("p", part).of("aaaa")["target.png"]
    assert store.read("p") is None, "and the part is made again"


def test_what_a_killed_process_left_is_swept_once_it_is_old(tmp_path):
    old, new, folder = tmp_path / ".a.tar.1.tmp", tmp_path / ".b.tar.2.tmp", tmp_path / ".c.3.tmp"
    folder.mkdir()
    for path in (old, new, folder / "x.tar", tmp_path / "kept.tar"):
        path.write_text("")
    for path in (old, folder, tmp_path / "kept.tar"):
        os.utime(path, (1e9, 1e9))
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".b.tar.2.tmp", "kept.tar"]
