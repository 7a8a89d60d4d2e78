"""The loss of quality by 8-bit weights and by 8-bit keys and values, for a trained model on held-out samples.

``agree`` is the share of greedily drawn tokens that equal those of full precision. ``psnr`` compares the drawn pictures
to the true ones. ``loss`` is the cross entropy of the true pictures' tokens; it is not given for the cache, which is
not used there. The last line is one JSON object; ``ratio`` is the loss with int8 weights over that with full ones.

python benchmarks/quantised.py --model runs/quickstart/training/model --shards 'runs/quickstart/dataset/test-*.tar'
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch.nn import functional as F

from tokenar.config import SampleConfig
from tokenar.data.samples import Encoded, collate, encode_sample, read_samples
from tokenar.model.folder import Model, load_model
from tokenar.sample.decoder import generate
from tokenar.sample.sampler import Sampler

SETTINGS: dict[str, dict[str, str]] = {
    "full": {}, "int8": {"weights": "int8"}, "float8": {"weights": "float8"}, "float8_cache": {"cache": "float8"},
}  # fmt: skip


@torch.inference_mode()
def measure(model: Model, samples: list[Encoded], settings: dict[str, Any]) -> tuple[torch.Tensor, float, float]:
    """(greedily drawn tokens [B, N], PSNR in dB, loss in nats a token) with some sampling settings."""
    config = SampleConfig.model_validate({"temperature": 0.0} | settings)
    sampler, drawn, losses = Sampler(model, config), [], []
    for number, sample in enumerate(samples):
        batch = collate([sample]).to(sampler.device)
        drawn.append(generate(sampler.net, batch.sources, batch.text, [number], config, text_mask=batch.text_mask))
        with torch.autocast(sampler.device.type, torch.bfloat16, enabled=sampler.device.type == "cuda"):
            logits = sampler.net(batch.sources, batch.text, batch.picture, text_mask=batch.text_mask)
        n = batch.picture.shape[1]
        losses.append(F.cross_entropy(logits[0, -n:], batch.picture[0]).item())
    codes = torch.cat(drawn).cpu()
    true = model.tokenizer.decode(torch.stack([sample.picture for sample in samples]))
    error = ((model.tokenizer.decode(codes) - true) / 2).pow(2).flatten(1).mean(1)
    return codes, float((-10 * error.log10()).mean()), sum(losses) / len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/quickstart/training/model")
    parser.add_argument("--shards", default="runs/quickstart/dataset/test-*.tar")
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    model = load_model(given.model)
    most = model.net.config.max_references
    samples = [
        encode_sample(sample, model.tokenizer, model.text, most) for sample in read_samples(given.shards, given.limit)
    ]
    found = {name: measure(model, samples, settings) for name, settings in SETTINGS.items()}
    full = found["full"][0]
    print(json.dumps({
        "benchmark": "quantised", "model": given.model, "samples": len(samples),
        **{f"{name}_agree": round((codes == full).float().mean().item(), 4) for name, (codes, _, _) in found.items()},
        **{f"{name}_psnr": round(psnr, 3) for name, (_, psnr, _) in found.items()},
        **{f"{name}_loss": round(loss, 4) for name, (_, _, loss) in found.items() if name != "float8_cache"},
        "ratio": round(found["int8"][2] / found["full"][2], 4),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
