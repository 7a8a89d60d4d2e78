"""Writes pipeline/estimate/figures.yaml, what `instructar estimate --profile` counts with, from benchmarks/results.

python benchmarks/costs/figures.py

Where nothing was measured, the assumption stands here with its reason.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import yaml

RESULTS = Path(__file__).parents[1] / "results"
OUT = Path(__file__).parents[2] / "pipeline" / "estimate" / "figures.yaml"
GPU, CPU = "nvidia-h200.json", "amd-epyc.json"
STEPS, TIMED_STEPS = 30, 8
"""Denoising steps of the paper's profile, and those that the check of the stage takes (benchmarks/checks/stages.py)."""
HEAD = "# Made by `python benchmarks/costs/figures.py` from benchmarks/results; change nothing here.\n"


def on_gpu(results: dict[str, Any], stage: str) -> dict[str, float]:
    """The figures of a stage's check. One that missed its goal has them in its reason."""
    check = results["checks"][f"stage_{stage}"]
    return check if "stage_samples_per_s" in check else ast.literal_eval(re.search(r"{.*}", check["reason"])[0])


def figures() -> dict[str, Any]:
    gpu, cpu = (json.loads((RESULTS / name).read_text()) for name in (GPU, CPU))
    large, embedded = cpu["curation"]["large"]["stages"], cpu["curation"]["embedded"]
    device = f"{gpu['device']['name']}, benchmarks/results/{GPU}"
    core = f"{cpu['device']}, benchmarks/results/{CPU}"

    def gpu_stage(stage: str, settings: dict[str, Any], size: int, how: str = "") -> dict[str, Any]:
        found = on_gpu(gpu, stage)
        seconds = 1 / found["stage_samples_per_s"]
        if stage == "synthesis":  # all that is not the model's time stays as it is
            seconds += (STEPS / TIMED_STEPS - 1) / found["bare_samples_per_s"]
        return {
            "seconds": round(seconds, 4), "load": found["load_s"], "bytes": size, "gpu": True, "settings": settings,
            "measured": f"{device}{how}",
        }  # fmt: skip

    def one_process(seconds: float, size: int = 0) -> dict[str, Any]:
        return {"seconds": round(seconds, 6), "bytes": size, "alone": True, "measured": f"{core}; in one process"}

    def cpu_stage(row: dict[str, float], **settings: Any) -> dict[str, Any]:
        return {
            "seconds": row["seconds"], "bytes": row["bytes"], "settings": settings, "measured": f"{core}; one core"
        }  # fmt: skip

    plans = cpu["planning"]["samples"]
    plan = one_process(plans[max(plans, key=int)]["ms_per_sample"] / 1000, large["plan"]["bytes"])
    coordination = one_process(cpu["engine"]["ms_per_sample"] / 1000, large["decide"]["bytes"])
    shards = cpu["shards"]["size_512"]
    paper = {
        "plan": plan,
        "synthesis": gpu_stage(
            "synthesis", {"backend": "dreamrelation", "steps": STEPS, "size": 512}, large["synthesis"]["bytes"],
            f"; {TIMED_STEPS} steps were timed and are counted as {STEPS}",
        ),
        "matting": gpu_stage("matting", {"backend": "ben2", "side": 1024}, large["matting"]["bytes"]),
        "semantics": {
            "seconds": 1.2, "load": 30.0, "bytes": 2000, "gpu": True,
            "settings": {"backend": "transformers"},
            "assumed": "answers of 160 tokens, four at once, 30 ms a token; not measured on a GPU; "
            "--seconds semantics=... replaces it",
        },
        "identity": gpu_stage("identity", {"backend": "timm"}, embedded["stages"]["identity"]["bytes"]),
        "quality": cpu_stage(large["quality"], backend="correspondence"),
        "coordination": coordination,
        "shards": {
            "seconds": round(shards["ours_s"] / shards["samples"], 5), "bytes": large["shards"]["bytes"],
            "measured": f"{core}; of a kept sample",
        },
    }  # fmt: skip
    small = embedded["stages"]
    return {
        "paper": {
            "kept": {"share": round(28_230 / 80_000, 4), "why": "ASSUMED: the paper kept 28,230, of 80,000 planned"},
            "pool": f"{large['references']['seconds']:.2g} s of a core and {large['references']['bytes'] / 1e6:.1g} MB "
            "a picture",
            "stages": paper,
        },
        "embedded": {
            "kept": {
                "share": embedded["yield"]["all"], "why": f"measured: {embedded['kept']} of {embedded['samples']}"
            },
            "pool": f"{small['references']['seconds']:.2g} s of a core a picture",
            "stages": {
                "plan": plan,
                **{stage: cpu_stage(small[stage], backend=backend) for stage, backend in {
                    "synthesis": "collage", "matting": "grabcut", "semantics": "imagenet", "identity": "efficientnet",
                    "quality": "correspondence"}.items()},
                "coordination": coordination,
                "shards": {**cpu_stage(small["shards"]), "measured": f"{core}; of a kept sample"},
            },
        },
    }  # fmt: skip


def text() -> str:
    plain = json.loads(json.dumps(figures()))  # or YAML would refer to what stands twice
    return HEAD + yaml.safe_dump(plain, sort_keys=False, width=118, allow_unicode=True)


if __name__ == "__main__":
    OUT.write_text(text())
    print(OUT)
