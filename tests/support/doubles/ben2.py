"""Stands in for the published package ``ben2``, with its interface and its side effects.

Put beside the tests as ``ben2.py`` it is imported in the package's place. The function is this project's network, with
the published state dict's 535 entries.
"""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.backends import cudnn

from pipeline.matting.ben2_inference import prepared
from pipeline.matting.ben2_network import WIDTH, Ben2Network

inferences = 0


def reseed():
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.set_float32_matmul_precision("highest")


reseed()


class BEN_Base(Ben2Network):
    """In training mode, as the constructor of the package leaves it."""

    def __init__(self):
        super().__init__()
        for level in range(1, 6):
            self.add_module(f"sideout{level}", nn.Sequential(nn.Conv2d(WIDTH, 1, 3, padding=1)))
        for module in self.modules():
            if hasattr(module, "relative_position_index"):
                module._non_persistent_buffers_set.discard("relative_position_index")

    @classmethod
    def from_pretrained(cls, folder, *, map_location="cpu", strict=False):
        print(f"config.json not found in {folder}")
        network = cls()
        network.load_state_dict(load_file(Path(folder) / "model.safetensors", map_location), strict=strict)
        return network.eval()

    def loadcheckpoints(self, path):
        self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model_state_dict"])

    @torch.inference_mode()
    @torch.autocast("cuda", dtype=torch.float16)
    def forward(self, x):
        return F.dropout(super().forward(x), 0.1, self.training)

    def inference(self, picture):
        global inferences
        inferences += 1
        reseed()
        mask = self.forward(prepared(picture, 1024)[None])
        mask = F.interpolate(mask, picture.size[::-1], mode="bilinear")[0, 0]
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        picture.putalpha(Image.fromarray((mask * 255).byte().numpy()))
        return picture
