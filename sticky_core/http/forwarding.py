"""Heads on their way to an upstream: what is passed on as it came, what is taken out, what is said of the client.

A head is made in one pass and one piece, and is refused rather than passed on if two readers could read it differently
(RFC 9112, 11.2). `Forward` is what was asked for; `Heads` is what is in force for one upstream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal
from urllib.parse import quote, unquote_to_bytes

from sticky_core.cache import TwoGenerationCache
from sticky_core.errors import Failure, ServerFailure, raise_problems
from sticky_core.http import trusted_proxies as proxies
from sticky_core.http.http1 import (
    HOP_BY_HOP,
    MAX_KNOWN_NAME_LENGTH,
    MAX_KNOWN_NAMES,
    Header,
    connection_options,
    headers_to_remove,
)
from sticky_core.http.trusted_proxies import Networks
from sticky_core.target import Location

By = Literal["x-forwarded", "forwarded", "forwardfor", "none"]

#: What may be sent twice with the effect of once (RFC 9110, 9.2.2).
IDEMPOTENT: Final = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """What upstreams are told of the client.

    `host`: `"keep"` (default) sends the client's Host on, `"upstream"` the URL's own; anything else is sent as it is.
    `by`: `"x-forwarded"` (default) says X-Forwarded-For, -Proto, -Host and X-Real-IP; `"forwarded"` says Forwarded (RFC
    7239, HAProxy `option forwarded`); `"forwardfor"` adds a line X-Forwarded-For and touches nothing (HAProxy `option
    forwardfor`); `"none"` says nothing and touches nothing.
    `trusted_proxies`: the networks whose word about the client is believed and extended; what others say is replaced.
    `"unix"` stands for peers behind a UNIX socket, `"*"` for all.
    `except_nets`: for clients from these nothing is added, and what they say stands. `if_none`: nothing is added where
    the request already says something.

    Raises `ConfigError` for what can't work.
    """

    host: str = "keep"
    by: By = "x-forwarded"
    trusted_proxies: tuple[str, ...] = ()
    except_nets: tuple[str, ...] = ()
    if_none: bool = False

    def __post_init__(self) -> None:
        raise_problems(f"forward: {problem}" for problem in self._problems())

    def _problems(self) -> Iterator[str]:
        if not self.host or not _AUTHORITY.fullmatch(self.host):
            yield f"host {self.host!r} can't be written in a Host header"
        if self.by not in ("x-forwarded", "forwarded", "forwardfor", "none"):
            yield f"by {self.by!r} is none of 'x-forwarded', 'forwarded', 'forwardfor', 'none'"
        for name, networks in (("trusted_proxies", self.trusted_proxies), ("except_nets", self.except_nets)):
            if isinstance(networks, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                yield f"{name}={networks!r} is one text: write {name}=({networks!r},)"
            else:
                yield from (f"{name}: {problem}" for problem in proxies.network_problems(networks))
        if self.trusted_proxies and self.by in ("forwardfor", "none"):
            yield f"trusted_proxies has no effect with by={self.by!r}, which touches nothing that the client says"


class Framing(Enum):
    """How the end of a body is told."""

    NONE = "there is none"
    LENGTH = "by Content-Length"
    CHUNKED = "chunked"
    UNDECLARED = "by the message itself: HTTP/2 and later need not say"


class OutgoingRequest:
    """A request's head, and how its body is told: most have none, and are told by the head alone."""

    # Who makes one sets this by itself: every request does, and an __init__ takes twice the time.
    head: bytes

    framing = Framing.NONE
    length = 0  #: with LENGTH: of the body in bytes
    has_body = False  #: whether there is, or may be, any of it
    expects_continue = False  #: whether the client waits for a 100 before it sends its body

    @classmethod
    def framed(cls, head: bytes, framing: Framing, length: int = 0, continues: bool = False) -> OutgoingRequest:
        outgoing = cls()
        outgoing.head = head
        outgoing.framing = framing
        outgoing.length = length
        outgoing.has_body = length > 0 or framing in (Framing.CHUNKED, Framing.UNDECLARED)
        outgoing.expects_continue = continues
        return outgoing

    def with_framing(self, framing: Framing, length: int = 0) -> OutgoingRequest:
        """The same where the framing was UNTOLD and is known now."""
        if framing is Framing.NONE:
            return OutgoingRequest.framed(self.head, framing)
        line = b"content-length: %d" % length if framing is Framing.LENGTH else b"transfer-encoding: chunked"
        return OutgoingRequest.framed(b"%b%b\r\n\r\n" % (self.head[:-2], line), framing, length)


class _Kind(Enum):
    HOP = "goes no further"
    HOST = "Host"
    LENGTH = "Content-Length"
    CODING = "Transfer-Encoding"
    CONNECTION = "Connection"
    EXPECT = "Expect"
    TE = "TE"
    FORWARDED = "said of the client by whoever came before us"


_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_AUTHORITY = re.compile(r"[!-.0-;=?-\[\]-~]+")
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")  # the absolute form, less its path (RFC 9112, 3.2.2)
# What no target may hold. Bytes beyond ASCII it may, since some clients send them.
_not_in_target = re.compile(rb"[\x00-\x20\x7f]").search
#: What a path may hold as it is, as far as those who quote need to know (RFC 3986, 3.3).
SAFE = "/:@!$&'()*+,;=~-._"

_IPV4 = re.compile(r"[0-9.]+")
_IPV6 = re.compile(r"[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%.*)?")
_NAME_END = re.compile(rb"[;?#\0]")
_METHODS = {method: method.encode() for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}
_HOST = bytes(byte for byte in range(256) if byte > 0x20 and byte != 0x7F and byte not in b'"#,/<>?@\\')

_KINDS: dict[bytes, _Kind | None] = dict.fromkeys(HOP_BY_HOP, _Kind.HOP)
_KINDS.update(
    {
        b"host": _Kind.HOST,
        b"content-length": _Kind.LENGTH,
        b"transfer-encoding": _Kind.CODING,
        b"connection": _Kind.CONNECTION,
        b"expect": _Kind.EXPECT,
        b"te": _Kind.TE,
        b"x-forwarded-for": _Kind.FORWARDED,
        b"x-real-ip": _Kind.FORWARDED,
        b"forwarded": _Kind.FORWARDED,
    }
)
# What clients usually send, so that names which nobody knows can't crowd it out.
_USUAL = (
    b"accept accept-charset accept-encoding accept-language access-control-request-headers "
    b"access-control-request-method authorization cache-control content-encoding content-language "
    b"content-type cookie dnt if-match if-modified-since if-none-match if-range if-unmodified-since "
    b"idempotency-key last-event-id mcp-session-id origin pragma priority range referer sec-ch-ua "
    b"sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-user "
    b"sec-gpc traceparent tracestate upgrade-insecure-requests user-agent x-csrf-token x-request-id "
    b"x-requested-with"
).split()
#: The names that were met, in lower case: how each line begins, and what it is unless it is simply passed on.
_NAMES = {name: (name + b": ", kind) for name, kind in (dict.fromkeys(_USUAL) | _KINDS).items()}
# Asking an Enum for its member costs as much as a few dict look-ups, and every request would.
_IS_HOST, _IS_CONNECTION = _Kind.HOST, _Kind.CONNECTION


def _introduced(name: bytes) -> tuple[bytes, _Kind | None]:
    """The same for a name that was not met before."""
    if not _TOKEN.fullmatch(name):
        raise ServerFailure(Failure.NOT_FORWARDABLE, detail="the name of a header is none")
    lower = name.lower()
    if lower in _NAMES:
        return _NAMES[lower]
    known = lower + b": ", _Kind.FORWARDED if lower.startswith(b"x-forwarded-") else None
    if len(_NAMES) < MAX_KNOWN_NAMES and len(lower) <= MAX_KNOWN_NAME_LENGTH:
        _NAMES[lower] = known
    return known


def request_target(raw: bytes | None, root: str, path: str, query: bytes, charset: str = "utf-8") -> bytes:
    """The request target as the client wrote it, less what it is mounted under.

    `raw`: path and perhaps query as they came, if the server tells; `root`, `path`: unquoted, and decoded by `charset`,
    what is no text by PEP 383; `query` without its question mark. Where `raw` is not told, `path` is quoted anew.
    """
    if raw is None:
        raw = quote(path, safe=SAFE, encoding=charset, errors="surrogateescape").encode()
    if root or raw[:1] != b"/":
        absolute = _ABSOLUTE.match(raw)
        raw = strip_root(
            raw[absolute.end() :] if absolute is not None else raw, root.encode(charset, "surrogateescape")
        )
        if raw[:1] in b"?":
            raw = b"/" + raw
    return b"%b?%b" % (raw, query) if query else raw


def strip_root(raw: bytes, root: bytes) -> bytes:
    """What of a path is behind `root`, which is decoded where `raw` is not. All of it if `root` is no prefix: some
    servers have not put it there.
    """
    end = len(root)
    if raw[:end] != root or b"%" in root:
        end = 0
        for byte in root:
            here = raw[end : end + 1]
            if here == b"%" and byte != 0x25:
                here = unquote_to_bytes(raw[end : end + 3])
                width = 3
            else:
                width = 3 if here == b"%" and raw[end : end + 3] == b"%25" else 1
            if here != bytes((byte,)):
                return raw
            end += width
    return raw[end:] if raw[end : end + 1] in (b"/", b"", b"?") else raw


def leaves_base_path(target: bytes) -> bool:
    """Whether somebody who resolves dot segments would leave the path that `target` is put behind, whatever they take
    for a slash, and for the end of a name or a path.
    """
    depth = 0
    for segment in unquote_to_bytes(target.partition(b"?")[0]).replace(b"\\", b"/").split(b"/")[1:]:
        name = _NAME_END.split(segment, 1)[0]
        if name == b"..":
            depth -= 1
            if depth < 0:
                return True
        elif name not in (b"", b"."):
            depth += 1
    return False


class RequestHeads:
    """Makes the heads of requests to one upstream."""

    def __init__(self, location: Location, forward: Forward) -> None:
        self._base = location.base_path.encode()
        self._by = forward.by
        self._authority = location.authority.encode()
        self._host: bytes | None = {"keep": None, "upstream": self._authority}.get(forward.host, forward.host.encode())
        self._trusted = Networks(forward.trusted_proxies)
        self._except = Networks(forward.except_nets) if forward.except_nets else None
        self._if_none = forward.if_none
        # what is said of clients that have said nothing themselves
        self._said: TwoGenerationCache[tuple[str | None, bool, bytes | None], bytes] = TwoGenerationCache(1024)

    def build(
        self,
        method: str,
        target: bytes,
        headers: Iterable[Header],
        *,
        peer: str | None,
        secure: bool,
        untold: bool = False,
        upgrade: tuple[bytes, ...] = (),
        trailers: bool = False,
    ) -> OutgoingRequest:
        """The head of a request. `headers`: names in lower case. `peer`: the address that the connection comes from.
        `secure`: whether by TLS. `untold`: the body may come without any header that says so. `upgrade`: lines that ask
        for another protocol. `trailers`: those of the answer can be passed on.

        Raises `ServerFailure` (UNFIT) if no two readers need to agree about it.
        """
        if target[:1] != b"/" and not (target == b"*" and method == "OPTIONS"):
            raise ServerFailure(Failure.NOT_FORWARDABLE, detail="the request target is no path")
        if _not_in_target(target):
            raise ServerFailure(Failure.NOT_FORWARDABLE, detail="the request target holds what no target may")
        if self._base and target != b"*":
            if (b".." in target or b"%2" in target) and leaves_base_path(target):
                raise ServerFailure(
                    Failure.NOT_FORWARDABLE, detail="the path leads out of the place that is served here"
                )
            target = self._base + target
        lines = [b" ".join((_METHODS.get(method) or _method(method), target, b"HTTP/1.1"))]
        host: bytes | None = None
        length: int | None = None
        chunked = continues = False
        hops: list[bytes] | None = None
        said: list[Header] | None = None
        for name, value in headers:
            try:
                begins, kind = _NAMES[name]
            except KeyError:
                begins, kind = _introduced(name)
            if kind is None:
                lines.append(begins + value)
            elif kind is _IS_HOST:
                if host is not None and host != value:
                    raise ServerFailure(Failure.NOT_FORWARDABLE, detail="two Hosts")
                host = value
            elif kind is _IS_CONNECTION:
                hops = [*(hops or ()), *connection_options(value)]
            elif kind is _Kind.LENGTH:
                if not value.isdigit() or len(value) > 18 or (length is not None and length != int(value)):
                    raise ServerFailure(Failure.NOT_FORWARDABLE, detail="Content-Length is no length")
                length = int(value)
            elif kind is _Kind.CODING:
                if chunked or value.strip(b" \t").lower() != b"chunked":
                    raise ServerFailure(Failure.NOT_FORWARDABLE, detail="a transfer coding that is not chunked alone")
                chunked = True
            elif kind is _Kind.EXPECT:
                continues = value.lower() == b"100-continue"
            elif kind is _Kind.FORWARDED:
                said = [*(said or ()), (begins[:-2], value)]
            elif kind is _Kind.TE:
                if trailers and b"trailers" in connection_options(value):
                    trailers = False  # said
                    upgrade += (b"connection: te", b"te: trailers")
        if chunked and length is not None:
            raise ServerFailure(Failure.NOT_FORWARDABLE, detail="both Content-Length and Transfer-Encoding")
        if hops and (gone := headers_to_remove(hops)):
            lines = [lines[0], *(line for line in lines[1:] if line.partition(b":")[0] not in gone)]
        lines += upgrade
        if said is None:  # as nearly always, and then the same for all that a client asks
            about = peer, secure, host
            client = self._said.young.get(about) or self._of_silent(about)
        else:
            client = self._of_client(said, peer, secure, host)
        _single(lines)
        if not chunked and length is None:  # nobody has promised a body that could be waited with
            lines += client, b"", b""
            head = b"\r\n".join(lines)
            if untold:
                return OutgoingRequest.framed(head, Framing.UNDECLARED)
            outgoing = OutgoingRequest()
            outgoing.head = head
            return outgoing
        continues = continues and length != 0  # else there is nothing that could be continued
        lines += client, b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        if continues:
            lines.append(b"expect: 100-continue")
        lines += b"", b""
        framing = Framing.CHUNKED if length is None else Framing.LENGTH
        return OutgoingRequest.framed(b"\r\n".join(lines), framing, length or 0, continues)

    def _of_silent(self, about: tuple[str | None, bool, bytes | None]) -> bytes:
        """`_of_client` for one who was not met lately, and has said nothing."""
        client = self._said.get(about)
        if client is None:
            client = self._of_client(None, *about)
            self._said.put(about, client)
        return client

    def _of_client(self, said: list[Header] | None, peer: str | None, secure: bool, host: bytes | None) -> bytes:
        """Host, and what is said of the client. `said`: by whoever came before us."""
        lines = self._lines_of_client(said, peer, secure, host)
        _single(lines)
        return b"\r\n".join(lines)

    def _lines_of_client(
        self, said: list[Header] | None, peer: str | None, secure: bool, host: bytes | None
    ) -> list[bytes]:
        if host is not None and host.translate(None, _HOST):
            raise ServerFailure(Failure.NOT_FORWARDABLE, detail="Host is no host")
        sent_host = self._host if self._host is not None else host if host is not None else self._authority
        lines = [b"host: %b" % sent_host]
        by = self._by
        excepted = self._except is not None and peer in self._except
        if excepted or by == "none":
            lines.extend(b"%b: %b" % header for header in said or ())
            return lines
        field = b"forwarded" if by == "forwarded" else b"x-forwarded-for"
        ours: bytes | None = peer.encode("latin-1", "replace") if peer else None
        client = ours
        if by == "forwarded":
            ours = _element(peer, secure, host)
        names: set[bytes] = set()
        if said is not None and (by == "forwardfor" or peer in self._trusted):
            names = {name for name, _ in said}
            before = [value for name, value in said if name == field]
            if by == "forwardfor":  # a line of its own, and those that came as they are
                lines.extend(b"%b: %b" % header for header in said)
                if before and self._if_none:
                    return lines
            else:
                lines.extend(b"%b: %b" % header for header in said if header[0] != field)
                if before:
                    behind = self._trusted.find_client(peer, [value.decode("latin-1") for value in before])
                    client = behind.encode("latin-1", "replace") if behind else None
                    ours = b", ".join(before if ours is None or self._if_none else (*before, ours))
        if ours is not None:
            lines.append(b"%b: %b" % (field, ours))
        if by == "x-forwarded":
            if client is not None and b"x-real-ip" not in names:
                lines.append(b"x-real-ip: %b" % client)
            if b"x-forwarded-proto" not in names:
                lines.append(b"x-forwarded-proto: https" if secure else b"x-forwarded-proto: http")
            if host is not None and b"x-forwarded-host" not in names:
                lines.append(b"x-forwarded-host: %b" % host)
        return lines


def _method(method: str) -> bytes:
    """A method that few use. ServerFailure if it is none that can be passed on."""
    if method == "CONNECT" or not _TOKEN.fullmatch(written := method.encode("latin-1", "replace")):
        raise ServerFailure(Failure.NOT_FORWARDABLE, detail="the method is none that can be passed on")
    return written


def _single(lines: list[bytes]) -> None:
    """ServerFailure if there is more than one line in one of them."""
    text = b"".join(lines)
    # asked for a number: to look for bytes of length 1 takes ten times as long
    if 0x0A in text or 0x0D in text or 0 in text:
        raise ServerFailure(Failure.NOT_FORWARDABLE, detail="a line break or NUL within a header")


def _element(peer: str | None, secure: bool, host: bytes | None) -> bytes:
    """One element of Forwarded (RFC 7239, 4)."""
    node = "unknown"
    if peer:
        if _IPV4.fullmatch(peer):
            node = peer
        elif _IPV6.fullmatch(peer):
            node = f'"[{peer.partition("%")[0]}]"'
    element = f"for={node};proto={'https' if secure else 'http'}".encode("latin-1", "replace")
    if host is None:
        return element
    told = host if _TOKEN.fullmatch(host) else b'"%b"' % host.replace(b"\\", b"").replace(b'"', b"")
    return b"%b;host=%b" % (element, told)
