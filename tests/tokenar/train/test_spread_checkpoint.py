"""Checkpoints of several processes: the state of one, whoever reads them, and whole whatever a process meets."""

import json
import os
import signal
import time

import pytest
import spread
from safetensors.torch import load_file
from small.saved import assert_equal, everything, names, saved
from spread import ALONE, Training
from torch.multiprocessing import ProcessExitedException

from tokenar.model.folder import load_model
from tokenar.train.checkpoint import Checkpoints

MODES = ("ddp", "fsdp", "hybrid")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes, each a node of its own, saved and loaded; the run of one process is in ``alone``."""
    folder = tmp_path_factory.mktemp("two")
    saved(folder / "alone", 1, 2)
    spread.spread(2, spread.everything, folder, MODES, folder / "alone", per_node=1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_resume_without_a_trace(mode, two):
    told = json.loads((two / mode / "steps.json").read_text())
    assert told["facts"] == {"place": 12, "step": 3}
    assert told["resumed"] == told["undisturbed"]
    assert_equal(
        load_file(two / mode / "end-resumed.safetensors"), load_file(two / mode / "end-undisturbed.safetensors")
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_one_process_reads_what_two_wrote(mode, two):
    training = Training(ALONE, seed=1)
    training.load(Checkpoints(two / mode / "run", 2, ALONE))
    assert_equal(everything(training), load_file(two / mode / "state.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_read_what_one_wrote(mode, two):
    training = Training(ALONE, seed=1)
    training.load(Checkpoints(two / "alone", 2, ALONE))
    assert_equal(load_file(two / f"loaded-{mode}.safetensors"), everything(training))


@pytest.mark.slow
def test_three_processes_read_shards_of_two(two, tmp_path):
    spread.spread(3, spread.load_elsewhere, tmp_path, two / "fsdp/run", ["fsdp"])
    assert_equal(load_file(tmp_path / "loaded-fsdp.safetensors"), load_file(two / "fsdp/state.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_process_writes_its_share_once(mode, two):
    files = sorted((two / mode / "run/checkpoints/step-000003").glob("*.safetensors"))
    assert [path.name for path in files] == ["rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors"]
    held = []
    for path in files:
        held.append(sum(tensor.numel() for tensor in load_file(path).values()))
    state = load_file(two / mode / "state.safetensors")
    assert sum(held) == sum(tensor.numel() for tensor in state.values())
    assert max(held) < 0.6 * sum(held)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_model_folder_of_spread_weights(mode, two):
    net, averages = load_model(two / mode / "model").net, load_file(two / mode / "averages.safetensors")
    assert dict(net.named_parameters()).keys() == averages.keys()
    assert_equal(dict(net.named_parameters()), averages)


@pytest.mark.slow
def test_a_full_disk_of_one_process_is_told_by_all(two):
    for rank in range(2):
        told = json.loads((two / f"told-{rank}.json").read_text())
        assert "step-000002: cannot be saved (File too large); " in told["error"]
        assert told["left"] == ["step-000001"]
        assert told["newest"].endswith("step-000001")
        assert told["later"].endswith("step-000002")


@pytest.mark.slow
def test_a_killed_process_leaves_the_last_checkpoint_whole(tmp_path):
    running = spread.spread(2, spread.save_for_ever, tmp_path, join=False)
    folder = tmp_path / "run/checkpoints"
    deadline = time.monotonic() + 60
    try:
        # Killed while its file is being written, after two checkpoints.
        while not (len(names(tmp_path / "run")) == 2 and list(folder.glob(".step-*.tmp/*"))):
            assert time.monotonic() < deadline
        os.kill(running.pids()[1], signal.SIGKILL)
        with pytest.raises(ProcessExitedException, match="SIGKILL"):
            running.join(timeout=60)
    finally:
        for process in running.processes:
            process.kill()
            process.join()
    left = names(tmp_path / "run")
    saver = Checkpoints(tmp_path / "run", 2, ALONE)
    assert sorted(path.name for path in folder.iterdir()) == left
    config = spread.CONFIG.model_copy(update={"width": 256, "vocabulary": 4096})
    training = Training(ALONE, config=config)
    facts = training.load(saver)
    assert f"step-{facts['step']:06d}" == left[-1]
    for tensor in [*training.net.parameters(), *training.ema.values()]:
        assert (tensor == facts["step"]).all()
