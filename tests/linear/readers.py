"""Every reader of what clients and upstreams send, with inputs of any size. `READERS` is the table: a row is a name and
a function that takes a size and returns what is measured.

A new reader is a new row. A sample or another option of a backend is a row of `OPTIONS`, measured in whole requests
through both faces; anything else is a function with `@reader`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, get_args

import sticky_asgi
import sticky_wsgi
from sticky_asgi.messages import Head as AsgiHead
from sticky_asgi.messages import Message
from sticky_asgi.upstream.app import Upstream as AsgiUpstream
from sticky_asgi.workers.protocol import body_mode, find_additions, pack_scope
from sticky_core.balance import (
    Ewma,
    First,
    Hash,
    Hdr,
    IpHash,
    LeastConn,
    NginxHash,
    NginxLeastConn,
    NginxRandom,
    Random,
    RoundRobin,
    Smooth,
    Source,
    StaticRR,
    Uri,
    UrlParam,
)
from sticky_core.http import cookies
from sticky_core.http.forwarding import Forward, RequestHeads, leaves_base_path
from sticky_core.http.http1 import Header, ResponseParser
from sticky_core.http.request_target import decode_path, decoded_path, request_path, request_target, strip_root
from sticky_core.http.trusted_proxies import Networks
from sticky_core.persistence import foreign
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.foreign.cookie import ForeignCookie
from sticky_core.persistence.foreign.ingress_nginx import Ring
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.route import Route
from sticky_core.persistence.signing import Signing
from sticky_core.persistence.stick.config import Learn, Stick
from sticky_core.persistence.token import Token
from sticky_core.samples import request as samples
from sticky_core.samples import response as res
from sticky_core.samples.converters import digest, field, ipmask, lower, prefix
from sticky_core.samples.path_template import PathTemplate
from sticky_core.samples.response_body import BodyReader
from sticky_core.samples.values import pick_value
from sticky_core.stick_table.keys import KeyType
from sticky_core.stick_table.table import StickTable
from sticky_core.target import Location
from sticky_core.workers.frames import Frames
from sticky_wsgi.body import Body as WsgiBody
from sticky_wsgi.messages import Head as WsgiHead
from sticky_wsgi.messages import headers_of
from sticky_wsgi.upstream.app import Upstream as WsgiUpstream
from sticky_wsgi.workers.protocol import pack_environ

#: makes what is measured, for an input of this size
Reader = Callable[[int], Callable[[], object]]

READERS: dict[str, Reader] = {}


def reader(name: str) -> Callable[[Reader], Reader]:
    def add(made: Reader) -> Reader:
        assert name not in READERS, name
        READERS[name] = made
        return made

    return add


# -- requests


@dataclass(frozen=True)
class Sent:
    """A request as a client sends it."""

    headers: Sequence[tuple[str, str]] = ()
    path: str = "/"
    query: str = ""
    body: bytes = b""
    http_version: str = "1.1"
    scheme: str = "http"

    def scope(self) -> dict[str, Any]:
        headers = [("host", "shop.example"), *self.headers]
        if self.body:
            headers.append(("content-length", str(len(self.body))))
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self.http_version,
            "method": "POST" if self.body else "GET",
            "scheme": self.scheme,
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": self.query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers],
            "client": ("10.0.0.1", 50000),
            "server": ("shop.example", 80),
            "extensions": {},
        }

    def environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "POST" if self.body else "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": self.path,
            "QUERY_STRING": self.query,
            "REMOTE_ADDR": "10.0.0.1",
            "SERVER_PROTOCOL": f"HTTP/{self.http_version}",
            "HTTP_HOST": "shop.example",
            "wsgi.url_scheme": self.scheme,
            "wsgi.input": io.BytesIO(self.body),
        }
        if self.body:
            environ["CONTENT_LENGTH"] = str(len(self.body))
        by_key: dict[str, list[str]] = {}
        for name, value in self.headers:
            by_key.setdefault(name.upper().replace("-", "_"), []).append(value)
        for key, values in by_key.items():
            bare = key in ("CONTENT_TYPE", "CONTENT_LENGTH")
            environ[key if bare else f"HTTP_{key}"] = ("; " if key == "COOKIE" else ",").join(values)
        return environ


Shape = Callable[[int], Sent]
T = TypeVar("T")


def headers(name: str, value: Callable[[int], str], *more: tuple[str, str]) -> Shape:
    """Return the shape of a request with n headers of one name."""
    return lambda n: Sent([*((name, value(number)) for number in range(n)), *more])


def header(name: str, value: Callable[[int], str], **other: Any) -> Shape:
    """Return the shape of a request with one header, the longer the larger."""
    return lambda n: Sent([(name, value(n))], **other)


def address(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def token(payload: bytes) -> str:
    return f"e30.{base64.urlsafe_b64encode(payload).rstrip(b'=').decode()}.x"


OURS = ("cookie", "SID=x")

COOKIES: dict[str, Shape] = {
    "lines": headers("cookie", lambda _: "xxxx", OURS),
    "lines and headers": lambda n: Sent([("cookie", "xxxx"), OURS, *((f"x-{number}", "1") for number in range(n))]),
    "lines of ours": headers("cookie", lambda number: f"SID=s{number}"),
    "fields of HTTP/2": lambda n: Sent([*(("cookie", "a=b"),) * n, OURS], http_version="2"),
    "pairs": header("cookie", lambda n: "a=b; " * n + "SID=x; SID=y"),
    "pairs of ours": header("cookie", lambda n: "; ".join(f"SID=s{number}" for number in range(n))),
    "empty pairs": header("cookie", lambda n: "SID=x" + ";" * n),
    "commas": header("cookie", lambda n: "SID=x" + "," * n),
    "quotes": header("cookie", lambda n: 'SID=x; a="b;"' * n),
    "an open quote": header("cookie", lambda n: 'SID=x; a="' + "b" * n),
    "backslashes": header("cookie", lambda n: 'SID=x; a="' + "\\" * n),
    "attributes": header("cookie", lambda n: "SID=x" + "; $a=b" * n),
    "spaces": header("cookie", lambda n: "SID=x; SID" + " " * n + "=" + " " * n),
    "a long value": header("cookie", lambda n: "SID=" + "x" * n),
}
LISTS: dict[str, Shape] = {
    "lines": headers("x-a", lambda number: f"v{number}"),
    "a list": header("x-a", lambda n: "v," * n),
    "a list with quotes": header("x-a", lambda n: '"v,"' * n),
    "an open quote": header("x-a", lambda n: '"' + "v," * n),
    "other headers": lambda n: Sent([*((f"x-b{number}", "1") for number in range(n)), ("x-a", "v")]),
}
QUERIES: dict[str, Shape] = {
    "parameters": lambda n: Sent(query="a=b&" * n + "sid=x"),
    "semicolons": lambda n: Sent(query="a=b;" * n + "sid=x"),
    "question marks": lambda n: Sent(query="?" * n + "sid=x"),
    "names that begin alike": lambda n: Sent(query="si" * n + "sid=x"),
    "a long value": lambda n: Sent(query="sid=" + "x" * n),
}
PATHS: dict[str, Shape] = {
    "segments": lambda n: Sent(path="/a" * n + ";sid=x"),
    "slashes": lambda n: Sent(path="/" * n),
    "parameters": lambda n: Sent(path="/a" + ";b=c" * n + ";sid=x"),
    "dots": lambda n: Sent(path="/" + "." * n + "/x"),
    "a long segment": lambda n: Sent(path="/" + "a" * n),
}
ADDRESSES: dict[str, Shape] = {
    "proxies": header("x-forwarded-for", lambda n: ",".join(map(address, range(n)))),
    "lines of proxies": headers("x-forwarded-for", address),
    "gaps": header("x-forwarded-for", lambda n: " ," * n),
    "a long word": header("x-forwarded-for", lambda n: "x" * n),
}
SCHEMES: dict[str, Shape] = {
    "lines": headers("x-forwarded-proto", lambda _: "https"),
    "a list": header("x-forwarded-proto", lambda n: "http," * n),
}
TOKENS: dict[str, Shape] = {
    "lines": headers("authorization", lambda _: "Basic x", ("authorization", f"Bearer {token(b'{}')}")),
    "dots": header("authorization", lambda n: "Bearer " + "a." * n),
    "spaces": header("authorization", lambda n: "Bearer " + " " * n),
    "a long payload": header(
        "authorization", lambda n: f"Bearer {token(json.dumps({str(at): at for at in range(n)}).encode())}"
    ),
    "deep JSON": header("authorization", lambda n: f"Bearer {token(b'[' * n)}"),
}
FORM = ("content-type", "application/x-www-form-urlencoded")
BODIES: dict[str, Shape] = {
    "fields": lambda n: Sent([FORM], body=b"a=b&" * n + b"sid=x"),
    "ampersands": lambda n: Sent([FORM], body=b"&" * n + b"sid=x"),
    "parameters of the type": lambda n: Sent([("content-type", FORM[1] + ";a=b" * n)], body=b"sid=x"),
}
JSON = ("content-type", "application/json")
DOCUMENTS: dict[str, Shape] = {
    "fields": lambda n: Sent([JSON], body=json.dumps({**{f"a{at}": at for at in range(n)}, "sid": "x"}).encode()),
    "a deep list": lambda n: Sent([JSON], body=b'{"a":' + b"[" * n + b"]" * n + b',"sid":"x"}'),
    "deep objects": lambda n: Sent([JSON], body=b'{"a":' * n + b"1" + b"}" * n),
    "a long list": lambda n: Sent([JSON], body=json.dumps({"a": [*range(n)], "sid": "x"}).encode()),
    "escapes": lambda n: Sent([JSON], body=b'{"a":"' + b"\\n" * n + b'","sid":"x"}'),
    "spaces": lambda n: Sent([JSON], body=b" " * n + b"{" + b"\n" * n + b'"sid" : "x" }'),
    "a cut document": lambda n: Sent([JSON], body=b'{"a":"' + b"x" * n),
    "parameters of the type": lambda n: Sent([("content-type", JSON[1] + ";a=b" * n)], body=b'{"sid":"x"}'),
}
ANYTHING: dict[str, Shape] = {"cookie lines": COOKIES["lines"], "headers": LISTS["other headers"]}

SECRET = "a secret of this test"
WEEK = 7 * 86400


Options = Callable[[], dict[str, Any]]


def table(type: KeyType = "string") -> StickTable:
    return StickTable(type)


def stick(sample: Any, type: KeyType = "string") -> Options:
    """Return the options of a backend that sticks on a sample."""
    return lambda: {"persist": Stick.on(sample, table(type))}


#: a cookie of each other balancer
FOREIGN: dict[str, ForeignCookie] = {
    "apache": foreign.apache("SID"),
    "arr": foreign.arr("SID"),
    "caddy": foreign.caddy("SID"),
    "envoy": foreign.envoy("SID"),
    "ingress_nginx": foreign.ingress_nginx("SID", service="shop-web-80"),
    "nginx_sticky_module": foreign.nginx_sticky_module("SID", transfer=True, delimiter="."),
    "table": foreign.table("SID", {"a": "s1"}, ignore_case=True),
    "traefik": foreign.traefik("SID"),
    "yarp": foreign.yarp("SID"),
}
#: what is decoded from their values
VALUES: dict[str, Shape] = {
    "addresses": header("cookie", lambda n: "SID=" + _in_base64(b"\n\0" * n)),
    "dates": header("cookie", lambda n: "SID=" + _in_base64(b"\n\0" + b"\x10\x7f" * n)),
    "a number without an end": header("cookie", lambda n: "SID=" + _in_base64(b"\n" + b"\xff" * n)),
    "bars": header("cookie", lambda n: "SID=" + "|" * n),
    "dots": header("cookie", lambda n: "SID=" + "." * n),
}


@reader("accepts.ingress_nginx, balanced")
def _ring(n: int) -> Callable[[], object]:
    ring = Ring([f"10.0.0.{number}:80" for number in range(9)])
    return lambda: ring.endpoint_of("1" * n)


def _in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def accepting(cookie: ForeignCookie) -> Options:
    """Return the options of a backend with a cookie that accepts this one."""
    return lambda: {"persist": Cookie("SRV", secret=SECRET, accepts=[cookie])}


def _balance(algorithm: Callable[[], Any]) -> Options:
    return lambda: {"balance": algorithm()}


#: The options of a backend, and the shapes of what they read.
OPTIONS: dict[str, tuple[Options, dict[str, Shape]]] = {
    "no persistence": (dict, ANYTHING),
    "Cookie": (lambda: {"persist": Cookie("SID", secret=[SECRET, f"{SECRET} before"])}, COOKIES),
    "Cookie with dates": (lambda: {"persist": Cookie("SID", secret=SECRET, maxidle=60, maxlife="8h")}, COOKIES),
    "Cookie, plain": (lambda: {"persist": Cookie("SID", signed=False, indirect=True, maxidle=60)}, COOKIES),
    "Cookie, prefix": (lambda: {"persist": Cookie("SID", mode="prefix", secret=SECRET)}, COOKIES),
    "Cookie, rewrite": (lambda: {"persist": Cookie("SID", mode="rewrite", secret=SECRET)}, COOKIES),
    "Cookie, passive": (lambda: {"persist": Cookie("SID", mode="passive", signed=False)}, COOKIES),
    "Cookie with a fallback": (
        lambda: {"persist": Cookie("SRV", secret=SECRET, fallback=FallbackCookie("SID", secure=True))},
        COOKIES,
    ),
    "Follow": (lambda: {"persist": Follow("SID", Cookie("SRV", secret=SECRET))}, COOKIES),
    "Follow after our own": (lambda: {"persist": Follow("a", Cookie("SID", secret=SECRET))}, COOKIES),
    "NginxCookie": (lambda: {"persist": NginxCookie("SID")}, COOKIES),
    **{f"accepts.{name}": (accepting(cookie), COOKIES | VALUES) for name, cookie in FOREIGN.items()},
    "Token in a cookie": (lambda: {"persist": Token(cookie="SID")}, COOKIES),
    "Token in a header": (lambda: {"persist": Token(header="x-a")}, LISTS),
    "Token in a parameter": (lambda: {"persist": Token(header="t", param="sid")}, QUERIES),
    "Learn.cookie": (lambda: {"persist": Learn.cookie("SID")}, COOKIES),
    "Learn.header": (lambda: {"persist": Learn.header("x-a")}, LISTS),
    "Route": (lambda: {"persist": Route(samples.cook("SID"), samples.path_param("sid"))}, COOKIES | PATHS),
    "a route of dots": (
        lambda: {"persist": Route(samples.cook("SID"))},
        {"dots": header("cookie", lambda n: "SID=" + "." * n)},
    ),
    "several": (
        lambda: {
            "persist": [Cookie("SID", secret=SECRET), Cookie("SRV", secret=SECRET), Stick.on("cook(SID)", table())]
        },
        COOKIES,
    ),
    "ignore_persist": (
        lambda: {"persist": Cookie("SID", secret=SECRET), "ignore_persist": samples.cook("SID")},
        COOKIES,
    ),
    "cook": (stick(samples.cook("SID")), COOKIES),
    "hdr": (stick(samples.hdr("x-a")), LISTS),
    "hdr, the first": (stick(samples.hdr("x-a", 1)), LISTS),
    "url_param": (stick(samples.url_param("sid")), QUERIES),
    "path_param": (stick(samples.path_param("sid")), PATHS),
    "path": (stick(samples.path), PATHS),
    "a path template": (stick(PathTemplate("/{a}.{b}.{c}/x")), PATHS),
    "src": (stick(samples.src), ADDRESSES),
    "scheme": (stick(samples.scheme), SCHEMES),
    "method": (stick(samples.method), ANYTHING),
    "bearer": (stick(samples.bearer), TOKENS),
    "jwt": (stick(samples.jwt("sub")), TOKENS),
    "form": (stick(samples.form("sid", 1 << 20)), BODIES),
    "json_field": (stick(samples.json_field("sid", 1 << 20)), DOCUMENTS),
    "json_field, an inner one": (stick(samples.json_field("a.a.sid", 1 << 20)), DOCUMENTS),
    "lower": (stick(lower(samples.hdr("x-a"))), LISTS),
    "prefix": (stick(prefix(samples.hdr("x-a"), 8)), LISTS),
    "digest": (stick(digest(samples.hdr("x-a"))), LISTS),
    "field": (stick(field(samples.path, 3, "/;.")), PATHS),
    "field, the last": (stick(field(samples.path, -1, "/;.")), PATHS),
    "ipmask": (stick(ipmask(samples.hdr("x-forwarded-for"), 24)), ADDRESSES),
    "balance source": (lambda: {"balance": Source()}, ADDRESSES),
    "balance ip_hash": (lambda: {"balance": IpHash()}, ADDRESSES),
    "balance uri": (lambda: {"balance": Uri(whole=True)}, PATHS | QUERIES),
    "balance uri, directories": (lambda: {"balance": Uri(depth=3)}, PATHS),
    "balance url_param": (lambda: {"balance": UrlParam("sid", check_post=True)}, QUERIES | BODIES),
    "balance hdr": (lambda: {"balance": Hdr("x-a")}, LISTS),
    "balance hdr, the domain": (
        lambda: {"balance": Hdr("x-a", use_domain_only=True)},
        {"dots": header("x-a", lambda n: "a." * n)},
    ),
    "balance hash": (lambda: {"balance": Hash(samples.path)}, PATHS),
    "balance hash, nginx": (lambda: {"balance": NginxHash(samples.path)}, PATHS),
    **{
        f"balance {algorithm.__name__}": (_balance(algorithm), ANYTHING)
        for algorithm in (Ewma, First, LeastConn, NginxLeastConn, NginxRandom, Random, RoundRobin, Smooth, StaticRR)
    },
    **{
        f"a table of type {type}": (
            stick(samples.hdr("x-a"), type),
            {
                "a long word": header("x-a", lambda n: "a" * n),
                "a long number": header("x-a", lambda n: "1" * n),
                "spaces": header("x-a", lambda n: "a" + "\t " * n + "1"),
            },
        )
        for type in get_args(KeyType)
    },
}


def composed(outer: Callable[[T], Callable[[], object]], inner: Callable[[int], T]) -> Reader:
    return lambda n: outer(inner(n))


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"set-cookie", b"SID=x")]})
    await send({"type": "http.response.body", "body": b"ok"})


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Set-Cookie", "SID=x")])
    return [b"ok"]


@cache
def runner() -> asyncio.Runner:
    """The event loop of all requests."""
    return asyncio.Runner()


class AsgiRequests:
    """Requests to a backend with these options."""

    def __init__(self, options: dict[str, Any], app: Callable[..., Any] = asgi_app) -> None:
        servers = [
            sticky_asgi.Server(f"s{number}", app, stateless=True, formerly=[f"10.0.0.{number}:80"]) for number in (1, 2)
        ]
        self._app = sticky_asgi.Dispatcher(sticky_asgi.Backend("web", servers, **options))

    def __call__(self, sent: Sent) -> Callable[[], object]:
        scope = sent.scope()
        statuses: list[int] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": sent.body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        def run() -> None:
            runner().run(self._app(scope, receive, send))
            assert statuses == [200]

        return run


class WsgiRequests:
    """Requests to a backend with these options."""

    def __init__(self, options: dict[str, Any], app: Callable[..., Any] = wsgi_app) -> None:
        servers = [
            sticky_wsgi.Server(f"s{number}", app, stateless=True, formerly=[f"10.0.0.{number}:80"]) for number in (1, 2)
        ]
        self._app = sticky_wsgi.Dispatcher(sticky_wsgi.Backend("web", servers, **options))

    def __call__(self, sent: Sent) -> Callable[[], object]:
        environ = sent.environ()
        statuses: list[str] = []

        def start_response(status: str, headers: Any, exc_info: Any = None, /) -> Callable[[bytes], object]:
            statuses.append(status)
            return len

        def run() -> None:
            self._app(environ, start_response)
            assert statuses == ["200 OK"]

        return run


def _add_options() -> None:
    trusting = Forward(trusted_proxies=("10.0.0.0/8",))
    for name, (options, shapes) in OPTIONS.items():
        by_asgi = AsgiRequests({"forward": trusting, **options()})
        by_wsgi = WsgiRequests({"forward": trusting, **options()})
        for what, shape in shapes.items():
            reader(f"asgi: {name}: {what}")(composed(by_asgi, shape))
            reader(f"wsgi: {name}: {what}")(composed(by_wsgi, shape))


_add_options()


# -- heads of requests to an upstream

HEADS: dict[str, Callable[[int], list[Header]]] = {
    "headers": lambda n: [(b"x-%d" % number, b"1") for number in range(n)],
    "headers of one name": lambda n: [(b"x-a", b"1")] * n,
    "names with underscores": lambda n: [(b"x_%d" % number, b"1") for number in range(n)],
    "underscores": lambda n: [(b"a" + b"_" * n, b"1")],
    "Host lines": lambda n: [(b"host", b"shop.example")] * n,
    "a long Host": lambda n: [(b"host", b"a" * n)],
    "Connection lines": lambda n: [(b"connection", b"x-%d" % number) for number in range(n)],
    "Connection options": lambda n: [(b"connection", b"x," * n), (b"x", b"1")],
    "options that name headers": lambda n: [
        (b"connection", b",".join(b"x-%d" % number for number in range(n))),
        *((b"x-%d" % number, b"1") for number in range(n)),
    ],
    "TE lines": lambda n: [(b"te", b"trailers")] * n,
    "TE options": lambda n: [(b"te", b"x," * n)],
    "Expect lines": lambda n: [(b"expect", b"x")] * n,
    "Content-Length lines": lambda n: [(b"content-length", b"1")] * n,
    "Cookie lines": lambda n: [(b"cookie", b"a=b")] * n,
    "X-Forwarded-For lines": lambda n: [(b"x-forwarded-for", address(number).encode()) for number in range(n)],
    "X-Forwarded-For hops": lambda n: [(b"x-forwarded-for", ",".join(map(address, range(n))).encode())],
    "X-Forwarded headers": lambda n: [(b"x-forwarded-%d" % number, b"1") for number in range(n)],
    "X-Real-IP lines": lambda n: [(b"x-real-ip", b"10.0.0.1")] * n,
    "Forwarded lines": lambda n: [(b"forwarded", b"for=10.0.0.1")] * n,
}

FORWARDS = {
    "x-forwarded": Forward(),
    "x-forwarded, trusting": Forward(trusted_proxies=("10.0.0.0/8",)),
    "forwarded, trusting": Forward(by="forwarded", trusted_proxies=("10.0.0.0/8",)),
    "forwardfor": Forward(by="forwardfor"),
    "none": Forward(by="none"),
}


def _add_heads() -> None:
    for by, forward in FORWARDS.items():
        for what, sent in HEADS.items():

            @reader(f"head of a request, {by}: {what}")
            def _(n: int, forward: Forward = forward, sent: Callable[[int], list[Header]] = sent) -> Any:
                heads = RequestHeads(Location.parse("http://127.0.0.1:9/base"), forward)
                headers = sent(n)
                return lambda: heads.build(
                    "GET", b"/", headers, peer="10.0.0.1", secure=False, is_undeclared=True, accepts_trailers=True
                )

    for what, shape in {**PATHS, **QUERIES, "headers": LISTS["other headers"], "cookies": COOKIES["lines"]}.items():

        @reader(f"asgi: head of a request: {what}")
        def _(n: int, shape: Shape = shape) -> Any:
            scope = shape(n).scope()
            return lambda: AsgiUpstream("http://127.0.0.1:9").head(scope, "GET")

        @reader(f"wsgi: head of a request: {what}")
        def _(n: int, shape: Shape = shape) -> Any:
            environ = shape(n).environ()
            return lambda: WsgiUpstream("http://127.0.0.1:9").head(environ, "GET")


_add_heads()

TARGETS: dict[str, Callable[[int], bytes]] = {
    "dots": lambda n: b"/.." * n,
    "levels": lambda n: b"/a" * n + b"/.." * n,
    "quoted dots": lambda n: b"/%2e%2e" * n,
    "backslashes": lambda n: b"\\" * n,
    "semicolons": lambda n: b"/" + b";" * n,
    "percent signs": lambda n: b"/" + b"%" * n,
    "an absolute form": lambda n: b"http://" + b"a" * n + b"/x",
    "no absolute form": lambda n: b"a:" * n,
}


def _add_targets() -> None:
    for what, target in TARGETS.items():
        reader(f"leaves_base_path: {what}")(composed(lambda sent: lambda: leaves_base_path(sent), target))
        reader(f"request_target: {what}")(
            composed(lambda sent: lambda: request_target(sent, "/root", "/", sent), target)
        )
        reader(f"request_path: {what}")(composed(lambda sent: lambda: request_path(sent, "", "/"), target))
        reader(f"decoded_path: {what}")(
            composed(lambda sent: lambda: decoded_path(decode_path(sent.decode()), "/root"), target)
        )
    reader("strip_root: quoted")(lambda n: lambda: strip_root(b"/%61" * n, b"/a" * n))
    reader("strip_root: another")(lambda n: lambda: strip_root(b"/%61" * n, b"/a" * n + b"b"))


_add_targets()


# -- responses of upstreams

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

RESPONSES: dict[str, Callable[[int], bytes]] = {
    "headers": lambda n: OK + b"".join(b"X-%d: 1\r\n" % number for number in range(n)) + b"Content-Length: 0\r\n\r\n",
    "Set-Cookie lines": lambda n: OK + b"Set-Cookie: a=b\r\n" * n + b"Content-Length: 0\r\n\r\n",
    "Connection lines": lambda n: OK + b"Connection: x\r\n" * n + b"Content-Length: 0\r\n\r\n",
    "Connection options": lambda n: OK + b"Connection: " + b"x," * n + b"\r\nContent-Length: 0\r\n\r\n",
    "options that name headers": lambda n: (
        OK
        + b"".join(b"Connection: x-%d\r\nX-%d: 1\r\n" % (number, number) for number in range(n))
        + b"Content-Length: 0\r\n\r\n"
    ),
    "chunks": lambda n: CHUNKED + b"1\r\na\r\n" * n + b"0\r\n\r\n",
    "chunk extensions": lambda n: CHUNKED + b"1" + b";a=b" * n + b"\r\na\r\n0\r\n\r\n",
    "extensions of each chunk": lambda n: CHUNKED + b"1;a=b;c=d\r\na\r\n" * n + b"0\r\n\r\n",
    "trailers": lambda n: CHUNKED + b"0\r\n" + b"X-A: 1\r\n" * n + b"\r\n",
    "a body": lambda n: OK + b"Content-Length: %d\r\n\r\n" % n + b"a" * n,
    "a body until the end": lambda n: OK + b"\r\n" + b"a" * n,
    "a 204 with headers": lambda n: b"HTTP/1.1 204 No Content\r\n" + b"X-A: 1\r\n" * n + b"\r\n",
}


def parse_response(response: bytes, piece: int) -> None:
    parser = ResponseParser()
    parser.begin_response("GET")
    for at in range(0, len(response), piece):
        parser.feed(response[at : at + piece])
        while parser.take_body():
            pass
    parser.feed_eof()
    assert parser.finished


def _add_responses() -> None:
    for what, response in RESPONSES.items():
        reader(f"response at once: {what}")(composed(lambda sent: lambda: parse_response(sent, len(sent)), response))
        reader(f"response in pieces: {what}")(composed(lambda sent: lambda: parse_response(sent, 7), response))


_add_responses()

SET_COOKIES: dict[str, Callable[[int], list[str]]] = {
    "lines": lambda n: ["SID=x; Path=/"] * n,
    "lines of others": lambda n: [*["a=b"] * n, "SID=x"],
    "attributes": lambda n: ["SID=x" + "; a=b" * n],
    "semicolons": lambda n: ["SID=x" + ";" * n],
    "quotes": lambda n: ['SID="x;"' * n],
    "an open quote": lambda n: ['SID="' + "x" * n],
    "no equals sign": lambda n: ["SID" * n],
    "spaces": lambda n: ["SID" + " " * n + "=" + " " * n],
    "digits": lambda n: ["SID=x; Max-Age=" + "1" * n],
    "a long date": lambda n: ["SID=x; Expires=" + "1 " * n],
}

STAMPS: dict[str, Callable[[], Any]] = {
    "Cookie": lambda: Cookie("SID", secret=SECRET),
    "Cookie, prefix": lambda: Cookie("SID", mode="prefix", secret=SECRET),
    "Cookie, rewrite": lambda: Cookie("SID", mode="rewrite", secret=SECRET),
    "Follow": lambda: Follow("SID", Cookie("SRV", secret=SECRET)),
    "Follow as ELB": lambda: Follow("SID", Cookie("SRV", secret=SECRET), attributes="elb"),
    "NginxCookie": lambda: NginxCookie("SID"),
    "Learn": lambda: Learn.cookie("SID"),
}


def _add_stamps() -> None:
    for name, persist in STAMPS.items():
        for what, texts in SET_COOKIES.items():

            @reader(f"asgi: response, {name}: {what}")
            def _(n: int, persist: Any = persist, texts: Any = texts) -> Any:
                headers = [(b"set-cookie", text.encode()) for text in texts(n)]

                async def app(scope: Any, receive: Any, send: Any) -> None:
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    await send({"type": "http.response.body", "body": b""})

                return AsgiRequests({"persist": persist()}, app)(Sent())

            @reader(f"wsgi: response, {name}: {what}")
            def _(n: int, persist: Any = persist, texts: Any = texts) -> Any:
                headers = [("Set-Cookie", text) for text in texts(n)]

                def app(environ: Any, start_response: Any) -> list[bytes]:
                    start_response("200 OK", headers)
                    return []

                return WsgiRequests({"persist": persist()}, app)(Sent())


_add_stamps()

RESPONSE_SAMPLES: dict[str, tuple[Any, Callable[[int], list[tuple[str, str]]]]] = {
    "res.cook": (res.cook("SID"), lambda n: [("set-cookie", "SID=x")] * n),
    "res.hdr": (res.hdr("x-a"), lambda n: [("x-a", "v,v")] * n),
    "res.url_param": (res.url_param("sid"), lambda n: [("location", "/?" + "a=b&" * n)]),
    "res.path_param": (res.path_param("sid"), lambda n: [("location", "/a" + ";b=c" * n)]),
}


def _add_response_samples() -> None:
    for name, (sample, sent) in RESPONSE_SAMPLES.items():

        @reader(f"asgi: {name}")
        def _(n: int, sample: Any = sample, sent: Any = sent) -> Any:
            head = AsgiHead([(name.encode(), value.encode()) for name, value in sent(n)], True)
            return lambda: sample(head)

        @reader(f"wsgi: {name}")
        def _(n: int, sample: Any = sample, sent: Any = sent) -> Any:
            head = WsgiHead(sent(n), True)
            return lambda: sample(head)


_add_response_samples()

#: the samples of bodies, and a body of any size in which each finds its text, but no key
BODY_SAMPLES: dict[str, tuple[res.BodySample, Callable[[int], bytes]]] = {
    "res.json_field": (res.json_field("a.sid", 1 << 20), lambda n: b'{"sid": 1, ' + b'"b": [1, {}], ' * n),
    "res.body_param": (res.body_param("sid", 1 << 20), lambda n: b"xsid=1&" + b"a=b&" * n),
    "res.sse_endpoint": (res.sse_endpoint("sid", 1 << 20), lambda n: b"data: ?sid=1\n\n" + b"data: a\n\n" * n),
}


def _add_body_samples() -> None:
    for name, (sample, sent) in BODY_SAMPLES.items():

        @reader(f"{name}: a body in one piece")
        def _(n: int, sample: res.BodySample = sample, sent: Any = sent) -> Any:
            return lambda: BodyReader([sample], None).read(sent(n), True)

        @reader(f"{name}: a body in as many pieces as are searched")
        def _(n: int, sample: res.BodySample = sample, sent: Any = sent) -> Any:
            return lambda: _read_pieces(sample, sent(n))


def _read_pieces(sample: res.BodySample, body: bytes) -> None:
    body_reader = BodyReader([sample], None)
    size = len(body) // 64 + 1
    for at in range(0, len(body), size):
        if not body_reader.is_done:
            body_reader.read(body[at : at + size], False)


_add_body_samples()


# -- single functions


@reader("cookies.replace")
def _(n: int) -> Any:
    return lambda: cookies.replace("SID=x; " * n, "SID", lambda value: value * 2)


@reader("cookies.attributes")
def _(n: int) -> Any:
    return lambda: cookies.attributes("SID=x" + "; a=b" * n)


@reader("pick_value: a list with quotes")
def _(n: int) -> Any:
    return lambda: pick_value(['"a,"' * n], 1)


@reader("Signing.verify: a long value")
def _(n: int) -> Any:
    signing = Signing([SECRET.encode()], "web", "SID")
    return lambda: signing.verify("." * n)


@reader("Networks.find_client: proxies")
def _(n: int) -> Any:
    trusted = Networks(["10.0.0.0/8"])
    return lambda: trusted.find_client("10.0.0.1", [address(number) for number in range(n)])


@reader("StickyMiddleware: a long path, asgi")
def _(n: int) -> Any:
    backends = {
        f"/{number}": sticky_asgi.Backend(f"b{number}", [sticky_asgi.Server("s", asgi_app)]) for number in (1, 2)
    }
    middleware = sticky_asgi.StickyMiddleware(asgi_app, routes=backends)
    scope = Sent(path="/a" * n).scope()
    return lambda: middleware._replicas_for(scope)


@reader("StickyMiddleware: a long path, wsgi")
def _(n: int) -> Any:
    backends = {
        f"/{number}": sticky_wsgi.Backend(f"b{number}", [sticky_wsgi.Server("s", wsgi_app)]) for number in (1, 2)
    }
    middleware = sticky_wsgi.StickyMiddleware(wsgi_app, routes=backends)
    environ = Sent(path="/a" * n).environ()
    return lambda: middleware._replicas_for(environ)


@reader("headers_of an environ")
def _(n: int) -> Any:
    environ = LISTS["other headers"](n).environ()
    return lambda: headers_of(environ)


@reader("lines of a kept body, wsgi")
def _(n: int) -> Any:
    def read_twice() -> None:
        body = WsgiBody({"CONTENT_LENGTH": str(n), "wsgi.input": io.BytesIO(b"\n" * n)}, n)
        for _ in range(2):
            while body.readline(n):
                pass
            body.rewind()

    return read_twice


@reader("a scope for a peer")
def _(n: int) -> Any:
    scope = LISTS["other headers"](n).scope()
    return lambda: [body_mode(scope), *pack_scope(scope, find_additions(scope, {}, None))]


@reader("an environ for a peer")
def _(n: int) -> Any:
    environ = LISTS["other headers"](n).environ()
    return lambda: pack_environ(environ)


def _feed(frames: Frames, data: bytes, piece: int) -> None:
    for at in range(0, len(data), piece):
        frames.feed(data[at : at + piece])


@reader("frames: many small ones")
def _(n: int) -> Any:
    data = Frames().pack(3, "x") * n
    return lambda: _feed(Frames(), data, 1 << 20)


@reader("frames: a large one in pieces")
def _(n: int) -> Any:
    data = Frames().pack(3, "x" * 100 * n)
    return lambda: _feed(Frames(), data, 100)
