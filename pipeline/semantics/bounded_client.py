"""An HTTP client for the OpenAI library that limits the time and the size of every answer."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import openai

MOST_BYTES = 4 * 2**20
"""Most bytes of an answer after decompression, a hundred times the longest answer that is asked for."""
TOO_SLOW = 408
"""Status given to an answer that began but was not complete in time. It is not retried: the next would be as slow."""


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """A client whose ``seconds`` limit the whole of each try, from sending the request to the last byte of the answer.

    HTTP's own timeout only limits the pause between two bytes, so a server that sends byte after byte could go on for
    ever.
    """

    def __init__(self, seconds: float):
        super().__init__(timeout=seconds)
        self.seconds = seconds

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """The response with its body already read. A body that is too long is cut, so that it is not valid JSON."""
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
    """The response's body, at most MOST_BYTES of it."""
    body = bytearray()
    async for chunk in response.aiter_bytes(2**16):
        body += chunk
        if len(body) > MOST_BYTES:
            break
    return bytes(body[:MOST_BYTES])
