"""Draws images token by token.

If the model was trained with identity disentanglement, it first repeats the references, then draws the picture. The
tokens of these copies are known, and ``SampleConfig.copies`` has three settings (docs/differences.md, "Reference
copies"):

- ``"given"``: the copies are put into the prefix, as in training, and only the N tokens of the picture are drawn.
- ``"drawn"``: all (R + 1) N tokens are drawn, as in the authors' published program; the copies may contain mistakes.
- ``"verified"``: the tokens of ``"drawn"`` in fewer passes, each of which checks many known tokens of the copies.

The last is speculative decoding with the known copies as the draft. Mistakes in drawn copies reach the picture.

Shape legend: B inputs, R references of an input, n seeds of an input, N tokens an image, S guidance streams, t
positions, V vocabulary, D model width, C text width. B n means B times n, and R N means R times N. The rows of a batch
are ordered by input, then stream, then seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tokenar.config import SampleConfig
from tokenar.model.cache import POSITION_CHUNK, KeyValueCache, Segment, round_up
from tokenar.model.layers import Block
from tokenar.model.positions import attention_mask
from tokenar.model.transformer import TokenAR
from tokenar.sample.compiled import compiled, recording_stream, varying
from tokenar.sample.history import History
from tokenar.sample.logits import combine, pick, streams

PREFIX_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention kernels for the passes over many positions. torch prefers cuDNN's on an H100, which are planned anew for
every length, and here almost every pass has a length of its own."""
FIRST_CHUNK, LARGEST_CHUNK, SMALLEST_CHUNK = 32, 256, 4
"""Tokens of the draft checked per pass. The first pass checks FIRST_CHUNK. If all were right, the next checks twice as
many, up to LARGEST_CHUNK; otherwise as many as were right, but at least SMALLEST_CHUNK."""


class Decoder:
    """Draws the target tokens of a batch of inputs.

    The memory is allocated once, and ``decode`` may be called for any number of batches of this shape. On a GPU the
    step that draws one token is compiled and replayed as a CUDA graph, and the host does not wait for it. On a CPU it
    is compiled if ``SampleConfig.compile`` is True.
    """

    @torch.no_grad()
    def __init__(self, net: TokenAR, inputs: int, references: int, config: SampleConfig, seeds: int = 1):
        """Allocate the memory for batches of one shape.

        net: the model, on the device on which to draw
        inputs: inputs of a batch (B)
        references: references of each input (R)
        config: how tokens are drawn
        seeds: seeds of each input (n), and so the number of pictures drawn for it
        """
        config = config.of_model(net.config)
        self.net, self.config, self.seeds, self.shape = net, config, seeds, (inputs, references, seeds)
        self.layout, self.streams = net.layout(references), streams(config)
        layout, like, device = self.layout, net.norm.weight, net.norm.weight.device
        # Target tokens to draw.
        self.count = layout.image_tokens if config.copies == "given" else layout.target_tokens
        # Target tokens before them, which are given in the prefix.
        self.start = layout.target_tokens - self.count
        input_streams = inputs * len(self.streams)
        images_differ = any(image_dropped for image_dropped, _ in self.streams)
        prefix_length = layout.prefix - layout.source_tokens + self.start
        cache_dtype = torch.float8_e4m3fn if config.cache == "float8" else None

        def segment(groups: int, positions: int) -> Segment:
            return Segment(net.config, groups, positions, like, cache_dtype)

        # The seeds of a stream share the prefix. The streams of an input share the source images, unless image guidance
        # drops them from one stream: then all streams keep their own copy.
        self.source_segment = segment(input_streams if images_differ else inputs, layout.source_tokens)
        # With one seed the prefix is not shared more widely than the drawn tokens, so both can lie in one segment. This
        # pays only if few tokens are drawn, because every step then reads the whole segment.
        self.merged = seeds == 1 and config.copies == "given"
        self.prefix_segment = segment(input_streams, prefix_length + self.count if self.merged else prefix_length)
        spare = POSITION_CHUNK  # never read, see ``read_length``
        self.drawn_segment = self.prefix_segment if self.merged else segment(input_streams * seeds, self.count + spare)
        self.base = prefix_length if self.merged else 0  # where the drawn tokens begin in their segment
        # Without the repeated one, if merged.
        self.segments = list(dict.fromkeys([self.source_segment, self.prefix_segment, self.drawn_segment]))
        self.cache = KeyValueCache(self.segments)
        capacity = sum(segment.capacity for segment in self.segments)
        self.cache.bias = torch.zeros(inputs, 1, len(self.streams) * seeds, capacity, device=device)
        self.offset = torch.zeros(1, dtype=torch.int64, device=device)
        self.token = torch.zeros(inputs * seeds, dtype=torch.int64, device=device)
        self.logits = torch.zeros(inputs * seeds, net.config.vocabulary, device=device)
        self.uniform = torch.zeros(inputs * seeds, self.count, device=device)
        # guided[k]: whether guidance applies to drawn token k. Only if guided_from is "picture" does the numbering
        # start at the picture. Copies before it get negative numbers and so are always guided.
        numbers = torch.arange(self.count, device=device)
        if config.guided_from == "picture":
            numbers -= self.count - layout.image_tokens
        self.guided = numbers < (self.count if config.guided_tokens is None else config.guided_tokens)
        self.history = History(net, layout, inputs, len(self.streams), seeds)
        self.rotary = net.tables(layout)[0]
        self.graphs: dict[int, torch.cuda.CUDAGraph | None] = {}
        self.replays = device.type == "cuda"
        self.stream = recording_stream(device) if self.replays else None
        self.pool: Any = None
        compile = self.replays if config.compile is None else config.compile
        self.block = compiled(Block.forward) if compile else Block.__call__

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
        """Draw token after token.

        Yields the tokens [B n] int64 and the logits [B n, V] each token was drawn from, after guidance and before
        temperature and filters. The next step overwrites the yielded tensors.

        sources [B, R+1, N] int64: codes of the references, then of the background
        text [B, text_tokens, C]: text features
        seeds: B n random seeds, ordered by input
        text_mask, instruct: as in TokenAR.forward
        without_images [B] bool: where True, the null-image embeddings replace the sources'
        """
        # All random numbers are drawn first, on the CPU, so that a seed gives the same numbers in any batch and on any
        # device.
        uniform = [torch.rand(self.count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.uniform.copy_(torch.stack(uniform))
        hidden = self._prefill(sources, text, text_mask, instruct, without_images)
        self._choose(hidden, torch.zeros_like(self.offset))  # token number 0
        yield self.token, self.logits
        done = 1
        if self.config.copies == "verified":
            for token, logits in self._verified(self.net.reference_copies(sources).repeat_interleave(self.seeds, 0)):
                self.token.copy_(token)
                self.logits.copy_(logits)
                done += 1
                yield self.token, self.logits
        self._reset_bias()
        self.cache.offset = self.offset.fill_(self.base + done - 1)  # the last drawn token has not been read yet
        for number in range(done, self.count):
            self._replay(self.read_length(number))
            yield self.token, self.logits

    def _prefill(
        self,
        sources: Tensor,
        text: Tensor,
        text_mask: Tensor | None,
        instruct: Tensor | None,
        without_images: Tensor | None,
    ) -> Tensor:
        """Run the model over everything before the first drawn token.

        Returns the hidden states of the last position, [B, S, D].
        """
        net, layout, inputs, index = self.net, self.layout, len(sources), self.net.config.index_at_inference

        def per_stream(values: Tensor) -> Tensor:
            return values.repeat_interleave(len(self.streams), 0)

        dropped = torch.tensor(self.streams, device=sources.device).repeat(inputs, 1)
        image_dropped = dropped[:, 0] if without_images is None else dropped[:, 0] | per_stream(without_images)
        x = net.embed_prefix(
            per_stream(sources), per_stream(text.to(net.norm.weight.dtype)), image_dropped, dropped[:, 1],
            None if instruct is None else per_stream(instruct), index,
        )  # fmt: skip
        given_copies = net.reference_copies(sources)[:, : self.start]
        self.history.begin(given_copies, x)
        x = net.embed(x, per_stream(given_copies), layout, index)
        for segment in self.segments:
            segment.filled = 0
        self.cache.offset, self.cache.segments = None, [self.source_segment]
        self.text_mask = None  # so that _read ignores it for the source images
        shared = x[:: len(x) // self.source_segment.groups, : layout.source_tokens]
        block = net.config.source_attention == "block"
        mask = attention_mask(layout, layout.source_tokens, None).to(x.device) if block else None
        hidden = self._read(shared, mask, last=None if net.copy_head else 1)
        self.history.copy_from(hidden, sources, image_dropped)
        if net.config.text_padding == "masked":
            if text_mask is None:
                raise ValueError("text_padding is masked: text_mask is needed")
            self.text_mask = per_stream(text_mask) | dropped[:, 1:]  # the null text has no padding
        self.cache.segments = [self.source_segment, self.prefix_segment]
        hidden = self._read(x[:, layout.source_tokens :], last=1)
        self.cache.segments = self.segments
        return hidden.view(inputs, len(self.streams), -1)

    def _reset_bias(self) -> None:
        """Set the bias of single-token steps: 0 at filled positions, -inf at text padding and those not filled."""
        assert self.cache.bias is not None
        bias, begin = self.cache.bias.fill_(-torch.inf), 0
        for segment in self.segments:
            bias[..., begin : begin + segment.filled] = 0
            begin += segment.capacity
        if self.text_mask is not None:
            padding = ~self.text_mask.unflatten(0, (len(bias), -1)).repeat_interleave(self.seeds, 1)[:, None]
            # The text comes first in the prefix segment, which follows the source segment.
            bias[..., self.source_segment.capacity :][..., : padding.shape[-1]].masked_fill_(padding, -torch.inf)

    def _read(self, x: Tensor, mask: Tensor | None = None, last: int | None = None) -> Tensor:
        """Run the model over the next t positions of all rows, [rows, t, D] -> [rows, t, D].

        With ``last`` only the hidden states of the last ``last`` positions are returned, [rows, last, D]. Without a
        mask, attention is causal and skips the text's padding. A passed ``mask`` and ``self.text_mask`` never come
        together: only the source images are read with a mask, and ``self.text_mask`` is None then.
        """
        begin = self.cache.filled
        end = begin + x.shape[1]
        if self.text_mask is not None:
            text_mask = self.text_mask.repeat_interleave(len(x) // len(self.text_mask), 0)
            mask = attention_mask(self.layout, end, text_mask, begin)
        with sdpa_kernel(PREFIX_KERNELS):
            return self.net.hidden(x, self.rotary[begin:end], self.cache, mask, last)

    def _verified(self, draft: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw the rest of the copies (token 0 is already drawn), several per pass.

        ``draft`` [B n, R N] has the expected tokens. A pass reads a chunk of the draft and draws a next token at every
        position of it. The drawn tokens are valid, that is as if drawn one by one, up to and including the first that
        differs from the draft, because up to there the pass has read valid tokens. All rows keep as many tokens as the
        row with the earliest difference.
        """
        done, chunk, length = 1, FIRST_CHUNK, draft.shape[1]
        while done < length:
            end = min(done + chunk, length)
            numbers = torch.arange(done, end, device=draft.device)
            self.history.write(numbers, draft[:, done:end])
            x = self.history.embed(numbers)
            hidden = self._read(x.flatten(0, 2)).reshape(len(x), -1, x.shape[-1])
            logits = self.history.logits(hidden).unflatten(1, x.shape[1:4])
            logits = self._guided(logits, self.guided[done:end, None]).flatten(0, 1)
            drawn = pick(logits.flatten(0, 1), self.uniform[:, done:end].flatten(), self.config)
            drawn = drawn.view(len(draft), -1)
            agreed = int((drawn == draft[:, done:end]).all(0).cumprod(0).sum())  # leading tokens, equal in all rows
            taken = min(agreed + 1, end - done)
            for number in range(taken):
                yield drawn[:, number], logits[:, number]
            chunk = min(2 * chunk, LARGEST_CHUNK) if agreed == end - done else max(agreed, SMALLEST_CHUNK)
            self.history.write(numbers[:taken], drawn[:, :taken])
            done += taken
            self.drawn_segment.filled = self.base + done - 1  # discards the keys and values of rejected tokens

    def read_length(self, number: int) -> int:
        """How many positions of the last segment are read by the step that draws token ``number``.

        A merged segment holds few drawn tokens and is always read whole, so that one CUDA graph serves all steps.
        Otherwise at least two chunks are read and never the whole segment: torch.compile makes special code of either.
        """
        return self.drawn_segment.capacity if self.merged else max(2 * POSITION_CHUNK, round_up(number))

    def _replay(self, read_length: int) -> None:
        """One step that reads ``read_length`` positions of the last segment.

        On a GPU the first step of a read length runs normally, the second records a CUDA graph and replays it, and
        later ones replay it.
        """
        self.cache.read_length = read_length
        if not self.replays or read_length not in self.graphs:
            with varying(None if self.merged else "L['cache'].read_length"):
                self._advance()  # this call may also compile, which cannot be recorded in a graph
            self.graphs[read_length] = None
            return
        graph = self.graphs[read_length]
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            # "thread_local": other threads may still pin memory and the like while this one records. All graphs use
            # one pool of memory: they run one after another, and what they leave for later lies outside of it.
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                self._advance()
            self.graphs[read_length], self.pool = graph, graph.pool()
        graph.replay()

    def _advance(self) -> None:
        """One step: read the last drawn token, store its keys and values at ``offset``, and draw the next token.

        Of it the block is compiled, once for all layers, of which GPT-XL has 36. What comes before and after is little.
        """
        x, rotary, number = self._begin_step()
        self._choose(self.net.hidden(x, rotary, self.cache, block=self.block), number)
        self.offset += 1

    def _begin_step(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the blocks read in this step: embeddings [B, S n, D] and rotary table [1, ...] of the last drawn token;
        and the number [1] of the token to draw. The token's position becomes visible."""
        assert self.cache.bias is not None
        earlier = sum(segment.capacity for segment in self.segments[:-1])
        self.cache.bias.index_fill_(3, earlier + self.offset, 0.0)
        number = self.offset - self.base
        # Guidance streams begin as views of one embedding; the block would be compiled once more for that.
        x = self.history.embed(self.start + number + 1).flatten(1, 3).contiguous()
        return x, self.rotary.index_select(0, self.layout.prefix + self.start + number), number + 1

    def _choose(self, hidden: Tensor, number: Tensor) -> None:
        """Draw token ``number`` [1] into ``self.token``, from the hidden states [B, S n, D] that predict it.

        ``hidden`` may also be [B, S, D] if all seeds share it. ``self.logits`` gets the guided logits.
        """
        logits = self.history.logits(hidden).unflatten(1, (len(self.streams), -1))
        logits = self._guided(logits, self.guided.index_select(0, number)).expand(-1, self.seeds, -1)
        self.logits.copy_(logits.flatten(0, 1))
        self.token.copy_(pick(self.logits, self.uniform.index_select(1, number)[:, 0], self.config))
        self.history.write(self.start + number, self.token[:, None])

    def _guided(self, logits: Tensor, guided: Tensor) -> Tensor:
        """[B, S, ..., V] -> [B, ..., V]: combined logits where ``guided`` is True, else the first stream's.

        The first stream is the fully conditioned one.
        """
        return torch.where(guided, combine(logits, self.config), logits[:, 0])


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
    """Draw one batch with a new Decoder. Returns the pictures' codes, [B n, N] int64.

    The arguments are those of Decoder.decode. ``step`` is called after each token.
    """
    references = sources.shape[1] - net.config.background  # background counts as 1 or 0
    decoder = Decoder(net, len(sources), references, config, len(seeds) // len(sources))
    drawn: list[Tensor] = []
    for token, _ in decoder.decode(sources, text, seeds, text_mask=text_mask, instruct=instruct):
        drawn.append(token.clone())
        step()
    return torch.stack(drawn[-net.config.image_tokens :], dim=1)
