"""The semantic judge with a vision-language model: its questions, the parser of its answers, and the stage.

The model ``Verdict`` defines the prompt, the JSON schema that a server can enforce, and the parser. Each question has
its own field, with a reason before the mark. An unreadable answer, or the mark "unsure", gives null scores and
therefore an undecided sample (docs/differences.md, "Unreadable answers").
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
"""Most characters of an answer that are read and stored."""


def _unicode(text: str) -> str:
    text.encode()  # ValueError for half a surrogate pair, which JSON allows but Arrow tables do not
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


# The schema contains Verdict's docstring and enters the stage's fingerprint, so a change there judges everything again.
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
    """The prompt for one row of the plan. Texts of the plan are quoted, so that they cannot act as instructions."""
    names = ("reference_0_name", "reference_1_name", "prompt")
    quoted = {name: json.dumps(plan[name], ensure_ascii=False) for name in names}
    return f"{ORDER.format(**quoted)}\n{QUESTIONS}"


def parse(text: str) -> Verdict | None:
    """The one verdict in a text, or None if the answer is unreadable.

    Code fences and words around the JSON object are allowed. Missing, additional or repeated keys, other marks than the
    three, and two verdicts that differ make the answer unreadable.
    """
    verdicts = []
    for values in _objects(text):
        try:
            verdicts.append(Verdict.model_validate(values))
        except ValidationError:
            continue
    return verdicts[0] if verdicts and all(verdict == verdicts[0] for verdict in verdicts) else None


def _objects(text: str) -> list[dict]:
    """Every outermost JSON object in a text."""
    # strict=False allows line breaks in strings; parse_int=float avoids int()'s error for very long numbers
    decoder = json.JSONDecoder(object_pairs_hook=_no_key_twice, strict=False, parse_int=float)
    objects, start = [], text.find("{")
    while start >= 0:
        try:
            values, end = decoder.raw_decode(text, start)
            objects.append(values)
        except json.JSONDecodeError as error:
            end = max(start + 1, error.pos)  # skip what was parsed, so that no text takes quadratic time
        except RecursionError:
            break
        start = text.find("{", end)
    return objects


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    return values if len(values) == len(pairs) else {}


@dataclass(frozen=True)
class Request:
    """A question to the model: RGB images in the order in which the text names them, the text, and a seed."""

    images: tuple[Image.Image, ...]
    text: str
    seed: int


@dataclass(frozen=True)
class Answer:
    """The model's text, the tokens it read and wrote (None if unknown), and the seconds it took."""

    text: str
    tokens_in: int | None
    tokens_out: int | None
    seconds: float


@dataclass
class Call:
    """One sample's question and the answers so far. ``error`` is set if the model could not be asked."""

    request: Request
    answers: list[Answer] = field(default_factory=list)
    verdict: Verdict | None = None
    error: Exception | None = None

    @property
    def open(self) -> bool:
        """Whether there is neither a verdict nor an error yet."""
        return self.verdict is None and self.error is None

    def next_request(self) -> Request:
        """The question.

        After an unreadable answer a numbered reminder is added, as greedy decoding would repeat the answer.
        """
        if not self.answers:
            return self.request
        number = len(self.answers) + 1
        text = f"{self.request.text}\n{REMINDER.format(number=number)}"
        return replace(self.request, text=text, seed=self.request.seed + number - 1)

    def take(self, answer: Answer | Exception) -> None:
        """Store an answer and parse it."""
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
    """The verdict's marks as numbers, and its reasons; null where the judge was unsure or the answer was unreadable."""
    if verdict is None:
        return dict.fromkeys([*Verdict.model_fields, "present_min"])
    values: dict = {name: SCORES.get(value, value) if name in MARKS else value for name, value in verdict}
    present = (values["subject_0_present"], values["subject_1_present"])
    missing = 0.0 in present  # one missing subject decides, even if the other is unsure
    values["present_min"] = 0.0 if missing else None if None in present else 1.0
    return values


def total(counts: Any) -> int | None:
    """The sum of the counts, or None if one of them is unknown."""
    counts = list(counts)
    return None if None in counts else sum(counts)


class JudgeConfig(StageConfig):
    """Settings of all judges with a vision-language model."""

    image_side: int = Field(512, ge=64, le=2048, description="Longest side of the images the judge sees, in pixels")
    max_tokens: int = Field(400, ge=1, le=4096, description="Longest answer in tokens")
    attempts: int = Field(
        3, ge=1, le=10, description="How often a sample is asked before unreadable answers leave it undecided"
    )
    batch_size: int = Field(4, ge=1, le=4096, description="Samples that are judged at once")


class VlmJudge(BatchStage):
    """Asks a vision-language model whether both subjects are there, the prompt fits and the colours are natural.

    A subclass implements ``ask``. The matte is not used, so a change of the matting does not repeat the judging.
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
        """The model's answers in order, with an exception in place of each request that failed.

        Threads of several parts call this at the same time. Implementations may join their requests, and must limit the
        load on the model or server.
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
        """The question about a sample: its target, its first and second reference, and the text."""
        images = (sample.picture("synthesis", "target"), sample.reference(0), sample.reference(1))
        return Request(
            tuple(self._scaled(image) for image in images), question(sample.plan), sample.plan["seed"] % 2**31
        )

    def _scaled(self, image: Image.Image) -> Image.Image:
        """The image on white, scaled down so that no side is longer than ``image_side``."""
        flat = pictures.on_white(image)
        flat.thumbnail((self.config.image_side, self.config.image_side), Image.Resampling.BICUBIC)
        return flat

    def fingerprint(self, inputs: Mapping[str, str]) -> str:
        """The stage's fingerprint, which also includes the questions."""
        questions = hashlib.sha256(json.dumps([ORDER, QUESTIONS, REMINDER, SCHEMA]).encode()).hexdigest()
        return super().fingerprint({**inputs, "questions": questions})
