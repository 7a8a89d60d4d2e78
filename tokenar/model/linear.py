"""Products with weights, so that on a CPU a sample's numbers do not depend on its batch. B batch, T tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_ROWS = 8


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., n] times weight [m, n] transposed: [..., m].

    Without gradients on a CPU, samples [B, T, n] are multiplied one by one, since the library's sums depend on the
    number of rows in a product, and a picture must not depend on its batch.
    """
    plain = type(weight.data) is Tensor  # neither quantised nor spread over processes
    if not plain or x.dim() != 3 or x.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x, weight)
    if x.shape[1] <= FEW_ROWS:
        return few_rows(x, weight.expand(len(x), -1, -1))
    products = [_many_rows(sample, weight) for sample in x.split(1)]
    return products[0] if len(products) == 1 else torch.cat(products)


def few_rows(x: Tensor, matrix: Tensor) -> Tensor:
    """x [..., r, n] times matrix [..., m, n] transposed: [..., r, m].

    The rows go in as columns, each of them contiguous, three times as fast on a CPU; a single one twice, since alone it
    is summed in another order.
    """
    rows = x.shape[-2]
    if rows == 1:
        x = x.expand(*x.shape[:-2], 2, -1)
    return (matrix @ x.contiguous().mT).mT[..., :rows, :]


def _many_rows(x: Tensor, weight: Tensor) -> Tensor:
    """x [1, T, n] -> [1, T, m] by oneDNN, where there is one: torch itself calls it for float32 never, although it is
    twice as fast on AMD as what torch calls."""
    if x.dtype is torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)


class Linear(nn.Linear):
    """``product`` with a weight of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight)
