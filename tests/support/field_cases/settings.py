"""Settings and lists that cannot be read."""

from __future__ import annotations

from pathlib import Path

from small.run import in_process

from field_cases.shared import bounds, check_refused, curation_command, tiny_model
from field_cases.table import case


@case("alias-bomb.yaml", "impossible-date.yaml")
def settings_that_cannot_be_read(file: Path, folder: Path) -> None:
    with bounds(seconds=5, megabytes=300):
        key = {"alias-bomb.yaml": " f: ", "impossible-date.yaml": " name: "}[file.name]
        check_refused(curation_command("curate", "--config", file, "--root", folder), file.name, key)


@case("alias-bomb.yaml", "impossible-date.yaml")
def thresholds_that_cannot_be_read(file: Path, folder: Path) -> None:
    arguments = ("--root", folder, "--set", f"decide.thresholds_file={file}")
    with bounds(seconds=5, megabytes=300):
        check_refused(curation_command("curate", *arguments), file.name)


@case("deep.json")
def a_deep_list(file: Path, folder: Path) -> None:
    done = in_process("sample", "--model", tiny_model(folder), "--list", file, "--out", folder / "out")
    check_refused(done, file.name)


@case("deep.json")
def a_deep_model_config(file: Path, folder: Path) -> None:
    model = tiny_model(folder)
    (model / "config.json").write_bytes(file.read_bytes())
    shards = folder / "shards/train-0.tar"
    check_refused(in_process("sample", "--model", model, "--shards", shards, "--out", folder / "out"), "config.json")
