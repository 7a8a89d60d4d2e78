"""Folders of a pool that are links are read like any other, each once, and never in a circle."""

import os
from pathlib import Path

import pytest
from small.pools import CELLS, FILES, folder, listed, parquet

from data_schemas.errors import UserError
from pipeline.references.layouts import skipped, told
from pipeline.references.pools import PoolConfig

CAT, DAHLIA, PAGODA = FILES.values()


def linked(root: Path, files: dict[str, bytes], links: dict[str, str]) -> Path:
    """The folder ``pool``, beside which other files may be."""
    folder(root, files)
    for name, target in links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    return root / "pool"


def found(pool: Path, **settings) -> list[tuple[str, str]]:
    return [(source.category, source.source) for source in listed(pool, **settings)]


@pytest.mark.parametrize(
    ("files", "links", "expected"),
    [
        (("pool/cat/a", "pool/cup/a", "else/a"), {"pool/dog": "../else"}, ("cat/a", "cup/a", "dog/a")),
        (("pool/cat/a", "else/a"), {"pool/dog": "../else"}, ("cat/a", "dog/a")),
        (("x/a", "y/b/c"), {"pool/cat": "../x", "pool/dog": "../y"}, ("cat/a", "dog/b/c")),
        (("pool/.store/x/a", "pool/cat/a"), {"pool/dog": ".store/x"}, ("cat/a", "dog/a")),
        (("else/cat/a", "else/dog/a"), {"pool/all": "../else"}, ("all/cat/a", "all/dog/a")),
        (("pool/cat/a", "x/a", "y/b"), {"pool/dog": "../x", "x/more": "../y"}, ("cat/a", "dog/a", "dog/more/b")),
        (("pool/test/cat/a", "x/cat/b"), {"pool/train": "../x"}, ("train/cat/b",)),
    ],
)
def test_a_linked_folder_is_a_category_like_any_other(tmp_path, files, links, expected):
    pool = linked(tmp_path, {f"{name}.png": CAT for name in files}, links)
    assert [source for _, source in found(pool)] == [f"{name}.png" for name in expected]
    for category, source in found(pool):
        assert category in source.split("/"), "it is the link's name"
        assert category not in ("pool", "x", "y", "store", "else")
    assert skipped(PoolConfig(source=str(pool))) == {}


def test_masks_and_tables_may_lie_behind_links(tmp_path):
    pool = linked(tmp_path, {"pool/images/cat/a.png": CAT, "else/cat/a.png": DAHLIA}, {"pool/masks": "../else"})
    (source,) = listed(pool, image="images", mask="masks")
    assert (source.category, bool(source.mask_sha256)) == ("cat", True)
    parquet(tmp_path / "tables/a.parquet", {"image": CELLS})
    other = linked(tmp_path / "two", {}, {"pool/data": "../../tables"})
    assert [source.source for source in listed(other)] == [f"data/a.parquet#{k}" for k in range(3)]


@pytest.mark.parametrize(
    ("links", "left"),
    [
        ({"pool/cat/loop": ".."}, 1),
        ({"pool/cat/loop": "."}, 1),
        ({"pool/cat/up": "../.."}, 1),
        ({"pool/kitty": "cat", "pool/a": "cat/../dog"}, 2),
        ({"pool/dog/one": "../../else", "pool/dog/two": "../../else/."}, 1),
        ({"pool/dog/one": "../../else", "else/back": "../pool", "else/own": ".", "else/around": ".."}, 3),
    ],
)
def test_what_is_read_already_is_not_read_again_but_counted(tmp_path, links, left):
    files = {"pool/cat/a.png": CAT, "pool/dog/b.png": DAHLIA, "else/c.png": PAGODA}
    pool = linked(tmp_path, files, links)
    more = [("dog", "dog/one/c.png")] if "pool/dog/one" in links else []
    assert found(pool) == [("cat", "cat/a.png"), ("dog", "dog/b.png"), *more]
    assert skipped(PoolConfig(source=str(pool))) == {"link to a folder": left}
    assert f"  not read  files link to a folder {left}" in told(PoolConfig(source=str(pool)))[1]


@pytest.mark.parametrize(
    "links",
    [
        {"pool/again": "."},
        {"pool/x": "../b", "b/y": "../pool"},
        {"pool/x": "../b", "b/y": "../c", "c/z": "../b"},
    ],
)
def test_links_alone_in_their_folders_end_somewhere(tmp_path, links):
    (tmp_path / "pool").mkdir()
    with pytest.raises(UserError, match=r"holds no picture .*there is: link to a folder 1"):
        listed(linked(tmp_path, {}, links))


def test_a_linked_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    pool = linked(tmp_path, {"pool/cat/a.png": CAT, "else/b.png": DAHLIA}, {"pool/dog": "../else"})
    real = os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"pool/dog cannot be read \(Permission denied\); change its permissions"):
        listed(pool)
