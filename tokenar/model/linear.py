"""Matrix products that on a CPU are fast and, without gradients, give each sample the same bits in any batch.

The CPU library sums in an order that depends on the number of rows of a product, so without gradients the products are
computed sample by sample. float32 products use oneDNN, which torch by itself uses for lower precisions only: on AMD
processors it is more than twice as fast as the library that torch takes for float32. Shape legend: B batch, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

HAS_ONEDNN = torch.backends.mkldnn.is_available()

FEW_ROWS = 8
"""``few_rows``, which is faster for few tokens, is used for up to this many tokens a sample."""
GPU_ROWS = 4
"""``few_rows_of_8_bits`` is used for up to this many rows in all: it multiplies without tensor cores."""


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., n] times the transpose of weight [m, n]: [..., m].

    On a CPU and without gradients, samples [B, T, n] are multiplied one by one, so that a drawn picture does not
    depend on its batch.
    """
    plain = type(weight.data) is Tensor  # not quantised, and not sharded over processes
    if hasattr(weight, "qdata") and x.numel() <= GPU_ROWS * x.shape[-1] and fuses(x):
        return few_rows_of_8_bits(x, weight)
    if not plain or x.device.type != "cpu":
        return F.linear(x, weight)
    if torch.is_grad_enabled():
        return _whole(x, weight)
    if x.dim() != 3:
        return F.linear(x, weight)
    if x.shape[1] <= FEW_ROWS:
        return few_rows(x, weight.expand(len(x), -1, -1))
    products = [_whole(sample, weight) for sample in x.split(1)]
    return products[0] if len(products) == 1 else torch.cat(products)


def few_rows(x: Tensor, matrix: Tensor) -> Tensor:
    """x [..., r, n] times the transpose of matrix [..., m, n]: [..., r, m].

    On a CPU it is computed as matrix times the transpose of x, whose columns are contiguous: three times as fast. A
    single row is multiplied twice over, because the library would sum a matrix-vector product in another order.
    """
    if x.device.type != "cpu":
        return x @ matrix.mT
    rows = x.shape[-2]
    if rows == 1:
        x = x.expand(*x.shape[:-2], 2, -1)
    return (matrix @ x.contiguous().mT).mT[..., :rows, :]


def _whole(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., n] -> [..., m] in one product: with oneDNN in float32 if this build of torch has it."""
    exact = x.dtype is weight.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
    return onednn_product(x, weight) if exact and x.numel() > 0 and HAS_ONEDNN else F.linear(x, weight)


@torch.library.custom_op("tokenar::onednn_product", mutates_args=())
def onednn_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., n] times the transpose of weight [m, n]: [..., m]. An operation of its own, because torch.compile takes
    torch's one for constant weights only."""
    rows = torch.ops.mkldnn._linear_pointwise(x.flatten(0, -2), weight, None, "none", [], "")
    return torch.ops.aten._unsafe_view(rows, [*x.shape[:-1], len(weight)])  # view() would forbid to change it in place


@onednn_product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], len(weight)))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    of_x = onednn_product(gradient, weight.T) if ctx.needs_input_grad[0] else None
    rows, outputs = x.flatten(0, -2), gradient.flatten(0, -2)
    of_weight = onednn_product(outputs.T, rows.T) if ctx.needs_input_grad[1] else None
    return of_x, of_weight


onednn_product.register_autograd(_gradients, setup_context=_save)


def fuses(x: Tensor) -> bool:
    """Whether this is compiled code on a GPU, where a multiplication and the sum behind it are one kernel."""
    return x.device.type == "cuda" and torch.compiler.is_compiling()


def few_rows_of_8_bits(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., n] times the transpose of a weight [m, n] of torchao in int8 or float8: [..., m].

    torchao's own product first writes the whole weight in the type of x, which takes more memory traffic than full
    weights do. Here one compiled kernel reads every byte of the weight once.
    """
    stored: Any = weight  # qdata [m, n] in 8 bits, scale [m, 1] float32
    rows = x.flatten(0, -2).float()
    sums = (stored.qdata.float()[:, None] * rows).sum(-1) * stored.scale  # [m, rows]
    return sums.T.to(x.dtype).unflatten(0, x.shape[:-1])


def stored_bytes(weight: Tensor) -> int:
    """Bytes of a weight as it is stored. A quantised weight calls itself as wide as what it is computed in."""
    if not is_traceable_wrapper_subclass(weight):
        return weight.numel() * weight.element_size()
    names, _ = weight.__tensor_flatten__()
    return sum(stored_bytes(getattr(weight, name)) for name in names)


class Linear(nn.Linear):
    """nn.Linear without a bias, computed by ``product``."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight)
