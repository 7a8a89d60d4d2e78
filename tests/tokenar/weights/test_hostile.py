"""Files that are no published checkpoint: one clear line, which names the file and the key, and nothing is run."""

import os
import pathlib
import re
import zipfile

import pytest
import torch
from commands import run_here
from small.published import circle_vq, command_line
from small.run import changed, random_net

from tokenar import cli
from tokenar.model.folder import START

SHAPE = {"grid": 4, "vocabulary": 64, "max_references": 3, "rotary_layout": "canvas", "text_width": 16}


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("made by the file",)


def weights(**more):
    return random_net(changed(**SHAPE)).state_dict() | more


def saved(content, **options):
    return lambda path: torch.save(content, path, **options)


def cut(path):
    torch.save({"model": weights()}, path)
    path.write_bytes(path.read_bytes()[:5000])


def compressed(path):
    torch.save({"model": weights()}, path.with_suffix(".whole"))
    with (
        zipfile.ZipFile(path.with_suffix(".whole")) as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
        small.writestr("archive/data/999", bytes(1 << 22))


def lacking(name):
    return {key: value for key, value in weights().items() if key != name}


BAD = {
    "code": (saved({"model": weights(), "args": Harmful()}), r"code, [\w.]*mkdir, which is not run, under args\)"),
    "code in a weight": (
        saved({"model": {"norm.weight": Harmful()}}), r"mkdir, which is not run, under model\.norm\.weight\)"),
    "code in an old file": (
        saved({"model": {"norm.weight": Harmful()}}, _use_new_zipfile_serialization=False),
        r"mkdir, which is not run, under model\.norm\.weight\)"),
    "another class": (
        saved({"model": weights(), "args": command_line(t5_path=pathlib.PurePosixPath("t5"))}),
        r"code, pathlib\.PurePosixPath, which is not run, under args\.t5_path\); if you trust .* save its weights"),
    "cut off": (cut, "its end is missing"),
    "bomb": (compressed, "its parts are larger than the file"),
    "folder": (lambda path: path.mkdir(), "is a folder, not a file"),
    "text": (lambda path: path.write_text("hello"), "not a readable file of weights"),
    "empty": (lambda path: path.touch(), "not a readable file of weights"),
    "no weights": (saved({"epoch": 3}), "no weights under 'model'"),
    "shape": (saved({"model": weights(**{"norm.weight": torch.zeros(32)})}), r"norm\.weight is \[32\], in this model"),
    "missing": (saved({"model": lacking("output.weight")}), r"output\.weight \[64, 16\] is missing"),
    "unknown": (saved({"model": weights(**{"\x1b[31mred": torch.zeros(1)})}), r"red is not a key of this model"),
    "no table": (saved({"model": lacking("tok_embeddings.weight")}), "tok_embeddings.weight"),
    "flat": (saved({"model": weights(**{"tok_embeddings.weight": torch.zeros(3)})}), "not the weights of TokenAR"),
    "expanded": (
        saved({"model": weights(**{"norm.weight": torch.zeros(1).expand(1 << 40)})}),
        "more numbers than the file holds"),
    "sparse": (saved({"model": weights(**{"norm.weight": torch.zeros(16).to_sparse()})}), "norm.weight is sparse"),
    "integers": (saved({"model": weights(**{"norm.weight": torch.zeros(16).int()})}), "norm.weight holds int32"),
    "nan": (saved({"model": weights(**{"norm.weight": torch.full((16,), torch.nan)})}), "norm.weight holds NaN"),
    "twice": (saved({"model": weights(**{"module.norm.weight": torch.zeros(16)})}), "two tensors have one name"),
}  # fmt: skip


@pytest.fixture(scope="module")
def vq(tmp_path_factory):
    path = tmp_path_factory.mktemp("vq") / "vq.pt"
    torch.save({"model": circle_vq(64).state_dict()}, path)
    return path


def refused(main, told, *arguments):
    done = run_here(main, "tokenar", *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
    assert re.search(told, done.stderr), done.stderr


@pytest.mark.parametrize("name", BAD)
def test_a_bad_network(name, vq, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, told = BAD[name]
    write(tmp_path / "bad.pt")
    out = tmp_path / "model"
    known = ["--set", "heads=2", "--set", "grid=4"]
    refused(cli.import_main, rf"bad\.pt: .*{told}", tmp_path / "bad.pt", "--tokenizer", vq, "--out", out, *known)
    assert not out.exists()
    assert not (tmp_path / "made by the file").exists()


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (BAD["code"][0], "which is not run"),
        (saved({"model": {"a": torch.zeros(1)}}), "not the weights of a VQ tokenizer"),
        (saved({"model": circle_vq(32).state_dict()}), "32 codes, .*net.pt has 64"),
        (saved({"model": {k: v for k, v in circle_vq(64).state_dict().items() if "mid.1.q" not in k}}), "4 missing"),
    ],
)
def test_a_bad_tokenizer(write, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": weights()}, tmp_path / "net.pt")
    write(tmp_path / "bad.pt")
    known = ["--set", "heads=2", "--set", "grid=4", "--out", tmp_path / "model"]
    refused(
        cli.import_main, rf"bad\.pt: .*{told}", tmp_path / "net.pt", "--tokenizer", tmp_path / "bad.pt", *known
    )  # fmt: skip
    assert not (tmp_path / "model").exists()


def test_what_shapes_leave_open_is_asked_for(vq, tmp_path):
    torch.save({"model": weights()}, tmp_path / "net.pt")
    start = [tmp_path / "net.pt", "--tokenizer", vq, "--out", tmp_path / "model"]
    refused(cli.import_main, "2 layers of width 16 are no published size.*--set heads=N", *start)
    refused(cli.import_main, "do not split into 3 heads|must split into 3 heads", *start, "--set", "heads=3")
    refused(cli.import_main, "no preset 'relased'; did you mean released", *start, "--preset", "relased")
    refused(cli.import_main, "colour", *start, "--set", "heads=2", "--set", "colour=red")


def test_a_file_without_its_tokenizer_and_a_folder_with_one(vq, tmp_path):
    torch.save({"model": weights()}, tmp_path / "net.pt")
    rest = ["--list", tmp_path / "x.json", "--out", tmp_path / "drawn"]
    (tmp_path / "x.json").write_text('[{"references": ["a.png"], "background": "b.png", "prompt": "x"}]')
    refused(cli.sample_main, "net.pt: a file; give its VQ tokenizer too", "--model", tmp_path / "net.pt", *rest)
    refused(cli.sample_main, "a folder, and --tokenizer", "--model", tmp_path, "--tokenizer", vq, *rest)


def test_a_model_that_the_published_program_does_not_have(tmp_path):
    refused(
        cli.export_main, "the published program has no tied_output, copy_head", "--model", START, "--out",
        tmp_path / "net.pt",
    )  # fmt: skip
    refused(cli.export_main, "give the name of a .pt file", "--model", START, "--out", tmp_path)
    assert list(tmp_path.iterdir()) == []
