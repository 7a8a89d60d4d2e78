"""Drawing pictures token by token with a key-value cache (spec/tokenar.md section 6).

With identity disentanglement the references' copies stand before the picture. They are known, so with
``copies="given"`` they go into the prefix, as they stood there in training, and only the picture's own N tokens are
drawn. The released program draws the copies too (``"drawn"``), which costs R times the steps and lets mistakes in the
copies reach the picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from data_schemas.errors import UserError
from tokenar import data
from tokenar.config import SampleConfig
from tokenar.model import KeyValueCache, TokenAR
from tokenar.model_folder import Model, load_model, write_atomically
from tokenar.progress import Progress
from tokenar.tokenizers import tensor_picture


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on logits in float32: u + s (c - u)."""
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
        ordered, order = logits.sort(descending=True)
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


def drawn_tokens(net: TokenAR, references: int, config: SampleConfig) -> int:
    """How many tokens are drawn for a picture with R references."""
    return net.layout(references).target_tokens if config.copies == "drawn" else net.config.image_tokens


@torch.inference_mode()
def decode(
    net: TokenAR,
    sources: Tensor,
    text: Tensor,
    seeds: Sequence[int],
    config: SampleConfig,
    *,
    text_mask: Tensor | None = None,
    instruct: Tensor | None = None,
    without_images: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw one token after the other: yields (tokens [B] int64, logits [B, V] with guidance, before the filters).

    sources [B, R+1, N] codes of references and background, text [B, text_tokens, C], one seed a sample; ``text_mask``
    and ``instruct`` as in TokenAR.forward; where ``without_images`` [B] bool is True the null-image table stands in
    for the sources. With guidance other than 1 the batch is doubled: the second half has the null text and the same
    pictures. Guidance is computed in float32.
    """
    batch, layout, index = len(sources), net.layout_of(sources), net.config.index_at_inference
    count = drawn_tokens(net, layout.references, config)
    uniform = torch.stack([torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    uniform = uniform.to(sources.device)
    doubled, dropped = config.guidance != 1, None
    if doubled:
        sources, text = torch.cat([sources, sources]), torch.cat([text, text])
        text_mask, instruct, without_images = map(_twice, (text_mask, instruct, without_images))
        dropped = torch.arange(2 * batch, device=sources.device) >= batch
    x = net.embed_prefix(sources, text, without_images, dropped, instruct, index)
    if config.copies == "given":
        x = torch.cat([x, net.embed_target(net.copies(sources), layout, 0, index)], dim=1)
    rotary, cache = net.tables(layout)[0], KeyValueCache(net.config, len(x), layout.total - 1, x)
    mask = net.mask(layout, layout.total - 1, text_mask, dropped)
    for k in range(count):
        begin, end = cache.filled, cache.filled + x.shape[1]
        seen = None if mask is None else mask[..., begin:end, :end]
        logits = net.logits(net.hidden(x, rotary[begin:end], cache, seen)[:, -1])
        if doubled:
            guided = _is_guided(k if config.guided_from == "first" else k - count + layout.image_tokens, config)
            logits = guide(logits[:batch], logits[batch:], config.guidance) if guided else logits[:batch]
        token = _pick(logits, uniform[:, k], config)
        yield token, logits
        position = layout.target_tokens - count + k
        x = net.embed_target((torch.cat([token, token]) if doubled else token)[:, None], layout, position, index)


def _twice(values: Tensor | None) -> Tensor | None:
    return None if values is None else torch.cat([values, values])


def _is_guided(k: int, config: SampleConfig) -> bool:
    return config.guided_tokens is None or k < config.guided_tokens


def _pick(logits: Tensor, uniform: Tensor, config: SampleConfig) -> Tensor:
    if config.temperature == 0:
        return logits.argmax(-1)
    return draw(filter_logits(logits, config.temperature, config.top_k, config.top_p), uniform)


def generate(
    net: TokenAR,
    sources: Tensor,
    text: Tensor,
    seeds: Sequence[int],
    config: SampleConfig,
    step: Callable[[], object] = lambda: None,
    *,
    text_mask: Tensor | None = None,
    instruct: Tensor | None = None,
) -> Tensor:
    """Codes of the drawn pictures, [B, N] int64. Arguments as for ``decode``; ``step`` is called after each token."""
    drawn: list[Tensor] = []
    for token, _ in decode(net, sources, text, seeds, config, text_mask=text_mask, instruct=instruct):
        drawn.append(token)
        step()
    return torch.stack(drawn[-net.config.image_tokens :], dim=1)


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
    total = sum(drawn_tokens(net, samples[chosen[0]].references, config) for chosen in batches)
    with Progress("sample", total, every=net.config.image_tokens, show=not quiet) as bar:
        for chosen in batches:
            batch = data.collate([samples[i] for i in chosen]).to(device)
            seeds = [config.seed + i for i in chosen]
            codes = generate(
                net, batch.sources, batch.text, seeds, config, bar.advance, text_mask=batch.text_mask
            )  # fmt: skip
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
