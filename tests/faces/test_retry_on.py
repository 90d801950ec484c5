"""Which requests are replayed, at which server, and what the client receives, on both faces: failures and methods,
bodies that fit and bodies that do not, redispatch, and responses that are held back while another server is tried.
"""

from __future__ import annotations

import asyncio
import gc
import io
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from wsgiref.util import FileWrapper

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.balance import RoundRobin
from sticky_core.decision import Decision
from sticky_core.errors import Failure, ServerFailure
from sticky_core.http.timeouts import Timeouts
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from sticky_core.transaction.steps import NeedSlot, Step
from sticky_core.transaction.transaction import Transaction

if TYPE_CHECKING:
    from tests.faces.conftest import Face, RecordedResponse

PLAIN = Cookie("SERVERID", signed=False, nocache=False)
LIMIT = 10  # of a body that is replayed, in bytes


class Killed(BaseException):
    """Ends a request from outside."""


@dataclass
class Turn:
    """How a site handles a request."""

    fails: Failure | None = None
    #: how many pieces of the body it reads first; None: all of them
    reads: int | None = 0
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    #: the pieces of the body of the response; the name of the site by default
    pieces: Sequence[bytes] = ()
    #: called first, with the arguments of the app
    before: Callable[[dict[str, Any]], object] = lambda request: None
    #: called after the head
    then: Callable[[], object] = lambda: None
    #: raised after the head and the body
    raises: Exception | None = None
    #: raised when its iterable is closed (WSGI)
    unclosable: Exception | None = None


def raising(error: BaseException) -> Callable[..., object]:
    def throw(*_: object) -> object:
        raise error

    return throw


@dataclass
class ReceivedRequest:
    """A request that a site has received."""

    site: str
    request: dict[str, Any]
    body: list[bytes] = field(default_factory=list)


class Site:
    """An app that handles each request by the next of its turns, and repeats the last."""

    def __init__(self, ring: Ring, name: str, *turns: Turn) -> None:
        self.ring = ring
        self.name = name
        self.turns = [*turns] or [Turn()]
        #: the outcome of sending: bytes that were accepted, and exceptions
        self.taken = 0
        self.refused: list[Exception] = []
        self.closed = 0

    def begin(self, request: dict[str, Any]) -> tuple[Turn, ReceivedRequest]:
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        turn.before(request)
        received = ReceivedRequest(self.name, request)
        self.ring.received.append(received)
        return turn, received

    def pieces_of(self, turn: Turn) -> Sequence[bytes]:
        return turn.pieces or [self.name.encode()]


class AsgiSite(Site):
    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        turn, received = self.begin(scope)
        more = True
        while more and (turn.reads is None or len(received.body) < turn.reads):
            message = await receive()
            assert message["type"] == "http.request"
            received.body.append(message.get("body", b""))
            more = message.get("more_body", False)
        if turn.fails is not None:
            raise ServerFailure(turn.fails, self.name)
        headers = [(name.lower().encode(), value.encode()) for name, value in turn.headers]
        await send({"type": "http.response.start", "status": turn.status, "headers": headers})
        turn.then()
        await asyncio.sleep(0)
        for piece in self.pieces_of(turn):
            try:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            except OSError as error:
                self.refused.append(error)
                raise
            self.taken += len(piece)
        if turn.raises is not None:
            raise turn.raises
        await send({"type": "http.response.body", "body": b""})


class WsgiSite(Site):
    """`late`: the head comes with the first item of a generator; `writes`: the body goes through `write`."""

    late = False
    writes = False

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        turn, received = self.begin(environ)
        while turn.reads is None or len(received.body) < turn.reads:
            piece = environ["wsgi.input"].read(6)
            if not piece:
                break
            received.body.append(piece)
        if turn.fails is not None:
            raise ServerFailure(turn.fails, self.name)
        if self.late:
            return Items(self, turn, self._items(turn, start_response))
        write = self._head(turn, start_response)
        turn.then()
        if self.writes:
            for piece in self.pieces_of(turn):
                write(piece)
                self.taken += len(piece)
            if turn.raises is not None:
                raise turn.raises
            return []
        if turn.raises is not None or turn.unclosable is not None or len(turn.pieces) > 1:
            return Items(self, turn, self._rest(turn))
        return [*self.pieces_of(turn)]

    @staticmethod
    def _head(turn: Turn, start_response: Callable[..., Any]) -> Callable[[bytes], object]:
        headers = [("Content-Type", "text/plain"), *turn.headers]
        write: Callable[[bytes], object] = start_response(f"{turn.status} {HTTPStatus(turn.status).phrase}", headers)
        return write

    def _items(self, turn: Turn, start_response: Callable[..., Any]) -> Iterator[bytes]:
        self._head(turn, start_response)
        turn.then()
        yield from self._rest(turn)

    def _rest(self, turn: Turn) -> Iterator[bytes]:
        for piece in self.pieces_of(turn):
            self.taken += len(piece)
            yield piece
        if turn.raises is not None:
            raise turn.raises


class Items:
    """An app's iterable, and whether it was closed."""

    def __init__(self, site: Site, turn: Turn, items: Iterator[bytes]) -> None:
        self._site = site
        self._turn = turn
        self._items = items

    def __iter__(self) -> Iterator[bytes]:
        return self._items

    def close(self) -> None:
        self._site.closed += 1
        if self._turn.unclosable is not None:
            raise self._turn.unclosable


class Ring:
    """A backend with sites as servers, and a client that sends requests to it."""

    def __init__(self, face: Face) -> None:
        self.face = face
        self.sites: dict[str, Site] = {}
        self.received: list[ReceivedRequest] = []
        self.logged: list[Decision] = []
        self.waits = 0  # how often a request has waited or paused

    def site(self, name: str, *turns: Turn) -> Callable[..., Any]:
        made: Any = (AsgiSite if self.face.name == "asgi" else WsgiSite)(self, name, *turns)
        self.sites[name] = made
        return self.face.validated(made)

    def server(self, name: str, *turns: Turn, **options: Any) -> Server:
        made: Server = self.face.package.Server(name, self.site(name, *turns), **options)
        return made

    def backend(self, *servers: Server, **options: Any) -> Backend:
        defaults: dict[str, Any] = {
            "balance": RoundRobin(start=0),
            "persist": PLAIN,
            "retry_body_limit": LIMIT,
            "log": self.logged.append,
            "timeouts": Timeouts(connect="1ms"),  # a pause is never longer than that
        }
        made: Backend = self.face.package.Backend("web", servers, **defaults | options)
        self.made = made
        self.dispatcher = self.face.dispatcher(self.made)
        return made

    def remote(self, *sites: Sequence[Turn], **options: Any) -> Backend:
        """Servers that are URLs, with sites in place of the app that forwards to them."""
        servers = [Server(f"s{number}", f"http://192.0.2.{number}") for number in range(1, len(sites) + 1)]
        backend = self.backend(*servers, **options)
        replicas = self.dispatcher.replicas  # type: ignore[attr-defined]  # a dispatcher has some
        replicas.get_ready()
        for server, turns in zip(servers, sites, strict=True):
            replicas.apps[server] = self.site(server.name, *turns)
        return backend

    def request(
        self,
        method: str = "GET",
        *,
        cookie: str | None = None,
        body: Sequence[bytes] = (),
        key: str | None = None,
        others: bool = False,
    ) -> RecordedResponse:
        """Return the response, or the exception instead of it; check that nothing is left of it, unless there are
        `others`.
        """
        self.received.clear()
        headers = {} if key is None else {"idempotency-key": key}
        sends = self._asgi(body, headers) if self.face.name == "asgi" else self._wsgi(body, headers)
        response = self.face.client(sends).outcome(method=method, cookie=cookie)
        assert self.at_rest or others
        return response

    @property
    def at_rest(self) -> bool:
        """Whether no request is in flight or in a queue."""
        made = self.made
        return not made.qcur() and not any(server.in_flight or made.qcur(server) for server in made.servers)

    def _asgi(self, body: Sequence[bytes], headers: dict[str, str]) -> Callable[..., Any]:
        async def app(scope: dict[str, Any], _: Any, send: Callable[..., Any]) -> None:
            if scope["type"] == "websocket":
                messages: list[dict[str, Any]] = [{"type": "websocket.connect"}]
            else:
                last = len(body) - 1
                messages = [
                    {"type": "http.request", "body": piece, "more_body": number < last}
                    for number, piece in enumerate(body)
                ] or [{"type": "http.request"}]

            async def receive() -> dict[str, Any]:
                if messages:
                    return messages.pop(0)
                await asyncio.Event().wait()  # the client stays
                raise AssertionError

            scope["headers"] += [(name.encode(), value.encode()) for name, value in headers.items()]
            try:
                await self.dispatcher(scope, receive, send)
            finally:
                await asyncio.sleep(0)
                assert asyncio.all_tasks() == {asyncio.current_task()}, "a task was left behind"

        return app

    def _wsgi(self, body: Sequence[bytes], headers: dict[str, str]) -> Callable[..., Any]:
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            whole = b"".join(body)
            environ["wsgi.input"] = io.BytesIO(whole)
            environ["CONTENT_LENGTH"] = str(len(whole))
            for name, value in headers.items():
                environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
            iterable: Iterable[bytes] = self.dispatcher(environ, start_response)
            return iterable

        return app

    def totals(self, *wanted: Total) -> dict[str, list[int]]:
        return {server.name: [server.counters[total] for total in wanted] for server in self.made.servers}


@pytest.fixture
def ring(face: Face, monkeypatch: pytest.MonkeyPatch) -> Ring:
    made = Ring(face)
    resume = Transaction.resume

    def counted(transaction: Transaction[Any, Any], need: NeedSlot, woken: bool) -> Step:
        made.waits += 1
        return resume(transaction, need, woken)

    monkeypatch.setattr(Transaction, "resume", counted)
    return made


ASGI = pytest.mark.parametrize("face", ["asgi"], indirect=True)
WSGI = pytest.mark.parametrize("face", ["wsgi"], indirect=True)


def tried(response: RecordedResponse) -> tuple[str, ...]:
    return response.decision.attempts


# -- which failures of which requests

NOT_EXECUTED = [Failure.REFUSED, Failure.CONNECT_TIMEOUT, Failure.TLS, Failure.NOT_STARTED]
NAMED = {Failure.CLOSED: "empty-response", Failure.BAD_RESPONSE: "junk-response", Failure.TIMEOUT: "response-timeout"}
NEVER = [Failure.NOT_FORWARDABLE, Failure.TRUNCATED]
LINES = ["conn-failure", "none", *NAMED.values(), "conn-failure empty-response 503", "all-retryable-errors"]

#: the pieces that are sent; how many of them are read; whether the body can be replayed after a failure before
#: execution; whether it can be replayed after any failure, as it is not longer than the limit
BODIES: dict[str, tuple[Sequence[bytes], int | None, bool, bool]] = {
    "no body": ((), None, True, True),
    "one that fits": ((b"01234", b"56789"), None, True, True),
    "one of which nothing was read": ((b"012345", b"678901", b"234567"), 0, True, True),
    "one of which a part was read": ((b"012345", b"678901", b"234567"), 1, True, True),
    "one that is too long, read to its last piece": ((b"012345", b"67890"), 2, True, False),
    "one that is too long": ((b"012345", b"678901", b"234567"), None, False, False),
}


def replayed(failure: Failure, line: str, harmless: bool, body: str) -> bool:
    """Return whether the request is replayed, by the rule that the tests check."""
    words = line.split()
    _, _, there, fits = BODIES[body]
    if failure in NOT_EXECUTED:
        return there and ("conn-failure" in words or line == "all-retryable-errors")
    if failure in NEVER:
        return False
    return harmless and fits and (NAMED[failure] in words or line == "all-retryable-errors")


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("failure", [*NOT_EXECUTED, *NAMED, *NEVER], ids=lambda failure: failure.name.lower())
def test_a_request_is_replayed_if_retry_on_names_the_failure_and_it_may_be_executed_twice(
    ring: Ring, failure: Failure, line: str
) -> None:
    for opted_in in (False, True):
        for body, (pieces, reads, _, _) in BODIES.items():
            first, second = Turn(fails=failure, reads=reads), Turn(reads=None)
            ring.remote([first], [second], retry_on=line, idempotency_key=opted_in)
            for method, key in (("GET", None), ("POST", None), ("POST", "a key")):
                harmless = method == "GET" or (opted_in and key is not None)
                expected = replayed(failure, line, harmless, body)
                response = ring.request(method, cookie="SERVERID=s1", body=pieces, key=key)
                case = (opted_in, body, method, key)
                assert response.raised is None, case
                assert tried(response) == (("s1", "s2") if expected else ("s1",)), case
                assert response.status == (200 if expected else failure.status), case
                assert response.all("set-cookie") == (["SERVERID=s2; path=/"] if expected else []), case
                if expected:
                    assert b"".join(ring.received[-1].body) == b"".join(pieces), case


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "POST", "PATCH"])
def test_only_requests_that_may_be_executed_twice_are_replayed(ring: Ring, method: str) -> None:
    ring.backend(ring.server("s1", Turn(fails=Failure.CLOSED)), ring.server("s2"), retry_on="empty-response")
    assert tried(ring.request(method)) == (("s1",) if method in ("POST", "PATCH") else ("s1", "s2"))


@ASGI
def test_another_server_receives_the_body_in_the_same_pieces(ring: Ring) -> None:
    pieces = [b"abc", b"", b"de", b""]
    for reads in (None, 0, 2):
        ring.backend(
            ring.server("s1", Turn(fails=Failure.CLOSED, reads=reads)),
            ring.server("s2", Turn(reads=None)),
            retry_on="empty-response",
        )
        ring.request("PUT", body=pieces)
        assert ring.received[-1].body == pieces


def test_a_body_is_replayed_while_more_of_it_arrives(ring: Ring) -> None:
    """The body is not read before an app reads."""
    pieces = [b"x" * 6] * 50
    ring.remote([Turn(fails=Failure.REFUSED, reads=1)], [Turn(reads=None)])
    response = ring.request("POST", body=pieces)
    assert (response.status, b"".join(ring.received[-1].body)) == (200, b"".join(pieces))


# -- which server is tried


@pytest.mark.parametrize(
    "redispatch, cookie, expected, pauses",
    [
        pytest.param(True, "SERVERID=s1", "s1 s2 s3 s4", 0, id="True: elsewhere and at once"),
        pytest.param(False, "SERVERID=s1", "s1 s1 s1 s1", 3, id="False: the same"),
        pytest.param(False, None, "s1 s1 s1 s1", 3, id="False: the same for a new client too"),
        pytest.param(-1, "SERVERID=s1", "s1 s1 s1 s2", 2, id="-1: the last elsewhere"),
        pytest.param(-1, None, "s1 s2 s2 s3", 1, id="-1: a new client at once, and at last"),
        pytest.param(2, "SERVERID=s1", "s1 s1 s2 s2", 2, id="2: every second"),
        pytest.param(1, "SERVERID=s1", "s1 s2 s3 s4", 0, id="1: every one"),
    ],
)
def test_redispatch_decides_the_server_and_urls_get_a_pause(
    ring: Ring, redispatch: bool | int, cookie: str | None, expected: str, pauses: int
) -> None:
    sites = [[Turn(fails=Failure.REFUSED)]] * 4
    ring.remote(*sites, redispatch=redispatch)
    response = ring.request("POST", cookie=cookie, body=[b"abc"])
    names = expected.split()
    assert (response.status, [*tried(response)], [received.site for received in ring.received]) == (503, names, names)
    assert ring.waits == pauses
    same = dict.fromkeys(("s1", "s2", "s3", "s4"), 0)
    other = dict(same)
    for before, after in pairwise(names):
        (same if before == after else other)[before] += 1
    assert ring.totals(Total.WRETR, Total.WREDIS, Total.ECON) == {
        name: [same[name], other[name], names.count(name)] for name in same
    }


@pytest.mark.parametrize("options", [{}, {"stateless": True}], ids=["with a memory", "without"])
def test_an_app_is_called_again_without_a_pause(ring: Ring, options: dict[str, bool]) -> None:
    ring.backend(ring.server("s1", Turn(fails=Failure.REFUSED), Turn(), **options), redispatch=False)
    response = ring.request("POST")
    assert (response.status, tried(response), ring.waits) == (200, ("s1", "s1"), 0)
    assert response.all("set-cookie") == ["SERVERID=s1; path=/"]


def test_a_retry_at_a_url_after_a_connection_that_succeeded_has_no_pause(ring: Ring) -> None:
    ring.remote([Turn(fails=Failure.CLOSED), Turn(status=503), Turn()], redispatch=False, retry_on="empty-response 503")
    response = ring.request()
    assert (response.status, tried(response), ring.waits) == (200, ("s1", "s1", "s1"), 0)


def test_a_client_served_by_its_own_server_at_the_second_try_gets_no_mark(ring: Ring) -> None:
    ring.remote([Turn(fails=Failure.REFUSED), Turn()], [Turn()], redispatch=-1)
    response = ring.request(cookie="SERVERID=s1")
    assert (response.status, tried(response), response.all("set-cookie")) == (200, ("s1", "s1"), [])
    assert response.decision.claim is Claim.VALID


def test_a_client_gets_the_mark_of_another_server_if_its_own_goes_down_before_the_second_try(ring: Ring) -> None:
    backend = ring.remote([Turn(fails=Failure.REFUSED, before=lambda _: out())], [Turn()], redispatch=-1)

    def out() -> None:
        backend["s1"].state = AdminState.MAINT

    response = ring.request(cookie="SERVERID=s1")
    assert (response.status, tried(response), response.all("set-cookie")) == (
        200,
        ("s1", "s2"),
        ["SERVERID=s2; path=/"],
    )
    assert (response.decision.claim, response.decision.reason) == (Claim.DOWN, Reason.FAILED)


# -- responses that are held back

OFF = Turn(status=503, headers=[("Set-Cookie", "secret=of-the-loser"), ("X-Loser", "1")], pieces=[b"off", b"line"])


def spare(ring: Ring, *sites: Sequence[Turn], **options: Any) -> Backend:
    servers = [ring.server(f"s{number}", *turns) for number, turns in enumerate(sites, 1)]
    return ring.backend(*servers, **{"retry_on": "503"} | options)


def passed(response: RecordedResponse, *, server: str, status: int = 200, attempts: str) -> None:
    """Check that the client has received the response of `server`, and of no other."""
    assert response.raised is None
    assert (response.status, response.decision.server, response.decision.status) == (status, server, status)
    assert tried(response) == tuple(attempts.split())
    assert response.all("set-cookie")[-1:] == [f"SERVERID={server}; path=/"], (
        "the mark names the server of the response"
    )
    if status == 200:
        assert response.body == server.encode()
        assert response.all("x-loser") == [] and len(response.all("set-cookie")) == 1


@pytest.mark.parametrize("cookie", [None, "SERVERID=s1"])
def test_nothing_of_a_discarded_response_reaches_the_client(ring: Ring, cookie: str | None) -> None:
    spare(ring, [OFF], [Turn(headers=[("X-Winner", "1")])])
    response = ring.request(cookie=cookie)
    passed(response, server="s2", attempts="s1 s2")
    assert response.all("x-winner") == ["1"]
    assert response.decision.failures == (Failure.RETRIED_STATUS,)
    assert response.decision.claim is (Claim.DOWN if cookie else Claim.NONE)
    assert ring.totals(Total.WREDIS, Total.WRETR, Total.ERESP, Total.ECON) == {"s1": [1, 0, 0, 0], "s2": [0, 0, 0, 0]}
    assert ring.logged == [response.decision]


@pytest.mark.parametrize("status", [401, 403, 404, 408, 421, 425, 429, 500, 501, 502, 503, 504])
def test_each_status_may_be_named(ring: Ring, status: int) -> None:
    spare(ring, [Turn(status=status)], [Turn()], retry_on=str(status))
    passed(ring.request(), server="s2", attempts="s1 s2")
    spare(ring, [Turn(status=status)], [Turn()], retry_on="504" if status == 503 else "503")
    passed(ring.request(), server="s1", status=status, attempts="s1")


def test_the_last_response_is_passed_on_when_no_server_is_left(ring: Ring) -> None:
    spare(ring, [Turn(status=503)], [OFF])
    response = ring.request()
    passed(response, server="s2", status=503, attempts="s1 s2")
    assert response.body == b"offline"
    assert response.all("x-loser") == ["1"] and response.all("set-cookie")[0] == "secret=of-the-loser"


def test_the_response_to_the_last_retry_is_not_held_back(ring: Ring) -> None:
    spare(ring, [OFF], [OFF], [Turn()], retries=1)
    passed(ring.request(), server="s2", status=503, attempts="s1 s2")
    spare(ring, [OFF], [Turn()], retries=0)
    passed(ring.request(), server="s1", status=503, attempts="s1")


@pytest.mark.parametrize(
    "method, key, opted_in, held",
    [
        ("GET", None, False, True),
        ("HEAD", None, False, True),
        ("PUT", None, False, True),
        ("POST", None, False, False),
        ("POST", "a key", False, False),
        ("POST", None, True, False),
        ("POST", "a key", True, True),
    ],
)
def test_a_response_is_held_back_only_if_its_request_may_be_executed_twice(
    ring: Ring, method: str, key: str | None, opted_in: bool, held: bool
) -> None:
    spare(ring, [OFF], [Turn()], idempotency_key=opted_in)
    response = ring.request(method, key=key)
    assert (response.status, tried(response)) == ((200, ("s1", "s2")) if held else (503, ("s1",)))


@pytest.mark.parametrize("body", BODIES)
def test_a_response_is_held_back_only_if_the_body_can_be_replayed(ring: Ring, body: str) -> None:
    pieces, reads, _, fits = BODIES[body]
    spare(ring, [Turn(status=503, reads=reads)], [Turn(reads=None)])
    response = ring.request("PUT", body=pieces)
    assert (response.status, tried(response)) == ((200, ("s1", "s2")) if fits else (503, ("s1",)))
    if fits:
        assert b"".join(ring.received[-1].body) == b"".join(pieces)


def test_while_a_response_is_held_back_the_request_is_in_flight_at_both_servers(ring: Ring) -> None:
    seen: list[list[int]] = []
    backend = spare(
        ring,
        [Turn(status=503, then=lambda: seen.append([len(server.in_flight) for server in backend.servers]))],
        [Turn(then=lambda: seen.append([len(server.in_flight) for server in backend.servers]))],
    )
    passed(ring.request(), server="s2", attempts="s1 s2")
    assert seen == [[1, 1], [0, 1]]


def test_a_response_is_not_held_back_if_the_next_server_has_no_slot(ring: Ring) -> None:
    backend = ring.backend(ring.server("s1", OFF, maxconn=1), ring.server("s2", maxconn=1), retry_on="503")
    backend.placement.acquire(backend["s2"])
    response = ring.request(cookie="SERVERID=s1", others=True)
    assert (response.status, tried(response), response.decision.failures) == (503, ("s1",), ())
    assert response.all("set-cookie") == ["secret=of-the-loser"], "the client stays with its server"
    backend.placement.release(backend["s2"])
    assert ring.at_rest
    passed(ring.request(cookie="SERVERID=s1"), server="s2", attempts="s1 s2")


def test_with_unavailable_fail_a_client_gets_the_response_of_its_own_server(ring: Ring) -> None:
    spare(ring, [OFF], [Turn()], unavailable="fail")
    response = ring.request(cookie="SERVERID=s1")
    assert (response.status, tried(response), response.decision.failures) == (503, ("s1",), ())
    assert (response.all("set-cookie"), response.decision.claim) == (["secret=of-the-loser"], Claim.VALID)
    passed(ring.request(), server="s2", attempts="s1 s2")


def test_a_request_may_be_retried_at_the_same_server(ring: Ring) -> None:
    spare(ring, [OFF, OFF, Turn()], redispatch=False)
    passed(ring.request(), server="s1", attempts="s1 s1 s1")
    assert ring.totals(Total.WRETR, Total.WREDIS) == {"s1": [2, 0]}


def test_a_failure_after_a_held_response_is_retried_as_usual(ring: Ring) -> None:
    refused = Turn(fails=Failure.REFUSED)
    spare(ring, [OFF], [refused], [Turn()], retry_on="503 conn-failure")
    passed(ring.request(), server="s3", attempts="s1 s2 s3")


REFUSED = Turn(fails=Failure.REFUSED)


@pytest.mark.parametrize("cookie", [None, "SERVERID=s1"], ids=["new client", "bound client"])
@pytest.mark.parametrize("failure", [Failure.REFUSED, Failure.CLOSED, Failure.TIMEOUT])
def test_a_held_response_is_passed_on_if_no_other_server_responds(
    ring: Ring, failure: Failure, cookie: str | None
) -> None:
    backend = spare(ring, [OFF], [Turn(fails=failure)])
    response = ring.request(cookie=cookie)
    assert (response.status, response.body, response.all("x-loser")) == (503, b"offline", ["1"])
    decision = response.decision
    assert (decision.server, decision.status, tried(response)) == ("s1", 503, ("s1", "s2"))
    assert decision.failures == (failure,)
    marks = [] if cookie else ["SERVERID=s1; path=/"]
    assert response.all("set-cookie") == ["secret=of-the-loser", *marks]
    assert ring.totals(Total.HRSP_5XX, Total.NO_RESPONSE) == {"s1": [1, 0], "s2": [0, 1]}
    assert [len(server.in_flight) for server in backend.servers] == [0, 0]


def test_the_latest_of_several_held_responses_is_passed_on(ring: Ring) -> None:
    spare(ring, [OFF], [Turn(status=503)], [REFUSED])
    response = ring.request()
    assert (response.status, response.body, response.decision.server) == (503, b"s2", "s2")
    assert response.all("set-cookie") == ["SERVERID=s2; path=/"]
    assert response.decision.failures == (Failure.RETRIED_STATUS, Failure.REFUSED)


@WSGI
@pytest.mark.parametrize("late", [False, True], ids=["head at once", "head with the first item"])
@pytest.mark.parametrize("writes", [False, True], ids=["items", "write"])
def test_on_wsgi_a_held_response_is_passed_on_as_its_app_makes_it(ring: Ring, late: bool, writes: bool) -> None:
    spare(ring, [Turn(status=503, pieces=[b"a", b"b", b"c"])], [REFUSED])
    site = ring.sites["s1"]
    assert isinstance(site, WsgiSite)
    site.late, site.writes = late, writes
    response = ring.request()
    assert (response.status, response.body) == (503, b"abc")
    assert site.closed == 1 or writes


@ASGI
def test_on_asgi_a_held_response_that_is_too_long_is_not_passed_on(ring: Ring) -> None:
    spare(ring, [Turn(status=503, pieces=[bytes(40_000)] * 2)], [REFUSED])
    response = ring.request()
    assert (response.status, response.decision.server, response.all("retry-after")) == (503, None, ["5"])


@ASGI
@pytest.mark.parametrize("length", [1, 80_000], ids=["kept", "too long to be kept"])
def test_on_asgi_a_client_that_leaves_before_the_next_attempt_leaves_no_slot_taken(ring: Ring, length: int) -> None:
    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": bytes(length)})

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        raise AssertionError(message)

    log: list[Decision] = []
    servers = [Server("s1", waiting, maxconn=1), Server("s2", AsgiSite(ring, "s2"), maxconn=1)]
    backend = Backend("web", servers, balance=RoundRobin(start=0), retry_on="503", log=log.append)
    messages = [{"type": "http.request"}, {"type": "http.disconnect"}]
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    dispatcher: Any = ring.face.dispatcher(backend)
    asyncio.run(dispatcher(scope, receive, send))
    assert [len(server.in_flight) for server in servers] == [0, 0]
    assert ring.received == [] and [decision.attempts for decision in log] == [("s1",)]


def test_an_exception_of_the_next_app_is_raised(ring: Ring) -> None:
    error = LookupError("the winner's own")
    spare(ring, [OFF], [Turn(before=raising(error))])
    response = ring.request()
    assert response.raised is error
    assert (response.status, tried(response)) == (0, ("s1", "s2"))


KEYS = {"asgi": "sticky", "wsgi": "sticky.decision"}


def test_a_response_with_a_status_that_retry_on_does_not_name_is_not_delayed(ring: Ring) -> None:
    """Check that the client gets the head while the app still runs."""
    statuses: list[int] = []

    def look() -> None:
        decision: Decision = ring.received[0].request[KEYS[ring.face.name]]
        statuses.append(decision.status)

    spare(ring, [Turn(pieces=[b"a", b"b"], then=look)])
    response = ring.request()
    assert (response.body, statuses) == (b"ab", [200])


# -- the server with the discarded response


@ASGI
@pytest.mark.parametrize(
    "pieces, taken",
    [([b"x" * 65536], 65536), ([b"x" * 1024] * 64, 65536), ([b"x" * 1024] * 65, 65536), ([b"x" * 65537], 0)],
)
def test_on_asgi_messages_of_a_discarded_response_are_accepted_up_to_a_limit_and_then_send_raises(
    ring: Ring, pieces: list[bytes], taken: int
) -> None:
    spare(ring, [Turn(status=503, pieces=pieces)], [Turn()])
    passed(ring.request(), server="s2", attempts="s1 s2")
    loser = ring.sites["s1"]
    assert loser.taken == taken
    assert len(loser.refused) == (1 if sum(map(len, pieces)) > taken else 0)


@ASGI
def test_on_asgi_an_endless_discarded_response_is_ended(ring: Ring) -> None:
    class Endless(Sequence[bytes]):
        def __len__(self) -> int:
            return 1 << 30

        def __getitem__(self, index: Any) -> Any:
            return b"data: tick\n\n"

    spare(ring, [Turn(status=503, pieces=Endless())], [Turn()])
    passed(ring.request(), server="s2", attempts="s1 s2")
    assert 65500 < ring.sites["s1"].taken <= 65536


@WSGI
@pytest.mark.parametrize("late", [False, True], ids=["head at once", "head with the first item"])
def test_on_wsgi_the_iterable_of_a_discarded_response_is_closed_without_being_read(ring: Ring, late: bool) -> None:
    spare(ring, [Turn(status=503, pieces=[b"a", b"b", b"c"])], [Turn()])
    site = ring.sites["s1"]
    assert isinstance(site, WsgiSite)
    site.late = late
    passed(ring.request(), server="s2", attempts="s1 s2")
    assert (site.taken, site.closed) == (1 if late else 0, 1)


@WSGI
def test_on_wsgi_writes_of_a_discarded_response_are_discarded_and_those_of_the_next_are_not(ring: Ring) -> None:
    spare(ring, [OFF], [Turn()])
    for site in ring.sites.values():
        assert isinstance(site, WsgiSite)
        site.writes = True
    passed(ring.request(), server="s2", attempts="s1 s2")
    assert ring.sites["s1"].taken == len(b"offline")


@WSGI
@pytest.mark.parametrize("late", [False, True], ids=["head at once", "head with the first item"])
def test_on_wsgi_the_response_after_a_discarded_one_is_streamed(ring: Ring, late: bool) -> None:
    spare(ring, [OFF], [Turn(pieces=[b"s", b"2"])])
    for site in ring.sites.values():
        assert isinstance(site, WsgiSite)
        site.late = late
    passed(ring.request(), server="s2", attempts="s1 s2")
    assert [site.closed for site in ring.sites.values()] == [1, 1]


@WSGI
def test_on_wsgi_a_discarded_response_that_replaces_its_head_is_discarded_too(ring: Ring) -> None:
    def restless(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("503 Service Unavailable", [("Content-Type", "text/plain"), ("X-Loser", "1")])
        try:
            raise LookupError
        except LookupError:
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")], sys.exc_info())
        return [b"sorry"]

    first: Server = ring.face.package.Server("s1", ring.face.validated(restless))
    ring.backend(first, ring.server("s2"), retry_on="503")
    passed(ring.request(), server="s2", attempts="s1 s2")


@WSGI
def test_on_wsgi_a_head_that_replaces_an_earlier_one_is_passed_on_with_one_mark(ring: Ring) -> None:
    def restless(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        try:
            raise LookupError
        except LookupError:
            start_response("503 Service Unavailable", [("Content-Type", "text/plain")], sys.exc_info())
        return [b"sorry"]

    first: Server = ring.face.package.Server("s1", ring.face.validated(restless))
    ring.backend(first, ring.server("s2"), retry_on="503")
    response = ring.request()
    assert (response.status, tried(response), response.body) == (503, ("s1",), b"sorry"), (
        "the client may have received the first head"
    )
    assert response.all("set-cookie") == ["SERVERID=s1; path=/"]


ERRORS = {
    "its own": LookupError("the loser's own"),
    "that it was cut short": ServerFailure(Failure.TRUNCATED),
    "that the request was refused": ServerFailure(Failure.REFUSED),
    "that no socket listens": OSError("no socket listens"),
}


def unblamed(ring: Ring) -> bool:
    totals = ring.totals(Total.ERESP, Total.ECON, Total.CLI_ABRT)
    return totals == {"s1": [0, 0, 0], "s2": [0, 0, 0]} and len(ring.logged) == 1


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("way", ["behind its head", "behind a piece"])
def test_an_exception_after_a_discarded_response_reaches_no_client(ring: Ring, error: str, way: str) -> None:
    raised = ERRORS[error]
    loser = Turn(status=503, then=raising(raised)) if way == "behind its head" else Turn(status=503, raises=raised)
    spare(ring, [loser], [Turn()])
    passed(ring.request(), server="s2", attempts="s1 s2")
    assert unblamed(ring)


@WSGI
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("way", ["through write", "head with the first item"])
def test_on_wsgi_an_exception_of_write_or_a_generator_after_a_discarded_response_reaches_no_client(
    ring: Ring, error: str, way: str
) -> None:
    spare(ring, [Turn(status=503, raises=ERRORS[error], pieces=[b""])], [Turn()])
    site = ring.sites["s1"]
    assert isinstance(site, WsgiSite)
    site.writes, site.late = way == "through write", way != "through write"
    passed(ring.request(), server="s2", attempts="s1 s2")
    assert unblamed(ring)


@WSGI
def test_on_wsgi_an_exception_from_closing_a_discarded_iterable_is_logged(
    ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    spare(ring, [Turn(status=503, unclosable=LookupError("can't be closed"))], [Turn()])
    passed(ring.request(), server="s2", attempts="s1 s2")
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.name == "sticky_sessions"
    assert record.exc_info is not None and "can't be closed" in str(record.exc_info[1])
    assert unblamed(ring)


@WSGI
def test_on_wsgi_the_file_of_a_discarded_response_is_closed(ring: Ring) -> None:
    opened: list[FileWrapper] = []

    def files(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
        opened.append(environ["wsgi.file_wrapper"](io.BytesIO(b"offline")))
        return opened[-1]

    def with_files(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["wsgi.file_wrapper"] = FileWrapper
        iterable: Iterable[bytes] = ring.dispatcher(environ, start_response)
        return iterable

    ring.backend(ring.face.package.Server("s1", files), ring.server("s2"), retry_on="503")
    passed(ring.face.client(with_files)(), server="s2", attempts="s1 s2")
    assert [file.filelike.closed for file in opened] == [True]


# -- requests that are ended from outside


def ended_by(ring: Ring, first: Turn, second: Turn, error: type[BaseException]) -> Decision:
    """Return the log lines about a request that was ended from outside."""
    backend = spare(ring, [first], [second])
    with pytest.raises(error):
        ring.request()
    assert ring.at_rest
    (decision,) = ring.logged
    assert [server.name for server in backend.servers if server.total] == [*decision.attempts]
    return decision


@pytest.mark.parametrize(
    "first, second, attempts",
    [
        pytest.param(Turn(before=raising(Killed())), Turn(), ("s1",), id="in the first attempt"),
        pytest.param(Turn(status=503, then=raising(Killed())), Turn(), ("s1",), id="while it is held back"),
        pytest.param(OFF, Turn(before=raising(Killed())), ("s1", "s2"), id="in the second attempt"),
        pytest.param(OFF, Turn(then=raising(Killed())), ("s1", "s2"), id="behind the second head"),
    ],
)
def test_a_request_that_is_ended_from_outside_releases_its_slot(
    ring: Ring, first: Turn, second: Turn, attempts: tuple[str, ...]
) -> None:
    assert ended_by(ring, first, second, Killed).attempts == attempts


def cancel() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


@ASGI
@pytest.mark.parametrize(
    "first, second, attempts",
    [
        pytest.param(Turn(status=503, then=cancel), Turn(), ("s1",), id="while it is held back"),
        pytest.param(OFF, Turn(then=cancel), ("s1", "s2"), id="behind the second head"),
    ],
)
def test_a_cancelled_task_releases_its_slot(ring: Ring, first: Turn, second: Turn, attempts: tuple[str, ...]) -> None:
    assert ended_by(ring, first, second, asyncio.CancelledError).attempts == attempts


# -- the request that each attempt receives


def test_changes_that_an_attempt_makes_to_the_request_are_not_seen_by_the_next(ring: Ring) -> None:
    def scribble(request: dict[str, Any]) -> None:
        if ring.face.name == "asgi":
            request["headers"].append((b"x-scribble", b"1"))
            request["path"] = "/scribble"
            request["extensions"]["scribble"] = {}
        else:
            request["HTTP_X_SCRIBBLE"] = "1"
            request["PATH_INFO"] = "/scribble"
            del request["SERVER_NAME"]
        request["scribble"] = 1

    pristine: list[dict[str, Any]] = []
    spare(
        ring,
        [Turn(status=503, before=scribble)],
        [Turn(fails=Failure.REFUSED, before=scribble)],
        [Turn(before=lambda request: pristine.append(dict(request)))],
        retry_on="503 conn-failure",
    )
    passed(ring.request(cookie="SERVERID=s1; a=1"), server="s3", attempts="s1 s2 s3")
    (request,) = pristine
    assert "scribble" not in request
    if ring.face.name == "asgi":
        assert (request["path"], request["extensions"]) == ("/", {})
        assert request["headers"] == [(b"host", b"shop.example"), (b"cookie", b"a=1")]
    else:
        assert (request["PATH_INFO"], request["SERVER_NAME"]) == ("/", "shop.example")
        assert "HTTP_X_SCRIBBLE" not in request
        assert request["HTTP_COOKIE"] == "a=1"


def test_each_attempt_sees_the_earlier_ones(ring: Ring) -> None:
    seen: list[tuple[tuple[str, ...], tuple[Failure, ...]]] = []

    def look(request: dict[str, Any]) -> None:
        decision: Decision = request[KEYS[ring.face.name]]
        seen.append((decision.attempts, decision.failures))

    spare(
        ring,
        [Turn(status=503, before=look)],
        [Turn(fails=Failure.CLOSED, before=look)],
        [Turn(before=look)],
        retry_on="503 empty-response",
    )
    passed(ring.request(), server="s3", attempts="s1 s2 s3")
    assert seen == [
        (("s1",), ()),
        (("s1", "s2"), (Failure.RETRIED_STATUS,)),
        (("s1", "s2", "s3"), (Failure.RETRIED_STATUS, Failure.CLOSED)),
    ]


# -- references that are left of a request


class Sent(io.BytesIO):
    """A body or a `receive` that can be referenced weakly, to check that it is released."""

    async def __call__(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self.read(), "more_body": False}


def body_of_a_finished_request(ring: Ring) -> weakref.ref[Sent]:
    """Return a weak reference to the body of a request that is over."""
    sent = Sent(b"0123456789")

    def app(*args: Any) -> Any:
        if ring.face.name == "asgi":
            scope, _, send = args
            return ring.dispatcher(scope, sent, send)
        environ, start_response = args
        environ |= {"wsgi.input": sent, "CONTENT_LENGTH": "10"}
        return ring.dispatcher(environ, start_response)

    ring.face.client(app)()
    ring.received.clear()
    return weakref.ref(sent)


@pytest.mark.parametrize("status", [200, 503], ids=["a response", "no server left"])
def test_a_decision_that_is_kept_holds_nothing_of_the_request(ring: Ring, status: int) -> None:
    turn = Turn(reads=None) if status == 200 else Turn(fails=Failure.REFUSED)
    ring.remote([Turn(fails=Failure.REFUSED, reads=None)], [turn])
    gc.disable()
    try:
        body = body_of_a_finished_request(ring)
        assert ring.logged[0].status == status
        assert body() is None, "a reference cycle keeps the body alive"
    finally:
        gc.enable()


# -- WebSockets


@ASGI
def test_a_websocket_denied_with_a_retried_status_gets_another_server(ring: Ring) -> None:
    connected: list[str] = []

    def end(name: str, accepts: bool) -> Server:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert (await receive())["type"] == "websocket.connect"
            connected.append(name)
            if accepts:
                await send({"type": "websocket.accept", "headers": []})
            else:
                denied = [(b"set-cookie", b"secret=of-the-loser")]
                await send({"type": "websocket.http.response.start", "status": 503, "headers": denied})
                await send({"type": "websocket.http.response.body", "body": b"offline"})

        made: Server = ring.face.package.Server(name, app)
        return made

    ring.backend(end("s1", False), end("s2", True), retry_on="503")
    client: Any = ring.face.client(ring._asgi((), {}))
    response = client.websocket()
    assert (response.status, tried(response), connected) == (101, ("s1", "s2"), ["s1", "s2"])
    assert response.all("set-cookie") == ["SERVERID=s2; path=/"]
    assert ring.at_rest
