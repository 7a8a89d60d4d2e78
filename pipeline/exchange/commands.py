"""``instructar export`` and ``instructar import``."""

from __future__ import annotations

from typing import Annotated

import typer

from data_schemas.errors import UserError
from data_schemas.io.text import one_line
from data_schemas.settings import suggest

LAYOUTS = ("folders", "hub")
MOST = 1_000_000_000
NAMED = 3
"""Most examples that are named of those that were left out or changed."""


def export_command(
    run: Annotated[str, typer.Argument(help="A run or a dataset's folder; for folders a glob of shards, too")],
    out: Annotated[str, typer.Option(help="Folder to write; it must not be there")],
    to: Annotated[
        str,
        typer.Option(help="folders: the published program's layout, a folder a sample; hub: a Hugging Face repository"),
    ],
    push: Annotated[
        str | None, typer.Option(help="With hub: upload it too, as owner/name, with the token in HF_TOKEN")
    ] = None,
    with_reviewers: Annotated[
        bool, typer.Option("--with-reviewers", help="With hub: publish who reviewed, and why")
    ] = False,
) -> None:
    """Write a dataset in a form that others read; the run stays as it is. instructar import takes folders back."""
    if to not in LAYOUTS:
        raise UserError(f"--to {to}: no such layout; {suggest(to, LAYOUTS)}")
    if to == "folders":
        if push is not None or with_reviewers:
            raise UserError("--push and --with-reviewers go with --to hub")
        from pipeline.exchange.folders_out import export_to_folders

        counts = export_to_folders(run, out)
        typer.echo(f"{out}: " + ", ".join(f"{count} examples in {split}" for split, count in counts.items()))
        return
    from pipeline.exchange.hub import export_to_hub
    from pipeline.exchange.push import need_token, push_folder

    token = "" if push is None else need_token(push)
    typer.echo(folder := export_to_hub(run, out, with_reviewers))
    if push is not None:
        typer.echo(push_folder(folder, push, token))


def import_command(
    source: Annotated[str, typer.Argument(help="Folder of examples (ref/, background.png, real.png, ...) or of pairs")],
    out: Annotated[str, typer.Option(help="Folder of the shards; it must not be there")],
    split: Annotated[
        str, typer.Option(help="train or test, for what does not stand in folders of these names")
    ] = "train",
    limit: Annotated[int | None, typer.Option(min=1, max=MOST, help="Only the first examples of each split")] = None,
    black_background: Annotated[
        bool, typer.Option("--black-background", help="Also examples without a background.png, with a black one")
    ] = False,
) -> None:
    """Make shards of the published program's folders, or of SubjectSpatial200K's pairs in Parquet files."""
    from data_schemas.tables import SPLITS

    if split not in SPLITS:
        raise UserError(f"--split {split}: no such split; {suggest(split, SPLITS)}")
    from pipeline.exchange.folders_in import import_folders
    from pipeline.exchange.pairs_in import from_pairs, parquet_files

    if parquet_files(source):
        done = from_pairs(source, out, split, limit)
    else:
        done = import_folders(source, out, split, limit, black_background)
    made = ", ".join(f"{count} samples in {split}" for split, count in done.samples.items())
    typer.echo(f"{out}: {made}, {done.shards} shards; train with --shards '{out.rstrip('/')}/train-*.tar'")
    for what, names in (("left out", done.left_out), ("changed since the export", done.changed)):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            typer.echo(f"{what}: {', '.join(one_line(name, 100) for name in names[:NAMED])}{more}")
