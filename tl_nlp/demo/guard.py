"""Who may ask the server, and how often: hosts, origins, keys and rates."""

from __future__ import annotations

import base64
import json
import secrets
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = {"/v1/predict": 4 * 10**6, "": 21 * 10**6}
"""Of a request's body by its path; a character of one text may take several bytes."""
_MINUTE = 60.0  # seconds
_MOST_CLIENTS = 10_000  # whose rates are remembered
_LOGINS = 10  # a minute from one client


@dataclass(frozen=True)
class Rules:
    """What a server asks of those who call it."""

    is_local: bool = True  # for this machine alone
    is_public: bool = False  # for everybody: there is nothing that another site's page could misuse
    password: str | None = None  # of the user tl-nlp
    key: str | None = None  # of programs; the password serves them too
    rate: int | None = None  # requests a minute of one client that are work


class Guard:
    """Refuses, before anything is read of a request, one that comes through another site's page, too often or without
    a key. ASGI middleware."""

    def __init__(self, app: ASGIApp, rules: Rules):
        self._app, self._rules = app, rules
        self._seen: dict[tuple[str, str], tuple[float, float]] = {}  # (kind, client) → what is left, and since when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (refusal := self._refusal(scope)) is not None:
            await _answer(send, *refusal)
        else:
            await self._app(scope, receive, self._marked(send))

    def _marked(self, send: Send) -> Send:
        """Adds to every answer that no page of others may frame it, and that its kind is not to be guessed."""
        headers = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin")]
        if not self._rules.is_public:  # a Space is shown in a frame
            headers.append((b"content-security-policy", b"frame-ancestors 'self'"))

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        return marked

    def _refusal(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        rules, path = self._rules, scope["path"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if rules.is_local and _name(host) not in LOOPBACK:
            return 403, f"this server is for this machine alone, and not for {host or 'a request without a host'}", {}
        origin = headers.get("origin")
        if origin is not None and not rules.is_public and urlsplit(origin).netloc != host:
            return 403, f"a page of {origin} may not ask here", {}
        is_work = scope.get("method") == "POST" or path.startswith("/v1/")
        client = (scope.get("client") or ("",))[0]
        if path.rstrip("/") == "/login" and not self._take("login", client, _LOGINS):
            return 429, f"over {_LOGINS} tries to log in within a minute; wait for one", {"retry-after": "60"}
        if rules.rate and is_work and not self._take("work", client, rules.rate):
            return 429, f"over {rules.rate} requests within a minute; wait a little", {"retry-after": "5"}
        if (most := MOST_BYTES.get(path, MOST_BYTES[""])) < int(headers.get("content-length") or 0):
            return 413, f"the request is larger than the {most:,} bytes that are taken here", {}
        if _wants_key(path) and (rules.key or rules.password) and not self._knows(headers.get("authorization", "")):
            wanted = "Authorization: Bearer KEY, or user tl-nlp with the password"
            return 401, f"a key is missing or wrong: {wanted}", {"www-authenticate": 'Basic realm="tl-nlp"'}
        return None

    def _take(self, kind: str, client: str, rate: int) -> bool:
        """Takes one of the `rate` requests that come back within a minute; False where none is left."""
        now = time.monotonic()
        left, since = self._seen.get((kind, client), (float(rate), now))
        left = min(float(rate), left + (now - since) * rate / _MINUTE)
        if len(self._seen) >= _MOST_CLIENTS:
            self._seen = {key: value for key, value in self._seen.items() if now - value[1] < _MINUTE}
        self._seen[kind, client] = (left - 1 if left >= 1 else left, now)
        return left >= 1

    def _knows(self, given: str) -> bool:
        kind, _, value = given.partition(" ")
        if kind.lower() == "bearer" and self._rules.key:
            return secrets.compare_digest(value.encode(), self._rules.key.encode())
        if kind.lower() == "basic" and self._rules.password:
            wanted = base64.b64encode(f"tl-nlp:{self._rules.password}".encode())
            return secrets.compare_digest(value.encode(), wanted)
        return False


def _wants_key(path: str) -> bool:
    return path.startswith("/v1/") or path == "/metrics"


def _name(host: str) -> str:
    """A host's name without its port."""
    return host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]


async def _answer(send: Send, status: int, message: str, headers: dict[str, str]) -> None:
    body = json.dumps({"error": message}).encode()
    told = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    lines = [(name.encode(), value.encode()) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})
