"""Drawing pictures token by token with a key-value cache (spec section 6).

The known reference copies of identity disentanglement are *forced*: they go into the prefix, as they stood there in
training, and only the picture's own N tokens are drawn. The released code draws the copies too, which costs R times
the steps and lets mistakes in the copies reach the picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from data_schemas.errors import UserError
from tokenar import data
from tokenar.checkpoint import Model, load_model, write_atomically
from tokenar.config import SampleConfig
from tokenar.model import KeyValueCache, TokenAR
from tokenar.progress import Progress
from tokenar.tokenizers import tensor_picture


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on logits: u + s (c - u)."""
    return unconditional + scale * (conditional - unconditional)


def filter_logits(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """[B, V] logits divided by the temperature, with -inf where top-k or top-p remove a token.

    Ties at the k-th value all stay. top-p removes a token when the probability before it exceeds ``top_p``; the most
    probable one always stays.
    """
    logits = logits / max(temperature, 1e-5)
    if top_k:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        share = ordered.softmax(-1)
        removed = share.cumsum(-1) - share > top_p
        logits = logits.masked_fill(torch.zeros_like(removed).scatter(-1, order, removed), -torch.inf)
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One token a row from [B, V] logits and a uniform number [B] each, by the inverse of the distribution: [B].

    Numbers drawn beforehand, one stream a sample, make a picture depend on its own seed and not on its batch.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    tokens = torch.searchsorted(cumulative, uniform.double()[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return tokens.clamp_max(logits.shape[-1] - 1)


@torch.inference_mode()
def generate(
    net: TokenAR,
    sources: Tensor,
    text: Tensor,
    seeds: Sequence[int],
    config: SampleConfig,
    step: Callable[[], object] = lambda: None,
) -> Tensor:
    """Codes of the drawn pictures, [B, N] int64.

    sources [B, R+1, N] codes of references and background, text [B, text_tokens, C], one seed a sample; ``step`` is
    called after each token. With guidance other than 1 the batch is doubled: the second half has the null text and
    the same pictures.
    """
    n, batch = net.config.image_tokens, len(sources)
    guided = config.guidance != 1
    layout = net.layout(sources.shape[1] - 1)
    uniform = torch.stack([torch.rand(n, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    uniform = uniform.to(sources.device)
    dropped = None
    if guided:
        sources, text = torch.cat([sources, sources]), torch.cat([text, text])
        dropped = torch.arange(2 * batch, device=sources.device) >= batch
    x = net.embed_prefix(sources, text, None, dropped)
    if net.config.identity_disentanglement:
        x = torch.cat([x, net.tok_embeddings(sources[:, :-1].flatten(1))], dim=1)
    rotary = net.tables(layout)[0]
    cache = KeyValueCache(net.config, len(x), layout.total - 1, x)
    drawn: list[Tensor] = []
    for k in range(n):
        hidden = net.hidden(x, rotary[cache.filled : cache.filled + x.shape[1]], cache)
        logits = net.logits(hidden[:, -1])
        if guided:
            logits = guide(logits[:batch], logits[batch:], config.guidance)
        logits = filter_logits(logits, config.temperature, config.top_k, config.top_p)
        drawn.append(draw(logits, uniform[:, k]))
        token = torch.cat([drawn[-1], drawn[-1]]) if guided else drawn[-1]
        x = net.tok_embeddings(token)[:, None]
        step()
    return torch.stack(drawn, dim=1)


def sample(
    model: str | Path | Model,
    shards: str,
    out: str | Path,
    config: SampleConfig | None = None,
    *,
    limit: int | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Draw a picture for every sample of the shards; return what is also written to ``out/samples.json``.

    ``out`` gets ``<sample_id>.png`` with the recipe in its metadata. Sample number i is drawn with seed
    ``config.seed + i``. Raises UserError for a model, shards or a folder that cannot be used.
    """
    config = config or SampleConfig()
    folder = Path(out)
    loaded = model if isinstance(model, Model) else load_model(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = loaded.net.to(device).eval()
    most = net.config.max_references
    samples = [
        data.encode_sample(item, loaded.tokenizer, loaded.text, most) for item in data.read_samples(shards, limit)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); give another --out") from error
    records: dict[int, dict[str, Any]] = {}
    batches = _batches(samples, config.batch)
    settings = config.model_dump(exclude={"seed", "batch"})
    total = len(batches) * net.config.image_tokens
    with Progress("sample", total, every=net.config.image_tokens, show=not quiet) as bar:
        for chosen in batches:
            batch = data.collate([samples[i] for i in chosen])
            seeds = [config.seed + i for i in chosen]
            codes = generate(net, batch.sources.to(device), batch.text.to(device), seeds, config, bar.advance)
            for i, seed, pixels in zip(chosen, seeds, loaded.tokenizer.decode(codes.cpu()), strict=True):
                file = f"{samples[i].sample_id}.png"
                record = {"sample_id": samples[i].sample_id, "file": file, "prompt": samples[i].prompt,
                          "seed": seed, "settings": settings}  # fmt: skip
                recipe = PngInfo()
                recipe.add_itxt("tokenar", json.dumps(record, sort_keys=True, ensure_ascii=False))
                tensor_picture(pixels).save(folder / file, pnginfo=recipe)
                records[i] = record
    listed = [records[i] for i in range(len(samples))]
    content = json.dumps(listed, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / "samples.json", lambda path: path.write_text(content))
    return listed


def _batches(samples: Sequence[data.Encoded], size: int) -> list[list[int]]:
    """Sample numbers in batches with one number of references each, in stored order."""
    batches = []
    for kind in sorted({sample.references for sample in samples}):
        same = [number for number, sample in enumerate(samples) if sample.references == kind]
        batches += [same[start : start + size] for start in range(0, len(same), size)]
    return batches
