"""The Prefect flow of the evaluation: checkpoints and pictures of other methods, compared in one table."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from data_schemas.io import pictures
from flows.engine import reports_mistakes, under_prefect
from tokenar.config import SampleConfig
from tokenar.evaluate.config import EvalConfig
from tokenar.evaluate.run import evaluate_models


@flow(name="evaluate-tokenar", log_prints=True)
@reports_mistakes
def evaluate_tokenar(
    models: list[str] = ["runs/quickstart/training/model"],  # noqa: B006  the form's default, never modified
    predictions: dict[str, str] = {},  # noqa: B006
    shards: str = "runs/quickstart/dataset/test-*.tar",
    out: str = "runs/quickstart/training/evaluation",
    config: EvalConfig = EvalConfig(),
    sampling: SampleConfig = SampleConfig(),
    limit: int | None = None,
) -> dict:
    """Draw a picture for every test sample with every model and measure them all. Pictures of earlier runs are kept.

    Args:
        models: Model folders; each becomes a row of the table, named after its run.
        predictions: Folders of other methods' pictures (<sample_id>.png) by the methods' names.
        shards: Glob of the test shards.
        out: Folder of the results.
        config: How pictures are measured.
        sampling: How pictures are drawn.
        limit: Only the first samples; without one all.

    Returns:
        The content of metrics.json.
    """
    result = evaluate_models(
        shards, out, models=models, predictions=predictions, config=config, sampling=sampling, limit=limit
    )  # fmt: skip
    for note in result["notes"]:
        print(note.split("; --")[0])  # what follows names command options, and a flow has a config instead
    if under_prefect():
        _show(result, Path(out))
    return result


def _show(result: dict, folder: Path) -> None:
    """Create the Prefect artifacts of an evaluation."""
    rows = [{"method": name} | method["figures"] for name, method in result["methods"].items()]
    create_table_artifact(rows, key="evaluation", description="Means over the test samples")
    create_markdown_artifact((folder / "table.md").read_text(), key="evaluation-table",
                             description="In the layout of the paper's Tables 2 and 3")  # fmt: skip
    create_markdown_artifact(inlined(folder / "grid.png", 1200), key="evaluation-grid",
                             description="References, background, every method, truth")  # fmt: skip
    create_markdown_artifact(picture_strips(folder / "pictures"), key="drawn-pictures",
                             description="References, background, every method, truth")  # fmt: skip


def picture_strips(folder: Path, count: int = 6) -> str:
    """Markdown with the first ``count`` picture strips of an evaluation, inlined, each under its sample id."""
    return "\n".join(f"**{path.stem}**\n\n{inlined(path, 10_000, 96)}" for path in sorted(folder.glob("*.png"))[:count])


def inlined(path: Path, width: int, height: int = 10_000) -> str:
    """Markdown that contains the picture itself, at most ``width`` x ``height`` pixels; empty if there is no file."""
    if not path.is_file():
        return ""
    picture = pictures.decode(path.read_bytes(), str(path)).convert("RGB")
    picture.thumbnail((width, height))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return f"![{path.stem}](data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()})\n"
