"""Options that several commands share, and what they are turned into. Nothing here imports torch, so that help is fast.

A command names the options it has: ``seed: Seed = DEFAULT.seed``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_schemas.errors import UserError
from data_schemas.io import documents
from tokenar.config import MAX_SAMPLES, SampleConfig
from tokenar.encoders.config import check_folder

if TYPE_CHECKING:
    from tokenar.model.checkpoints import Checkpoint

DEFAULT = SampleConfig()
SHARDS_HELP = "Glob of shards, such as 'data/test-*.tar'."


def _folder(path: str) -> str:
    try:
        return check_folder(path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Shards = Annotated[str, typer.Option(help=SHARDS_HELP)]
OptionalShards = Annotated[str | None, typer.Option(help=SHARDS_HELP)]
ModelFolder = Annotated[str, typer.Option(help="The 'model' folder of a finished run.")]
Model = Annotated[str, typer.Option(help="The 'model' folder of a run, or a published .pt file with --tokenizer.")]
Tokenizer = Annotated[str | None, typer.Option(help="VQ tokenizer of a published .pt file: vq_ds16_t2i.pt.")]
T5 = Annotated[str | None, typer.Option(help="Its text encoder: a Hugging Face id or a folder.  [default: flan-t5-xl]")]
Average = Annotated[bool, typer.Option(help="Take the moving average of its weights, where it has one.")]
Out = Annotated[str, typer.Option(help="Folder to write to.", callback=_folder)]
Limit = Annotated[int | None, typer.Option(min=1, max=MAX_SAMPLES, help="Only the first samples.")]
Seed = Annotated[int, typer.Option(help="Sample i is drawn with seed + i.")]
Guidance = Annotated[float, typer.Option(help="Weight of the text; 1 is off.")]
Temperature = Annotated[float | None, typer.Option(help="Below 1 plainer, above 1 wilder; by default the model's.")]
TopK = Annotated[int, typer.Option(help="Only the k most probable tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(help="Only the most probable tokens up to this share; 1 is off.")]


def source_of(model: str, tokenizer: str | None, t5: str | None, *, ema: bool) -> str | Checkpoint:
    """A model folder as it is, or a published checkpoint with its tokenizer. UserError if one of them lacks."""
    if tokenizer is None:
        if Path(model).is_file():
            raise UserError(f"{model}: a file; give its VQ tokenizer too, as --tokenizer vq_ds16_t2i.pt")
        if t5 is not None:
            raise UserError("--t5 names the text encoder of a .pt file; a model folder has its own")
        return model
    if Path(model).is_dir():
        raise UserError(f"{model}: a folder, and --tokenizer is for published .pt files; leave it out")
    from tokenar.model.checkpoints import Checkpoint

    return Checkpoint(Path(model), Path(tokenizer), t5, averaged=ema)


def sample_config(
    seed: int,
    guidance: float,
    temperature: float | None,
    top_k: int,
    top_p: float,
    others: dict[str, object],
    source: str,
) -> SampleConfig:
    """The sampling settings of a command: its shared options, then ``others``, which win over them.

    ``source`` is how messages name the settings.
    """
    shared = {"seed": seed, "guidance": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    return SampleConfig.parse(shared | others, source)


def assigned(settings: list[str] | None) -> dict[str, object]:
    """The values of ``--set name=value`` or ``--set part.name=value``, in the form that with_changes takes.

    A value is JSON, such as ``0.999``, ``null`` or ``[1, 2]``. A value that is no JSON is text; if the setting is no
    text, checking the settings reports it.
    """
    changes: dict[str, object] = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise UserError(f"--set {setting}: no value; write name=value, such as ema=0.999 or model.layers=4")
        try:
            changes[name.replace(".", "__")] = documents.parse_json(value, name)
        except UserError:
            changes[name.replace(".", "__")] = value
    return changes


def tell_first(result: str) -> None:
    """Print the result of a command. Under torchrun only the first process does."""
    if not int(os.environ.get("RANK", 0)):
        typer.echo(result)
