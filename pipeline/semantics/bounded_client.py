"""An HTTP client for the OpenAI library that waits for no answer longer, and reads of none more, than it was told."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import openai

MOST_BYTES = 4 * 2**20
"""Of an answer, decoded: a hundred times the longest that is asked for."""
TOO_SLOW = 408
"""Status of an answer that began and was not whole in time; it is not asked for again, as the next would drip too."""


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """``seconds``: from the first byte asked to the last byte read, of each try. HTTP's own timeout is one between two
    bytes, and has an answer that drips in last for ever."""

    def __init__(self, seconds: float):
        super().__init__(timeout=seconds)
        self.seconds = seconds

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """The response with its body read; a body without end is cut, so that it is no JSON."""
        http = sys.modules[type(request).__module__.partition(".")[0]]  # httpx, or httpx2 of later versions
        deadline = asyncio.get_running_loop().time() + self.seconds
        try:
            async with asyncio.timeout_at(deadline):
                response = await super().send(request, stream=True, **options)
        except TimeoutError as error:
            raise http.ReadTimeout(f"no answer in {self.seconds:g} s", request=request) from error
        try:
            async with asyncio.timeout_at(deadline):
                body = await _beginning(response)
        except TimeoutError:
            message = f"the answer began and was not whole after {self.seconds:g} s"
            return http.Response(
                TOO_SLOW, headers={"x-should-retry": "false"}, json={"error": {"message": message}}, request=request
            )
        finally:
            await response.aclose()
        kept = [(k, v) for k, v in response.headers.multi_items() if k not in ("content-encoding", "content-length")]
        return http.Response(response.status_code, headers=kept, content=body, request=request)


async def _beginning(response: Any) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes(2**16):
        body += chunk
        if len(body) > MOST_BYTES:
            break
    return bytes(body[:MOST_BYTES])
