"""Shards: whose members are named, sized or doubled in odd ways."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file
from small.run import in_process, tiny_config, write_config
from tiny.encoders import TINY_VQ, save_tiny_t5, tiny_vq

from field_cases.shared import bounds, check_refused, samples_in, tiny_model
from field_cases.table import case
from tokenar.data.encode import EncodeConfig
from tokenar.encoders.config import T5Config


@case("folders-in-keys.tar")
def folders_are_part_of_the_id(file: Path, folder: Path) -> None:
    done = in_process("sample", "--model", tiny_model(folder), "--shards", file, "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    listed = json.loads((folder / "out/samples.json").read_text())
    assert [row["sample_id"] for row in listed] == samples_in(file)
    assert len(list((folder / "out").glob("*.png"))) == len(samples_in(file))


@case("same-id-1.tar", "same-id-2.tar")
def an_id_that_is_there_twice_is_named(file: Path, folder: Path) -> None:
    shards = sorted(file.parent.glob("same-id-*.tar"))
    ids = samples_in(*shards)
    twice = next(sample_id for sample_id in ids if ids.count(sample_id) > 1)
    pattern = file.parent / "same-id-*.tar"
    done = in_process("sample", "--model", tiny_model(folder), "--shards", pattern, "--out", folder / "out")
    check_refused(done, twice, *shards)
    assert not list(folder.glob("out/*.png"))


@case("mac-members.tar")
def what_a_mac_adds_is_passed_over(file: Path, folder: Path) -> None:
    shutil.copy(file, folder / "train-0.tar")
    config = tiny_config(folder, folder / "run", val_shards=None, steps=2, variations=0)
    done = in_process("train", "--config", write_config(config, folder / "c.json"))
    assert done.returncode == 0, done.stderr


@case("sparse-2gb.tar")
def a_size_is_checked_before_it_is_read(file: Path, folder: Path) -> None:
    model, pattern = tiny_model(folder), str(file)
    (folder / "drawn").mkdir()
    save_file(tiny_vq().state_dict(), folder / "vq.safetensors")
    encoding = EncodeConfig(
        shards=pattern, out=str(folder / "out"), vq=str(folder / "vq.safetensors"), vq_config=TINY_VQ, image_size=16,
        text=T5Config(model=str(save_tiny_t5(folder / "t5")), tokens=8), teacher=None,
    )  # fmt: skip
    config = tiny_config(folder, folder / "other", val_shards=None).model_copy(update={"shards": pattern})
    for command in (
        ("train", "--config", write_config(config, folder / "c.json")),
        ("sample", "--model", model, "--shards", pattern),
        ("eval", "--predictions", f"x={folder / 'drawn'}", "--shards", pattern),
        ("attention", "--model", model, "--shards", pattern),
        ("encode", "--config", write_config(encoding, folder / "encode.json")),
    ):
        out = () if "--config" in command else ("--out", folder / "out")
        with bounds(seconds=20, megabytes=200):
            check_refused(in_process(*command, *out), file.name, "2147483648 bytes, more than the limit")
