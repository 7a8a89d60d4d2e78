"""A wrong setting is told in one line that names its key, says what was meant, and shows no secret."""

from typing import Annotated, Literal

import pytest
from pydantic import Discriminator, Field, Tag, model_validator

from data_schemas.errors import UserError
from data_schemas.io.documents import parse_yaml
from data_schemas.settings import Settings, redacted, suggest


class Small(Settings):
    backend: Literal["small"] = "small"
    share: float = Field(0.5, ge=0, le=1)


class Large(Settings):
    backend: Literal["large"] = "large"
    names: dict[str, str] = {}
    base_url: str = Field("http://x", pattern="^https?://[^@]+$")
    api_key_env: str = Field("KEY", pattern="^[A-Z_]+$")


class Checked(Settings):
    side: int = Field(ge=1)

    @model_validator(mode="after")
    def _is_even(self) -> "Checked":
        if self.side % 2:
            raise ValueError("side must be even")
        return self


class CheckedTwice(Checked):
    @model_validator(mode="after")
    def _is_small(self) -> "CheckedTwice":
        return self


def _kind(value: object) -> str:
    return value["backend"] if isinstance(value, dict) else getattr(value, "backend", "")


class Whole(Settings):
    layers: int = Field(2, ge=1, le=100)
    rate: float = 0.1
    part: Annotated[Annotated[Small, Tag("small")] | Annotated[Large, Tag("large")], Discriminator(_kind)] = Small()
    other: Small | None = None
    either: Small | Large = Small()
    checked: Checked | Small = Small()
    twice: CheckedTwice | Small = Small()
    several: list[Small] = []
    pair: tuple[float, float] = (0.0, 0.0)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"layer": 3}, "test: layer: no such setting; did you mean layers? There is: layers, rate, part"),
        ({"part": {"backend": "small", "shar": 1}}, "part.shar: no such setting; did you mean share?"),
        ({"other": {"shar": 1}}, "other.shar: no such setting; did you mean share?"),
        ({"several": [{"shar": 1}]}, "several.0.shar: no such setting; did you mean share?"),
        ({"part": {"backend": "smal"}}, "part.backend: 'smal' does not exist; did you mean small?"),
        ({"nothing_like_it": 1}, "nothing_like_it: no such setting; there is: layers"),
        ({"rate": float("nan")}, "rate: Input should be a finite number (given: nan)"),
        ({"pair": [1, float("inf")]}, "pair.1: Input should be a finite number (given: inf)"),
        ({"layers": 10**9}, "layers: Input should be less than or equal to 100 (given: 1000000000)"),
        ({"layers": "x" * 10_000}, "xxx…"),
        ({"part": {"backend": "large", "names": {"a": "b\0"}}}, "part.names: holds control characters"),
        ({"part": {"backend": "large", "names": {"a": "\ud800"}}}, "part.names: holds control characters"),
        ({"part": {"backend": "large", "base_url": "http://me:hunter2@x"}}, "part.base_url: String should match"),
        ({"part": {"backend": "large", "api_key_env": "sk-hunter2"}}, "(given: not shown)"),
        ({"checked": {"side": 0}}, "test: checked.side: Input should be greater than or equal to 1 (given: 0)"),
        ({"twice": {"side": 0}}, "test: twice.side: Input should be greater than or equal to 1 (given: 0)"),
        ([], "test: Input should be a valid dictionary"),
    ],
)
def test_one_line_that_names_the_key(values, told):
    with pytest.raises(UserError) as complaint:
        Whole.parse(values, "test")
    line = str(complaint.value)
    assert told in line
    assert "hunter2" not in line
    assert "\n" not in line
    assert len(line) < 400


def test_passwords_and_keys_in_addresses():
    assert redacted("see http://me:pass@word/x@host/v1 now") == "see http://***@host/v1 now"
    assert redacted("s3://bucket?api_key=abc&x=1") == "s3://bucket?api_key=***&x=1"
    assert redacted("me@example.org") == "me@example.org"


def test_a_suggestion_needs_to_be_close():
    assert suggest("papr", ["embedded", "paper"]) == "did you mean paper? There is: embedded, paper"
    assert suggest("sharpen", ["shards", "plan"]) == "there is: shards, plan"
    assert suggest("x", []) == "there is none"


@pytest.mark.parametrize("text", ['!!int ""', "!!int _", "!!bool foo", "!!float ''", "!!float x"])
def test_a_tag_that_its_text_does_not_fit_is_named_with_its_key(text):
    with pytest.raises(UserError, match=r"^--set a: b\.c: '.*' is no (int|bool|float); mend it$"):
        parse_yaml(f"b: {{c: {text}}}", "--set a")
