"""Matrix products that on a CPU give each sample the same bits in any batch.

The CPU library sums in an order that depends on the number of rows of a product, so these functions compute the
products sample by sample. Shape legend: B batch, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

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
    if not plain or x.dim() != 3 or x.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x, weight)
    if x.shape[1] <= FEW_ROWS:
        return few_rows(x, weight.expand(len(x), -1, -1))
    products = [_many_rows(sample, weight) for sample in x.split(1)]
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


def _many_rows(x: Tensor, weight: Tensor) -> Tensor:
    """x [1, T, n] -> [1, T, m] with oneDNN if this build of torch has it. torch does not use oneDNN for float32 by
    itself, although on AMD processors it is twice as fast as the library that torch uses."""
    if x.dtype is torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)


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
