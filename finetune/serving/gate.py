"""Around every request: its id, who may ask, headers, metrics, one line of the log, and errors without their text."""

from __future__ import annotations

import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from finetune.serving.access import Access
from finetune.serving.metrics import Metrics
from finetune.serving.refusal import Refused

REQUEST_ID = "X-Request-ID"
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Ids of clients that are taken over; others could forge lines of the log."""
OTHER = "other"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NOTHING = "default-src 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of answers that have none of their own."""


class Gate:
    """An ASGI application around another."""

    def __init__(
        self,
        app: Any,
        access: Access,
        metrics: Metrics,
        routes: Collection[str],
        open_routes: Collection[str],
        say: Callable[[str], None],
    ):
        """
        Args:
            routes: the paths of the program.
            open_routes: those that need no token.
            say: takes the lines of the log.
        """
        self.app, self.access, self.metrics, self.say = app, access, metrics, say
        self.routes, self.open_routes = frozenset(routes), frozenset(open_routes)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, headers = time.perf_counter(), Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if GIVEN_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        route = scope["path"] if scope["path"] in self.routes else OTHER
        status = 500
        begun = False

        async def send_with_headers(message: Any) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                sent = MutableHeaders(scope=message)
                sent[REQUEST_ID] = request_id
                for name, value in HEADERS.items():
                    sent[name] = value
                sent.setdefault("Content-Security-Policy", NOTHING)
            await send(message)

        try:
            try:
                self.access.check_host(headers.get("host", ""), headers.get("origin"))
                if route not in self.open_routes:
                    self.access.check_token(headers.get("authorization", ""))
            except Refused as refused:
                more = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {}
                response = refusal_response(refused, request_id, more)
                await response(scope, receive, send_with_headers)
                return
            await self.app(scope, receive, send_with_headers)
        except Exception as error:
            self.say(f"{request_id} {describe(error)}")
            if begun:
                raise
            sentence = "An error of the server; its log has the place under this request id."
            await refusal_response(Refused(500, sentence), request_id)(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - start
            self.metrics.observe_request(route, status, seconds)
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else OTHER
            self.say(f"{request_id} {method} {route} {status} {1000 * seconds:.0f} ms")


def refusal_response(refused: Refused, request_id: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer to a request that is refused."""
    content = {"error": refused.reason, "request_id": request_id}
    return JSONResponse(content, refused.status, {**refused.headers, **(headers or {})})


def describe(error: BaseException) -> str:
    """Type and place of an error: its text may hold values of an upload."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"error {type(error).__name__} at {places}"


def print_line(line: str) -> None:
    """A line of the log, with the time."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}", file=sys.stdout, flush=True)
