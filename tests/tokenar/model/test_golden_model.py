"""The transformer against the released program's own numbers (case files of the golden data, see their README)."""

from math import isqrt

import golden
import pytest
import torch
from golden.released import angle_error, config_of, config_of_keys, generation_case, net_of, sources_of, table_rows
from torch.nn import functional as F

from data_schemas.errors import UserError
from tokenar.model.config import SIZES, DropConfig, ModelConfig, released
from tokenar.model.positions import attention_mask, layout_rotary, make_layout, source_ids
from tokenar.model.published import NEW_KEYS, fill
from tokenar.model.transformer import TokenAR, drop_decisions
from tokenar.sample.logits import filter_logits, guide
from tokenar.train.optimizer import parameter_groups

FOLDER = "tokenar"


def test_the_golden_data_is_there():
    golden.check_present(
        FOLDER, "gpt_train_forward", "gpt_optimizer_trace", "gpt_generate", "rope_tables", "sampling",
        "state_dict_keys", "checkpoint_compatibility",
    )  # fmt: skip


def cases_with(kind, wanted):
    """The cases of a kind whose settings and tensors' names ``wanted`` says yes to."""
    found = golden.cases(FOLDER, kind)
    return [case for case in found if case.values[0] is None or wanted(golden.read(case.values[0]), case.values[0])]


def has_tensor(name):
    return lambda told, path: name in golden.tensors(path)


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, atol=tolerance.get("atol", 0.0), rtol=tolerance.get("rtol", 0.0))


def mean_loss(logits, wanted):
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())


def training_case(case):
    """(settings, tensors, model in training mode, call of its forward)."""
    told, data = golden.read(case), golden.tensors(case)
    attention = "block" if told["custom_attention_mask"] else "causal"
    config = config_of(told["config"], told["itd"], source_attention=attention)
    net = net_of(case, config).train()
    picture = data["target_tokens"][:, -config.image_tokens :].long()
    instruct = data["instruct_indices"].long() if "instruct_indices" in data else None

    def forward():
        return net(
            sources_of(data, config), data["text_emb"], picture, torch.tensor(told["drop_draws"]),
            instruct=instruct, with_features=config.distill is not None,
        )  # fmt: skip

    return told, data, net, forward


@pytest.mark.parametrize("case", golden.cases(FOLDER, "gpt_train_forward"))
def test_training_forward(case):
    told, data, net, forward = training_case(case)
    expected, tolerance = told["expected"], told["tolerance"]
    image, text = drop_decisions(torch.tensor(told["drop_draws"]), DropConfig())
    kinds = {(False, False): "none", (True, False): "image", (False, True): "text", (True, True): "both"}
    assert [kinds[pair] for pair in zip(image.tolist(), text.tolist(), strict=True)] == told["drop_kinds"]
    layout = net.layout_of(sources_of(data, net.config))
    assert layout.prefix - 1 == told["first_scored_position"]
    assert (layout.total - 1, layout.target_tokens) == (told["sequence_length"], told["scored_tokens_per_sample"])
    if "input_img_mask" in data:
        assert (source_ids(layout) == data["input_img_mask"]).all()
    wanted = net.target_tokens(sources_of(data, net.config), data["target_tokens"][:, -layout.image_tokens :])
    assert torch.equal(wanted, data["target_tokens"].to(wanted.dtype))
    out = forward()
    logits, features = out if net.config.distill else (out, None)
    close(logits, data["expected_logits"], tolerance["logits"])
    losses = F.cross_entropy(logits.transpose(1, 2), wanted.long(), reduction="none").mean(1)
    close(losses, torch.tensor(expected["loss_per_sample"]), tolerance["loss"])
    close(losses.mean(), torch.tensor(expected["loss"]), tolerance["loss"])
    if features is not None:
        close(features, data["expected_features"], tolerance["features"])
        distillation = F.mse_loss(features, data["teacher_features"].float())
        close(distillation, torch.tensor(expected["distill_loss"]), tolerance["loss"])
        total = losses.mean() + expected["distill_weight"] * distillation
        close(total, torch.tensor(expected["total_loss"]), tolerance["loss"])


@pytest.mark.parametrize("case", cases_with("gpt_train_forward", lambda told, _: "grad_norms" in told["expected"]))
def test_gradients(case):
    told, data, net, forward = training_case(case)
    expected = told["expected"]
    out = forward()
    wanted = data["target_tokens"].long()
    loss = mean_loss(out[0] if net.config.distill else out, wanted)
    if net.config.distill:
        loss = loss + expected["distill_weight"] * F.mse_loss(out[1], data["teacher_features"].float())
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    assert set(gradients) == set(expected["grad_norms"])  # the null tables are not among them
    tolerance = told["tolerance"]["grad_norms"]
    for name, norm in expected["grad_norms"].items():
        close(gradients[name].norm(), torch.tensor(norm), tolerance)
    total = torch.nn.utils.get_total_norm(gradients.values()).item()
    assert total == pytest.approx(expected["grad_norm_total"], rel=tolerance["rtol"])
    stored = {key.removeprefix("expected_grad/"): value for key, value in data.items() if key.startswith("expected_gr")}
    for name, value in stored.items():
        error = (gradients[name] - value).norm() / value.norm()
        assert error < tolerance["rtol"], name


@pytest.mark.parametrize("case", cases_with("gpt_train_forward", has_tensor("debug_layer0_input")))
def test_activations_between_the_layers(case):
    told, data, net, forward = training_case(case)
    seen = {}
    net.layers[0].register_forward_pre_hook(lambda _, args: seen.update({"debug_layer0_input": args[0]}))
    for number, layer in enumerate(net.layers):
        layer.register_forward_hook(lambda _, args, out, n=number: seen.update({f"debug_layer{n}_output": out}))
    forward()
    stored = {key: value for key, value in data.items() if key.startswith("debug_layer")}
    for name, value in stored.items():
        close(seen[name][: len(value)], value, told["tolerance"]["logits"])


@pytest.mark.parametrize("case", cases_with("gpt_train_forward", has_tensor("attention_mask")))
def test_block_mask(case):
    told, data = golden.read(case), golden.tensors(case)
    config = config_of(told["config"], told["itd"], source_attention="block")
    layout = make_layout(config, config.max_references)
    assert torch.equal(attention_mask(layout, layout.total - 1, None), data["attention_mask"])


@pytest.mark.parametrize("case", golden.cases(FOLDER, "gpt_optimizer_trace"))
def test_optimizer_trace(case):
    told, data = golden.read(case), golden.tensors(case)
    config, tolerance, set_to = config_of(told["config"], told["itd"]), told["tolerance"], told["optimizer"]
    net = net_of(case, config).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    groups = parameter_groups(net, set_to["weight_decay"], decay_tables=True)
    name_of = {parameter: name for name, parameter in net.named_parameters()}
    for group, expected in zip(groups, set_to["groups"], strict=True):
        assert {name_of[parameter] for parameter in group["params"]} == set(expected["params"])
        assert group["weight_decay"] == expected["weight_decay"]
    optimizer = torch.optim.AdamW(groups, lr=set_to["lr"], betas=tuple(set_to["betas"]), eps=set_to["eps"])
    for step in told["steps"]:
        given = {key.split("/")[1]: v for key, v in data.items() if key.startswith(f"step{step['step']}/")}
        wanted = given["target_tokens"].long()
        picture = wanted[:, -config.image_tokens :]
        draws = torch.tensor(step["draws"])
        logits, features = net(sources_of(given, config), given["text_emb"], picture, draws, with_features=True)
        loss = mean_loss(logits, wanted)
        distillation = F.mse_loss(features, given["teacher_features"].float())
        total = loss + told["distill_weight"] * distillation
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), set_to["clip_grad_norm"])
        optimizer.step()
        measured = (("llm_loss", loss), ("distill_loss", distillation), ("total_loss", total))
        for key, value in (*measured, ("grad_norm_before_clip", norm)):
            close(value.detach(), torch.tensor(step[key]), tolerance["losses"])
    after = net.state_dict()
    for name, expected in told["final_parameters"].items():
        assert after[name].double().norm().item() == pytest.approx(
            expected["norm"], rel=tolerance["final_norm"]["rtol"]
        )
        moved = (after[name].double() - before[name].double()).norm().item()
        assert moved == pytest.approx(expected["delta_norm"], rel=10 * tolerance["final_norm"]["rtol"])
    for key, value in data.items():
        if key.startswith("expected_final/"):
            close(after[key.removeprefix("expected_final/")], value, tolerance["final_tensors"])
    for name, change in told["buffer_max_abs_change"].items():
        assert (after[name] - before[name]).abs().max().item() == change


@pytest.mark.parametrize("case", golden.cases(FOLDER, "gpt_generate"))
def test_generation(case):
    told, data, steps = generation_case(case)
    tokens, logits = (torch.stack(part, dim=1) for part in zip(*steps, strict=True))
    assert torch.equal(tokens, data["expected_tokens"].long())
    tolerance = told["tolerance"]["first_logits"]
    close(logits[:, 0], data["expected_first_logits"], tolerance)
    chosen = data["expected_step_logits_steps"].long()
    close(logits[:, chosen], data["expected_step_logits"], tolerance)


@pytest.mark.parametrize("case", cases_with("gpt_generate", has_tensor("expected_first_logits_cond")))
def test_the_two_halves_of_guidance(case):
    told, data, _ = generation_case(case)
    for half, guidance in (("cond", 1.0), ("uncond", 0.0)):
        _, logits = next(generation_case(case, guidance)[2])
        close(logits, data[f"expected_first_logits_{half}"], told["tolerance"]["first_logits"])


def rotary_config(table):
    """A model whose sequence fills as much of a table as one can."""
    blocks, targets, background = table["max_ref_num"], table["max_edited_num"], table["multi_cond"]
    return ModelConfig(
        layers=1, heads=1, width=table["head_dim"], vocabulary=2, grid=table["grid"], rotary_layout="canvas",
        max_references=blocks - background, background=background, rotary_base=table["rope_base"],
        text_tokens=table["cls_token_num"], canvas_targets=targets,
        instruct_tokens=table["instruct_token_num"] if table["instruct_rows_in_table"] else 0,
        identity_disentanglement=blocks > 2 and isqrt(targets) ** 2 == blocks,
    )  # fmt: skip


@pytest.mark.parametrize("case", golden.cases(FOLDER, "rope_tables"))
def test_rotary_tables(case):
    told, data = golden.read(case), golden.tensors(case)
    for table in told["tables"]:
        config, name = rotary_config(table), table["name"]
        layout = make_layout(config, config.max_references)
        assert table["rows"] == table["shape"][0] == table_rows(table, table["grid"]), name
        if config.canvas_problem:  # the release makes a table that it then cannot use
            with pytest.raises(UserError, match="canvas holds"):
                layout_rotary(layout)
            continue
        ours = layout_rotary(layout)
        assert ours.shape[0] <= table["rows"], name
        assert list(ours.shape[1:]) == table["shape"][1:], name
        # a case's own tolerance is that of one processor with itself
        tolerance = {"atol": max(told["tolerance"]["atol"], angle_error(config)), "rtol": 0.0}
        if f"{name}/table" in data:
            close(ours, data[f"{name}/table"][: len(ours)], tolerance)
        else:
            stored = data[f"{name}/rows"].long()
            mine = stored < len(ours)
            close(ours[stored[mine]], data[f"{name}/values"][mine], tolerance)
        if len(ours) == table["rows"]:
            means = (ours.double().sum(dim=(0, 1)) / ours[..., 0].numel()).tolist()
            expected = [table[key] / ours[..., 0].numel() for key in ("sum_cos", "sum_sin")]
            assert means == pytest.approx(expected, abs=tolerance["atol"])


@pytest.mark.parametrize("case", golden.cases(FOLDER, "sampling"))
def test_filters_and_guidance(case):
    told, data = golden.read(case), golden.tensors(case)
    for settings in told["cases"]:
        filtered = filter_logits(data["logits"], settings["temperature"], settings["top_k"], settings["top_p"])
        probabilities, expected = filtered.softmax(-1), data[f"{settings['case']}/probs"]
        close(probabilities, expected, told["tolerance"]["probs"])
        assert torch.equal(probabilities > 0, expected > 0)
        assert (probabilities > 0).sum(-1).tolist() == settings["kept"]
        assert torch.equal(filtered.argmax(-1), data[f"{settings['case']}/argmax"].long())
    for scale in told["cfg_scales"]:
        guided = guide(data["cfg/cond"], data["cfg/uncond"], scale)
        close(guided, data[f"cfg/scale_{scale}"], {"atol": 1e-5, "rtol": 1e-6})


def shapes(tensors):
    return {name: list(tensor.shape) for name, tensor in tensors}


def of_transformers(told, _=None):
    return "ref_index_embed" in told["model"]


@pytest.mark.parametrize("case", cases_with("state_dict_keys", of_transformers))
def test_keys_and_shapes(case):
    told = golden.read(case)
    model = told["model"]
    config = config_of_keys(model)
    assert config.head_width == model["head_dim"]
    assert config.feed_forward_width == model["ffn_hidden"]
    with torch.device("meta"):
        net = TokenAR(config)
    assert shapes(net.state_dict().items()) == told["keys"]
    assert {name for name, _ in net.named_buffers()} == set(model["buffers"])
    assert sum(parameter.numel() for parameter in net.parameters()) == model["num_parameters"]
    assert sum(buffer.numel() for buffer in net.buffers()) == model["num_buffer_elements"]
    assert [table_rows(model, config.grid), config.head_width // 2, 2] == model["rope_rows"]


AS_PUBLISHED = {
    "vocab_size": 16384, "block_size": 1024, "cls_token_num": 120, "caption_dim": 2048, "multi_cond": True,
    "max_ref_num": 4, "max_edited_num": 4, "ref_index_embed": True, "instruct_token_mode": "casual",
    "instruct_token_num": 120, "distill_mode": "dinov2",
}  # fmt: skip
"""The training script's settings, in the words of a list of keys."""


def as_published(told, _):
    size = told["model"]["name"].removeprefix("GPT-")
    return of_transformers(told) and size in SIZES and AS_PUBLISHED.items() <= told["model"].items()


@pytest.mark.parametrize("case", cases_with("state_dict_keys", as_published))
def test_the_presets_are_the_published_sizes(case):
    model = golden.read(case)["model"]
    preset = released(model["name"].removeprefix("GPT-"))
    assert preset == config_of_keys(model).model_copy(update={"canvas_targets": None})
    assert make_layout(preset, preset.max_references).total == model["rope_rows"][0]


def test_every_published_size_can_be_built():
    for size in SIZES:
        with torch.device("meta"):
            assert TokenAR(released(size)).config.layers == SIZES[size][0]


@pytest.mark.parametrize("case", golden.cases(FOLDER, "checkpoint_compatibility"))
def test_starting_from_llamagen(case):
    told = golden.read(case)
    start, _, target = case.stem.partition("_to_tokenar_")
    keys = golden.read(golden.near(case, f"{start}.json"))["keys"]
    model = golden.read(golden.near(case, f"gpt_{target}.json"))["model"]
    with torch.device("meta"):
        net = TokenAR(config_of_keys(model))
        llamagen = {name: torch.empty(shape) for name, shape in keys.items()}
    assert len(llamagen) == told["shared"]
    new = fill(net, llamagen, "t2i_XL_stage2_512.pt", NEW_KEYS)
    own = shapes(net.state_dict().items())
    assert {name: own[name] for name in new} == told["missing_in_llamagen"]
