"""Matrix products that on a CPU give each sample the same bits in any batch.

The CPU library sums in an order that depends on the number of rows of a product, so these functions compute the
products sample by sample. Shape legend: B batch, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_ROWS = 8
"""``few_rows``, which is faster for few tokens, is used for up to this many tokens a sample."""


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., n] times the transpose of weight [m, n]: [..., m].

    On a CPU and without gradients, samples [B, T, n] are multiplied one by one, so that a drawn picture does not
    depend on its batch.
    """
    plain = type(weight.data) is Tensor  # not quantised, and not sharded over processes
    if not plain or x.dim() != 3 or x.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x, weight)
    if x.shape[1] <= FEW_ROWS:
        return few_rows(x, weight.expand(len(x), -1, -1))
    products = [_many_rows(sample, weight) for sample in x.split(1)]
    return products[0] if len(products) == 1 else torch.cat(products)


def few_rows(x: Tensor, matrix: Tensor) -> Tensor:
    """x [..., r, n] times the transpose of matrix [..., m, n]: [..., r, m].

    It is computed as matrix times the transpose of x, whose columns are contiguous: three times as fast on a CPU. A
    single row is multiplied twice over, because the library would sum a matrix-vector product in another order.
    """
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


class Linear(nn.Linear):
    """nn.Linear without a bias, computed by ``product``."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight)
