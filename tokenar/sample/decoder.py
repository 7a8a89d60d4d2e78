"""Drawing pictures token by token (spec/tokenar.md section 6).

With identity disentanglement the references' copies stand before the picture. They are known, so with
``copies="given"`` they go into the prefix, as they stood there in training, and only the picture's own N tokens are
drawn. The released program draws the copies too (``"drawn"``), which costs R times the steps and lets mistakes in the
copies reach the picture. ``"verified"`` draws the same tokens as ``"drawn"`` in fewer steps: the known copies are put
in, many at once, and stay as far as the model would have drawn just them.

Shape legend: B inputs, N tokens an image, n seeds of an input, S streams of guidance, t positions, V vocabulary,
D width, C text width. Rows are in the order input, stream, seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from types import FunctionType, MethodType

import torch
from torch import Tensor

from tokenar.config import SampleConfig
from tokenar.model.cache import KeyValueCache, Segment, rounded
from tokenar.model.positions import attention_mask
from tokenar.model.transformer import TokenAR

FIRST_CHUNK, LARGEST_CHUNK, SMALLEST_CHUNK = 32, 256, 4
"""Tokens of the draft that are checked at once: twice as many after a success, what was right after a failure."""


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


def pick(logits: Tensor, uniform: Tensor, config: SampleConfig) -> Tensor:
    """One token a row from [M, V] logits and a uniform number [M] each: [M] int64."""
    if config.temperature == 0:
        return logits.argmax(-1)
    return draw(filter_logits(logits, config.temperature, config.top_k, config.top_p), uniform)


def streams(config: SampleConfig) -> list[tuple[bool, bool]]:
    """(image dropped, text dropped) of each stream that guidance needs, the full one first."""
    text, image = config.guidance != 1, config.image_guidance != 1
    if image and text:
        return [(False, False), (False, True), (True, True)]
    return [(False, False)] + [(False, True)] * text + [(True, False)] * image


def combine(logits: Tensor, config: SampleConfig) -> Tensor:
    """Logits [B, S, ...] of the streams -> [B, ...] with guidance.

    Text guidance as released; of the pictures it is what training with dropped images is for (QUIRK 9), in the form
    of InstructPix2Pix (arXiv 2211.09800, equation 3).
    """
    if logits.shape[1] == 1:
        return logits[:, 0]
    if logits.shape[1] == 2:
        return guide(logits[:, 0], logits[:, 1], config.guidance if config.guidance != 1 else config.image_guidance)
    full, no_text, neither = logits.unbind(1)
    return neither + config.image_guidance * (no_text - neither) + config.guidance * (full - no_text)


class Decoder:
    """Draws tokens for B inputs with R references and n seeds each. Memory is taken once, for as many pictures as come.

    On a GPU a step is compiled (on a CPU if asked) and replayed as a graph, and nothing waits for the device.
    """

    @torch.no_grad()
    def __init__(self, net: TokenAR, inputs: int, references: int, config: SampleConfig, seeds: int = 1):
        self.net, self.config, self.seeds, self.shape = net, config, seeds, (inputs, references, seeds)
        self.layout, self.streams = net.layout(references), streams(config)
        layout, like, device = self.layout, net.norm.weight, net.norm.weight.device
        self.count = layout.image_tokens if config.copies == "given" else layout.target_tokens
        self.start = layout.target_tokens - self.count
        own = inputs * len(self.streams)
        images_differ = any(image for image, _ in self.streams)
        read = layout.prefix - layout.source_tokens + self.start
        kept = torch.float8_e4m3fn if config.cache == "float8" else None

        def segment(groups: int, positions: int) -> Segment:
            return Segment(net.config, groups, positions, like, kept)

        self.sources = segment(own if images_differ else inputs, layout.source_tokens)
        # What a single seed has read before it draws little more is shared with nobody: one segment less to go through.
        together = seeds == 1 and config.copies == "given"
        self.prefix = segment(own, read + self.count if together else read)
        self.drawn = self.prefix if together else segment(own * seeds, self.count)
        self.base = read if together else 0
        self.segments = list(dict.fromkeys([self.sources, self.prefix, self.drawn]))
        self.cache = KeyValueCache(self.segments)
        rooms = sum(segment.room for segment in self.segments)
        self.cache.bias = torch.zeros(inputs, 1, len(self.streams) * seeds, rooms, device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.token = torch.zeros(inputs * seeds, dtype=torch.int64, device=device)
        self.logits = torch.zeros(inputs * seeds, net.config.vocabulary, device=device)
        self.uniform = torch.zeros(inputs * seeds, self.count, device=device)
        numbers = torch.arange(self.count, device=device)
        if config.guided_from == "picture":
            numbers -= self.count - layout.image_tokens
        self.guided = numbers < (self.count if config.guided_tokens is None else config.guided_tokens)
        self.index = net.target_index(layout, net.config.index_at_inference)
        self.rotary = net.tables(layout)[0]
        self.graphs: dict[int, torch.cuda.CUDAGraph | None] = {}
        self.replays = device.type == "cuda"
        wanted = self.replays if config.compile is None else config.compile
        self.advance = torch.compile(_own_code(self._advance), fullgraph=True) if wanted else self._advance

    @torch.inference_mode()
    def decode(
        self,
        sources: Tensor,
        text: Tensor,
        seeds: Sequence[int],
        *,
        text_mask: Tensor | None = None,
        instruct: Tensor | None = None,
        without_images: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (tokens [B n] int64, logits [B n, V] with guidance, before the filters), token after token.

        sources [B, R+1, N] codes of references and background, text [B, text_tokens, C], B n seeds, those of an input
        side by side; ``text_mask`` and ``instruct`` as in TokenAR.forward; where ``without_images`` [B] bool is True
        the null-image table stands in for the sources. What is yielded is overwritten by the next step.
        """
        drawn = [torch.rand(self.count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.uniform.copy_(torch.stack(drawn))
        hidden = self._prefill(sources, text, text_mask, instruct, without_images)
        self._choose(hidden, torch.zeros_like(self.place))
        yield self.token, self.logits
        done = 1
        if self.config.copies == "verified":
            for token, logits in self._verified(self.net.copies(sources).repeat_interleave(self.seeds, 0)):
                self.token.copy_(token)
                self.logits.copy_(logits)
                done += 1
                yield self.token, self.logits
        self._show()
        self.cache.place = self.place.fill_(self.base + done - 1)
        for number in range(done, self.count):
            self._replay(self.reach(number))
            yield self.token, self.logits

    def _prefill(
        self,
        sources: Tensor,
        text: Tensor,
        text_mask: Tensor | None,
        instruct: Tensor | None,
        without_images: Tensor | None,
    ) -> Tensor:
        """Read everything before the first token that is drawn; the last hidden states [B, S, D]."""
        net, layout, inputs, index = self.net, self.layout, len(sources), self.net.config.index_at_inference

        def each(values: Tensor) -> Tensor:
            return values.repeat_interleave(len(self.streams), 0)

        dropped = torch.tensor(self.streams, device=sources.device).repeat(inputs, 1)
        image_dropped = dropped[:, 0] if without_images is None else dropped[:, 0] | each(without_images)
        x = net.embed_prefix(
            each(sources), each(text.to(net.norm.weight.dtype)), image_dropped, dropped[:, 1],
            None if instruct is None else each(instruct), index,
        )  # fmt: skip
        x = torch.cat([x, net.embed_target(each(net.copies(sources))[:, : self.start], layout, 0, index)], dim=1)
        for segment in self.segments:
            segment.filled = 0
        self.cache.place, self.cache.segments, self.seen = None, [self.sources], None
        blocks = net.config.source_attention == "block"
        shared = x[:: len(x) // self.sources.groups, : layout.source_tokens]
        self._read(shared, attention_mask(layout, layout.source_tokens, None).to(x.device) if blocks else None, last=1)
        if net.config.text_padding == "masked":
            if text_mask is None:
                raise ValueError("text_padding is masked: text_mask is needed")
            self.seen = each(text_mask) | dropped[:, 1:]  # a dropped text has no padding
        self.cache.segments = [self.sources, self.prefix]
        hidden = self._read(x[:, layout.source_tokens :], last=1)
        self.cache.segments = self.segments
        return hidden.view(inputs, len(self.streams), -1)

    def _show(self) -> None:
        """Let single positions see what is there, but for padding."""
        assert self.cache.bias is not None
        bias, begin = self.cache.bias.fill_(-torch.inf), 0
        for segment in self.segments:
            bias[..., begin : begin + segment.filled] = 0
            begin += segment.room
        if self.seen is not None:
            hidden = ~self.seen.unflatten(0, (len(bias), -1)).repeat_interleave(self.seeds, 1)[:, None]
            bias[..., self.sources.room :][..., : hidden.shape[-1]].masked_fill_(hidden, -torch.inf)

    def _read(self, x: Tensor, mask: Tensor | None = None, last: int | None = None) -> Tensor:
        """Hidden states of the next positions of all rows, [rows, t, D] -> [rows, t, D] or the ``last`` of them.

        Without a mask causal."""
        begin = self.cache.filled
        end = begin + x.shape[1]
        if self.seen is not None:
            seen = self.seen.repeat_interleave(len(x) // len(self.seen), 0)
            mask = attention_mask(self.layout, end, seen)[:, :, begin:]
        return self.net.hidden(x, self.rotary[begin:end], self.cache, mask, last)

    def _verified(self, draft: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw the tokens after the first one up to the end of ``draft`` [B n, R N], many in one pass.

        A pass is given what the draft says and draws every next token from what it sees. Up to where that first
        differs, and with it, all is as drawn one by one; all rows go on from there.
        """
        last, done, chunk, length = self.token.clone(), 1, FIRST_CHUNK, draft.shape[1]
        while done < length:
            end = min(done + chunk, length)
            given = torch.cat([last[:, None], draft[:, done : end - 1]], dim=1)
            x = self.net.tok_embeddings(given)
            if self.index is not None:
                x = x + self.index[done - 1 : end - 1]
            hidden = self._read(self._each_stream(x).flatten(0, 2))
            logits = self._guided(
                self.net.logits(hidden).unflatten(0, (-1, len(self.streams), self.seeds)), self.guided[done:end, None]
            ).flatten(0, 1)
            drawn = pick(logits.flatten(0, 1), self.uniform[:, done:end].flatten(), self.config).view(given.shape)
            agreed = int((drawn == draft[:, done:end]).all(0).cumprod(0).sum())
            taken = min(agreed + 1, end - done)
            for number in range(taken):
                yield drawn[:, number], logits[:, number]
            chunk = min(2 * chunk, LARGEST_CHUNK) if agreed == end - done else max(agreed, SMALLEST_CHUNK)
            last, done = drawn[:, taken - 1], done + taken
            self.drawn.filled = self.base + done - 1

    def reach(self, number: int) -> int:
        """Places of the last segment that the step reads which draws token ``number``."""
        return self.drawn.room if self.base else rounded(number)

    def _replay(self, reach: int) -> None:
        """One step that reads ``reach`` places of what is drawn; on a GPU as a graph from the third time on."""
        self.cache.reach = reach
        if not self.replays or reach not in self.graphs:
            self.advance()  # the first time also compiles, which no graph can hold
            self.graphs[reach] = None
            return
        graph = self.graphs[reach]
        if graph is None:
            graph = self.graphs[reach] = torch.cuda.CUDAGraph()
            # Other threads, which read ahead and pin memory, may do what this one may not while it records.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.advance()
        graph.replay()

    def _advance(self) -> None:
        """One step: read the last token, whose keys go to ``place`` in its segment, and draw the next."""
        assert self.cache.bias is not None
        rooms = sum(segment.room for segment in self.segments[:-1])
        self.cache.bias.index_fill_(3, rooms + self.place, 0.0)
        number = self.place - self.base
        x = self.net.tok_embeddings(self.token)
        if self.index is not None:
            x = x + self.index.index_select(0, self.start + number)
        rotary = self.rotary.index_select(0, self.layout.prefix + self.start + number)
        x = self._each_stream(x).flatten(1, 2)
        self._choose(self.net.hidden(x, rotary, self.cache), number + 1)
        self.place += 1

    def _each_stream(self, x: Tensor) -> Tensor:
        """[B n, ...] -> [B, S, n, ...]."""
        x = x.unflatten(0, (-1, 1, self.seeds))
        return x.expand(-1, len(self.streams), *x.shape[2:])

    def _choose(self, hidden: Tensor, number: Tensor) -> None:
        """Draw token ``number`` [1] from hidden states [B, S n or S, D] that predict it."""
        logits = self.net.logits(hidden).unflatten(1, (len(self.streams), -1))
        logits = self._guided(logits, self.guided.index_select(0, number)).expand(-1, self.seeds, -1)
        self.logits.copy_(logits.flatten(0, 1))
        self.token.copy_(pick(self.logits, self.uniform.index_select(1, number)[:, 0], self.config))

    def _guided(self, logits: Tensor, guided: Tensor) -> Tensor:
        """[B, S, ..., V] -> [B, ..., V]: with guidance where ``guided`` says so, else of the full stream."""
        return torch.where(guided, combine(logits, self.config), logits[:, 0])


_decoders = count()


def _own_code(method: Callable[[], None]) -> Callable[[], None]:
    """The bound method with a code object and a name of its own.

    What torch has compiled it keeps, and counts against a limit, by code object, and every Decoder is compiled anew:
    under one code object a process would be refused its fifth shape. By name it notes which sizes change, to compile
    for any size from then on, which takes ten times as long: here that is the reach alone.
    """
    assert isinstance(method, MethodType)
    code = method.__func__.__code__.replace(co_name=f"advance_{next(_decoders)}")
    return MethodType(FunctionType(code, method.__func__.__globals__), method.__self__)


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
    """Codes of the drawn pictures, [B n, N] int64: Decoder.decode for once. ``step`` is called after each token."""
    decoder = Decoder(net, len(sources), sources.shape[1] - net.config.background, config, len(seeds) // len(sources))
    drawn: list[Tensor] = []
    for token, _ in decoder.decode(sources, text, seeds, text_mask=text_mask, instruct=instruct):
        drawn.append(token.clone())
        step()
    return torch.stack(drawn[-net.config.image_tokens :], dim=1)
