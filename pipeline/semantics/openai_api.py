"""The judge behind an HTTP API: any server that speaks OpenAI's chat protocol, such as vLLM or llama.cpp."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from PIL import Image
from pydantic import Field

from data_schemas import pictures
from data_schemas.errors import UserError
from pipeline.semantics.judge import SCHEMA, Answer, JudgeConfig, Request, VlmJudge
from pipeline.stage import SampleError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

NO_KEY = "none"
MALFORMED = (ValueError, AttributeError, TypeError, LookupError)  # the client hands on what it got, whatever its types
PROBE_SECONDS = 5
LONGEST_WAIT = 120  # seconds of a Retry-After that the client obeys; it gives up on a longer one
FORMAT = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}}


class ApiConfig(JudgeConfig):
    """``model`` is a name the server lists. The key is read from the environment variable ``api_key_env`` and kept
    nowhere. ``timeout_s`` bounds one try, ``retries`` the tries after the first (429, 5xx, timeouts, lost connections).
    """

    how: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "api_key_env", "concurrency", "timeout_s", "retries", "batch_size"}
    )

    backend: Literal["openai"] = "openai"
    model: str = Field("google/gemma-3n-E4B-it", min_length=1)
    base_url: str = Field("http://localhost:8000/v1", pattern=r"^https?://[^@\s]+$")  # no password in a stored config
    api_key_env: str = Field("OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    batch_size: int = Field(32, ge=1, le=4096, description="Samples that are judged at once")
    concurrency: int = Field(8, ge=1, le=256, description="Requests under way at the same time")
    timeout_s: float = Field(120, gt=0, le=3600)
    retries: int = Field(4, ge=0, le=10)


class ApiJudge(VlmJudge):
    """Requests side by side, each retried with growing pauses; constrained to the verdict's JSON schema if it can be.

    A request that fails for good is a SampleError: judge_timeout, judge_unreachable, judge_http_<status> or
    judge_bad_response.
    """

    Config = ApiConfig

    def __init__(self, config: Any = None):
        super().__init__(config)
        self._constrained = True

    def model_name(self) -> str:
        return f"{self.config.model} at openai api"

    @property
    def _key(self) -> str:
        return os.environ.get(self.config.api_key_env) or NO_KEY

    def setup(self) -> None:
        self.probe()

    def probe(self) -> None:
        """UserError if the server does not answer in a few seconds, refuses the key, or does not serve the model."""
        import openai

        url, wanted = self.config.base_url, self.config.model
        try:
            with openai.OpenAI(base_url=url, api_key=self._key, timeout=PROBE_SECONDS, max_retries=0) as client:
                served = [str(model.id) for model in client.models.list().data]
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(
                f"judge server {url} refuses the key; set {self.config.api_key_env} to one it accepts"
            ) from error
        except openai.NotFoundError as error:
            raise UserError(f"judge server {url} has no {url}/models; base_url mostly ends in /v1") from error
        except openai.APIStatusError as error:
            raise UserError(
                f"judge server {url} answers {error.status_code}; look at its log, or wait until it is ready"
            ) from error
        except openai.APIConnectionError as error:
            raise UserError(
                f"judge server {url} does not answer; start it (vllm serve {wanted}), or name another base_url"
            ) from error
        except (openai.OpenAIError, *MALFORMED) as error:
            raise UserError(f"judge server {url} does not speak OpenAI's protocol; check base_url") from error
        if wanted not in served:
            raise UserError(f"judge server {url} has no model {wanted!r}; it serves: {', '.join(served)[:300]}")

    def ask(self, requests: Sequence[Request]) -> Sequence[Answer | Exception]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._ask_all(requests))
        with ThreadPoolExecutor(1) as pool:  # this thread's loop is the caller's
            return pool.submit(asyncio.run, self._ask_all(requests)).result()

    async def _ask_all(self, requests: Sequence[Request]) -> list[Answer | Exception]:
        from openai import AsyncOpenAI

        config = self.config
        turns = asyncio.Semaphore(config.concurrency)
        async with AsyncOpenAI(
            base_url=config.base_url, api_key=self._key, timeout=config.timeout_s, max_retries=config.retries
        ) as client:

            async def ask_one(request: Request) -> Answer | Exception:
                async with turns:
                    return await self._ask(client, request)

            return await asyncio.gather(*map(ask_one, requests))

    async def _ask(self, client: AsyncOpenAI, request: Request) -> Answer | Exception:
        import openai

        url, tries, began = self.config.base_url, self.config.retries + 1, time.perf_counter()
        try:
            # the client's timeout is one between two bytes; this one also ends an answer that drips in
            async with asyncio.timeout(tries * (self.config.timeout_s + LONGEST_WAIT)):
                completion = await self._complete(client, request)
            return answer_of(completion, time.perf_counter() - began)
        except (openai.APITimeoutError, TimeoutError):
            return SampleError("judge_timeout", f"{url}: no answer in {self.config.timeout_s:g} s, {tries} times")
        except openai.APIConnectionError as error:
            return SampleError("judge_unreachable", f"{url}: {self._hide_key(error)}")
        except openai.APIStatusError as error:
            return SampleError(f"judge_http_{error.status_code}", f"{url}: {self._hide_key(error)}")
        except (openai.OpenAIError, *MALFORMED) as error:
            return SampleError("judge_bad_response", f"{url}: not a chat completion ({self._hide_key(error)})")

    async def _complete(self, client: AsyncOpenAI, request: Request) -> Any:
        import openai

        create: Any = client.chat.completions.create
        asked = {
            "model": self.config.model,
            "messages": messages(request),
            "max_tokens": self.config.max_tokens,
            "temperature": 0,
            "seed": request.seed,
        }
        if not self._constrained:
            return await create(**asked)
        try:
            return await create(**asked, response_format=FORMAT)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if not refuses_format(error):
                raise
            self._constrained = False  # for the life of the process
            return await create(**asked)

    def _hide_key(self, error: Exception) -> str:
        """The error in words; some servers repeat the key in them."""
        words = str(error)[:2000]
        return (words.replace(self._key, "***") if self._key != NO_KEY else words)[:300]


def messages(request: Request) -> list[dict]:
    """One user turn: the images in order as PNG data URLs, then the text."""
    images: list[dict] = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in request.images]
    return [{"role": "user", "content": [*images, {"type": "text", "text": request.text}]}]


def data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(pictures.encode_png(image)).decode()


def answer_of(completion: Any, seconds: float) -> Answer:
    """The first choice's text and the token counts, of a completion whose types nobody has checked."""
    text = completion.choices[0].message.content
    usage = completion.usage
    return Answer(
        text if isinstance(text, str) else "",  # a refusal has no content: unreadable, not broken
        count(getattr(usage, "prompt_tokens", None)),
        count(getattr(usage, "completion_tokens", None)),
        seconds,
    )


def count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 10**8 else None


def refuses_format(error: Exception) -> bool:
    """Is it the JSON schema that the server cannot do?"""
    return any(word in str(error).lower() for word in ("response_format", "json_schema", "json schema", "grammar"))
