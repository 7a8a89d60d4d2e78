"""BEN2's weights as the golden cases make them: drawn from the tensor's name and a seed."""

import zlib

import torch


def draw_weights(network, seed):
    """Fill every floating tensor of the network's state dict, in place."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(draw(name, tensor.shape, seed))
    return network


def draw(name, shape, seed):
    generator = torch.Generator("cpu").manual_seed((zlib.crc32(name.encode()) ^ seed) & 0x7FFFFFFF)
    values = torch.randn(shape, generator=generator)
    if name.endswith("relative_position_bias_table"):
        return 0.5 * values
    if values.ndim == 1:
        return ("norm" in name and name.endswith("weight")) + 0.1 * values
    return values / values[0].numel() ** 0.5
