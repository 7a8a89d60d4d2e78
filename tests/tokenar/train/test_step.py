"""One optimiser step: the loss in chunks, padding, parts of a batch, the guard, what is recomputed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small.run import SMALL, changed, random_net
from small.step import batch_of, config_for, gradients, work_of
from spread import ALONE
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_schemas.errors import UserError
from tokenar.data import samples
from tokenar.device import repeatable
from tokenar.encoders.config import TeacherConfig
from tokenar.model.layers import Block
from tokenar.model.transformer import TokenAR
from tokenar.processes import Workers
from tokenar.train import step
from tokenar.train.batches import MicroBatch
from tokenar.train.step import Step, losses, recompute_blocks, token_losses

# The loss


def test_chunks_give_the_loss_and_gradients_of_the_whole(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    values = {
        "hidden": torch.randn(3, 7, 8, generator=generator, dtype=torch.float32),
        "head": torch.randn(11, 8, generator=generator),
    }
    wanted = torch.randint(11, (3, 7), generator=generator)
    sizes, real = [], step._chunk_losses
    monkeypatch.setattr(step, "_chunk_losses", lambda rows, *rest: (sizes.append(len(rows)), real(rows, *rest))[1])
    found = {}
    for chunk in (1 << 25, 4 * 11):
        monkeypatch.setattr(step, "CHUNK_LOGITS", chunk)
        sizes.clear()
        own = {name: value.clone().requires_grad_() for name, value in values.items()}
        total, tokens = token_losses(own["hidden"], own["head"], wanted)
        (total / 21).backward()
        assert not tokens.requires_grad
        found[chunk] = (total.detach(), tokens, own["hidden"].grad, own["head"].grad)
    assert max(sizes) == 4
    assert len(sizes) == 2 * math.ceil(21 / 4)  # forward, and once more backward
    logits = F.linear(values["hidden"], values["head"])
    exact = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(3, 7)
    for total, tokens, *_ in found.values():
        torch.testing.assert_close(tokens, exact, atol=1e-6, rtol=0)
        torch.testing.assert_close(total, exact.sum(), atol=1e-5, rtol=0)
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_bfloat16_is_near_and_weights_stay_float32():
    batch, found = batch_of(SMALL, 4), {}
    for precision in ("float32", "bfloat16"):
        trained = Step(random_net(), config_for(precision=precision), ALONE)
        trained.update(work_of(trained.net, 0, batch))
        assert {p.dtype for p in trained.net.parameters()} == {torch.float32}
        assert {p.grad.dtype for p in trained.net.parameters()} == {torch.float32}
        found[precision] = trained.read(work_of(trained.net, 0, batch))["loss"]
    assert found["bfloat16"] != found["float32"]
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.02)


def test_segments_make_up_the_loss():
    trained = Step(random_net(), config_for(), ALONE)
    work = work_of(trained.net, 0, batch_of(SMALL, 4))
    trained.update(work)
    row = trained.read(work)
    assert row["loss"] == pytest.approx((row["loss_target"] + 2 * row["loss_references"]) / 3, abs=1e-6)
    assert row["loss_target"] != pytest.approx(row["loss_references"], abs=1e-3)


@pytest.mark.parametrize("copy_head", [False, True])
def test_copies_with_less_weight_count_less(copy_head):
    """The gradient is that of the weighted mean, and the reported losses of the segments have no weight."""
    model, found = changed(copy_head=copy_head), {}
    for weight in (1.0, 0.25, 0.0):
        trained = Step(random_net(model), config_for(model, copies_weight=weight), ALONE)
        work = work_of(trained.net, 0, batch_of(SMALL, 4), parts=2)
        trained.update(work)
        row = trained.read(work)
        parts = row["loss_target"], row["loss_references"]
        assert row["loss"] == pytest.approx((parts[0] + 2 * weight * parts[1]) / (1 + 2 * weight), abs=1e-6)
        found[weight] = (parts, gradients(trained.net)["norm.weight"])
    for parts, gradient in found.values():
        assert parts == pytest.approx(found[1.0][0], abs=1e-6)
        assert gradient.abs().max() > 0
    # 3 g(1) = p + 2 c and g(0) = p, so 1.5 g(1/4) = p + c / 2.
    mixed = (found[0.0][1] + 0.5 * (3 * found[1.0][1] - found[0.0][1]) / 2) / 1.5
    torch.testing.assert_close(found[0.25][1], mixed, atol=1e-6, rtol=1e-4)


# Padding


def test_padding_moved_behind_everything_is_padding_masked():
    net = random_net(changed(text_padding="masked"))
    batch, layout = batch_of(net.config, 3), net.layout(2)
    dropped = torch.tensor([False, True, False])
    prefix = net.embed_prefix(batch.sources, batch.text, None, dropped)
    x = torch.cat([prefix, net.embed_target(net.target_tokens(batch.sources, batch.picture)[:, :-1], layout)], dim=1)
    moved = net.whole(x, layout, batch.text_mask, dropped)
    mask = net.mask(layout, x.shape[1], batch.text_mask, dropped)
    masked = net.hidden(x, net.tables(layout)[0][: x.shape[1]], mask=mask)
    seen = mask[:, 0, -1]  # what the last position sees: everything but padding
    assert not seen.all()
    torch.testing.assert_close(moved[seen], masked[seen], atol=1e-5, rtol=0)


def test_what_stands_in_masked_padding_changes_nothing():
    net = random_net(changed(text_padding="masked"))
    batch, config = batch_of(net.config, 3), config_for(net.config)
    other = batch._each(torch.clone)
    other.text[~batch.text_mask] = 9.0
    assert torch.equal(losses(net, batch, config).tokens, losses(net, other, config).tokens)
    read = random_net()
    assert not torch.equal(losses(read, batch, config).tokens, losses(read, other, config).tokens)


# Micro-batches, guard


@pytest.mark.parametrize("parts", [2, 5])
def test_parts_of_a_batch_are_the_batch(parts):
    found = []
    for number in (1, parts):
        trained = Step(random_net(), config_for(), ALONE)
        work = work_of(trained.net, 0, batch_of(SMALL, 5), number)
        assert len({len(part.draws) for part in work.micro_batches}) == (2 if number == 2 else 1)
        trained.update(work)
        found.append((trained.read(work), gradients(trained.net)))
    (whole, expected), (added, summed) = found
    assert added == pytest.approx(whole, abs=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(summed[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_part_that_does_not_count_changes_nothing():
    found = []
    for extra in ([], [MicroBatch(batch_of(SMALL, 1, seed=9), torch.tensor([0.5]), counted=0)]):
        trained = Step(random_net(), config_for(), ALONE)
        work = work_of(trained.net, 0, batch_of(SMALL, 3))
        work.micro_batches += extra
        trained.update(work)
        found.append((trained.read(work), gradients(trained.net)))
    assert found[0][0] == found[1][0]
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-8, rtol=0)


@settings(deadline=None, max_examples=100)
@given(count=st.integers(1, 30), batch=st.integers(1, 30), world=st.integers(1, 5), accumulation=st.integers(1, 4))
def test_parts_of_all_processes_are_the_batch_once(count, batch, world, accumulation):
    count = min(count, batch)
    parts = [samples.rank_parts(count, batch, rank, world, accumulation) for rank in range(world)]
    assert len({len(own) for own in parts}) == 1
    assert len(parts[0]) <= accumulation
    assert sorted(place for own in parts for part in own for place in part) == list(range(count))


def test_numbers_that_are_none_change_nothing_and_are_told_with_their_step():
    trained = Step(random_net(), config_for(ema=0.5), ALONE)
    good, bad = batch_of(SMALL, 2), batch_of(SMALL, 2)
    bad.text[0, 0, 0] = math.nan
    trained.update(work_of(trained.net, 0, good))
    trained.check()
    before = {name: p.detach().clone() for name, p in trained.net.named_parameters()}
    moments = {p: state["exp_avg"].clone() for p, state in trained.optimizer.state.items()}
    trained.update(work_of(trained.net, 1, bad))
    assert all(torch.equal(p, before[name]) for name, p in trained.net.named_parameters())
    assert all(torch.equal(trained.optimizer.state[p]["exp_avg"], moment) for p, moment in moments.items())
    assert all(value.isfinite().all() for value in trained.averages.values())
    trained.update(work_of(trained.net, 2, good))
    with pytest.raises(UserError, match="the loss is not finite at step 2;"):
        trained.check()


class Copies(TorchDispatchMode):
    """Records the operations that have tensors on the CPU and on a GPU, and whether the CPU goes on meanwhile."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, torch.Tensor)]
        if {tensor.device.type for tensor in tensors} == {"cpu", "cuda"}:
            self.found.append((str(operation), (kwargs or {}).get("non_blocking")))
        return result


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("how", ["none", "selective"])
def test_nothing_in_a_step_waits_for_a_gpu(how, monkeypatch):
    """On a GPU that is only imagined: reading a value of its tensors is an error, and so is mixing devices."""
    gpu = torch.device("cuda", 0)
    works = [work_of(random_net(), number, batch_of(SMALL, 4), parts=2) for number in range(2)]
    monkeypatch.setattr(step, "CHUNK_LOGITS", 4 * 11)
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: flash(q, k, v, 0.0, True)[0])
    with FakeTensorMode(allow_non_fake_inputs=True):
        with gpu:
            net = TokenAR(changed(dropout=0.1))
        trained = Step(net, config_for(ema=0.9, activation_checkpointing=how), Workers(0, 1, gpu))

        def backward(loss):  # the real one looks for the GPU
            for parameter in net.parameters():
                parameter.grad = torch.empty_like(parameter)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        trained.update(works[0])
        with Copies() as copies:
            copies.found = []
            trained.update(works[1])
    assert trained.optimizer.defaults["fused"]
    assert copies.found == [("aten._to_copy.default", True)] * 10  # five tensors of each of two micro-batches


def test_a_deterministic_step_allows_no_other_kernels(monkeypatch):
    """With a warning in place of an error, attention's backward pass on a GPU is not deterministic."""
    asked, real = [], torch.Tensor.backward

    def backward(loss):
        asked.append(
            (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
        )
        real(loss)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    for deterministic in (True, False):
        with repeatable(deterministic):
            trained = Step(random_net(), config_for(), ALONE)
            trained.update(work_of(trained.net, 0, batch_of(SMALL, 2)))
            assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert asked == [(True, False), (False, False)]


@pytest.mark.parametrize("kept", ["weights", "averages"])
def test_weights_are_looked_at_before_they_are_kept(kept):
    trained = Step(random_net(), config_for(ema=0.5), ALONE)
    trained.check_weights(3)
    values = trained.averages if kept == "averages" else dict(trained.net.named_parameters())
    values["layers.0.attention.wo.weight"].data[1, 2] = math.inf
    with pytest.raises(UserError, match="the weights are not finite after step 3;"):
        trained.check_weights(3)


def test_the_norm_is_that_before_clipping():
    row = {}
    for limit in (1e9, 1e-3):
        trained = Step(random_net(), config_for(clip=limit), ALONE)
        work = work_of(trained.net, 0, batch_of(SMALL, 2))
        trained.update(work)
        row[limit] = trained.read(work)["grad_norm"]
        left = nn.utils.get_total_norm(gradients(trained.net).values())
        assert left == pytest.approx(min(limit, row[limit]), rel=1e-3)
    assert row[1e9] == row[1e-3] > 1e-3


# Recomputing, compiling, distillation


@pytest.mark.parametrize("how", ["selective", "block"])
def test_recomputing_changes_no_bit(how):
    found = []
    for each in ("none", how):
        model = changed(dropout=0.3, text_dropout=0.1)
        trained = Step(random_net(model), config_for(model, activation_checkpointing=each), ALONE)
        trained.update(work_of(trained.net, 0, batch_of(model, 3)))
        found.append(gradients(trained.net))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_recomputing_keeps_the_names_of_the_weights():
    net = random_net()
    names = list(net.state_dict())
    recompute_blocks(net, "block")
    assert list(net.state_dict()) == names


@pytest.mark.slow
@pytest.mark.parametrize("how", ["none", "selective"])
def test_compiled_blocks_give_the_same_loss_with_one_graph_for_all(how, monkeypatch):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(Block, "compile", lambda self: nn.Module.compile(self, backend=counter, fullgraph=True))
    found = []
    for compiled in (False, True):
        config = config_for(compile=compiled, activation_checkpointing=how)
        trained = Step(random_net(), config, ALONE)
        work = work_of(trained.net, 0, batch_of(SMALL, 3))
        trained.update(work)
        found.append(trained.read(work))
    assert counter.frame_count == 1
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.slow
def test_the_blocks_of_many_networks_are_compiled(monkeypatch):
    """A sweep trains dozens in one process; beyond torch's own limit of 8 they would silently run uncompiled."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(Block, "compile", lambda self: nn.Module.compile(self, backend=counter))
    with torch._dynamo.config.patch(recompile_limit=8):
        for number in range(1, 11):
            model = changed(width=16 * number)
            trained = Step(random_net(model), config_for(model, compile=True), ALONE)
            trained.update(work_of(trained.net, 0, batch_of(model, 2)))
            assert counter.frame_count == number


def test_compiled_dropout_depends_on_nothing_but_seed_and_place(monkeypatch):
    from torch._inductor.codegen.triton import TritonOverrides

    monkeypatch.setattr(TritonOverrides, "_can_use_4x_random", staticmethod(lambda: True), raising=False)
    with torch._dynamo.config.patch(optimize_ddp=True):
        step._set_up_compiler(torch.device("cuda"))
    assert TritonOverrides.rand("seed", "place") == "tl.rand(seed, (place).to(tl.uint32))"


def test_distillation_is_learned():
    model = changed(distill="dinov2", grid=4, dropout=0.0)
    config = config_for(
        model, teacher=TeacherConfig(), tokenizer={"image_size": 16, "patch": 4, "vocabulary": 11}, distill_weight=5.0
    )
    trained = Step(random_net(model), config, ALONE)
    teacher = torch.randn(2, 4, 768, generator=torch.Generator().manual_seed(3))
    rows = []
    for number in range(30):
        work = work_of(trained.net, number, batch_of(model, 2, teacher=teacher))
        trained.update(work)
        rows.append(trained.read(work)["loss_teacher"])
    assert rows[-1] < 0.7 * rows[0]
