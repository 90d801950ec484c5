"""A request that belongs to another worker is served there as if it had come there. Several workers stand in one
process and on one event loop here; `tests/conformance` has them under real servers.
"""

import asyncio
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio

from sticky_asgi import ConfigError, ServerFailure, StickyWorkers, decision
from sticky_asgi.workers.link import WINDOW
from sticky_core.workers.frames import Frames, Kind
from sticky_core.workers.transaction import RemoteAppError

SECRET = "a-secret-of-sixteen-bytes-at-least"
DEADLINE = 300.0


def scope(path="/", *, cookie="", headers=(), **more):
    """An http scope as servers make it; `cookie`: the value of a Cookie header."""
    cookies = [(b"cookie", cookie.encode())] if cookie else []
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"example.org"), *headers, *cookies],
        "client": ("192.0.2.1", 4711),
        "server": ("127.0.0.1", 8000),
        **more,
    }


class Client:
    """The server's side of one request: what the client says, and what it is answered."""

    def __init__(self, *said, **more):
        self.scope = scope(**more)
        self.said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for message in said:
            self.said.put_nowait(message)
        if not said and self.scope["type"] == "http":
            self.said.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        self.asked = 0
        self.answers: list[Any] = []
        self.news = asyncio.Event()
        self.takes = asyncio.Event()  # whether it reads what it is answered
        self.takes.set()

    async def receive(self):
        self.asked += 1
        return await self.said.get()

    async def send(self, message):
        await self.takes.wait()
        self.answers.append(message)
        self.news.set()

    async def ask(self, app):
        await app(self.scope, self.receive, self.send)
        return self

    async def until(self, condition):
        """Wait until it has been answered so that `condition` holds."""
        async with asyncio.timeout(DEADLINE):
            while not condition(self.answers):
                self.news.clear()
                await self.news.wait()

    @property
    def status(self):
        return self.answers[0]["status"]

    @property
    def body(self):
        return b"".join(bytes(message.get("body", b"")) for message in self.answers)

    @property
    def cookies(self):
        return [value.decode() for name, value in self.answers[0]["headers"] if name == b"set-cookie"]

    @property
    def mark(self):
        return self.cookies[0].partition(";")[0]


async def answer(send, body=b"", status=200, headers=()):
    await send({"type": "http.response.start", "status": status, "headers": [*headers]})
    await send({"type": "http.response.body", "body": body})


class Memory:
    """An app that says how often it was asked, and keeps the scopes and decisions that it has seen."""

    def __init__(self):
        self.scopes: list[Any] = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            if "state" in scope:
                scope["state"]["memory"] = self
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            return await send({"type": "lifespan.shutdown.complete"})
        self.scopes.append(scope)
        await self.serve(scope, receive, send)

    async def serve(self, scope, receive, send):
        await answer(send, f"{len(self.scopes)}".encode())


class Worker:
    """A worker between its startup and its shutdown."""

    def __init__(self, app, **options):
        self.inner = app
        self.app = StickyWorkers(app, **options)
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._told: asyncio.Queue[Any] = asyncio.Queue()

    async def start(self):
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._task = asyncio.ensure_future(self.app(scope, self._said.get, self._told.put))
        self._said.put_nowait({"type": "lifespan.startup"})
        assert (await self._told.get())["type"] == "lifespan.startup.complete"
        return self

    @property
    def backend(self):
        return self.app.workers

    def kill(self):
        """It is gone, and has not said so: what a SIGKILL leaves behind."""
        here = self.app._worker
        assert here is not None
        here._server.close()
        for owner in list(here.connections):
            owner.transport.abort()

    async def stop(self):
        self._said.put_nowait({"type": "lifespan.shutdown"})
        await self._task

    async def ask(self, *said, **more):
        async with asyncio.timeout(DEADLINE):
            return await Client(*said, **more).ask(self.app)


@pytest.fixture
def folder():
    """Where a family finds each other: a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="sticky-") as path:
        yield Path(path)


@pytest.fixture
def run(folder):
    """Runs a test with `start`, which begins one more worker of a family; all are ended behind it."""

    def run(test, **options):
        async def main():
            workers = []

            async def start(app=None, **more):
                settings = {"name": "family", "directory": folder / "run", "secret": SECRET, **options, **more}
                worker = Worker(app if app is not None else Memory(), **settings)
                workers.append(await worker.start())
                return worker

            try:
                async with asyncio.timeout(DEADLINE):
                    await test(start)
            finally:
                for worker in workers:
                    await worker.stop()

        asyncio.run(main())

    return run


def test_a_client_is_served_by_the_worker_that_knows_it_whoever_takes_its_request(run):
    async def test(start):
        seen: list[Any] = []
        one, other = await start(), await start(log=seen.append)
        first = await one.ask()
        assert (first.body, first.mark.partition("=")[0]) == (b"1", "STICKYWORKER")
        again = await other.ask(cookie=f"theme=dark; {first.mark}")
        assert (again.body, again.cookies) == (b"2", [])
        assert other.inner.scopes == []
        assert [str(each) for each in seen] == [
            'server=w1; claim=VALID; attempts=w1; mark=NONE; why="w1: server is usable"'
        ]
        assert str(decision(one.inner.scopes[1])) == str(seen[0])
        assert decision(one.inner.scopes[1]).status == 200
        assert (one.backend.own_server.total, len(one.backend.own_server.in_flight)) == (2, 0)

    run(test)


def test_a_scope_arrives_as_it_came_less_what_can_not_travel(run):
    async def test(start):
        one, other = await start(), await start()
        mark = (await one.ask()).mark
        came = {
            "path": "/a b/é",
            "raw_path": b"/a%20b/%C3%A9",
            "query_string": b"x=%FF&y",
            "root_path": "/root",
            "http_version": "1.0",
            "method": "DELETE",
            "client": ("2001:db8::1", 0),
            "server": ("/run/app.sock", None),
            "state": {"from": "the server"},
            "app": object(),
            "extensions": {"http.response.trailers": {}, "http.response.zerocopysend": {}, "theirs": {"key": object()}},
        }
        raw = [(b"x-raw", b"\xff\x80 \x01"), (b"x-raw", b"")]
        await other.ask(headers=raw, cookie=mark, **came)
        (seen,) = one.inner.scopes[1:]
        assert seen.pop("sticky").server == "w1"
        assert seen.pop("state") == {"memory": one.inner}
        assert seen["headers"] == [(b"host", b"example.org"), *raw]
        left = {"state", "app", "extensions"}
        assert {name: seen[name] for name in came if name not in left} == {
            name: value for name, value in came.items() if name not in left
        }
        assert seen["extensions"] == {"http.response.trailers": {}}
        assert set(seen) == set(scope(**came)) - {"state", "app"}

    run(test)


def test_two_requests_at_once_have_a_line_each_and_a_third_uses_one_again(run):
    class Meeting(Memory):
        met: asyncio.Event

        async def serve(self, scope, receive, send):
            if len(self.scopes) == 3:
                self.met.set()
            if len(self.scopes) > 1:
                await self.met.wait()
            await answer(send, b"met")

    async def test(start):
        app = Meeting()
        app.met = asyncio.Event()
        one, other = await start(app), await start()
        mark = (await one.ask()).mark
        both = await asyncio.gather(other.ask(cookie=mark), other.ask(cookie=mark))
        assert [client.body for client in both] == [b"met", b"met"]
        assert (await other.ask(cookie=mark)).body == b"met"
        assert len(one.app._worker.connections) == 2

    run(test)


class Echo(Memory):
    """Answers with what it is sent, piece by piece."""

    async def serve(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 201, "headers": ((b"x", b"y") for _ in range(1))})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})


@pytest.mark.parametrize(
    "pieces",
    [[b""], [b"short"], [b"a" * 3_000_000], [b"a" * 100_000] * 30, [b"", b"b", b""]],
    ids=["none", "short", "one large", "many", "empty ones between"],
)
def test_a_body_goes_there_and_comes_back_whole(run, pieces):
    async def test(start):
        one, other = await start(Echo()), await start()
        mark = (await one.ask()).mark
        said = [
            {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
            for number, piece in enumerate(pieces, 1)
        ]
        client = await other.ask(*said, method="POST", headers=[(b"transfer-encoding", b"chunked")], cookie=mark)
        assert (client.status, client.answers[0]["headers"]) == (201, [(b"x", b"y")])
        assert client.body == b"".join(pieces)
        assert [message.get("more_body", False) for message in client.answers[1:]].count(False) == 1

    run(test)


def test_a_slow_client_is_felt_by_the_app(run):
    class Endless(Memory):
        sent = 0

        async def serve(self, scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(400 if len(self.scopes) > 1 else 1):
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                self.sent += 65536
            await send({"type": "http.response.body"})

    async def test(start):
        app = Endless()
        one, other = await start(app), await start()
        first = Client()
        await first.ask(one.app)
        client = Client(cookie=first.mark)
        client.takes.clear()
        asking = asyncio.ensure_future(client.ask(other.app))
        sent = -1
        while sent != app.sent:  # until nothing moves any more
            sent = app.sent
            for _ in range(50):
                await asyncio.sleep(0.001)
        assert 0 < app.sent < 400 * 65536 / 4
        client.takes.set()
        await asking
        assert len(client.body) == 400 * 65536

    run(test)


def test_an_app_that_does_not_read_is_felt_by_the_client(run):
    class Deaf(Memory):
        hears: asyncio.Event

        async def serve(self, scope, receive, send):
            if len(self.scopes) > 1:
                await self.hears.wait()
            await answer(send)

    async def test(start):
        app = Deaf()
        app.hears = asyncio.Event()
        one, other = await start(app), await start()
        mark = (await one.ask()).mark
        said = [{"type": "http.request", "body": b"x" * 65536, "more_body": True}] * 400
        client = Client(*said, method="POST", headers=[(b"content-length", b"99999999")], cookie=mark)
        asking = asyncio.ensure_future(client.ask(other.app))
        asked = -1
        while asked != client.asked or asked < 2:
            asked = client.asked
            for _ in range(50):
                await asyncio.sleep(0.001)
        assert asked * 65536 < WINDOW * 8
        app.hears.set()
        await asking
        assert client.status == 200
        # what was not read is nobody's: the line carries the next request
        assert (await other.ask(cookie=mark)).status == 200
        assert len(one.app._worker.connections) == 1

    run(test)


def test_who_asks_before_it_sends_its_body_is_not_told_to_until_the_app_wants_it(run):
    class Choosy(Memory):
        reached: asyncio.Event
        decided: asyncio.Event

        async def serve(self, scope, receive, send):
            if len(self.scopes) > 1:
                self.reached.set()
                await self.decided.wait()
                self.heard = await receive()
            await answer(send)

    async def test(start):
        app = Choosy()
        app.reached, app.decided = asyncio.Event(), asyncio.Event()
        one, other = await start(app), await start()
        mark = (await one.ask()).mark
        expects = [(b"expect", b"100-continue"), (b"content-length", b"2")]
        said = {"type": "http.request", "body": b"ok", "more_body": False}
        client = Client(said, method="POST", headers=expects, cookie=mark)
        asking = asyncio.ensure_future(client.ask(other.app))
        await app.reached.wait()
        assert client.asked == 0
        app.decided.set()
        await asking
        assert app.heard == said

    run(test)


def test_a_client_that_leaves_is_missed_by_the_app(run):
    class Waiting(Memory):
        async def serve(self, scope, receive, send):
            if len(self.scopes) > 1:
                self.heard = [await receive(), await receive()]
                await send({"type": "http.response.start", "status": 200, "headers": []})
            else:
                await answer(send)

    async def test(start):
        app = Waiting()
        one, other = await start(app), await start()
        mark = (await one.ask()).mark
        empty = {"type": "http.request", "body": b"", "more_body": False}
        client = Client(empty, {"type": "http.disconnect"}, cookie=mark)
        with pytest.raises(RemoteAppError, match="the client has disconnected"):
            await client.ask(other.app)
        assert app.heard == [empty, {"type": "http.disconnect"}]
        assert client.answers == []

    run(test)


def test_an_app_that_has_answered_hears_no_more(run):
    class Late(Memory):
        async def serve(self, scope, receive, send):
            await receive()
            await answer(send, b"ok")
            self.heard = await receive()

    async def test(start):
        app = Late()
        one, other = await start(app), await start()
        first = Client({"type": "http.request", "body": b""}, {"type": "http.disconnect"})
        await first.ask(one.app)
        await other.ask(cookie=first.mark)
        assert app.heard == {"type": "http.disconnect"}

    run(test)


def test_what_an_app_raises_is_raised_where_the_server_is_and_costs_nobody_else(run):
    class Broken(Memory):
        async def serve(self, scope, receive, send):
            if scope["path"] == "/boom":
                raise KeyError("what is missing")
            await answer(send)

    async def test(start):
        one, other = await start(Broken()), await start()
        mark = (await one.ask()).mark
        with pytest.raises(RemoteAppError, match="KeyError: 'what is missing'"):
            await other.ask(path="/boom", cookie=mark)
        assert (await other.ask(cookie=mark)).status == 200
        assert len(one.app._worker.connections) == 1

    run(test)


def test_messages_of_extensions_pass(run):
    class Trailing(Memory):
        async def serve(self, scope, receive, send):
            if len(self.scopes) > 1:
                await send({"type": "http.response.early_hint", "links": [b"</style.css>"]})
            await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
            await send({"type": "http.response.body", "body": b"ok"})
            await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})

    async def test(start):
        one, other = await start(Trailing()), await start()
        mark = (await one.ask()).mark
        client = await other.ask(cookie=mark)
        kinds = [message["type"].rpartition(".")[2] for message in client.answers]
        assert kinds == ["early_hint", "start", "body", "trailers"]
        assert [tuple(pair) for pair in client.answers[3]["headers"]] == [(b"x-sum", b"1")]

    run(test)


class Talking(Memory):
    async def serve(self, scope, receive, send):
        if scope["type"] == "http":
            return await answer(send)
        self.heard = []
        while True:
            message = await receive()
            self.heard.append(message)
            match message["type"]:
                case "websocket.connect":
                    if scope["path"] == "/deny":
                        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
                        return await send({"type": "websocket.http.response.body", "body": b"no"})
                    await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][0], "headers": []})
                case "websocket.disconnect":
                    return
                case _ if message.get("text") == "bye":
                    return await send({"type": "websocket.close", "code": 4000, "reason": "said so"})
                case _:
                    await send({"type": "websocket.send", "bytes": message.get("bytes"), "text": message.get("text")})


def websocket(*said, **more):
    details = {"type": "websocket", "scheme": "ws", "subprotocols": ["chat"], **more}
    return Client({"type": "websocket.connect"}, *said, **details)


def test_a_websocket_is_handed_over_whole(run):
    async def test(start):
        one, other = await start(Talking()), await start()
        mark = (await one.ask()).mark
        large = "x" * 3_000_000
        client = websocket(
            {"type": "websocket.receive", "text": large},
            {"type": "websocket.receive", "bytes": b"\xff\x00"},
            {"type": "websocket.receive", "text": "bye"},
            cookie=mark,
        )
        await client.ask(other.app)
        accepted, first, second, closed = client.answers
        assert (accepted["type"], accepted["subprotocol"]) == ("websocket.accept", "chat")
        assert (first["text"], second["bytes"]) == (large, b"\xff\x00")
        assert closed == {"type": "websocket.close", "code": 4000, "reason": "said so"}

    run(test)


def test_a_client_leaves_a_websocket_with_its_own_words(run):
    async def test(start):
        app = Talking()
        one, other = await start(app), await start()
        mark = (await one.ask()).mark
        left = {"type": "websocket.disconnect", "code": 4001, "reason": "enough"}
        await websocket(left, cookie=mark).ask(other.app)
        assert app.heard == [{"type": "websocket.connect"}, left]

    run(test)


def test_a_websocket_may_be_denied_with_an_answer(run):
    async def test(start):
        one, other = await start(Talking()), await start()
        mark = (await one.ask()).mark
        client = websocket(path="/deny", cookie=mark, extensions={"websocket.http.response": {}})
        await client.ask(other.app)
        assert (client.status, client.body) == (403, b"no")

    run(test)


def test_a_client_of_a_worker_that_has_died_is_bound_anew_once_and_the_decision_says_why(run):
    async def test(start):
        seen: list[Any] = []
        one, other, third = await start(), await start(log=seen.append), await start()
        mark = (await one.ask()).mark
        assert (await other.ask(cookie=mark)).body == b"2"  # so that there is an idle line
        one.kill()
        lost = await other.ask(cookie=mark)
        assert lost.body == b"1"
        assert [(each.server, each.claim.name, each.reason.value) for each in seen[1:]] == [
            ("w2", "INVALID", "other instance")
        ]
        again = await third.ask(cookie=lost.mark)
        assert (again.body, again.cookies) == (b"2", [])
        # the third has not met the dead one yet, and knows by now
        assert (await third.ask(cookie=mark)).body == b"1"
        assert third.backend["w1"].status == "DOWN"

    run(test)


def test_the_next_in_a_slot_is_not_taken_for_the_last(run):
    async def test(start):
        one, other = await start(), await start()
        mark = (await one.ask()).mark
        one.kill()
        one.backend.slot.release()
        one.app._worker = None
        successor = await start()
        assert successor.backend.own_server.name == "w1"
        lost = await successor.ask(cookie=mark)
        assert (lost.body, decision(successor.inner.scopes[0]).reason.value) == (b"1", "other instance")
        assert (await other.ask(cookie=lost.mark)).body == b"2"
        assert len(successor.inner.scopes) == 2

    run(test)


def test_who_has_lost_a_session_may_be_told_so_and_not_be_served(run):
    async def test(start):
        one, other = await start(), await start()
        mark = (await one.ask()).mark
        one.kill()
        for _ in range(2):  # by a failed attempt, and by the mark alone
            gone = await other.ask(cookie=mark, scheme="https")
            assert gone.status == 410
            assert gone.cookies == ["STICKYWORKER=; Expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/; Secure"]
        assert other.inner.scopes == []
        assert (await other.ask()).body == b"1"

    run(test, on_lost="gone")


class Held(Memory):
    """Holds what it is asked at /hold, until somebody lets it go."""

    def __init__(self):
        super().__init__()
        self.has = asyncio.Event()
        self.lets = asyncio.Event()

    async def serve(self, scope, receive, send):
        if scope["path"].startswith("/begun"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        if scope["path"] != "/":
            self.has.set()
            await self.lets.wait()
        if scope["path"].startswith("/begun"):
            await send({"type": "http.response.body", "body": b"y"})
        else:
            await answer(send, f"{len(self.scopes)}".encode())


@pytest.mark.parametrize(
    "method, retry_on, status",
    [
        pytest.param("POST", "conn-failure", 502, id="a POST"),
        pytest.param("GET", "conn-failure", 502, id="a GET"),
        pytest.param("POST", "conn-failure empty-response", 502, id="a POST, though retries are asked for"),
        pytest.param("GET", "conn-failure empty-response", 200, id="a GET, with retries asked for"),
    ],
)
def test_what_was_at_a_worker_that_dies_is_told_again_only_if_that_does_no_harm(run, method, retry_on, status):
    async def test(start):
        app = Held()
        one, other = await start(app), await start()
        mark = (await one.ask()).mark
        asking = asyncio.ensure_future(other.ask(path="/hold", method=method, cookie=mark))
        await app.has.wait()
        one.kill()
        client = await asking
        assert client.status == status
        assert len(other.inner.scopes) == (1 if status == 200 else 0)

    run(test, retry_on=retry_on)


def test_an_answer_that_a_death_cuts_short_ends_in_anger(run):
    async def test(start):
        app = Held()
        one, other = await start(app), await start()
        mark = (await one.ask()).mark
        client = Client(path="/begun", cookie=mark)
        asking = asyncio.ensure_future(client.ask(other.app))
        await client.until(lambda answers: len(answers) > 1)
        one.kill()
        with pytest.raises(ServerFailure, match="cut short"):
            await asking

    run(test)


def test_a_worker_that_ends_in_peace_serves_what_it_has_and_is_found_no_more(run):
    async def test(start):
        app = Held()
        one, other = await start(app), await start()
        mark = (await one.ask()).mark
        asking = asyncio.ensure_future(other.ask(path="/begun", cookie=mark))
        await app.has.wait()
        gone = asyncio.Event()
        with other.backend.events(lambda change: gone.set()):
            stopping = asyncio.ensure_future(one.stop())
            await gone.wait()
        lost = await other.ask(cookie=mark)
        assert (lost.body, decision(other.inner.scopes[0]).reason.value) == (b"1", "other instance")
        assert not stopping.done()
        app.lets.set()
        assert (await asking).body == b"xy"
        await stopping
        assert [name for name in os.listdir(other.backend.slots.path) if name.startswith("1.")] == ["1.lock"]
        one.stop = lambda: asyncio.sleep(0)

    run(test)


def test_a_worker_that_ends_closes_the_websockets_of_its_siblings(run):
    async def test(start):
        app = Talking()
        one, other = await start(app), await start()
        mark = (await one.ask()).mark
        client = websocket(cookie=mark)
        asking = asyncio.ensure_future(client.ask(other.app))
        await client.until(lambda answers: answers)
        await one.stop()
        one.stop = lambda: asyncio.sleep(0)
        await asking
        assert client.answers[-1]["code"] == 1012
        assert app.heard[-1]["code"] == 1012

    run(test)


def test_patience_with_siblings_ends(run):
    async def test(start):
        app = Held()
        one, other = await start(app, drain="50ms"), await start()
        mark = (await one.ask()).mark
        asking = asyncio.ensure_future(other.ask(path="/hold", cookie=mark))
        await app.has.wait()
        await one.stop()
        one.stop = lambda: asyncio.sleep(0)
        assert (await asking).status == 502
        app.lets.set()

    run(test)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
        pytest.param(b"\xff\xff\xff\xff", id="a frame that is too long"),
        pytest.param(b"\0\0\0\1\xc1", id="no msgpack"),
        pytest.param(b"\0\0\0\0", id="nothing"),
        pytest.param(Frames().pack(99), id="an unknown kind"),
        pytest.param(Frames().pack(Kind.REQUEST), id="a request without anything"),
        pytest.param(Frames().pack(Kind.REQUEST, "VALID", "BOUND", 1, None, *[False] * 13), id="a request of no type"),
        pytest.param(
            Frames().pack(Kind.REQUEST, "WHAT", "BOUND", 1, None, "http", *[False] * 12), id="an unknown claim"
        ),
        pytest.param(Frames().pack(Kind.REQUEST, "VALID", "BOUND", 9, None, "http", *[False] * 12), id="an odd body"),
    ],
)
def test_a_bad_frame_ends_its_line_and_nothing_else(run, caplog, garbage):
    async def test(start):
        one, other = await start(), await start()
        mark = (await one.ask()).mark
        await other.ask(cookie=mark)
        reader, writer = await asyncio.open_unix_connection(one.backend.slot.path)
        writer.write(garbage)
        await reader.read()
        writer.close()
        assert (await other.ask(cookie=mark)).body == b"3"
        assert len(one.app._worker.connections) == 1
        assert "bad frame" in caplog.text

    run(test)


def test_nobody_else_is_heard(run, monkeypatch, caplog):
    async def test(start):
        one = await start()
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        reader, writer = await asyncio.open_unix_connection(one.backend.slot.path)
        assert await reader.read() == b""
        writer.close()
        monkeypatch.undo()
        assert "another user" in caplog.text
        assert os.stat(one.backend.slot.path).st_mode & 0o077 == 0

    if not hasattr(socket, "SO_PEERCRED"):
        pytest.skip("this system does not tell who is at the other end")
    run(test)


def test_keys_are_spread_over_slots_and_everybody_sends_them_to_the_same(run):
    async def test(start):
        workers = [await start() for _ in range(3)]
        homes = {}
        for room in range(30):
            for worker in workers:
                client = await worker.ask(path=f"/rooms/{room}/chat", cookie="STICKYWORKER=forged")
                assert client.cookies == []
            held = [each for each in workers if any(f"/{room}/" in scope["path"] for scope in each.inner.scopes)]
            (homes[room],) = held
        assert len(set(homes.values())) == 3
        # without a key the cookie counts, and who has none is served where it is
        mark = (await workers[0].ask()).mark
        assert (await workers[1].ask(cookie=mark)).cookies == []
        assert workers[0].inner.scopes[-1]["path"] == "/"
        # a client's own worker is not where its room is
        room = next(room for room, home in homes.items() if home is workers[2])
        await workers[1].ask(path=f"/rooms/{room}", cookie=mark)
        assert workers[2].inner.scopes[-1]["path"] == f"/rooms/{room}"
        assert workers[2].inner.scopes[-1]["headers"] == [(b"host", b"example.org")]
        # who goes takes only its own keys along
        workers[2].kill()
        for room, home in homes.items():
            await workers[0].ask(path=f"/rooms/{room}")
            last = [worker for worker in workers[:2] if worker.inner.scopes[-1]["path"] == f"/rooms/{room}"]
            assert last == [home] if home is not workers[2] else len(last) == 1

    run(test, key="/rooms/{id}", slots=3)


def test_a_worker_that_is_alone_serves_and_marks_nobody(run):
    async def test(start):
        one = await start(name=None)
        client = await one.ask()
        assert (client.body, client.cookies) == (b"1", [])
        assert one.backend is None
        assert "sticky" not in one.inner.scopes[0]

    run(test)


def test_workers_begin_with_the_first_request_where_there_is_no_lifespan(folder):
    async def test():
        apps = [StickyWorkers(Memory(), name="family", directory=folder / "run", secret=SECRET) for _ in range(2)]
        first = await Client().ask(apps[0])
        again = await Client(cookie=first.mark).ask(apps[1])
        assert again.body == b"2"
        for app in apps:
            await app._drain()
            app._stop()

    asyncio.run(test())


def test_an_app_that_knows_no_lifespan_is_served_all_the_same(run):
    async def plain(scope, receive, send):
        assert scope["type"] == "http"
        await answer(send, scope["path"].encode())

    async def test(start):
        one, other = await start(plain), await start(plain)
        mark = (await one.ask()).mark
        assert (await other.ask(path="/there", cookie=mark)).body == b"/there"

    run(test)


def test_what_is_wrong_is_told_at_once_outside_of_a_server_and_at_startup_inside():
    with pytest.raises(ConfigError, match="slots is the number of workers that keys are spread over"):
        StickyWorkers(Memory(), slots=3)

    async def test():
        app = StickyWorkers(Memory(), slots=3)
        told = []

        async def startup():
            return {"type": "lifespan.startup"}

        async def tell(message):
            told.append(message)

        with pytest.raises(ConfigError):
            await app({"type": "lifespan", "asgi": {"version": "3.0"}}, startup, tell)
        assert told[0]["type"] == "lifespan.startup.failed"
        assert "slots is the number" in told[0]["message"]
        with pytest.raises(ConfigError):
            await Client().ask(app)

    asyncio.run(test())


def test_trio_is_refused_with_a_reason(folder):
    app = StickyWorkers(Memory(), name="family", directory=folder / "run", secret=SECRET)

    async def test():
        with pytest.raises(ConfigError, match="needs asyncio"):
            await Client().ask(app)

    trio.run(test)


def test_a_directory_that_others_can_enter_is_refused(folder):
    (folder / "run").mkdir(mode=0o755)
    os.chmod(folder / "run", 0o755)
    app = StickyWorkers(Memory(), name="family", directory=folder / "run", secret=SECRET)

    async def test():
        with pytest.raises(ConfigError, match="only this user can enter"):
            await Client().ask(app)
        said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        told: asyncio.Queue[Any] = asyncio.Queue()
        said.put_nowait({"type": "lifespan.startup"})
        with pytest.raises(ConfigError, match="only this user can enter"):
            await app({"type": "lifespan", "asgi": {"version": "3.0"}}, said.get, told.put)
        failed = told.get_nowait()
        assert (failed["type"], "only this user" in failed["message"]) == ("lifespan.startup.failed", True)

    asyncio.run(test())


class Sessions(Memory):
    """Gives out a session's name in a header, as MCP does, and knows only its own."""

    def __init__(self):
        super().__init__()
        self.sessions: list[bytes] = []

    async def serve(self, scope, receive, send):
        names = [value for name, value in scope["headers"] if name == b"mcp-session-id"]
        if names:
            return await answer(send, b"known", status=200 if names[0] in self.sessions else 404)
        name = b"session-%d-%d" % (id(self), len(self.sessions))
        self.sessions.append(name)
        await answer(send, b"new", headers=[(b"mcp-session-id", name)])


def given(client):
    return next(value for name, value in client.answers[0]["headers"] if name == b"mcp-session-id")


def test_a_key_that_a_worker_gives_out_is_known_to_all_who_ask(run):
    async def test(start):
        seen: list[Any] = []
        workers = [await start(Sessions(), log=seen.append) for _ in range(3)]
        names = [given(await worker.ask()) for worker in workers]
        for name in names:
            for worker in workers:
                for _ in range(2):  # once asked, once known
                    client = await worker.ask(headers=[(b"mcp-session-id", name)])
                    assert (client.status, client.cookies) == (200, [])
        assert {(each.claim.name, each.reason.value) for each in seen[3:]} == {("VALID", "server is usable")}

    run(test, key="hdr(Mcp-Session-Id)", cookie=None)


def test_a_key_given_out_by_an_app_behind_a_hand_over_is_known_there(run):
    async def test(start):
        one, other, third = await start(Sessions()), await start(), await start()
        mark = (await one.ask()).mark
        name = given(await other.ask(cookie=mark))
        other.kill()  # who has seen it as well
        assert (await third.ask(headers=[(b"mcp-session-id", name)])).status == 200

    run(test, key="hdr(Mcp-Session-Id)")


def test_a_key_that_nobody_knows_belongs_to_who_meets_it_first(run):
    async def test(start):
        workers = [await start() for _ in range(3)]
        for number in range(9):
            home = workers[number % 3]
            for worker in (home, *workers):
                await worker.ask(path=f"/rooms/{number}")
            assert [scope["path"] for scope in home.inner.scopes[-4:]] == [f"/rooms/{number}"] * 4

    run(test, key="/rooms/{id}")


def test_who_meets_a_key_at_the_same_time_agrees_on_whose_it_is(run):
    async def test(start):
        workers = [await start() for _ in range(3)]
        for number in range(20):
            path = f"/rooms/{number}"
            await asyncio.gather(*(worker.ask(path=path) for worker in workers for _ in range(2)))
            homes = [each for each in workers if any(scope["path"] == path for scope in each.inner.scopes)]
            assert len(homes) == 1

    run(test, key="/rooms/{id}")


def test_the_keys_of_a_worker_that_has_died_are_bound_anew_and_together(run):
    async def test(start):
        seen: list[Any] = []
        one, other, third = await start(), await start(log=seen.append), await start(log=seen.append)
        for room in range(6):
            for worker in (one, other, third):
                await worker.ask(path=f"/rooms/{room}")
        assert len(one.inner.scopes) == 18
        one.kill()
        seen.clear()
        for room in range(6):
            for worker in (other, third, other):
                await worker.ask(path=f"/rooms/{room}")
            path = f"/rooms/{room}"
            homes = [each for each in (other, third) if any(scope["path"] == path for scope in each.inner.scopes)]
            assert len(homes) == 1
        assert [each.reason.value for each in seen].count("other instance") == 6

    run(test, key="/rooms/{id}", cookie=None)


def test_a_key_counts_rather_than_the_cookie(run):
    async def test(start):
        one, other = await start(), await start()
        mark = (await one.ask()).mark
        client = await other.ask(path="/rooms/1", cookie=mark)
        assert (client.body, client.cookies) == (b"1", [])
        await one.ask(path="/rooms/1", cookie=mark)
        assert [scope["path"] for scope in other.inner.scopes] == ["/rooms/1"] * 2
        assert (await other.ask(cookie=mark)).body == b"2"

    run(test, key="/rooms/{id}")


def test_a_child_that_a_worker_forks_keeps_no_door_of_its_open(run):
    async def test(start):
        one, other = await start(), await start()
        mark = (await one.ask()).mark
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)  # until the parent lets it go
            os._exit(0)
        os.close(reading)
        try:
            one.kill()
            assert (await other.ask(cookie=mark)).body == b"1"
            one.backend.slot.release()
            one.app._worker = None
            assert (await start()).backend.own_server.name == "w1"
        finally:
            os.close(writing)
            assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222 - it is on its way out

    run(test)


def test_a_directory_that_is_tidied_up_costs_nobody_a_request(run):
    async def test(start):
        one, other = await start(), await start()
        mark = (await one.ask()).mark
        assert (await other.ask(cookie=mark)).body == b"2"
        path = other.backend.slots.path
        path.rename(path.with_name("elsewhere"))
        assert (await other.ask(cookie=f"theme=light; {mark}")).body == b"3"
        path.with_name("elsewhere").rename(path)

    run(test)
