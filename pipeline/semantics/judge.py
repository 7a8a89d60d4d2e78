"""The judge with a vision-language model: what it is asked, how its answer is read, and the stage around it.

One model, ``Verdict``, makes the prompt, the JSON schema a server may hold the answer to, and the parser. Each question
has a field of its own, with a reason before an anchored answer; an answer that cannot be read, or is "unsure", leaves
null scores and so an undecided sample (spec/curation.md, "What others measured or learned").
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from data_schemas.io import pictures
from data_schemas.tables import JUDGE
from pipeline.core.stage import BatchStage, Rule, Sample, StageConfig

MAX_TEXT = 20_000
"""Characters of an answer that are read and kept."""


def _unicode(text: str) -> str:
    text.encode()  # ValueError for half a surrogate pair: JSON can spell it, no table can hold it
    return text


Reason = Annotated[str, AfterValidator(_unicode)]
Mark = Literal["yes", "no", "unsure"]
SCORES: dict[str, float | None] = {"yes": 1.0, "no": 0.0, "unsure": None}


class Verdict(BaseModel):
    """The judge's answer; the order of the fields is the order it is written in, a description is its question."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject_0_reason: Reason = Field(description="What do you see of the subject of image 2 in image 1? One sentence.")
    subject_0_present: Mark = Field(
        description='"yes" if the subject of image 2 is in image 1 and can be recognised, "no" if it is not there or '
        'something else is in its place, "unsure" if you cannot tell.'
    )
    subject_1_reason: Reason = Field(description="What do you see of the subject of image 3 in image 1? One sentence.")
    subject_1_present: Mark = Field(
        description='"yes" if the subject of image 3 is in image 1 and can be recognised, "no" if it is not there or '
        'something else is in its place, "unsure" if you cannot tell.'
    )
    description_reason: Reason = Field(description="What does image 1 show of its description? One sentence.")
    fits_description: Mark = Field(
        description='"yes" if image 1 shows what the description says, "no" if something in it is missing or done '
        'otherwise, "unsure" if you cannot tell.'
    )
    colours_reason: Reason = Field(description="What are the colours of image 1 like? One sentence.")
    colours_natural: Mark = Field(
        description='"yes" if a photograph could have the colours of image 1, "no" if they are inverted, burnt out, '
        'garish or under a heavy cast, "unsure" if you cannot tell.'
    )


SCHEMA = Verdict.model_json_schema()
MARKS = [name for name, asked in Verdict.model_fields.items() if asked.annotation is Mark]
ORDER = (
    "Image 1 is the picture to judge. Image 2 shows the first subject, {reference_0_name}. "
    "Image 3 shows the second subject, {reference_1_name}. The description of image 1 is {prompt}."
)
QUESTIONS = "\n".join([
    "Judge image 1. Answer with one JSON object that has exactly these keys, in this order:",
    *(f'"{name}": {asked.description}' for name, asked in Verdict.model_fields.items()),
])  # fmt: skip
REMINDER = "Answer {number}: your last answer could not be read. Write the JSON object only, no other text."


def question(plan: Mapping[str, Any]) -> str:
    """The prompt for one plan row; what the plan says is quoted, so that it cannot pass for a question."""
    names = ("reference_0_name", "reference_1_name", "prompt")
    quoted = {name: json.dumps(plan[name], ensure_ascii=False) for name in names}
    return f"{ORDER.format(**quoted)}\n{QUESTIONS}"


def parse(text: str) -> Verdict | None:
    """The one verdict in a text, or None. Fences and words around the object are allowed, nothing else is guessed:

    a key too many, too few or twice, another word than the three, or two verdicts that differ are unreadable.
    """
    found = []
    for values in _objects(text):
        try:
            found.append(Verdict.model_validate(values))
        except ValidationError:
            continue
    return found[0] if found and all(verdict == found[0] for verdict in found) else None


def _objects(text: str) -> list[dict]:
    """Every outermost JSON object in a text."""
    # a line break in a reason is harmless; int() would refuse a number of 5,000 digits with an error of its own
    decoder = json.JSONDecoder(object_pairs_hook=_no_key_twice, strict=False, parse_int=float)
    found, start = [], text.find("{")
    while start >= 0:
        try:
            values, end = decoder.raw_decode(text, start)
            found.append(values)
        except json.JSONDecodeError as error:
            end = max(start + 1, error.pos)  # what was JSON so far is not looked at again: no text takes long
        except RecursionError:
            break
        start = text.find("{", end)
    return found


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    return values if len(values) == len(pairs) else {}


@dataclass(frozen=True)
class Request:
    """What the model is shown: RGB images in the order that the text names them, and a seed."""

    images: tuple[Image.Image, ...]
    text: str
    seed: int


@dataclass(frozen=True)
class Answer:
    """What the model wrote, the tokens it read and wrote (None where it does not say), and the seconds it took."""

    text: str
    tokens_in: int | None
    tokens_out: int | None
    seconds: float


@dataclass
class Call:
    """One sample's question with the answers so far; ``error`` if the model could not be asked."""

    request: Request
    answers: list[Answer] = field(default_factory=list)
    verdict: Verdict | None = None
    error: Exception | None = None

    @property
    def open(self) -> bool:
        return self.verdict is None and self.error is None

    def next_request(self) -> Request:
        """The question; with a numbered reminder after an unreadable answer, as greedy decoding repeats itself."""
        if not self.answers:
            return self.request
        number = len(self.answers) + 1
        text = f"{self.request.text}\n{REMINDER.format(number=number)}"
        return replace(self.request, text=text, seed=self.request.seed + number - 1)

    def take(self, answer: Answer | Exception) -> None:
        if isinstance(answer, Exception):
            self.error = answer
            return
        text = answer.text[:MAX_TEXT].encode("utf-8", "replace").decode()  # see _unicode
        self.answers.append(replace(answer, text=text))
        self.verdict = parse(text)

    def row(self) -> dict:
        """The columns of the judge's table."""
        return {
            **scores(self.verdict),
            "raw_text": self.answers[-1].text,
            "prompt_sha256": hashlib.sha256(self.request.text.encode()).hexdigest(),
            "attempts": len(self.answers),
            "tokens_in": total(answer.tokens_in for answer in self.answers),
            "tokens_out": total(answer.tokens_out for answer in self.answers),
        }


def scores(verdict: Verdict | None) -> dict:
    """Answers as numbers and their reasons; null where the judge was unsure or could not be read."""
    if verdict is None:
        return dict.fromkeys([*Verdict.model_fields, "present_min"])
    values: dict = {name: SCORES.get(value, value) if name in MARKS else value for name, value in verdict}
    present = (values["subject_0_present"], values["subject_1_present"])
    missing = 0.0 in present  # one subject that is surely missing decides, whatever is known of the other
    values["present_min"] = 0.0 if missing else None if None in present else 1.0
    return values


def total(counts: Any) -> int | None:
    counts = list(counts)
    return None if None in counts else sum(counts)


class JudgeConfig(StageConfig):
    """``attempts``: answers asked for before an unreadable one leaves the sample undecided."""

    image_side: int = Field(512, ge=64, le=2048, description="Longest side of the images the judge sees, in pixels")
    max_tokens: int = Field(400, ge=1, le=4096, description="Longest answer in tokens")
    attempts: int = Field(3, ge=1, le=10)
    batch_size: int = Field(4, ge=1, le=4096, description="Samples that are judged at once")


class VlmJudge(BatchStage):
    """Both subjects there, description fitted, colours natural: asked of a model that sees picture and references.

    A subclass says how a model is asked. The matte is not looked at, so that another matting costs no judging.
    """

    name = "semantics"
    version = 1
    reads = ("references", "plan", "synthesis")
    columns = JUDGE
    rules = (
        Rule("present_min", "min", 0.5, "subject_missing", "A subject is not in the picture."),
        Rule("fits_description", "min", 0.5, "description_mismatch", "The picture does not fit its description."),
        Rule("colours_natural", "min", 0.5, "colour_extreme", "The colours are not those of a photograph."),
    )

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.batch_size = self.config.batch_size

    @abstractmethod
    def ask(self, requests: Sequence[Request]) -> Sequence[Answer | Exception]:
        """The model's answers in order; an exception in the place of a request that failed.

        Called by the threads of several parts at once: it is where what they ask is asked together, and where the
        load of a model or a server is bounded.
        """

    def process_batch(self, samples: Sequence[Sample]) -> Sequence[dict | Exception]:
        calls = [Call(self.request(sample)) for sample in samples]
        for _ in range(self.config.attempts):
            waiting = [call for call in calls if call.open]
            if not waiting:
                break
            requests = [call.next_request() for call in waiting]
            for call, answer in zip(waiting, self.ask(requests), strict=True):
                call.take(answer)
        for sample, call in zip(samples, calls, strict=True):
            sample.latency = round(sum(answer.seconds for answer in call.answers), 4)
        return [call.error or call.row() for call in calls]

    def request(self, sample: Sample) -> Request:
        """Target, first and second reference, and the question about them."""
        images = (sample.picture("synthesis", "target"), sample.reference(0), sample.reference(1))
        return Request(
            tuple(self._scaled(image) for image in images), question(sample.plan), sample.plan["seed"] % 2**31
        )

    def _scaled(self, image: Image.Image) -> Image.Image:
        """On white, and no side longer than ``image_side``."""
        flat = pictures.on_white(image)
        flat.thumbnail((self.config.image_side, self.config.image_side), Image.Resampling.BICUBIC)
        return flat

    def fingerprint(self, inputs: Mapping[str, str]) -> str:
        """Changes with the questions too: they are part of what makes the answer."""
        asked = hashlib.sha256(json.dumps([ORDER, QUESTIONS, REMINDER, SCHEMA]).encode()).hexdigest()
        return super().fingerprint({**inputs, "questions": asked})
