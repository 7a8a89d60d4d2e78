"""The released program's own greedy sequences, from its checkpoint through tokenar-import and tokenar-sample.

Tokens go in and come out as pictures, and text features as prompts; small/published.py has the encoders for that.
"""

import json
from math import isqrt

import golden
import pytest
import torch
from commands import run_here
from PIL import Image
from safetensors.torch import load_file
from small.published import circle_vq, command_line, feature_t5, picture_of, tokens_of

from tokenar import cli


def test_golden_data_is_there():
    golden.check_present("tokenar", "gpt_generate")


def checkpoint(case, told, folder):
    """The case's weights as the published trainer stores them."""
    config = told["config"]
    args = command_line(
        image_size=2 * isqrt(config["block_size"]), downsample_size=2, max_ref_num=config["max_ref_num"],
        concat_target=told["itd_decode"], instruct_token_mode=config["instruct_token_mode"],
        instruct_token_num=config["instruct_token_num"], distill_mode=config["distill_mode"],
    )  # fmt: skip
    weights = load_file(golden.near(case, told["weights"]))
    torch.save({"model": weights, "optimizer": {"state": {}}, "steps": 200, "args": args}, folder / "0000200.pt")
    torch.save({"model": circle_vq(config["vocab_size"]).state_dict()}, folder / "vq.pt")
    settings = {
        "heads": config["n_head"], "index_at_inference": told["variant"] == "index_embedding_applied",
        "source_attention": "causal" if told["attention"] == "causal" else "block",
    }  # fmt: skip
    return [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]


def scenes(told, data, folder):
    """The list of what to draw: pictures of the case's source tokens, and the words that have its text features."""
    config, prompts = told["config"], feature_t5(folder / "t5", data["text_emb"])
    blocks = data["input_img_indices"].unflatten(1, (-1, config["block_size"]))
    listed = []
    for row, prompt in enumerate(prompts):
        for number, block in enumerate(blocks[row]):
            picture_of(block, config["vocab_size"]).save(folder / f"{row}_{number}.png")
        names = [f"{row}_{number}.png" for number in range(len(blocks[row]))]
        background = {"background": names.pop()} if config["multi_cond"] else {}
        listed.append({"references": names, "prompt": prompt, "id": f"row{row}", **background})
    (folder / "scenes.json").write_text(json.dumps(listed))


QUICK = ("01_itd_cfg1__as_released", "07_r2_cfg1__as_released", "13_r1_edit_cfg1__as_released")


def reachable(case):
    """Whether commands do what the case does: they draw whole pictures, with the instruct tokens of pictures."""
    told = golden.read(case)
    config, picture = told["config"], [told["config"]["max_ref_num"] - 2]
    blocks = config["max_ref_num"] if told["itd_decode"] else 1
    whole = told["max_new_tokens"] == blocks * config["block_size"]
    return whole and told["instruct_indices"] in (None, picture)


def reachable_cases():
    found = golden.cases("tokenar", "gpt_generate")
    chosen = [case for case in found if case.values[0] is None or reachable(case.values[0])]
    return [
        case if case.values[0] is None or case.id in QUICK
        else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
        for case in chosen
    ]  # fmt: skip


@pytest.mark.parametrize("case", reachable_cases())
def test_greedy_tokens_are_the_releases(case, tmp_path):
    pytest.importorskip("transformers")
    told, data = golden.read(case), golden.tensors(case)
    chosen, size = checkpoint(case, told, tmp_path), told["config"]["block_size"]
    scenes(told, data, tmp_path)
    imported = run_here(
        cli.import_main, "tokenar-import", tmp_path / "0000200.pt", "--tokenizer", tmp_path / "vq.pt",
        "--t5", tmp_path / "t5", "--out", tmp_path / "model", *chosen,
    )  # fmt: skip
    assert imported.returncode == 0, imported.stderr
    guided = ["--set", f"guided_tokens={told['cfg_interval'] + 2}"] if told["cfg_interval"] >= 0 else []
    drawn = run_here(
        cli.sample_main, "tokenar-sample", "--model", tmp_path / "model", "--list", tmp_path / "scenes.json",
        "--out", tmp_path / "drawn", "--guidance", told["cfg_scale"], "--temperature", 0, "--precision", "float32",
        "--copies", "drawn", "--set", "guided_from=first", *guided,
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    for row, mode in enumerate(told["input_mode"]):
        if mode == 1:  # the release's data sets always read the pictures
            tokens = tokens_of(Image.open(tmp_path / f"drawn/row{row}.png"), told["config"]["vocab_size"])
            assert torch.equal(tokens, data["expected_tokens"][row, -size:].long())
