"""Every kind of picture comes out as one sees it, and what claims too much is refused before it is decoded."""

import io
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hostile import jpeg_with_exif, raw_png, tag_bomb
from PIL import Image, features

from data_schemas.errors import UserError
from data_schemas.io import pictures

RAMP = np.linspace(0, 255, 64 * 8).reshape(8, 64).round().astype(np.uint8)


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def refused(data: bytes) -> str:
    with pytest.raises(UserError) as told:
        pictures.decode(data, "x.png")
    message = str(told.value)
    assert message.startswith("x.png: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "stored",
    [
        Image.fromarray(RAMP.astype(np.uint16) * 257),
        Image.fromarray(RAMP.astype(np.int32) * 257),
        Image.frombytes("I;16B", (64, 8), (RAMP.astype(">u2") * 257).tobytes()),
        Image.fromarray((RAMP / 255).astype(np.float32)),
    ],
    ids=["I;16", "I", "I;16B", "F"],
)
def test_grey_of_any_depth_is_its_8_bit_twin(stored):
    decoded = pictures.decode(saved(stored, "TIFF"), "x")
    assert decoded.mode == "L"
    assert np.array_equal(np.asarray(decoded), RAMP)


def test_16_bit_grey_is_rounded_not_cut():
    values = np.array([[0, 128, 129, 65406, 65407, 65535]], np.uint16)
    decoded = np.asarray(pictures.decode(saved(Image.fromarray(values), "PNG"), "x"))
    assert decoded.tolist() == [[0, 0, 1, 254, 255, 255]]


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (Image.fromarray(np.full((4, 4), 70_000, np.int32)), "grey values outside 0 to 65535"),
        (Image.fromarray(np.full((4, 4), 2.5, np.float32)), "not between 0 and 1"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "not between 0 and 1"),
        (Image.new("LAB", (4, 4)), "its colours are Lab; save it as RGB"),
    ],
)
def test_values_that_mean_no_known_light_are_refused(picture, words):
    assert words in refused(saved(picture, "TIFF"))


KEYS = [
    (1, 0, b"\0\x40", 1), (2, 0, b"\0\x30", 3), (4, 0, b"\0\x0f", 15), (8, 0, b"\0\x00\xff", 255),
    (16, 0, b"\0\x00\x00\xff\xff", 65535), (8, 2, b"\0\0\0\0\xff\xff\xff", 255),
    (16, 2, b"\0" + bytes(6) + b"\xff" * 6, 65535),
]  # fmt: skip


@pytest.mark.parametrize(("bits", "colour", "rows", "high"), KEYS)
def test_a_colour_key_is_transparent_at_every_depth(bits, colour, rows, high):
    """Two pixels, black and white; either is the key."""
    for key, alphas in ((0, [0, 255]), (high, [255, 0])):
        chunk = struct.pack(">H", key) * (3 if colour == 2 else 1)
        decoded = pictures.decode(raw_png(2, 1, bits, colour, rows, (b"tRNS", chunk)), "x")
        assert decoded.mode == "RGBA"
        assert np.asarray(decoded)[0].tolist() == [[0, 0, 0, alphas[0]], [255, 255, 255, alphas[1]]]


def test_transparency_of_palettes_and_gifs():
    cutout = Image.new("RGBA", (8, 8), (200, 30, 30, 255))
    cutout.paste((0, 0, 0, 0), (0, 0, 4, 4))
    for data in (saved(cutout.quantize(), "PNG"), saved(cutout, "GIF"), saved(cutout.convert("LA"), "PNG")):
        alpha = np.asarray(pictures.decode(data, "x").getchannel("A"))
        assert alpha[0, 0] == 0
        assert alpha[7, 7] == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_exif_orientation_is_honoured(kind):
    """A red quarter at the top left of an upright picture, stored as a camera that was turned stores it."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    upright = Image.new("RGB", (48, 24), "blue")
    upright.paste("red", (0, 0, 24, 12))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that undoes the camera's
    for orientation in range(1, 9):
        stored = upright if orientation == 1 else upright.transpose(Image.Transpose(back[orientation]))
        exif = Image.Exif()
        exif[0x0112] = orientation
        decoded = pictures.decode(saved(stored, kind, exif=exif), "x").convert("RGB")
        assert decoded.size == (48, 24), orientation
        off = np.abs(np.asarray(decoded, int) - np.asarray(upright, int))[4:8, 4:20]
        assert off.max() < 40, orientation


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    decoded = pictures.decode(saved(frames[0], kind, save_all=True, append_images=frames[1:]), "x")
    assert decoded.convert("RGB").getpixel((4, 4)) in [(255, 0, 0), (255, 1, 0)]


def test_print_colours_become_rgb():
    decoded = pictures.decode(saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"), "x")
    assert (decoded.mode, decoded.getpixel((4, 4))) == ("RGB", (0, 255, 255))


def test_kinds_that_are_not_listed_are_not_opened():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert "none of AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP" in refused(postscript)
    assert "none of AVIF" in refused(saved(Image.new("RGB", (8, 8)), "PCX"))
    assert "it is empty" in refused(b"")


def test_every_suffix_is_one_that_is_read():
    kinds = Image.registered_extensions()
    assert {kinds[suffix] for suffix in pictures.SUFFIXES} == set(pictures.FORMATS)


BOMBS = {
    "tags of a TIFF": tag_bomb(3000, 100_000),
    "tags of a JPEG": jpeg_with_exif(tag_bomb(3000, 1_000_000)),
    "tags of a PNG": raw_png(1, 1, 8, 0, b"\0\0", (b"eXIf", tag_bomb(3000, 100_000))),
    "tags of a WebP": saved(Image.new("RGB", (8, 8)), "WEBP", exif=tag_bomb(3000, 100_000)),
    "text of a PNG": raw_png(1, 1, 8, 0, b"\0\0", (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))),
    "profile of a PNG": raw_png(1, 1, 8, 0, b"\0\0", (b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8)))),
    "pixels of a GIF": b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(3),
}


def test_bombs_are_refused_in_little_memory():
    """In a process of its own, that memory is this decoder's: 64 MB above what it starts with."""
    code = (
        "import pickle, resource, sys\n"
        "from data_schemas.errors import UserError; from data_schemas.io import pictures\n"
        "bombs = pickle.load(sys.stdin.buffer)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for name, data in bombs.items():\n"
        "    try: print(name, '|', pictures.decode(data, 'x').size)\n"
        "    except UserError as error: print(name, '|', error)\n"
        "print('grew', '|', peak() - before)\n"
    )
    pickled = pickle.dumps(BOMBS)
    done = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, timeout=60, check=True)
    told = dict(line.split(" | ") for line in done.stdout.decode().splitlines())
    assert int(told.pop("grew")) < 64_000, told
    assert all(message.startswith("x: ") for message in told.values()), told
    for kind in ("a TIFF", "a JPEG", "a PNG", "a WebP"):
        assert "its tags claim more than it holds" in told[f"tags of {kind}"]


@pytest.mark.parametrize("bytes_by_chance", [b"II+\0" + bytes(4) + b"\xff" * 8, tag_bomb(3, 10**6)[:60]])
def test_pixels_that_look_like_the_start_of_tags_are_pixels(bytes_by_chance):
    """Compressed pixels hold any bytes by chance; here uncompressed ones do on purpose."""
    pixels = np.frombuffer(bytes_by_chance, np.uint8)[None]
    data = raw_png(pixels.size, 1, 8, 0, b"\0" + bytes_by_chance, level=0)
    assert bytes_by_chance in data
    assert np.array_equal(np.asarray(pictures.decode(data, "x")), pixels)


def test_a_large_honest_exif_is_read():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a long story " * 2000
    data = jpeg_with_exif(exif.tobytes().removeprefix(b"Exif\0\0"), Image.new("RGB", (40, 20)))
    assert pictures.decode(data, "x").size == (20, 40)


def test_what_is_said_of_a_broken_picture_is_the_same_in_every_process():
    good = saved(Image.fromarray(RAMP), "PNG")
    broken = [b"", b"no picture", good[:60], good[:30] + bytes(30) + good[60:], b"\xff\xd8\xff\xe0" + bytes(50)]
    for data in broken:
        assert "0x" not in refused(data)
        assert refused(data) == refused(data)
