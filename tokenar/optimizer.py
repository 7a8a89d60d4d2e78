"""Which weights decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenar.model import TokenAR


def parameter_groups(net: TokenAR, weight_decay: float, *, decay_tables: bool = False) -> list[dict[str, Any]]:
    """Two groups for AdamW, {"params", "weight_decay"}: what decays and what does not.

    Norms and biases, the tensors of one dimension, never decay. ``decay_tables`` lets everything else decay, as
    released (spec/tokenar.md section 10). Without it the embeddings, soft prompts and null tables do not: decay would
    pull a row to zero in all the steps in which it is not used. Frozen null tables are no parameters and in neither
    group.
    """
    tables = {id(net.img_uncond_embedding), id(net.cls_embedding.uncond_embedding)}
    tables |= {id(module.weight) for module in net.modules() if isinstance(module, nn.Embedding)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in net.parameters():
        groups[parameter.dim() >= 2 and (decay_tables or id(parameter) not in tables)].append(parameter)
    decayed, kept = groups[True], groups[False]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
