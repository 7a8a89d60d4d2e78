"""Options of ``tokenar-import``, and ``tokenar-export`` of what cannot be exported or written."""

from __future__ import annotations

from pathlib import Path

from fuzz.makers import both, fifo, folder, written
from fuzz.published.made import SAMPLE, SHAPED, VQ, saved, weights
from fuzz.runner import Case
from fuzz.trained import config, model

_GOOD = ("{published}/net.pt", *VQ, "--out", "{here}/o")
_there = both(written("o/config.json", "{}"), written("o/mine.txt", "x"))
_options = [
    Case("checkpoint preset", "import", (*_GOOD, "--preset", "relased"), "did you mean released", clean=True),
    Case("checkpoint preset of nothing", "import", (*_GOOD, "--preset", ""), "preset", clean=True),
    Case("checkpoint out there", "import", _GOOD, "there is a model already", _there, clean=True),
    Case("checkpoint out a file", "import", _GOOD, "{here}/o", written("o", "x"), clean=True),
    Case("checkpoint out below a device", "import", (*_GOOD[:-1], "/dev/null/x"), "/dev/null", clean=True),
    Case("checkpoint out over-long", "import", (*_GOOD[:-1], "{here}/" + "x" * 300), "File name too long", clean=True),
    Case("checkpoint out an address", "import", (*_GOOD[:-1], "s3://b/x"), "s3://b/x", clean=True),
    Case("checkpoint without a tokenizer", "import", ("{published}/net.pt", "--out", "{here}/o"), "--tokenizer",
         clean=True),
    Case("sample without a tokenizer", "sample", ("--model", "{published}/net.pt", *SAMPLE[4:]), "--tokenizer",
         clean=True),
    Case("sample t5 of a folder", "sample", ("--model", "{model}", "--t5", "x", *SAMPLE[4:]), "--t5", clean=True),
    Case("checkpoint t5 missing", "sample", (*SAMPLE, "--t5", "{here}/none"), "none",
         saved(lambda content: content), clean=True),
    Case("checkpoint of nothing", "import", ("", *_GOOD[1:]), "not a file", clean=True),
    *(Case(f"checkpoint set {text[:20]}", "import", (*SHAPED, "--set", text), said, weights(lambda held: None),
           clean=True)
      for text, said in {
          "heads": "--set heads", "=3": "--set", "heads=0": "heads", "heads=-2": "heads", "heads=x": "heads",
          "heads=3": "heads", "heads=1e9": "heads", "grid=0": "grid", "grid=-5": "grid",
          "grid=100000": "grid", "grid=[1]": "grid", "grid=" + "9" * 60: "grid",
          "layers=9": "bad.pt", "width=-1": "width",
          "colour=red": "colour", "model.layers=3": "layers", "feed_forward_multiple=0": "feed_forward_multiple",
          "a\x1b[31mb=3": "no such setting", "max_references=0": "bad.pt", "vocabulary=2": "bad.pt",
      }.items()),
]  # fmt: skip

_EXPORT = ("--out", "{here}/o.pt")
_copy = model(lambda own: None)
_exports = [
    Case(f"export model {name}", "export", ("--model", "{here}/model", *_EXPORT), said, make, clean=True)
    for name, (make, said) in {
        "missing": (lambda here: None, "{here}/model"), "empty": (folder("model"), "{here}/model"),
        "a file": (written("model", "x"), "{here}/model"), "a pipe": (fifo("model"), "{here}/model"),
        "of no published form": (config(model__tied_output=True), "tied_output"),
        "of another format": (config(format=99), "config.json"),
        "of more layers": (config(model__layers=2), "model"),
        "of absurd layers": (config(model__layers=10**9), "config.json"),
    }.items()
]  # fmt: skip
_exports += [
    Case(f"export out {name}", "export", ("--model", "{here}/model", "--out", out, *more), said, _copy, clean=True)
    for name, out, more, said in (
        ("a folder", "{here}/model", (), ".pt"), ("of another kind", "{here}/o.safetensors", (), ".pt"),
        ("of nothing", "", (), ".pt"), ("below a device", "/dev/null/o.pt", (), "/dev/null"),
        ("over-long", "{here}/" + "x" * 300 + ".pt", (), "File name too long"),
        ("below a file", "{here}/model/config.json/o.pt", (), "config.json"),
        ("and a tokenizer that is no VQ", "{here}/o.pt", ("--tokenizer", "{here}/v.pt"), "no VQ network"),
    )
]  # fmt: skip


def imported(here: Path) -> None:
    """The model folder of the good checkpoint."""
    from tokenar.model.checkpoints import Checkpoint
    from tokenar.model.folder import import_checkpoint

    place = here.parents[1] / "good" / "published"
    import_checkpoint(Checkpoint(place / "net.pt", place / "vq.pt"), here / "model")


_exports += [
    Case(f"export tokenizer {name}", "export", ("--model", "{here}/model", *_EXPORT, "--tokenizer", path), said,
         imported, clean=True)
    for name, path, said in (
        ("to the same file", "{here}/o.pt", "--tokenizer"),
        ("to the same file elsewhere", "{here}/./o.pt", "--tokenizer"),
        ("below a device", "/dev/null/v.pt", "/dev/null"), ("a folder", "{here}/model", ".pt"),
        ("over-long", "{here}/" + "x" * 300 + ".pt", "File name too long"),
    )
]  # fmt: skip
_exports += [
    Case("export to a missing folder", "export", ("--model", "{here}/model", "--out", "{here}/a/b/o.pt"), "o.pt",
         imported, codes=(0,)),
    Case("export over a file", "export", ("--model", "{here}/model", *_EXPORT), "o.pt",
         both(imported, written("o.pt", "x")), codes=(0,)),
]  # fmt: skip

CASES = [*_options, *_exports]
