"""Reading a request's body when the other side is hostile: never more than a limit, and not for ever."""

from __future__ import annotations

import asyncio

from aiohttp import web

BODY_SECONDS = 60.0


async def whole(request: web.Request, limit: int) -> bytes:
    """The whole body of at most ``limit`` bytes. Raises HTTPRequestEntityTooLarge, TimeoutError."""
    if request.content_length is not None and request.content_length > limit:
        raise too_large(limit, request.content_length)
    body = bytearray()
    async with asyncio.timeout(BODY_SECONDS):
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > limit:  # compressed or chunked: only now we know
                raise too_large(limit, len(body))
    return bytes(body)


def too_large(limit: int, size: int) -> web.HTTPRequestEntityTooLarge:
    """The refusal of a body of ``size`` bytes or more."""
    text = f"The body has {size} bytes or more; at most {limit} are taken."
    return web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=size, text=text)
