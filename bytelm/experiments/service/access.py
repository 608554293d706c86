"""Who may send requests, and how large they may be; the same for both protocols.

Without a token, a web page that is open in a browser here could still send requests to the service: therefore requests
for another host's name (DNS rebinding) and requests from another host's pages are rejected.
"""

import asyncio
import base64
import hmac
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

MOST_READ = 10_000_000  # of a body, and dropped: a client that is still sending would not see the answer
BODY_SECONDS = 30.0  # time for a body to arrive
CLOSE = {"Connection": "close"}


def guard(api: FastAPI, token: str | None, key: str) -> None:
    """Adds the checks of a request's origin.

    Args:
        api: The pages.
        token: The token that requests must have; None: no token, but requests must come from this machine.
        key: The key of an answer that has the reason of a rejection.
    """

    @api.middleware("http")
    async def check(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if token is not None and request.scope["path"] != "/health" and not _shows(request, token):
            # A browser asks its user for a password, and sends it as Basic.
            is_browser = "text/html" in request.headers.get("accept", "")
            wanted = {
                "WWW-Authenticate": 'Basic realm="bytelm: any name, the token as password"' if is_browser else "Bearer"
            }
            return JSONResponse({key: "accepted: Authorization: Bearer <token>"}, 401, wanted)
        if request.method == "POST" and _is_from_elsewhere(request):
            origin = request.headers["origin"]
            return JSONResponse({key: f"Origin: {origin!r} cannot be used; accepted: this service's pages"}, 403)
        return await answer(request)

    if token is None:
        api.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])


async def read_body(request: Request, most: int) -> bytes | None:
    """Returns the body of a request; None if it is too large.

    Args:
        request: The request.
        most: The largest size, in bytes.

    Raises:
        HTTPException: The body did not arrive in time.
    """
    try:
        return await asyncio.wait_for(_read(request, most), BODY_SECONDS)
    except asyncio.TimeoutError as error:
        raise HTTPException(408, f"the body did not arrive within {BODY_SECONDS:g} s", CLOSE) from error


async def _read(request: Request, most: int) -> bytes | None:
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            body += part
        elif size > MOST_READ:
            break
    return bytes(body) if size <= most else None


def _shows(request: Request, token: str) -> bool:
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            shown = base64.b64decode(shown).decode("latin-1").partition(":")[2]
        except ValueError:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(shown.strip().encode("latin-1"), token.encode())


def _is_from_elsewhere(request: Request) -> bool:
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("host")
