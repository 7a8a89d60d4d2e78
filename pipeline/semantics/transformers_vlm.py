"""The semantic judge as a model in this process: any image-text-to-text model of transformers, by default Gemma-3n."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from data_schemas.errors import UserError
from pipeline.core.weights import Weights, locate
from pipeline.device import Device, Precision, device_of, dtype_of, exact_float32
from pipeline.semantics.judge import Answer, JudgeConfig, Request, VlmJudge
from pipeline.semantics.together import Together

if TYPE_CHECKING:  # slow to import, so only running stages do
    import torch

GEMMA = "google/gemma-3n-E4B-it"
FILES = ("config.json", "*.j[is]*", "*.safetensors", "tokenizer*")  # *.j[is]* matches json, and jinja if there is one


class TransformersConfig(JudgeConfig):
    """Settings of a judge in this process. Code that comes with a model is never run.

    Requests of all parts share batches of ``batch_size``. The batch size changes sums by rounding, which in half
    precision rarely changes a word of an answer.
    """

    how: ClassVar[frozenset[str]] = frozenset({"device", "batch_size"})

    backend: Literal["transformers"] = Field(
        "transformers", description="`transformers` asks a vision-language model that is loaded in this process"
    )
    model: str = Field(
        GEMMA, min_length=1, description="Hugging Face id, or folder with safetensors; the default is the paper's model"
    )
    revision: str = Field("main", min_length=1, description="Branch, tag or commit of `model` on the hub")
    device: Device = "auto"
    precision: Precision = "bfloat16"


class TransformersJudge(VlmJudge):
    """Greedy generation in batches. Padding does not affect answers."""

    Config = TransformersConfig

    def __init__(self, config: Any = None):
        super().__init__(config)
        self._shared: Together[Request, Answer] = Together(self.generate, self.batch_size)

    def weights(self) -> tuple[Weights, ...]:
        config = self.config
        if config.model != GEMMA:
            return (Weights("semantic judge", config.model, FILES, config.revision),)
        return (
            Weights(
                "semantic judge", config.model, FILES, config.revision,
                licence="Gemma Terms of Use", gigabytes=15.7, memory=17, gated=True,
            ),
        )  # fmt: skip

    def setup(self) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        path = locate(self.weights()[0])
        device, dtype = device_of(self.config.device), dtype_of(self.config.precision)
        load: Any = AutoModelForImageTextToText.from_pretrained
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            # padded on the left, so that every answer follows its question directly
            self.processor = AutoProcessor.from_pretrained(path, padding_side="left", **local)
            network, report = load(path, use_safetensors=True, dtype=dtype, output_loading_info=True, **local)
        except Exception as error:  # transformers raises many kinds on a broken folder
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"semantic judge: {path} cannot be loaded as a vision-language model ({reason})") from error
        if lost := sorted(report["missing_keys"]):  # transformers would initialise them at random
            raise UserError(f"semantic judge: {path} lacks {len(lost)} tensors, such as {lost[0]}; fetch it again")
        self.network = network.eval().to(device)

    def ask(self, requests: Sequence[Request]) -> Sequence[Answer | Exception]:
        return self._shared(requests)

    @exact_float32()
    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers of one batch."""
        began = time.perf_counter()
        inputs = self.inputs(requests)  # generate() itself turns gradients off
        made = self.network.generate(**inputs, max_new_tokens=self.config.max_tokens, do_sample=False, num_beams=1)
        new = made[:, inputs["input_ids"].shape[1] :]  # [B, T]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        read = inputs["attention_mask"].sum(1).tolist()
        wrote = written(new, self._stops())
        seconds = time.perf_counter() - began
        return [Answer(*each, seconds) for each in zip(texts, read, wrote, strict=True)]

    def inputs(self, requests: Sequence[Request]) -> Any:
        """The network's inputs for these requests: tokens, attention mask and pixels."""
        return self.processor.apply_chat_template(
            [conversation(request) for request in requests],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
            sanitize_control_tokens=True,  # so that a subject's name cannot contain control tokens
        ).to(self.network.device, dtype=self.network.dtype)

    def _stops(self) -> list[int]:
        stops = self.network.generation_config.eos_token_id
        return stops if isinstance(stops, list) else [stops]


def conversation(request: Request) -> list[dict]:
    """One user turn: the images in order, then the text."""
    images: list[dict] = [{"type": "image", "image": image} for image in request.images]
    return [{"role": "user", "content": [*images, {"type": "text", "text": request.text}]}]


def written(tokens: torch.Tensor, stops: list[int]) -> list[int]:
    """The number of tokens of each answer in ``tokens`` [B, T], up to and including its stop token."""
    import torch

    stop = torch.isin(tokens, torch.tensor(stops, device=tokens.device))  # [B, T]
    return ((stop.cumsum(1) - stop.long()) == 0).sum(1).tolist()
