"""The commands tokenar-encode, -train, -sample, -eval and -attention, one file each, and -import and -export in one.

A user's mistake becomes one line on stderr and exit code 2. A run that is asked to stop by a signal saves, says so, and
exits with 128 plus the signal's number.
"""

from __future__ import annotations

import typer

from data_schemas import commands
from tokenar.cli import attention, encode, evaluate, sample, train, weights

encode_app = encode.app
train_app = train.app
sample_app = sample.app
eval_app = evaluate.app
attention_app = attention.app
import_app = weights.import_app
export_app = weights.export_app


def encode_main() -> None:
    """Entry point of tokenar-encode."""
    commands.run(encode_app)


def train_main() -> None:
    """Entry point of tokenar-train."""
    commands.run(train_app)


def sample_main() -> None:
    """Entry point of tokenar-sample."""
    commands.run(sample_app)


def eval_main() -> None:
    """Entry point of tokenar-eval."""
    commands.run(eval_app)


def attention_main() -> None:
    """Entry point of tokenar-attention."""
    commands.run(attention_app)


def import_main() -> None:
    """Entry point of tokenar-import."""
    commands.run(import_app)


def export_main() -> None:
    """Entry point of tokenar-export."""
    commands.run(export_app)


def main() -> None:
    """All commands as ``python -m tokenar.cli encode|train|sample|eval|attention|import|export``."""
    app = typer.Typer(pretty_exceptions_enable=False, help="Train TokenAR on shards, draw pictures, measure them.")
    app.command("encode")(encode.encode)
    app.command("train")(train.train)
    app.command("sample")(sample.sample)
    app.command("eval")(evaluate.evaluate)
    app.command("attention")(attention.attention)
    app.command("import")(weights.import_)
    app.command("export")(weights.export)
    commands.run(app)
