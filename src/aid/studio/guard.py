"""Who may ask: this machine's own programs and pages, with bodies of bearable size.

Any web page that is open in a browser here can send requests to a local server: by a name that resolves to it
(DNS rebinding), or blindly (CSRF). So a request must call the studio by a name that it knows, or by an
address, which no page can make its own; it must come from no other site; and what it sends must be JSON,
which no form sends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from ipaddress import ip_address
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

OWN = ("same-origin", "none")  # where a browser says that a request comes from: this page, or a person
MOST_BYTES = 64 << 20
SECURED = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"),
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """Stands before the application."""

    def __init__(self, app: App, names: Collection[str] = (), most_bytes: int = MOST_BYTES) -> None:
        self.app, self.most_bytes = app, most_bytes
        self.names = {"localhost", *(name.casefold() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if refusal := self._refusal(Headers(scope=scope), scope["method"]):
            status, message = refusal
            await refused(status, message)(scope, receive, send)
            return
        await self.app(scope, self._counted(receive), _secured(send))

    def _refusal(self, headers: Headers, method: str) -> tuple[int, str] | None:
        host = headers.get("host", "")
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        if name.casefold() not in self.names and not _is_address(name):
            return 421, f"{name or 'no name'} is not one of this studio's names; start it with --names NAME"
        if _is_foreign(headers, host):
            return 403, "another site's page asked for this"
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        if method == "POST" and has_body:
            kind = headers.get("content-type", "").partition(";")[0].strip().casefold()
            if kind != "application/json":
                return 415, f"the body is {kind or 'of no named kind'}; expected application/json"
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.most_bytes:
            return 413, f"a request of {int(length) >> 20} MiB; expected {self.most_bytes >> 20} at most"
        return None

    def _counted(self, receive: Receive) -> Receive:
        left = self.most_bytes

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, f"a request of over {self.most_bytes >> 20} MiB")
            return message

        return counted


def _is_foreign(headers: Headers, host: str) -> bool:
    """A browser that reaches this by http and another name than localhost tells the origin alone."""
    if site := headers.get("sec-fetch-site"):
        return site.casefold() not in OWN
    return headers.get("origin", host).rpartition("://")[2].casefold() != host.casefold()


def _is_address(name: str) -> bool:
    try:
        return bool(ip_address(name.strip("[]")))
    except ValueError:
        return False


def _secured(send: Send) -> Send:
    async def secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *SECURED]
        await send(message)

    return secured


def refused(status: int, message: str, kind: str = "Refused") -> JSONResponse:
    """An error as A1111's clients read one."""
    return JSONResponse({"error": kind, "detail": message, "body": "", "errors": message}, status)
