"""Loading published weights: LlamaGen's and TokenAR's checkpoints, and model repositories of the Hugging Face hub.

A checkpoint must fit the model key by key. The only keys that may be missing are those that LlamaGen's text-to-image
model does not have (``NEW_KEYS``); they keep their initial values. Only tensors and plain values are unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from data_schemas.errors import UserError
from data_schemas.io.files import replacing
from data_schemas.io.text import one_line
from data_schemas.settings import first_mistake
from tokenar.model.config import SIZES, ModelConfig
from tokenar.weight_files import read_content, weights_in

NEW_KEYS = frozenset({
    "img_uncond_embedding", "ref_index_embeddings.weight", "instruct_token_embeddings.weight", "alignment.weight",
    "alignment.bias", *(f"alignment.{number}.{kind}" for number in range(2) for kind in ("weight", "bias")),
})  # fmt: skip
"""Parameters that LlamaGen's text-to-image checkpoint lacks: they are new when training starts from it."""

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
AGAIN = "download the checkpoint again, or give the published file"
_LEFT_BY_SAMPLING = re.compile(r"layers\.\d+\.attention\.kv_cache\.")
_CARD = """---
{{ card_data }}
---

# TokenAR

An autoregressive transformer over image tokens: it draws a picture from reference pictures of its subjects, a
background and a text. `config.json` holds the settings, `model.safetensors` the weights.

```python
from tokenar import TokenAR

net = TokenAR.from_pretrained("this folder or repository")
```

Code: {{ repo_url }}
"""


def load_published(net: nn.Module, path: str | Path) -> list[str]:
    """Load a checkpoint file into a TokenAR. Returns the keys that the file lacks; they keep their values.

    The file is a ``.safetensors`` file or was written by torch.save, with the weights under "model", "module" or
    "state_dict" or at the top. UserError if it is not a checkpoint, or if a key is missing, unknown or of another
    shape; the message names the first such key and both shapes.
    """
    return fill(net, read_weights(Path(path)), str(path), NEW_KEYS)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint file by name, on the CPU. UserError if it has none, or if one has NaN or infinity."""
    return weights_in(read_content(path, AGAIN), path, AGAIN)


def fill(
    net: nn.Module, weights: Mapping[str, Tensor], source: str, may_be_new: frozenset[str] = frozenset()
) -> list[str]:
    """Copy ``weights`` into ``net``; returns the keys of ``may_be_new`` that they lack. ``source`` is for messages.

    Two kinds of unknown keys are ignored: the key/value caches that released checkpoints may contain after sampling,
    and an alignment layer if the model has none. UserError naming the first other key that does not fit.
    """
    check_fit(net, weights, source, may_be_new)
    own = net.state_dict()
    net.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)
    return [name for name in own if name not in weights]


def check_fit(
    net: nn.Module, weights: Mapping[str, Tensor], source: str, may_be_new: frozenset[str] = frozenset()
) -> None:
    """UserError if ``fill`` could not copy ``weights`` into ``net``; it names the first key that does not fit."""
    own, advice = net.state_dict(), f"use the model it was made for{_size(weights)}"
    for name, value in own.items():
        if name not in weights:
            if name not in may_be_new:
                raise UserError(f"{source}: {name} {list(value.shape)} is missing; {advice}")
        elif weights[name].shape != value.shape:
            shapes = f"{list(weights[name].shape)}, in this model {list(value.shape)}"
            raise UserError(f"{source}: {name} is {shapes}; {advice}")
    for name in weights:
        unused = name.startswith("alignment.") and not any(own_name.startswith("alignment.") for own_name in own)
        if name not in own and not unused and not left_by_sampling(name):
            raise UserError(f"{source}: {one_line(name, 200)} is not a key of this model; {advice}")


def left_by_sampling(name: str) -> bool:
    """Whether a key names a key/value cache, which released checkpoints may contain after sampling."""
    return _LEFT_BY_SAMPLING.match(name) is not None


def _size(weights: Mapping[str, Tensor]) -> str:
    """ " (size XL)" if the weights have the width and number of layers of a published size, else nothing."""
    layers = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
    width = weights["norm.weight"].numel() if "norm.weight" in weights else 0
    known = [name for name, (depth, _, wide) in SIZES.items() if (depth, wide) == (layers, width)]
    return f" (size {known[0]})" if known else ""


class PublishedModel(
    ModelHubMixin,
    library_name="tokenar",
    pipeline_tag="image-to-image",
    repo_url="https://github.com/lyrig/TokenAR",
    model_card_template=_CARD,
):
    """The Hugging Face hub's save_pretrained, from_pretrained and push_to_hub for a TokenAR.

    A model folder or repository has config.json (ModelConfig), model.safetensors and README.md. Weights must fit the
    configuration key by key.
    """

    config: ModelConfig

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        # config.json is written last, so that it is never there beside weights it does not belong to.
        (save_directory / _CONFIG).unlink(missing_ok=True)
        with replacing(save_directory / _WEIGHTS) as path:
            save_file(weights, path)
        with replacing(save_directory / _CONFIG) as path:
            path.write_text(self.config.model_dump_json(indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """The model of a local folder or a hub repository, in evaluation mode. Options are those of hf_hub_download.

        UserError if there is no model, or if configuration and weights do not fit together.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        except (HfHubHTTPError, HFValidationError, OSError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{pretrained_model_name_or_path}: no model to load ({reason}); give a folder that save_pretrained "
                "wrote or a repository of the hub"
            ) from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: dict[str, Any] | None = None, **options: Any) -> Any:
        if config is None:
            raise UserError(f"{model_id}: no {_CONFIG} there; give a folder that save_pretrained wrote")
        try:
            checked = ModelConfig.model_validate(config)
        except ValidationError as error:
            raise UserError(f"{model_id}: {_CONFIG}: {first_mistake(error)}; save or download it again") from error
        folder = Path(model_id)
        path = folder / _WEIGHTS if folder.is_dir() else hf_hub_download(model_id, _WEIGHTS, **options)
        net = cls(checked)
        assert isinstance(net, nn.Module)
        fill(net, read_weights(Path(path)), str(path))
        return net.eval()
