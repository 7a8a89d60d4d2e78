"""Options of every command: numbers out of bounds or infinite, names, paths, addresses."""

from __future__ import annotations

from fuzz.makers import fifo, folder, link, literal, written
from fuzz.runner import Case

TRAIN = ("--config", "{config}", "--out")
SAMPLE = EVAL = ATTENTION = ("--model", "{model}", "--out", "{here}/o", "--shards", "{shards}")
ROOT = ("--root", "{here}/runs")
CURATE = "instructar curate"
ENCODE = ("--shards", "{shards}", "--out", "{here}/o", "--vq")
FROM_SHARDS = ("--model", "{model}", "--out", "{here}/o", "--shards")

_NUMBERS: dict[str, tuple[tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "train": (("--shards", "{train}", "--out", "{here}/run"), {
        "--lr": ("inf", "nan", "-1", "0", "1e300", "x"), "--steps": ("0", "-1", "9" * 30),

        "--batch": ("0", "1" + "0" * 9), "--seed": ("-1", str(2**63), str(2**64)),
        "--log-every": ("0",), "--save-every": ("0",), "--seeds": ("0",),
        "--instruct-tokens": ("-1", "1" + "0" * 9),
    }),
    "sample": (SAMPLE, {
        "--temperature": ("inf", "nan", "-1"), "--guidance": ("inf", "nan", "-1", "1e30"), "--image-guidance": ("inf",),
        "--top-k": ("-1", "9" * 30), "--top-p": ("0", "nan", "2"), "--batch": ("0", "1" + "0" * 9),
        "--seed": ("-1", str(2**63)), "--seeds": ("0", "1" + "0" * 9), "--limit": ("0", "9" * 30),
    }),
    "eval": (EVAL, {"--temperature": ("inf",), "--top-p": ("nan",), "--seed": (str(2**63),), "--limit": ("0",)}),
    "attention": (ATTENTION, {"--layers": ("x", "99", "-99", "9" * 30, "", "9" * 5000), "--limit": ("0",)}),
    "encode": ((*ENCODE, "{here}/vq.pt"), {
        "--image-size": ("0", "1" + "0" * 9), "--batch": ("0",), "--vq-batch": ("-1",)}),
    CURATE: (ROOT, {"--samples": ("0", "-1", "9" * 30, "x", "1.5")}),
    "instructar calibrate": ((*ROOT, "--stage", "identity"), {"--floor-samples": ("-1", "1" + "0" * 9)}),
    "quickstart": (ROOT, {"--samples": ("0", "x", "nan", "9" * 30), "--steps": ("0", "-1", "9" * 30, "x")}),
}  # fmt: skip
_numbers = [
    Case(f"{command} {option} {value[:12]} of {len(value)}", command, (*more, option, value),
         f"{option}|{option.lstrip('-').replace('-', '_')}")
    for command, (more, options) in _NUMBERS.items()
    for option, values in options.items()
    for value in values
]  # fmt: skip

_SETTINGS = {
    "layers": ("model.layers=1000000000", "model.layers"),
    "size": ("model={layers: 1000}", "model"),
    "betas": ("betas=[9,9]", "betas"),
    "betas nan": ("betas=[NaN,0.9]", "betas"),
    "variations": ("variations=1000000000", "variations"),
    "digits": ("steps=" + "9" * 5000, "steps"),
    "deep": ("model=" + "[" * 50_000, "model"),
    "infinity": ("clip=Infinity", "clip"),
    "not there": ("model.layer=3", "did you mean layers"),
    "no part": ("modl.layers=3", "modl"),
    "no name": ("=3", "--set"),
    "no value": ("ema", "--set"),
    "config": ("config=3", "config: no such setting"),
    "empty": ("model.=3", "model"),
    "teacher": ("teacher.model=x", "teacher"),
    "grid": ("model.grid=100000", "model.grid"),
    "fits not": ("model.width=13", "width"),
}
_settings = [
    Case(f"train set {name}", "train", ("--config", "{config}", "--set", literal(text)), told)
    for name, (text, told) in _SETTINGS.items()
]  # fmt: skip
_PRODUCT = ("--preset", "tokenar_xl", "--shards", "x", "--set", "model.layers=1000", "--set", "model.width=4160")
_settings += [
    Case("train too many parameters", "train", (*_PRODUCT, "--set", "model.heads=20"), "billion parameters"),
    Case("train too long", "train", (*_PRODUCT[:4], "--set", "model.grid=256"), "tokens a sample"),
    Case("train preset", "train", ("--preset", "cpu_smal", "--shards", "x"), "did you mean cpu_small"),
    Case("train sweep", "train", ("--sweep", "ablations", "--shards", "x"), "did you mean ablation"),
    Case("train no shards", "train", (), "--shards"),
    Case("train resume and overwrite", "train", (*TRAIN, "{here}/r", "--resume", "--overwrite"), "exclude each other"),
    Case("train resume nothing", "train", (*TRAIN, "{here}/r", "--resume"), "{here}/r"),
    Case("train precision", "train", (*TRAIN, "{here}/r", "--precision", "float8"), "precision"),
    Case("train start from nothing", "train", (*TRAIN, "{here}/r", "--start-from", "{here}/none.pt"), "none.pt"),
    Case("train start from a device", "train", (*TRAIN, "{here}/r", "--start-from", "/dev/zero"), "/dev/zero"),
    Case("sample two sources", "sample", (*SAMPLE, "--folder", "{request}"), "give one of"),
    Case("sample copies", "sample", (*SAMPLE, "--copies", "all"), "copies"),
    Case("sample set", "sample", (*SAMPLE, "--set", "guided_token=3"), "did you mean guided_tokens"),
    Case("eval encoders", "eval", (*EVAL, "--encoders", "papr"), "did you mean paper"),
    Case("eval lpips device", "eval", (*EVAL, "--set", "lpips=/dev/zero"), "/dev/zero"),
    Case("eval name", "eval", (*EVAL, "--predictions", "../x={request}"), "../x"),
    Case("eval nothing", "eval", ("--shards", "{shards}", "--out", "{here}/o"), "nothing to evaluate"),
    Case("encode missing", "encode", ("--shards", "x"), "--out"),
    Case("encode config and options", "encode", ("--config", "x", "--shards", "x"), "exclude each other"),
    Case("encode vq missing", "encode", (*ENCODE, "{here}/none.pt"), "none.pt"),
    Case("encode vq pipe", "encode", (*ENCODE, "{here}/p"), "{here}/p", fifo("p")),
    Case("encode vq device", "encode", (*ENCODE, "/dev/zero"), "/dev/zero"),
    Case("quickstart option", "quickstart", ("--sampels", "3"), "--sampels"),
]  # fmt: skip

_OUTS = {
    "a file": ("{here}/file", written("file", "x"), "{here}/file"),
    "below a device": ("/dev/null/x", lambda here: None, "/dev/null"),
    "over-long": ("{here}/" + "x" * 5000, lambda here: None, "File name too long|no finished curation"),
    "not UTF-8": ("{here}/a\udcffb", lambda here: None, "not UTF-8"),
}
_outs = [
    Case(f"{command} out {name}", command, (*more, out), told, make)
    for name, (out, make, told) in _OUTS.items()
    for command, more in (
        ("train", TRAIN),
        ("sample", ("--model", "{model}", "--shards", "{shards}", "--limit", "1", "--out")),
        ("eval", ("--model", "{model}", "--shards", "{shards}", "--limit", "1", "--out")),
        ("attention", ("--model", "{model}", "--shards", "{shards}", "--limit", "1", "--out")),
        (CURATE, ("--pool", "{pool}", "--samples", "2", "--set", "planning.test_share=0", "--root")),
        ("instructar report", ("--root",)),
        ("quickstart", ("--samples", "2", "--root")),
    )
    if not (command == "quickstart" and name in ("a file", "below a device", "over-long"))  # the flow has begun then
]

_NAMES = {
    "up": ("../up", "name"), "empty": ("", "name"), "slash": ("a/b", "name"), "hidden": (".x", "name"),
    "over-long": ("x" * 5000, "name"), "escape": ("a\x1b[31mb", "name"), "bell": ("a\x07b", "name"),
    "not UTF-8": ("a\udcffb", "not UTF-8"), "line": ("a\nb", "name"), "right to left": ("a\u202eb", "name"),
}  # fmt: skip
_names = [Case(f"name {what}", CURATE, (*ROOT, "--name", name), told) for what, (name, told) in _NAMES.items()]
_names += [
    Case("profile", CURATE, (*ROOT, "--profile", "papr"), "did you mean paper"),
    Case("profile up", CURATE, (*ROOT, "--profile", "../profiles/embedded"), "profile"),
    Case("profile up in models", "instructar models fetch", ("--profile", "../profiles/embedded"), "profile"),
    Case("rerun unknown", "instructar rerun", ("synthesi", *ROOT, "--pool", "{pool}"), "did you mean synthesis"),
    Case("rerun up", "instructar rerun", ("../synthesis", *ROOT, "--pool", "{pool}"), "../synthesis"),
    Case("rerun escape", "instructar rerun", ("a\x1b]0;x\x07", *ROOT, "--pool", "{pool}"), "does not exist"),
    Case("calibrate unknown", "instructar calibrate", ("--stage", "identiy", *ROOT, "--pool", "{pool}"),
         "did you mean identity"),
    Case("report nothing", "instructar report", (*ROOT, "--pool", "{pool}"), "run it first"),
    Case("unknown option", CURATE, ("--sampels", "3"), "--sampels"),
    Case("unknown command", "instructar", ("curte",), "curte"),
    Case("unknown command beside", "train", ("x",), "x"),
    Case("pool missing", CURATE, (*ROOT, "--pool", "{here}/my #1 photos"), "{here}/my #1 photos"),
    Case("pool number", CURATE, (*ROOT, "--pool", "007"), "references.pool 007"),
    Case("pool yes", CURATE, (*ROOT, "--pool", "yes"), "references.pool yes"),
    Case("pool empty", CURATE, (*ROOT, "--pool", ""), "references.pool"),
    Case("pool pipe", CURATE, (*ROOT, "--pool", "{here}/p"), "{here}/p", fifo("p")),
    Case("pool parquet pipe", CURATE, (*ROOT, "--pool", "{here}/p.parquet"), "{here}/p.parquet", fifo("p.parquet")),
    Case("pool device", CURATE, (*ROOT, "--pool", "/dev/zero"), "/dev/zero"),
    Case("pool over-long", CURATE, (*ROOT, "--pool", "x" * 5000), "File name too long|xxx"),
    Case("pool not UTF-8", CURATE, (*ROOT, "--pool", "a\udcffb"), "not UTF-8"),
    Case("pool of the hub", CURATE, (*ROOT, "--pool", "hf:../../x"), "hf:../../x"),
    Case("pool link to itself", CURATE, (*ROOT, "--pool", "{here}/l"), "{here}/l", link("l", "l")),
    Case("pool empty folder", CURATE, (*ROOT, "--pool", "{here}/e"), "{here}/e", folder("e")),
]  # fmt: skip

_URLS = {
    "root unknown": (CURATE, ("--root", "foo://x"), "foo"),
    "root unknown in report": ("instructar report", ("--root", "foo://x"), "foo"),
    "root without credentials": (CURATE, ("--root", "s3://no-such-bucket/x", "--pool", "{pool}"), "credentials"),
    "root empty": (CURATE, ("--root", ""), "root"),
    "root with a password": (CURATE, ("--root", "foo://me:hunter2@x"), "foo"),
    "quickstart root unknown": ("quickstart", ("--root", "foo://x"), "foo"),
    "train shards unknown": ("train", (*TRAIN, "{here}/r", "--shards", "foo://x/*.tar"), "foo"),
    "sample shards unknown": ("sample", (*FROM_SHARDS, "foo://x"), "foo"),
    "eval shards unknown": ("eval", (*FROM_SHARDS, "foo://x"), "foo"),
    "encode shards unknown": ("encode", ("--shards", "foo://x", "--out", "{here}/o", "--vq", "{here}/v.pt"),
        "foo|v.pt"),
    "train shards piped": ("train", (*TRAIN, "{here}/r", "--shards", "pipe:touch executed"), "pipe:"),
    "train out unknown": ("train", ("--config", "{config}", "--out", "foo://x"), "foo"),
    "sample shards http": ("sample", (*FROM_SHARDS, "http://127.0.0.1:9/x.tar"), "127.0.0.1"),
}  # fmt: skip
_urls = [
    Case(f"address {name}", command, arguments, told, hidden="hunter2")
    for name, (command, arguments, told) in _URLS.items()
]

CASES = [*_numbers, *_settings, *_outs, *_names, *_urls]
