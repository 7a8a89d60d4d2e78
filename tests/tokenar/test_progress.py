"""What a person sees while they wait."""

import io
import re
import sys

import pytest
from small.run import in_process, tiny_config, write_config

from data_schemas.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("unit", "total", "done", "shown"), [(1, 700, 48, "48/700"), (1000, 10_000, 3_500, "3/10")])
def test_a_bar_counts_in_whole_numbers(unit, total, done, shown, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("train", total, unit=unit) as bar:
        bar.advance("loss 5.1", by=done)
        bar.bar.refresh()
    last = terminal.getvalue().split("\r")[-1]
    assert f"| {shown} [" in last
    assert "loss 5.1" in last
    assert not re.search(r"\d\.\d+/", last)


def test_a_training_says_what_it_does_from_its_start(shards, tmp_path):
    path = write_config(tiny_config(shards, tmp_path / "run", steps=2, eval_every=1), tmp_path / "c.json")
    result = in_process("train", "--config", path)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    begun = [next(i for i, line in enumerate(lines) if line.startswith(word)) for word in (
        "reading ", "preparing 10 samples and 2 varied copies of each", "fitting a codebook of 16 patches",
        "encode samples ", "measuring the hardware's speed", "train 1/2",
    )]  # fmt: skip
    assert begun == sorted(begun)
    assert any(line.startswith("encode samples 33/33") for line in lines)


LOSSES = r"validation loss of the pictures \d\.\d+, on subjects \d\.\d+, guessing by token frequency \d\.\d+"


def test_one_figure_has_one_name(shards, tmp_path):
    """ "unigram" was the validation's cross entropy on the terminal and the training tokens' entropy in the report."""
    path = write_config(tiny_config(shards, tmp_path / "run", steps=1), tmp_path / "c.json")
    result = in_process("train", "--config", path)
    assert re.search(rf"step 1  {LOSSES}\n", result.stderr)
    assert re.search(rf"{LOSSES}\n", result.stdout)
    assert "unigram" not in result.stderr + result.stdout
