"""The commands that look at a run and change nothing of it: its page, and what was chosen there from a shell."""

from __future__ import annotations

from typing import Annotated

import typer

from data_schemas.commands import say
from data_schemas.serving import Host, Port, serve


def explore(
    run: Annotated[str, typer.Argument(help="A run, such as runs/quickstart; it may be at work")],
    against: Annotated[str | None, typer.Option(help="Another run, or a dataset, that it is compared with")] = None,
    host: Host = "127.0.0.1",
    port: Port = 7872,
) -> None:
    """A page to filter and sort samples, see each one's whole story, compare thresholds or runs, save a selection."""
    from PIL import Image

    from pipeline.pages.explore import explore_app
    from pipeline.pages.explorer import Explorer

    Image.init()  # all of its formats are read in, which the first picture would wait for
    serve(explore_app(Explorer(run, against)), host, port, "explore")


def select(
    run: Annotated[str, typer.Argument(help="A run, such as runs/quickstart, or a dataset's folder")],
    out: Annotated[str, typer.Option(help="Folder for them on this machine; it must not be there")],
    where: Annotated[
        list[str] | None, typer.Option(help="A condition, as 'similarity_min < 0.5' or 'reasons contains identity'")
    ] = None,
    shards: Annotated[
        bool, typer.Option("--shards", help="Their pictures as shards too, not the manifest only")
    ] = False,
) -> None:
    """Save the samples that meet all conditions as a dataset of their own."""
    from pipeline.dataset.frames.frame import Frame
    from pipeline.pages.explorer import opened

    columns, note = opened(run)
    if note:
        say(note)
    frame = Frame.of(columns, lambda sample_id, name: None).where(*(where or []))
    typer.echo(f"{frame.save(out, shards)}: {len(frame)} of {len(columns)} samples")
