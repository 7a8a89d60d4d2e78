"""Products with weights, so that on a CPU a sample's numbers do not depend on its batch. B batch, T tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_ROWS = 8


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., n] times weight [m, n] transposed: [..., m].

    Without gradients on a CPU, samples [B, T, n] are multiplied one by one, since the library's sums depend on the
    number of rows in a product, and a picture must not depend on its batch. Few rows go in as columns, each of them
    contiguous, three times as fast there as rows.
    """
    plain = type(weight.data) is Tensor  # neither quantised nor spread over processes
    if not plain or x.dim() != 3 or x.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x, weight)
    rows = x.shape[1]
    if rows > FEW_ROWS:
        products = x.new_empty(len(x), rows, len(weight))
        for sample, into in zip(x, products, strict=True):
            torch.mm(sample, weight.T, out=into)
        return products
    columns = (x.expand(-1, 2, -1) if rows == 1 else x).contiguous().mT  # a single one is summed in another order
    return torch.bmm(weight.expand(len(x), -1, -1), columns).mT[:, :rows]


class Linear(nn.Linear):
    """``product`` with a weight of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight)
