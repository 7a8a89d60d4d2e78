"""The published sizes are found from nothing but the shapes of their keys."""

import golden
import pytest
import torch

from tokenar.encoders.vq import VqNetwork, config_of
from tokenar.model.config import released
from tokenar.model.published import NEW_KEYS
from tokenar.model.shapes import NULL_IMAGES, network_config
from tokenar.model.transformer import TokenAR


def lists():
    return golden.cases("tokenar", "state_dict_keys")


@pytest.mark.parametrize("case", lists())
def test_settings_from_shapes(case):
    keys = golden.read(case)["keys"]
    weights = {name: torch.empty(shape, device="meta") for name, shape in keys.items()}
    with torch.device("meta"):
        if "quantize.embedding.weight" in keys:
            net, new = VqNetwork(config_of(weights, "x")), set()
        else:
            config = network_config(weights, released(), {}, {}, "x")
            net, new = TokenAR(config), NEW_KEYS if NULL_IMAGES not in keys else set()
            assert config.feed_forward_multiplier is None
    own = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    assert {name: shape for name, shape in own.items() if name in keys or name not in new} == keys


def test_the_released_size_is_the_released_preset():
    with torch.device("meta"):
        net = TokenAR(released())
    assert network_config(net.state_dict(), released(), {}, {}, "x") == released()


def test_a_feed_forward_layer_of_another_width():
    config = released("B").model_copy(update={"feed_forward_multiple": 32, "feed_forward_multiplier": 1.3})
    with torch.device("meta"):
        net = TokenAR(config)
    assert network_config(net.state_dict(), released(), {}, {}, "x").feed_forward_width == config.feed_forward_width
