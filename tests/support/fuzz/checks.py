"""``instructar models check`` on pools and relation LoRAs that cannot be read, and how the playground is started."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from tarfile import REGTYPE, SYMTYPE, TarInfo

from fuzz.good import make_pool
from fuzz.makers import Make, both, fifo, folder, link, literal, written
from fuzz.pools import encoded, half_parquet, parquet, parquet_bomb
from fuzz.runner import Case

CHECK = ("--profile", "embedded", "--config", "{here}/c.yaml")


def config(text: str) -> Make:
    """A settings file, in which HERE is the case's folder."""
    return lambda here: (here / "c.yaml").write_text(text.replace("HERE", str(here))) and None


POOL = config("references: {pool: HERE/pool}\n")


def archive(*members: tuple[str, bytes], name: str = "pool/a.zip") -> Make:
    def make(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(here / name, "w", zipfile.ZIP_DEFLATED) as file:
            for member, content in members:
                file.writestr(zipfile.ZipInfo(member), content, zipfile.ZIP_DEFLATED)

    return make


def tar(entry: TarInfo, linked: str = "", claimed: int = 0) -> Make:
    """pool/a.tar with one entry: a link, or one that claims so many bytes."""

    def make(here: Path) -> None:
        (here / "pool").mkdir(parents=True, exist_ok=True)
        entry.type, entry.linkname = (SYMTYPE, linked) if linked else (REGTYPE, "")
        entry.size = claimed
        with open(here / "pool/a.tar", "wb") as file:
            file.write(entry.tobuf() + bytes(10_240))

    return make


def _cut_archive(here: Path) -> None:
    archive(("cats/a.png", encoded("PNG")))(here)
    (here / "pool/a.zip").write_bytes((here / "pool/a.zip").read_bytes()[:-30])


def _moved(make: Callable[[Path], None]) -> Make:
    """p.parquet in the pool's folder."""

    def made(here: Path) -> None:
        make(here)
        (here / "pool").mkdir()
        (here / "p.parquet").rename(here / "pool" / "p.parquet")

    return made


_PICTURE = encoded("PNG")
_POOLS: dict[str, tuple[Make, str]] = {
    "missing": (lambda here: None, "no such folder"),
    "empty": (folder("pool"), "holds no picture"),
    "a file": (written("pool", "x"), "not a folder"),
    "a pipe": (fifo("pool"), "not a folder"),
    "archive of text": (written("pool/a.zip", "no zip"), "a.zip is no zip archive"),
    "archive cut": (_cut_archive, "a.zip is no zip archive"),
    "archive a pipe": (fifo("pool/a.zip"), "a.zip"),
    "archive a device": (link("pool/a.zip", "/dev/zero"), "a.zip"),
    "archive a link to itself": (link("pool/a.zip", "a.zip"), "a.zip"),
    "archive of nothing": (archive(), "holds no picture"),
    "archive of an absolute path": (archive(("/tmp/executed", b"x")), "holds no picture"),
    "archive up": (archive(("../../executed", b"x"), ("../up.txt", b"x")), "leaves the archive"),
    "archive of some up": (archive(("../../a.png", _PICTURE), ("cats/a.png", _PICTURE)), "leaves the archive"),
    "two archives": (both(archive(), archive(name="pool/b.zip")), "holds no picture"),
    "two archives of one name": (
        both(archive(("a.png", _PICTURE)), archive(("a.png", _PICTURE), name="pool/b.zip")), "each holds a.png"),
    "tar of text": (written("pool/a.tar", "no tar"), "a.tar"),
    "tar a pipe": (fifo("pool/a.tar"), "a.tar"),
    "tar a device": (link("pool/a.tar", "/dev/zero"), "a.tar"),
    "tar of a link": (tar(TarInfo("a.png"), linked="/etc/passwd"), "is a link"),
    "tar up": (tar(TarInfo("../../executed")), "leaves the archive"),
    "tar of an escape": (tar(TarInfo("a\x1b[31mb/../../x.png")), "leaves the archive"),
    "tar of gigabytes": (tar(TarInfo("a.png"), claimed=1 << 40), "more than the limit"),
    "Parquet of no picture": (parquet("pool/p.parquet", {"category": ["a"]}), "no column holds pictures"),
    "Parquet half": (_moved(half_parquet), "p.parquet"),
    "Parquet a pipe": (fifo("pool/p.parquet"), "p.parquet"),
    "Parquet of an escape": (parquet("pool/p.parquet", {"a\x1b[31mb": ["a"]}), "no column holds pictures"),
    "texts": (both(written("pool/a.txt", "x"), written("pool/b.md", "x")), "holds no picture"),
    "a suffix of an escape": (written("pool/a.\x1b[31m", "x"), "holds no picture"),
    "a suffix of a newline": (written("pool/a.\nerror: x", "x"), "holds no picture"),
}  # fmt: skip
_FINE: dict[str, tuple[Make, str]] = {
    "archive bomb": (archive(("cats/a.png", bytes(300_000_000)), ("dogs/b.png", _PICTURE)), "2 pictures in zip"),
    "archive of an escape": (archive(("a\x1b[31mb/a.png", _PICTURE), ("c/x.\x1b[31m", b"")), "1 picture in zip"),
    "Parquet bomb": (_moved(parquet_bomb), "1000 rows"),
    "category of an escape": (
        both(written("pool/a\x1b[31mb/a.png", _PICTURE), written("pool/c/a.png", _PICTURE)), "2 pictures in"),
    "suffix of an escape beside": (
        both(written("pool/cats/a.png", _PICTURE), written("pool/cats/a.\x1b[31m", "x")), "1 picture in"),
}  # fmt: skip
_pools = [
    Case(f"check pool {name}", "instructar models check", CHECK, said, both(POOL, make), codes=(1,))
    for name, (make, said) in _POOLS.items()
]
_pools += [
    Case(f"check pool {name}", "instructar models check", CHECK, said, both(POOL, make), codes=(0,))
    for name, (make, said) in _FINE.items()
]
_pools += [
    Case(f"curate pool {name}", "instructar curate", ("--root", "{here}/runs", "--pool", "{here}/pool"), said, make)
    for name, (make, said) in {
        "archive a pipe": (fifo("pool/a.zip"), "a.zip"),
        "archive a device": (link("pool/a.zip", "/dev/zero"), "a.zip"),
        "archive bomb": (archive(("cats/a.png", bytes(300_000_000)), ("dogs/b.png", bytes(300_000_000))), "pool"),
        "archive up": (archive(("../../executed", b"x"), ("../up.txt", b"x")), "leaves the archive"),
        "suffix of an escape": (written("pool/a.\x1b[31m", "x"), "holds no picture"),
    }.items()
]
_PLACES = {"absolute": "/", "up": "../..", "none": "none", "a file": "cats/cats-0.png"}
_pools += [
    Case(f"{command} pool part {part} {name}", f"instructar {command}",
         (*(("--root", "{here}/runs") if command == "curate" else CHECK[:2]), "--set",
          literal("references.pool=[{source: HERE, " + f"{part}: '{place}'" + "}]").replace("HERE", "{here}/pool")),
         "pool", lambda here: make_pool(here / "pool") and None, codes=(0, 1, 2))
    for command in ("curate", "models check")
    for part in ("image", "mask")
    for name, place in _PLACES.items()
    if (part, name) != ("image", "absolute")
]  # fmt: skip

LORAS = config("synthesis: {backend: dreamrelation, lora_source: HERE/loras}\n")
_LORAS: dict[str, tuple[Make, str]] = {
    "missing": (lambda here: None, "loras: no such folder"),
    "a file": (written("loras", "x"), "none"),
    "a pipe": (fifo("loras"), "loras: no such folder"),
    "empty": (folder("loras"), "none"),
    "two for one": (both(written("loras/hug-1.safetensors", "x"), written("loras/hugs.safetensors", "x")), "several"),
    "no safetensors": (both(written("loras/hug.safetensors", "x"), written("loras/kiss.bin", "x")), "here"),
    "pipe in it": (fifo("loras/hug.safetensors"), "hug.safetensors"),
    "link to itself": (link("loras/hug.safetensors", "hug.safetensors"), "hug"),
    "an escape": (written("loras/hug\x1b[31m.safetensors", "x"), "hug"),
    "a newline": (written("loras/x\nerror: y.safetensors", "x"), "of no relation"),
}
_loras = [
    Case(f"check loras {name}", "instructar models check", ("--profile", "paper", "--config", "{here}/c.yaml"), said,
         both(LORAS, make), codes=(1,))
    for name, (make, said) in _LORAS.items()
]  # fmt: skip

_PLAY: dict[str, tuple[tuple[str, ...], str]] = {
    "no model": (("--model", "{here}/none"), "--model"),
    "a model of nothing": (("--model", ""), "--model"),
    "a device for a model": (("--model", "/dev/zero"), "--model"),
    "an escape for a model": (("--model", "a\x1b[31mb"), "--model"),
    "a newline for a model": (("--model", "a\nb"), "--model"),
    "an over-long model": (("--model", "x" * 5000), "--model"),
    "port": (("--port", "99999"), "--port"),
    "port of letters": (("--port", "x"), "--port"),
    "device": (("--device", "gpu"), "--device"),
    "device of nothing": (("--device", ""), "--device"),
    "device of an escape": (("--device", "cuda:\x1b[31m"), "--device"),
    "device not here": (("--device", "cuda:" + "9" * 30), "--device"),
    "no shards": (("--shards", "{here}/none-*.tar"), "none-"),
    "shards of nothing": (("--shards", ""), "shard"),
    "a folder for shards": (("--shards", "{here}"), "is a folder"),
    "a device for shards": (("--shards", "/dev/zero"), "/dev/zero"),
    "shards that do not parse": (("--shards", "[" * 500), "--shards|no shard"),
}
_play = [
    Case(f"playground {name}", "playground", (*arguments, "--out", "{here}/o"), said, clean=True)
    for name, (arguments, said) in _PLAY.items()
]

CASES = [*_pools, *_loras, *_play]
