"""The border between the two halves: what is written is what is read, and damage is named."""

import io
import tarfile

import numpy as np
import pytest
from packed import pack_tar
from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.shards import ShardSample, decode_sample, encode_sample, expand_shards, read_shard


def picture(mode: str, seed: int) -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, *channels), dtype=np.uint8), mode)


def sample(references: int = 2) -> ShardSample:
    rgba = [picture("RGBA", i) for i in range(references)]
    return ShardSample(
        "abc123", [pictures.on_white(p) for p in rgba], rgba, picture("RGB", 10), picture("RGBA", 11),
        picture("RGB", 12), picture("L", 13), "a cat hugs a cup", {"boxes": [[0, 0, 1, 1]]},
    )  # fmt: skip


@pytest.mark.parametrize("references", [1, 2, 3])
def test_a_sample_comes_back_pixel_for_pixel(tmp_path, references):
    before = sample(references)
    (tmp_path / "s.tar").write_bytes(pack_tar({"abc123": encode_sample(before)}))
    (after,) = read_shard(str(tmp_path / "s.tar"))
    assert after.prompt == before.prompt
    assert after.info == {**before.info, "schema_version": 1}
    pairs = [*zip(before.references, after.references, strict=True),
             *zip(before.references_rgba, after.references_rgba, strict=True)]  # fmt: skip
    pairs += [(getattr(before, n), getattr(after, n)) for n in ("background", "foreground", "target", "alpha")]
    for old, new in pairs:
        assert old.mode == new.mode
        assert np.array_equal(np.asarray(old), np.asarray(new))


def test_the_same_sample_gives_the_same_bytes():
    assert pack_tar({"a": encode_sample(sample())}) == pack_tar({"a": encode_sample(sample())})


@pytest.mark.parametrize("keep", [0.1, 0.4, 0.6])
def test_a_shard_cut_short_is_named(tmp_path, keep):
    data = pack_tar({"a": encode_sample(sample()), "b": encode_sample(sample())})
    path = tmp_path / "train-00000.tar"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match=r"train-00000\.tar: the tar is cut short or damaged"):
        list(read_shard(str(path)))


def test_a_shard_cut_exactly_between_two_members_is_seen(tmp_path):
    data = pack_tar({"a": encode_sample(sample()), "b": encode_sample(sample())})
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        second = next(m for m in tar if m.name.startswith("b."))
    path = tmp_path / "cut.tar"
    path.write_bytes(data[: second.offset])
    with pytest.raises(UserError, match="cut short"):
        list(read_shard(str(path)))


def test_a_missing_member_and_a_broken_picture_are_named():
    members = encode_sample(sample())
    with pytest.raises(UserError, match=r"s\.tar: sample a: member 'target\.png' is missing"):
        decode_sample("a", {k: v for k, v in members.items() if k != "target.png"}, "s.tar")
    with pytest.raises(UserError, match=r"member 'alpha\.png': not a readable picture"):
        decode_sample("a", {**members, "alpha.png": b"no picture"}, "s.tar")


def test_no_shard_is_an_error_that_shows_a_glob(tmp_path):
    with pytest.raises(UserError, match="no shard matches"):
        expand_shards(str(tmp_path / "*.tar"))


def test_a_bomb_is_refused_before_its_pixels_are_decoded():
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 200_000
    with pytest.raises(UserError, match=r"bomb\.png: .*pixels"):
        pictures.decode(buffer.getvalue(), "bomb.png")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_picture_is_named(data):
    with pytest.raises(UserError, match=r"fake\.png: not a readable picture"):
        pictures.decode(data, "fake.png")


def test_hidden_colours_under_transparent_pixels_do_not_show():
    hidden = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert pictures.on_white(hidden).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "info", [b"[" * 20_000, b'{"a": ' + b"9" * 5000 + b"}", b'{"a": NaN}', b"\xff", b"[]", b'{"schema_version": 7}']
)
def test_what_a_sample_says_of_itself_is_read_within_bounds(info):
    with pytest.raises(UserError, match=r"s\.tar: sample a: ") as told:
        decode_sample("a", encode_sample(sample()) | {"json": info}, "s.tar")
    assert "\n" not in str(told.value)
