"""Samples a second of each stage with the paper's models, compared to the model alone on prepared tensors.

python benchmarks/stages.py                       # small random weights on a CPU, full-size ones where there is a GPU
python benchmarks/stages.py --stages matting

A stage decodes and resizes pictures, runs its model, and encodes and writes its part. The bare model runs on tensors
that are already prepared, in the same batches. Loading is measured separately. The last line is one JSON object;
"ratio" is a stage's speed over that of its bare model, the lowest of all stages.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import random_models
import torch
from checks.scale import seconds

from pipeline.config import CurationConfig
from pipeline.core.stage import Sample, Stage
from pipeline.curate import curate
from pipeline.jobs import PartJob, pool_digest
from pipeline.making import stage_inputs
from pipeline.run import Run

ROUNDS = 3
STAGES = ("synthesis", "matting", "semantics", "identity")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--size", choices=["small", "full"], default="full" if torch.cuda.is_available() else "small"
    )
    arguments.add_argument("--samples", type=int, default=None, help="samples a stage; 8 small, 64 full")
    arguments.add_argument("--workers", type=int, default=None, help="parts at the same time; 1 small, 8 full")
    arguments.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    given = arguments.parse_args()
    full = given.size == "full"
    samples, workers = given.samples or (64 if full else 8), given.workers or (8 if full else 1)
    with tempfile.TemporaryDirectory() as folder:
        pictures, run = prepare(Path(folder), given.stages, full, samples, workers)
        figures = {name: measure(pictures, run.stage(name), workers) for name in given.stages}
    for name, row in figures.items():
        print(f"{name:<10} " + "  ".join(f"{key} {value:g}" for key, value in row.items()))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    ratio = min(row["ratio"] for row in figures.values())
    line = {"benchmark": "stages", "device": device, "size": given.size, "samples": samples, "workers": workers}
    print(json.dumps({**line, "sides": ["stage", "bare model"], "stages": figures, "ratio": ratio}))


def prepare(
    folder: Path,
    stages: list[str],
    full: bool,
    samples: int,
    workers: int,
    pool: str = "packaged",
    changes: Mapping[str, Any] | None = None,
) -> tuple[Run, Run]:
    """(a finished run of collages that gives the pictures, the run whose stages have the models to measure).

    ``changes`` are settings of the stages in the place of those that full or small weights come with.
    """
    precision = "bfloat16" if full else "float32"
    write: dict[str, Callable[[Path], dict[str, Any]]] = {
        "synthesis": lambda f: random_models.write_sdxl(f, full, precision),
        "matting": lambda f: random_models.write_ben2(f, full),
        "semantics": lambda f: random_models.write_judge(f, full, precision),
        "identity": lambda f: random_models.write_encoder(f, full),
    }
    base = {
        "root": str(folder), "name": "benchmark", "samples": samples, "part_size": max(1, samples // workers),
        "workers": workers, "references": {"pool": pool}, "planning": {"test_share": 0, "relations": ["stand_beside"]},
        "synthesis": {"backend": "collage", "size": 512 if full else 256, "fault_share": 0},
    }  # fmt: skip
    unjudged = {stage: {"backend": "none"} for stage in ("semantics", "identity", "quality")}
    pictures = curate(CurationConfig.parse({**base, **unjudged}, "benchmark")).run
    # On a GPU random numbers for billions of weights take no time; on a CPU they take minutes.
    with torch.device("cuda" if full and torch.cuda.is_available() else "cpu"):
        sections = {name: write[name](folder / name) for name in stages}
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()  # for the stages, which load these weights again
    for section in sections.values():
        section["batch_size"] = max(1, min(4, base["part_size"]))  # type: ignore[type-var, call-overload]
        section.update(changes or {})
    return pictures, Run.of(CurationConfig.parse({**base, **sections}, "benchmark"))


def inputs_of(pictures: Run, stage: Stage) -> list[list[Sample]]:
    """The samples of each part, with the collage's pictures in the place of what would come before."""
    pool = pool_digest(pictures)
    jobs = [PartJob(pictures, stage.name, part, "", pool) for part in pictures.parts()]
    return [stage_inputs(job, stage.reads).samples()[0] for job in jobs]


def measure(pictures: Run, stage: Stage, workers: int, turns: int = ROUNDS) -> dict[str, float]:
    """Seconds to load, samples a second of the stage and of its bare model, and the median of their ratios."""
    began = time.perf_counter()
    stage.ready()
    load = time.perf_counter() - began
    parts = inputs_of(pictures, stage)
    count = sum(map(len, parts))
    bare = BARE[stage.name](stage, parts[0])
    batches = [batch for part in parts for batch in stage.batches(part)]

    def through_stage() -> None:
        with ThreadPoolExecutor(workers) as pool:
            for rows, *_ in pool.map(lambda part: stage.run(part, {}), parts):
                assert all(row["status"] == "ok" for row in rows), rows

    def through_model() -> None:
        for batch in batches:
            bare(len(batch))

    through_model()
    through_stage()  # warm-up: encodes the references and chooses kernels
    # Both in every round, so that noise on the machine affects both.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sides = (through_stage, through_model)
    rounds = [tuple(seconds(side, device, turns=1, warmup=0)[0] for side in sides) for _ in range(turns)]
    stage_s, bare_s = (min(side) for side in zip(*rounds, strict=True))
    return {
        "load_s": round(load, 2),
        "stage_samples_per_s": round(count / stage_s, 3),
        "bare_samples_per_s": round(count / bare_s, 3),
        "ratio": round(statistics.median(bare / stage for stage, bare in rounds), 3),
    }


# The bare models: functions that run a batch of n samples on prepared tensors


def bare_synthesis(stage: Any, samples: list[Sample]) -> Callable[[int], None]:
    """Denoising with prepared embeddings, then the decoder."""
    generator, settings = stage.generator, stage._settings()
    scene = stage._scene(samples[0])
    ready = {}
    for n in range(1, stage.batch_size + 1):
        scenes = [scene] * n
        text = generator.encode_text([s.prompt for s in scenes], settings)
        noise = generator.noise([torch.Generator().manual_seed(s.seed) for s in scenes], settings)
        ready[n] = (text, generator.place(scenes, settings), noise, settings)

    def run(n: int) -> None:
        generator.decode(generator.denoise(*ready[n]))

    return run


def bare_matting(stage: Any, samples: list[Sample]) -> Callable[[int], None]:
    side, device, dtype = stage.config.side, stage.device, stage.dtype
    chunk = stage.batch_size if device.type == "cuda" else 1
    batch = torch.randn(stage.batch_size, 3, side, side, device=device)

    @torch.inference_mode()
    def run(n: int) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            for pixels in batch[:n].split(chunk):
                stage.network(pixels).float().cpu()

    return run


def bare_semantics(stage: Any, samples: list[Sample]) -> Callable[[int], None]:
    """Greedy generation from prepared inputs, up to as many tokens as the stage allows."""
    ready = {}
    for n in range(1, stage.batch_size + 1):
        requests = [stage.request(sample) for sample in (samples * stage.batch_size)[:n]]
        ready[n] = stage.inputs(requests)

    @torch.inference_mode()
    def run(n: int) -> None:
        stage.network.generate(**ready[n], max_new_tokens=stage.config.max_tokens, do_sample=False, num_beams=1)

    return run


def bare_identity(stage: Any, samples: list[Sample]) -> Callable[[int], None]:
    """The encoder on the views of n samples, in batches of its own size."""
    from pipeline.identity.compare import VIEWS

    encoder = stage.encoder
    pixels = torch.randn(encoder.chunk, 3, encoder.side, encoder.side, device=encoder.device, dtype=encoder.dtype)

    @torch.inference_mode()
    def run(n: int) -> None:
        for _ in range(-(-n * VIEWS // encoder.chunk)):
            encoder.model(pixels).float().cpu()

    return run


BARE: dict[str, Callable[[Any, list[Sample]], Callable[[int], None]]] = {
    "synthesis": bare_synthesis, "matting": bare_matting, "semantics": bare_semantics, "identity": bare_identity,
}  # fmt: skip


if __name__ == "__main__":
    main()
