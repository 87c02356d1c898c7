"""The guard in front of all routes: what it does not know to be the user's own page is refused.

It answers before the routes and their bodies are read. A request needs a local `Host` (otherwise a
name of the attacker could be rebound to this machine), the cookie or the bearer token, no sign of
another site, and for every change the page's own `Origin` and form token.
"""

from collections.abc import Mapping
from hmac import compare_digest
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
ENTRY, NEW_LINK = "/enter", "pinxit studio --link"
FORM_TOKEN = "token"
_READING = frozenset({"GET", "HEAD"})
_OTHER_SITES = frozenset({"cross-site", "same-site"})
_BEARER = "Bearer "

SECURITY_HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    # With no-referrer, browsers would send the forms with `Origin: null`.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware that refuses every request but those of the user's own page and programs.

    `cookie` is the name of the cookie, `tokens` the expected values of "cookie", "form" and "api".
    """

    def __init__(self, app: ASGIApp, cookie: str, tokens: Mapping[str, str]) -> None:
        self.app = app
        self.cookie = cookie
        self.tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refused request, or pass it on; every response gets the security headers."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] != "http":  # no WebSockets
            await send({"type": "websocket.close", "code": 1008})
            return
        status, reason = self.verdict(scope)
        if status:
            await _refusal(scope["path"], status, reason)(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    def verdict(self, scope: Scope) -> tuple[int, str]:
        """The status with which a request is refused, and why; 0 if it is not."""
        headers, method = Headers(scope=scope), str(scope["method"])
        if not _is_local(headers.getlist("host")):
            return 421, "this address is not the studio's: open the link that it printed"
        fetch_site = headers.get("sec-fetch-site", "")
        if scope["path"] == ENTRY and method in _READING:
            # A link may be clicked anywhere, but no other page may load it silently.
            foreign = fetch_site in _OTHER_SITES and headers.get("sec-fetch-mode") != "navigate"
            return (403, "refused: the request comes from another site") if foreign else (0, "")
        is_program = self._has_bearer(headers)
        cookie = HTTPConnection(scope).cookies.get(self.cookie, "")
        if not is_program and not _equal(cookie, self.tokens["cookie"]):
            return 401, f"open the link that the studio printed, or get a new one: {NEW_LINK}"
        if fetch_site in _OTHER_SITES:
            return 403, "refused: the request comes from another site"
        origin, own = headers.get("origin"), f"http://{headers['host']}"
        if origin is not None and origin != own:
            return 403, "refused: the request comes from another site"
        if method in _READING or is_program:
            return 0, ""
        if origin is None or not self._has_form_token(scope, headers):
            return 403, "refused: the form is not from this page, or is old: reload the page"
        return 0, ""

    def _has_bearer(self, headers: Headers) -> bool:
        value = headers.get("authorization", "")
        is_bearer = value.startswith(_BEARER)
        return is_bearer and _equal(value.removeprefix(_BEARER), self.tokens["api"])

    def _has_form_token(self, scope: Scope, headers: Headers) -> bool:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        given = [*query.get(FORM_TOKEN, []), *headers.getlist("x-form-token")]
        return len(given) == 1 and _equal(given[0], self.tokens["form"])


def _refusal(path: str, status: int, reason: str) -> Response:
    if not path.startswith("/api/"):
        return PlainTextResponse(f"{reason}\n", status)
    hint = "send `Authorization: Bearer TOKEN` with the token of: pinxit studio --api-token"
    return JSONResponse({"message": f"refused with status {status}", "hint": hint}, status)


def _is_local(hosts: list[str]) -> bool:
    """Whether there is exactly one `Host` header and it names this machine; any port is allowed."""
    if len(hosts) != 1:
        return False
    try:
        parts = urlsplit(f"//{hosts[0]}")
        _ = parts.port  # ValueError if it is not a number
    except ValueError:
        return False
    return parts.hostname in LOCAL_NAMES and parts.netloc == hosts[0] and "@" not in hosts[0]


def _equal(given: str, expected: str) -> bool:
    return compare_digest(given.encode(), expected.encode())
