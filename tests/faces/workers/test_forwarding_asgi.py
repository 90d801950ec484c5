"""A request that is forwarded to the worker of its client looks there as if it had been accepted there, and so does the
response to the client. Several workers run in one process and on one event loop here; `tests/conformance` has them
under real servers.
"""

import asyncio
from typing import Any

import pytest

from sticky_asgi import decision
from sticky_asgi.workers.link import WINDOW
from sticky_core.server.counters import Total
from sticky_core.workers.transaction import RemoteAppError
from tests.faces.workers.asgi import (
    CountingApp,
    FakeClient,
    WebSocketApp,
    respond,
    scope,
    websocket,
)

CLOSE = "websocket.close"


def test_client_is_served_by_the_worker_that_has_its_session_whichever_accepts_its_request(run):
    async def test(start):
        seen: list[Any] = []
        one, other = await start(), await start(log=seen.append)
        first = await one.request()
        assert (first.body, first.mark[:13]) == (b"1", "STICKYWORKER_")
        again = await other.request(cookie=f"theme=dark; {first.mark}")
        assert (again.body, again.cookies) == (b"2", [])
        assert other.inner.scopes == []
        assert [str(each) for each in seen] == [
            'server=w1; claim=VALID; attempts=w1; mark=NONE; why="w1: server is usable"'
        ]
        assert str(decision(one.inner.scopes[1])) == str(seen[0])
        assert decision(one.inner.scopes[1]).status == 200
        assert (one.backend.own_server.total, len(one.backend.own_server.in_flight)) == (2, 0)

    run(test)


def test_scope_is_forwarded_except_what_works_only_in_its_own_process(run):
    async def test(start):
        one, other = await start(), await start()
        mark = (await one.request()).mark
        original = {
            "path": "/a b/é",
            "raw_path": b"/a%20b/%C3%A9",
            "query_string": b"x=%FF&y",
            "root_path": "/root",
            "http_version": "1.0",
            "method": "DELETE",
            "client": ("2001:db8::1", 0),
            "server": ("/run/app.sock", None),
            "state": {"from": "a middleware", "socket": object()},
            "app": object(),
            "extensions": {
                "http.response.trailers": {},
                "http.response.zerocopysend": {},
                "another": {"key": object()},
            },
        }
        raw = [(b"x-raw", b"\xff\x80 \x01"), (b"x-raw", b"")]
        await other.request(headers=raw, cookie=mark, **original)
        (seen,) = one.inner.scopes[1:]
        assert seen.pop("sticky").server == "w1"
        assert seen.pop("state") == {"memory": one.inner, "from": "a middleware"}
        assert seen["headers"] == [(b"host", b"example.org"), *raw]
        local = {"state", "app", "extensions"}
        assert {name: seen[name] for name in original if name not in local} == {
            name: value for name, value in original.items() if name not in local
        }
        assert seen["extensions"] == {"http.response.trailers": {}}
        assert set(seen) == set(scope(**original)) - {"state", "app"}

    run(test)


def test_two_concurrent_requests_have_a_connection_each_and_a_third_reuses_one(run):
    class MeetingApp(CountingApp):
        met: asyncio.Event

        async def serve(self, scope, receive, send):
            if len(self.scopes) == 3:
                self.met.set()
            if len(self.scopes) > 1:
                await self.met.wait()
            await respond(send, b"met")

    async def test(start):
        app = MeetingApp()
        app.met = asyncio.Event()
        one, other = await start(app), await start()
        mark = (await one.request()).mark
        both = await asyncio.gather(other.request(cookie=mark), other.request(cookie=mark))
        assert [client.body for client in both] == [b"met", b"met"]
        assert (await other.request(cookie=mark)).body == b"met"
        assert len(one.app._worker.connections) == 2

    run(test)


class EchoApp(CountingApp):
    """Responds with the body of the request, piece by piece."""

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
def test_body_is_forwarded_and_returned_whole(run, pieces):
    async def test(start):
        one, other = await start(EchoApp()), await start()
        mark = (await one.request()).mark
        messages = [
            {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
            for number, piece in enumerate(pieces, 1)
        ]
        client = await other.request(
            *messages, method="POST", headers=[(b"transfer-encoding", b"chunked")], cookie=mark
        )
        assert (client.status, client.sent[0]["headers"]) == (201, [(b"x", b"y")])
        assert client.body == b"".join(pieces)
        assert [message.get("more_body", False) for message in client.sent[1:]].count(False) == 1

    run(test)


def test_slow_client_slows_the_app_down(run):
    class StreamingApp(CountingApp):
        sent = 0

        async def serve(self, scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(400 if len(self.scopes) > 1 else 1):
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                self.sent += 65536
            await send({"type": "http.response.body"})

    async def test(start):
        app = StreamingApp()
        one, other = await start(app), await start()
        first = FakeClient()
        await first.request(one.app)
        client = FakeClient(cookie=first.mark)
        client.reads.clear()
        requesting = asyncio.ensure_future(client.request(other.app))
        sent = -1
        while sent != app.sent:  # until the app does not go on
            sent = app.sent
            for _ in range(50):
                await asyncio.sleep(0.001)
        assert 0 < app.sent < 400 * 65536 / 4
        client.reads.set()
        await requesting
        assert len(client.body) == 400 * 65536

    run(test)


def test_app_that_does_not_read_slows_the_client_down(run):
    class NotReadingApp(CountingApp):
        may_read: asyncio.Event

        async def serve(self, scope, receive, send):
            if len(self.scopes) > 1:
                await self.may_read.wait()
            await respond(send)

    async def test(start):
        app = NotReadingApp()
        app.may_read = asyncio.Event()
        one, other = await start(app), await start()
        mark = (await one.request()).mark
        messages = [{"type": "http.request", "body": b"x" * 65536, "more_body": True}] * 400
        client = FakeClient(*messages, method="POST", headers=[(b"content-length", b"99999999")], cookie=mark)
        requesting = asyncio.ensure_future(client.request(other.app))
        calls = -1
        while calls != client.receive_calls or calls < 2:
            calls = client.receive_calls
            for _ in range(50):
                await asyncio.sleep(0.001)
        assert calls * 65536 < WINDOW * 8
        app.may_read.set()
        await requesting
        assert client.status == 200
        # the unread rest is dropped, and the connection carries the next request
        assert (await other.request(cookie=mark)).status == 200
        assert len(one.app._worker.connections) == 1

    run(test)


def test_client_that_expects_100_continue_is_read_only_when_the_app_reads(run):
    class DecidingApp(CountingApp):
        reached: asyncio.Event
        decided: asyncio.Event

        async def serve(self, scope, receive, send):
            if len(self.scopes) > 1:
                self.reached.set()
                await self.decided.wait()
                self.received_messages = await receive()
            await respond(send)

    async def test(start):
        app = DecidingApp()
        app.reached, app.decided = asyncio.Event(), asyncio.Event()
        one, other = await start(app), await start()
        mark = (await one.request()).mark
        expects = [(b"expect", b"100-continue"), (b"content-length", b"2")]
        message = {"type": "http.request", "body": b"ok", "more_body": False}
        client = FakeClient(message, method="POST", headers=expects, cookie=mark)
        requesting = asyncio.ensure_future(client.request(other.app))
        await app.reached.wait()
        assert client.receive_calls == 0
        app.decided.set()
        await requesting
        assert app.received_messages == message

    run(test)


def test_app_receives_the_disconnect_of_the_client(run):
    class WaitingApp(CountingApp):
        async def serve(self, scope, receive, send):
            if len(self.scopes) > 1:
                self.received_messages = [await receive(), await receive()]
                await send({"type": "http.response.start", "status": 200, "headers": []})
            else:
                await respond(send)

    async def test(start):
        app = WaitingApp()
        one, other = await start(app), await start()
        mark = (await one.request()).mark
        empty = {"type": "http.request", "body": b"", "more_body": False}
        client = FakeClient(empty, {"type": "http.disconnect"}, cookie=mark)
        await client.request(other.app)  # servers do not log either what they have raised in the app themselves
        assert app.received_messages == [empty, {"type": "http.disconnect"}]
        assert client.sent == []
        # the app has raised because of the disconnect: at neither worker is that an error
        serving, accepting = one.app.workers.own_server, other.app.workers.servers[0]
        for server in (serving, accepting):
            counters = server.counters
            assert (counters[Total.CLI_ABRT], counters[Total.ERESP]) == (1, 0)

    run(test)


def test_app_that_has_responded_receives_a_disconnect(run):
    class LateReader(CountingApp):
        async def serve(self, scope, receive, send):
            await receive()
            await respond(send, b"ok")
            self.received_messages = await receive()

    async def test(start):
        app = LateReader()
        one, other = await start(app), await start()
        first = FakeClient({"type": "http.request", "body": b""}, {"type": "http.disconnect"})
        await first.request(one.app)
        await other.request(cookie=first.mark)
        assert app.received_messages == {"type": "http.disconnect"}

    run(test)


def test_exception_of_the_app_is_raised_in_the_worker_that_accepted_the_request(run):
    class FailingApp(CountingApp):
        async def serve(self, scope, receive, send):
            if scope["path"] == "/boom":
                raise KeyError("what is missing")
            await respond(send)

    async def test(start):
        one, other = await start(FailingApp()), await start()
        mark = (await one.request()).mark
        with pytest.raises(RemoteAppError, match="KeyError: 'what is missing'"):
            await other.request(path="/boom", cookie=mark)
        assert (await other.request(cookie=mark)).status == 200
        assert len(one.app._worker.connections) == 1

    run(test)


def test_messages_of_extensions_are_forwarded(run):
    class TrailersApp(CountingApp):
        async def serve(self, scope, receive, send):
            if len(self.scopes) > 1:
                await send({"type": "http.response.early_hint", "links": [b"</style.css>"]})
            await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
            await send({"type": "http.response.body", "body": b"ok"})
            await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})

    async def test(start):
        one, other = await start(TrailersApp()), await start()
        mark = (await one.request()).mark
        client = await other.request(cookie=mark)
        kinds = [message["type"].rpartition(".")[2] for message in client.sent]
        assert kinds == ["early_hint", "start", "body", "trailers"]
        assert [tuple(pair) for pair in client.sent[3]["headers"]] == [(b"x-sum", b"1")]

    run(test)


def test_websocket_is_forwarded_with_all_its_messages(run):
    async def test(start):
        one, other = await start(WebSocketApp()), await start()
        mark = (await one.request()).mark
        large = "x" * 3_000_000
        client = websocket(
            {"type": "websocket.receive", "text": large},
            {"type": "websocket.receive", "bytes": b"\xff\x00"},
            {"type": "websocket.receive", "text": "bye"},
            cookie=mark,
        )
        await client.request(other.app)
        accepted, first, second, closed = client.sent
        assert (accepted["type"], accepted["subprotocol"]) == ("websocket.accept", "chat")
        assert (first["text"], second["bytes"]) == (large, b"\xff\x00")
        assert closed == {"type": "websocket.close", "code": 4000, "reason": "said so"}

    run(test)


@pytest.mark.parametrize("size", [35_000_000, 4 * 1024 * 1024, 4 * 1024 * 1024 + 1], ids=["35 MB", "one part", "two"])
def test_websocket_message_of_any_length_is_forwarded_in_both_directions(run, size):
    async def test(start):
        one, other = await start(WebSocketApp()), await start()
        mark = (await one.request()).mark
        binary, text = b"\x00\xff" * (size // 2) + b"." * (size % 2), "é" * size
        client = websocket(
            {"type": "websocket.receive", "bytes": binary},
            {"type": "websocket.receive", "text": text},
            {"type": "websocket.receive", "text": "short"},
            {"type": "websocket.receive", "text": "bye"},
            cookie=mark,
        )
        await client.request(other.app)
        assert [message["type"] for message in client.sent] == ["websocket.accept", *["websocket.send"] * 3, CLOSE]
        received = [message.get("bytes") or message.get("text") for message in client.sent[1:4]]
        assert [each == sent for each, sent in zip(received, (binary, text, "short"), strict=True)] == [True] * 3
        assert (await other.request(cookie=mark)).status == 200  # the next request is not disturbed

    run(test)


def test_code_and_reason_of_a_websocket_client_reach_the_app(run):
    async def test(start):
        app = WebSocketApp()
        one, other = await start(app), await start()
        mark = (await one.request()).mark
        disconnect = {"type": "websocket.disconnect", "code": 4001, "reason": "enough"}
        await websocket(disconnect, cookie=mark).request(other.app)
        assert app.received_messages == [{"type": "websocket.connect"}, disconnect]

    run(test)


def test_websocket_may_be_denied_with_a_response(run):
    async def test(start):
        one, other = await start(WebSocketApp()), await start()
        mark = (await one.request()).mark
        client = websocket(path="/deny", cookie=mark, extensions={"websocket.http.response": {}})
        await client.request(other.app)
        assert (client.status, client.body) == (403, b"no")

    run(test)
