"""The accelerator's checks, every one of them at tiny size: a machine with a GPU must find nothing left to mend."""

import json
import re
import subprocess
import sys

import golden
import pytest
from paths import ROOT

SCRIPT = str(ROOT / "benchmarks" / "accelerator.py")


def run(*arguments):
    command = [sys.executable, SCRIPT, "--device", "cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.long
def test_every_check_runs_without_a_gpu(tmp_path):
    done = run("--out", str(tmp_path))
    written = json.loads((tmp_path / "accelerator.json").read_text())
    states = {name: (check["status"], check.get("reason")) for name, check in written["checks"].items()}
    other = {name: state for name, state in states.items() if state[0] != "passed"}
    if not golden.paths("tokenar", "gpt_generate"):
        assert other.pop("golden_sequences")[0] == "skipped"
    assert other == {}, done.stderr[-2000:]
    assert len(states) >= 15
    assert json.loads(done.stdout.splitlines()[-1]) == written
    assert done.returncode == 0


def test_a_check_that_is_not_there_is_named():
    done = run("--only", "no_such_check")
    assert done.returncode == 2
    assert "no check 'no_such_check'; there are forward_and_backward" in done.stderr


def test_a_device_that_is_not_there_is_named():
    done = run("--device", "cuda:q")
    assert done.returncode == 2
    assert done.stderr.endswith("no device 'cuda:q' here; give cpu, or cuda:0 where there is a GPU\n")


def test_nothing_is_imported_that_is_not_carried(tmp_path):
    """`make carry` fetches what a machine with torch alone needs; torch brings the packages named here."""
    brought = {"torch", "torchgen", "functorch", "triton", "fsspec", "filelock", "typing_extensions", "sympy", "mpmath",
               "networkx", "jinja2", "markupsafe", "nvidia", "cuda"}  # fmt: skip
    carried = re.search(r"^CARRIED := ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.M)[1]
    ours = {"checks", "tokenar", "data_schemas", "sample", "published", "accelerator"}
    known = brought | ours | {name.lower().replace("-", "_") for name in carried.split()} | {"yaml", "pil"}
    script = (
        "import sys\n"
        f"sys.argv = ['accelerator.py', '--device', 'cpu', '--out', {str(tmp_path)!r}, '--only', 'resumed_training']\n"
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder\n"
        "class Known(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        top = name.partition('.')[0]\n"
        f"        ours = top.lower() in {known!r}\n"
        "        found = ours or top in sys.stdlib_module_names or top.startswith('_')\n"
        "        return PathFinder.find_spec(name, path, target) if found else None\n"
        "sys.meta_path = [BuiltinImporter, FrozenImporter, Known]\n"
        "import accelerator\n"
        "sys.exit(accelerator.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_a_failure_a_crash_and_a_hang_are_results(tmp_path):
    script = (
        "import os, sys, time\n"
        f"sys.argv = ['accelerator.py', '--device', 'cpu', '--out', {str(tmp_path)!r}]\n"
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "import accelerator\n"
        "def fails(scale): raise AssertionError('two and two')\n"
        "def crashes(scale): os._exit(7)\n"
        "def hangs(scale): time.sleep(60)\n"
        "def lacks(scale): raise ValueError('no such weights') from ImportError('none', name='torchao')\n"
        "accelerator.all_checks = lambda: {'fails': fails, 'crashes': crashes, 'hangs': hangs, 'lacks': lacks,\n"
        "                                  'works': lambda s: {}}\n"
        "accelerator.SECONDS = dict.fromkeys(accelerator.all_checks(), 1)\n"
        "sys.exit(accelerator.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    found = json.loads(done.stdout.splitlines()[-1])["checks"]
    assert {name: check["status"] for name, check in found.items()} == {
        "fails": "failed", "crashes": "failed", "hangs": "failed", "lacks": "skipped", "works": "passed",
    }  # fmt: skip
    assert found["fails"]["reason"] == "AssertionError: two and two"
    assert "status 7" in found["crashes"]["reason"]
    assert found["hangs"]["reason"] == "not done after 3 s"
    assert found["lacks"]["reason"] == "torchao is not installed"
    assert done.returncode == 1


@pytest.mark.long
def test_what_is_run_alone_is_added_to_what_was_found(tmp_path):
    """A machine is lent for minutes: a check that was mended is run again without the others."""
    for name in ("vq_codes", "training_without_waiting"):
        done = run("--out", str(tmp_path), "--only", name)
        assert done.returncode == 0, done.stderr[-2000:]
    assert list(json.loads((tmp_path / "accelerator.json").read_text())["checks"]) == [
        "vq_codes", "training_without_waiting",
    ]  # fmt: skip
    written = json.loads((tmp_path / "accelerator.json").read_text())
    written["device"]["name"] = "another GPU"
    (tmp_path / "accelerator.json").write_text(json.dumps(written))
    run("--out", str(tmp_path), "--only", "vq_codes")
    assert list(json.loads((tmp_path / "accelerator.json").read_text())["checks"]) == ["vq_codes"]
