"""Everything that this project promises of an accelerator, checked and measured by one command.

python benchmarks/accelerator.py --out runs/accelerator            # on a GPU at full size, in at most 8 minutes
python benchmarks/accelerator.py --out runs/accelerator --quick    # correctness alone, in 2 minutes
python benchmarks/accelerator.py --out runs/accelerator --only training_speed    # again, in the same accelerator.json

Needs torch and the project's source tree; no network, no weights, no server. A check runs in a process of its own with
a time limit; what it raises is its result. ``accelerator.json`` is written after every check. The last line is
one JSON object. Without a GPU every check runs at a tiny size, to see that it runs. docs/accelerator.md says more.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import time
import traceback
from collections.abc import Mapping
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import torch  # noqa: E402
from checks import correctness, decoding, profiles, stages, training  # noqa: E402
from checks.scale import Check, Scale, Skipped  # noqa: E402

SECONDS = {
    **dict.fromkeys([*correctness.CHECKS, *training.CHECKS, *decoding.CHECKS, *profiles.CHECKS], 60),
    **dict.fromkeys(stages.CHECKS, 75), "stage_synthesis": 120, "stage_semantics": 120,
    "sampling_free": 100, "sampling_verified": 100, "sampling_in_8_bits": 120, "decode_attention": 100,
}  # fmt: skip
"""The most that a check may take on a GPU; on a CPU, which may be busy, three times as much."""
TOTAL, QUICK_TOTAL = 480, 120
"""Seconds that all checks together may take."""
OPTIONAL = ("diffusers", "transformers", "peft", "timm", "torchao", "flashinfer", "cv2", "pyarrow", "pandas")


def all_checks() -> dict[str, Check]:
    """In the order of what they are worth when time is short."""
    first = correctness.CHECKS | {"training_without_waiting": training.CHECKS["training_without_waiting"]}
    return first | decoding.CHECKS | training.CHECKS | profiles.CHECKS | stages.CHECKS


def work(check: Check, scale_of: tuple[str, bool], results: Connection) -> None:
    """The other process: run one check and send its result."""
    try:
        scale = Scale(torch.device(scale_of[0]), scale_of[1])
        if scale.on_gpu:
            torch.cuda.set_device(scale.device)  # what names no device uses this one; also starts CUDA
        else:
            torch.set_num_threads(1)  # tiny products gain nothing from a second one
        results.send({"status": "passed", **check(scale)})
    except Skipped as reason:
        results.send({"status": "skipped", "reason": str(reason)})
    except BaseException as error:
        missing = error if isinstance(error, ImportError) else error.__cause__
        if isinstance(missing, ImportError) and missing.name in OPTIONAL:
            results.send({"status": "skipped", "reason": f"{missing.name} is not installed"})
            return
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        results.send({"status": "failed", "reason": f"{type(error).__name__}: {lines[0][:400]}"})


def run_check(check: Check, scale_of: tuple[str, bool], limit: float) -> dict[str, Any]:
    """A check's result, or that it failed by its time or by a crash of its process."""
    # The modules are imported already, and nothing here touches the GPU or starts a thread: a fork is safe and quick.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(check, scale_of, sender))
    begun = time.monotonic()
    process.start()
    sender.close()
    try:
        if receiver.poll(limit):
            result: dict[str, Any] = receiver.recv()
        else:
            result = {"status": "failed", "reason": f"not done after {limit:.0f} s"}
    except EOFError:
        process.join()
        result = {"status": "failed", "reason": f"its process ended with status {process.exitcode}"}
    process.kill()
    process.join()
    return {**result, "seconds": round(time.monotonic() - begun, 1)}


def machine() -> dict[str, Any]:
    """What the figures were measured with, as far as it is known without touching the GPU."""
    return {
        "torch": torch.__version__, "python": platform.python_version(),
        "missing_packages": [name for name in OPTIONAL if find_spec(name) is None],
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def gpus(scale: Scale) -> dict[str, Any]:
    """How many there are. Asked in a process of its own: one that has asked CUDA can fork none that uses it."""
    return {"count": torch.cuda.device_count()}


def device_facts(scale: Scale) -> dict[str, Any]:
    """The device's name, memory, and how fast it multiplies and reads."""
    from sample import bandwidth

    from tokenar.train.log import measured_flops

    flops = measured_flops(scale.device, scale.dtype, 8192 if scale.on_gpu else 512)
    facts: dict[str, Any] = {"name": f"CPU, {torch.get_num_threads()} threads"}
    if scale.on_gpu:
        found = torch.cuda.get_device_properties(scale.device)
        facts = {"name": found.name, "memory_gb": round(found.total_memory / 1e9, 1)}
    return facts | {"tflops": round(flops / 1e12, 2), "gb_per_s": round(bandwidth(scale.device) / 1e9, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/accelerator", help="folder of accelerator.json")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="run these checks alone")
    parser.add_argument("--quick", action="store_true", help="correctness alone")
    parser.add_argument("--device", help="cuda:1, cpu; the first GPU if there is one")
    given = parser.parse_args()
    checks = all_checks()
    if unknown := set(given.only or ()) - set(checks):
        parser.error(f"no check {sorted(unknown)[0]!r}; there are {', '.join(checks)}")
    wanted = given.only or (list(correctness.CHECKS) if given.quick else list(checks))
    there = ["cpu", *(f"cuda:{number}" for number in range(run_check(gpus, ("cpu", False), 60).get("count", 0)))]
    device = given.device or there[:2][-1]
    if device not in there:
        parser.error(f"no device {device!r} here; give cpu, or cuda:0 where there is a GPU")
    scale_of = (device, device != "cpu")
    out = Path(given.out) / "accelerator.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"benchmark": "accelerator", **machine(), "device": run_check(device_facts, scale_of, 60)}
    results = earlier(out, found) if given.only else {}
    begun = time.monotonic()
    for name in wanted:
        left = (QUICK_TOTAL if given.quick else TOTAL) - (time.monotonic() - begun)
        if left <= 0:
            results[name] = {"status": "skipped", "reason": "no time was left"}
        else:
            results[name] = run_check(checks[name], scale_of, min(SECONDS[name] * (1 if scale_of[1] else 3), left))
        print(f"{name:<28} {told(results[name])}", flush=True)
        out.write_text(json.dumps(found | {"checks": results}, indent=2) + "\n")
    print(json.dumps(found | {"checks": results}))
    return int(any(result["status"] == "failed" for result in results.values()))


def earlier(out: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """The results that are in ``out`` already, if the same torch and device gave them: --only adds to them."""
    if not out.is_file():
        return {}
    before = json.loads(out.read_text())
    same = before["torch"] == found["torch"] and before["device"].get("name") == found["device"].get("name")
    return dict(before["checks"]) if same else {}


def told(result: Mapping[str, Any]) -> str:
    """A result in one line."""
    figures = {key: value for key, value in result.items() if key not in ("status", "seconds", "reason", "costliest")}
    shown = " ".join(f"{key}={value:.3g}" for key, value in figures.items() if isinstance(value, int | float))
    return f"{result['status']:<8} {result.get('seconds', 0):>6.1f} s  {result.get('reason', shown)}"


if __name__ == "__main__":
    sys.exit(main())
