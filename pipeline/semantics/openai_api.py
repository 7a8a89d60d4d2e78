"""The semantic judge behind an HTTP API: any server with OpenAI's chat protocol, such as vLLM or llama.cpp."""

from __future__ import annotations

import asyncio
import base64
import functools
import os
import re
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from PIL import Image
from pydantic import AfterValidator, ConfigDict, Field

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.text import one_line
from pipeline.core.stage import SampleError, StageUnusable
from pipeline.semantics import redaction
from pipeline.semantics.judge import MAX_TEXT, SCHEMA, Answer, JudgeConfig, Request, VlmJudge

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")
NO_KEY = "none"
MALFORMED = (ValueError, AttributeError, TypeError, LookupError, RecursionError)
"""Errors that the OpenAI client raises if an answer has unexpected types, because it does not check them."""
PROBE_SECONDS = 5
LONGEST_WAIT = 120
"""Longest Retry-After, in seconds, that the client obeys. It does not retry if the server asks for more."""
FORMAT = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}}


def plain_url(url: str) -> str:
    """Return a base URL that may be stored and shown because it holds no user, password or key; else raise ValueError.

    The error messages do not repeat the URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or any(c <= " " for c in url):
        raise ValueError("must be http:// or https://, a host, perhaps a port, and a path that mostly ends in /v1")
    if "@" in url:
        raise ValueError("must hold no user and password; put the key into the variable that api_key_env names")
    if "?" in url or "#" in url:
        raise ValueError("must end with its path; put a key into the variable that api_key_env names")
    return url


class ApiConfig(JudgeConfig):
    """Settings of a judge behind an API."""

    model_config = ConfigDict(hide_input_in_errors=True)

    how: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "api_key_env", "concurrency", "timeout_s", "retries", "batch_size"}
    )

    backend: Literal["openai"] = Field(
        "openai", description="`openai` asks a server with OpenAI's chat protocol, such as vLLM or llama.cpp"
    )
    model: str = Field("google/gemma-3n-E4B-it", min_length=1, description="A model's name, as the server lists it")
    base_url: Annotated[str, AfterValidator(plain_url)] = Field(
        "http://localhost:8000/v1",
        description="The server's address, mostly ending in /v1, without user, password or key",
    )
    api_key_env: str = Field(
        "OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the key; the key itself is never stored",
    )
    batch_size: int = Field(32, ge=1, le=4096, description="Samples that are judged at once")
    concurrency: int = Field(8, ge=1, le=256, description="Requests at the same time, of all parts together")
    timeout_s: float = Field(120, gt=0, le=3600, description="Most seconds of one try, from its first to its last byte")
    retries: int = Field(
        4,
        ge=0,
        le=10,
        description="Tries after the first one: for status 429 or 5xx, no answer in time or a lost connection, but not "
        "for an answer that began and was not complete in time",
    )


class ApiJudge(VlmJudge):
    """Sends requests concurrently and retries each with growing pauses.

    Answers are constrained to JSON if the server can.

    A request that finally fails becomes a SampleError: judge_timeout, judge_unreachable, judge_http_<status> or
    judge_bad_response. A refused key (401) ends the run, because every request would fail. Status 403 does not, because
    servers also use it to refuse single questions.

    The key is removed from everything that the server says, in ``_said`` and, for answers, in ``_ask``.
    """

    Config = ApiConfig

    def __init__(self, config: Any = None):
        super().__init__(config)
        self._constrained = True
        self._turns = asyncio.Semaphore(self.config.concurrency)  # belongs to the event loop that all threads share

    def model_name(self) -> str:
        return f"{self.config.model} at openai api"

    @property
    def _key(self) -> str:
        return os.environ.get(self.config.api_key_env, "").strip() or NO_KEY

    @property
    def _redact(self) -> redaction.Redactor:
        return redaction.of_environment(self.config.api_key_env)

    def _said(self, words: object, limit: int = 300) -> str:
        """Words of the server on one line, without the key."""
        return one_line(self._redact(str(words)[:MAX_TEXT]), limit)

    def _client(self, seconds: float, retries: int) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        from pipeline.semantics.bounded_client import BoundedClient

        return AsyncOpenAI(
            base_url=self.config.base_url, api_key=self._key, max_retries=retries, timeout=seconds,
            http_client=BoundedClient(seconds),
        )  # fmt: skip

    def setup(self) -> None:
        self.probe()

    def probe(self) -> None:
        """Raise UserError if the server does not answer within seconds, refuses the key, or does not serve the model.

        The errors have no cause attached: a logged traceback would show the server's own words and perhaps the key.
        """
        import openai

        url, wanted = self.config.base_url, self.config.model
        if not re.fullmatch(r"[!-~]+", self._key):
            raise UserError(
                f"{self.config.api_key_env} holds more than a key: letters, digits and signs, without spaces"
            )
        try:
            served = run_in_loop(self._served())
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            raise self._refused() from None
        except openai.NotFoundError:
            raise UserError(f"judge server {url} has no {url}/models; base_url mostly ends in /v1") from None
        except openai.APIStatusError as error:
            raise UserError(
                f"judge server {url} answers {error.status_code}; look at its log, or wait until it is ready"
            ) from None
        except openai.APIConnectionError:
            raise UserError(
                f"judge server {url} does not answer; start it (vllm serve {wanted}), or name another base_url"
            ) from None
        except (openai.OpenAIError, *MALFORMED):
            raise UserError(f"judge server {url} does not speak OpenAI's protocol; check base_url") from None
        if wanted not in served:
            raise UserError(f"judge server {url} has no model {wanted!r}; it serves: {self._said(', '.join(served))}")

    async def _served(self) -> list[str]:
        """The names of the models that the server lists."""
        async with self._client(PROBE_SECONDS, retries=0) as client:
            return [str(model.id) for model in (await client.models.list()).data]

    def _refused(self) -> StageUnusable:
        return StageUnusable(
            f"judge server {self.config.base_url} refuses the key; set {self.config.api_key_env} to one it accepts"
        )

    def ask(self, requests: Sequence[Request]) -> Sequence[Answer | Exception]:
        answers = run_in_loop(self._ask_all(requests))
        for answer in answers:
            if isinstance(answer, StageUnusable):
                raise answer
        return answers

    async def _ask_all(self, requests: Sequence[Request]) -> list[Answer | Exception]:
        async with self._client(self.config.timeout_s, self.config.retries) as client:

            async def ask_one(request: Request) -> Answer | Exception:
                async with self._turns:
                    return await self._ask(client, request)

            return await asyncio.gather(*map(ask_one, requests))

    async def _ask(self, client: AsyncOpenAI, request: Request) -> Answer | Exception:
        import openai

        tries, began = self.config.retries + 1, time.perf_counter()
        try:
            # the client limits each try; this limits all tries with the pauses that the server may ask for
            async with asyncio.timeout(tries * (self.config.timeout_s + LONGEST_WAIT)):
                completion = await self._complete(client, request)
            answer = answer_of(completion, time.perf_counter() - began)
            # twice the text that is kept, so that no key is cut in two before it is redacted
            return replace(answer, text=self._redact(answer.text[: 2 * MAX_TEXT]))
        except (openai.APITimeoutError, TimeoutError):
            return SampleError("judge_timeout", f"no answer in {self.config.timeout_s:g} s, {tries} times")
        except openai.APIConnectionError as error:
            return SampleError("judge_unreachable", self._said(error))
        except openai.AuthenticationError:
            return self._refused()
        except openai.APIStatusError as error:
            code = "judge_timeout" if error.status_code == 408 else f"judge_http_{error.status_code}"
            return SampleError(code, self._said(error))
        except (openai.OpenAIError, *MALFORMED) as error:
            return SampleError("judge_bad_response", f"not a chat completion ({self._said(error)})")

    async def _complete(self, client: AsyncOpenAI, request: Request) -> Any:
        import openai

        create: Any = client.chat.completions.create
        arguments = {
            "model": self.config.model,
            "messages": messages(request),
            "max_tokens": self.config.max_tokens,
            "temperature": 0,
            "seed": request.seed,
        }
        if not self._constrained:
            return await create(**arguments)
        try:
            return await create(**arguments, response_format=FORMAT)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if not refuses_format(error):
                raise
            self._constrained = False  # stays so for the life of the process
            return await create(**arguments)


_starting = threading.Lock()


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, run in the event loop that all threads share, whatever loop the calling thread has."""
    with _starting:
        loop = _loop(os.getpid())
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """The running event loop of a process. A forked process needs its own, because threads are not inherited."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="judge", daemon=True).start()
    return loop


def messages(request: Request) -> list[dict]:
    """One user turn: the images in order as PNG data URLs, then the text."""
    images: list[dict] = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in request.images]
    return [{"role": "user", "content": [*images, {"type": "text", "text": request.text}]}]


def data_url(image: Image.Image) -> str:
    """The image as a PNG data URL."""
    return "data:image/png;base64," + base64.b64encode(pictures.encode_png(image)).decode()


def answer_of(completion: Any, seconds: float) -> Answer:
    """The first choice's text and the token counts. The types in a completion are not checked by the client."""
    text = completion.choices[0].message.content
    usage = completion.usage
    return Answer(
        text if isinstance(text, str) else "",  # a refusal has no content and counts as unreadable
        token_count(getattr(usage, "prompt_tokens", None)),
        token_count(getattr(usage, "completion_tokens", None)),
        seconds,
    )


def token_count(value: Any) -> int | None:
    """The value if it is a plausible number of tokens, else None."""
    return value if type(value) is int and 0 <= value < 10**8 else None


def refuses_format(error: Exception) -> bool:
    """Whether a server's error says that it cannot enforce the JSON schema."""
    return any(word in str(error).lower() for word in ("response_format", "json_schema", "json schema", "grammar"))
