"""Apps that do not keep to ASGI: handed over, the client, the app and the log get what they get in the app's own
worker, and the next request on the same connection is not disturbed.
"""

import asyncio

import pytest

from sticky_core.server.counters import Total
from sticky_core.workers.transaction import RemoteAppError
from tests.faces.workers.asgi import CountingApp, FakeClient, respond, websocket

HEAD = {"type": "http.response.start", "status": 200, "headers": []}
LAST = {"type": "http.response.body", "body": b"ok"}
PIECE = {**LAST, "more_body": True}
ACCEPT, CLOSE = {"type": "websocket.accept"}, {"type": "websocket.close", "code": 4001}
SEND = {"type": "websocket.send", "text": "hi"}


class SendingApp(CountingApp):
    """Sends these messages to each client but the first, and keeps the exceptions that that raises; then raises the
    last of them, if `raises`.
    """

    def __init__(self, *messages, raises=False):
        super().__init__()
        self.messages = messages
        self.raises = raises
        self.errors: list[Exception] = []
        self.later: list[asyncio.Task[None]] = []

    async def serve(self, scope, receive, send):
        if len(self.scopes) == 1:
            return await respond(send)
        if scope["type"] == "websocket":
            await receive()
        for message in self.messages:
            try:
                await send(message)
            except Exception as error:
                self.errors.append(error)
        if self.raises:
            raise self.errors[-1]


@pytest.mark.parametrize(
    "messages, sent, refused",
    [
        pytest.param([HEAD, LAST, LAST, HEAD], 2, 2, id="after the final body"),
        pytest.param([HEAD, HEAD, LAST], 2, 1, id="two heads"),
        pytest.param([HEAD, PIECE, HEAD, LAST], 3, 1, id="a head between pieces"),
        pytest.param([LAST, HEAD, LAST], 2, 1, id="a body before the head"),
        pytest.param([{**HEAD, "headers": [(b"a", object())]}], 0, 1, id="an object in a header"),
    ],
)
def test_message_that_servers_refuse_raises_in_the_app_and_is_not_sent(run, messages, sent, refused):
    async def test(start):
        app = SendingApp(*messages)
        one, other = await start(app), await start()
        mark = (await one.request()).mark
        client = await other.request(cookie=mark)
        assert [type(error) for error in app.errors] in ([RuntimeError] * refused, [TypeError] * refused)
        assert len(client.sent) == sent

    run(test)


@pytest.mark.parametrize(
    "messages, sent, refused",
    [
        pytest.param([ACCEPT, ACCEPT, CLOSE], 2, 1, id="accepted twice"),
        pytest.param([SEND, ACCEPT, CLOSE], 2, 1, id="a message before it is accepted"),
        pytest.param([ACCEPT, CLOSE, SEND, CLOSE], 4, 0, id="after it is closed, which is left to the server"),
    ],
)
def test_websocket_message_that_servers_refuse_raises_in_the_app_and_is_not_sent(run, messages, sent, refused):
    async def test(start):
        app = SendingApp(*messages)
        one, other = await start(app), await start()
        mark = (await one.request()).mark
        client = await websocket(cookie=mark).request(other.app)
        assert [type(error) for error in app.errors] == [RuntimeError] * refused
        assert len(client.sent) == sent

    run(test)


def test_exception_for_a_message_out_of_order_reaches_the_server_if_the_app_does_not_catch_it(run):
    async def test(start):
        one, other = await start(SendingApp(HEAD, LAST, LAST, raises=True)), await start()
        mark = (await one.request()).mark
        client = FakeClient(cookie=mark)
        with pytest.raises(RemoteAppError, match="unexpected ASGI message"):
            await client.request(other.app)
        assert client.body == b"ok"

    run(test)


def test_keys_that_servers_do_not_know_are_left_out_if_they_can_not_be_sent(run):
    async def test(start):
        app = SendingApp({**HEAD, "x": object()}, {**LAST, "y": {object()}, "z": 1})
        one, other = await start(app), await start()
        client = await other.request(cookie=(await one.request()).mark)
        assert (client.status, client.body, app.errors) == (200, b"ok", [])
        assert (await other.request(cookie=(await one.request()).mark)).status == 200

    run(test)


@pytest.mark.parametrize("by_peer", [False, True], ids=["by this worker", "handed over"])
def test_task_that_goes_on_after_the_end_of_its_request_sends_nothing_into_the_next(run, by_peer):
    class LateApp(CountingApp):
        """The second request is begun; then the first, which has ended, goes on in a task."""

        async def serve(self, scope, receive, send):
            if scope["path"] == "/first":
                self.late = receive, send
                return await respond(send, b"first")
            if scope["path"] == "/second":
                receive_late, send_late = self.late
                for message in (LAST, HEAD):
                    with pytest.raises(OSError, match="the request has ended"):
                        await send_late(message)
                if by_peer:
                    assert (await receive_late())["type"] == "http.disconnect"
            await respond(send, b"second")

    async def test(start):
        one, other = await start(LateApp()), await start()
        mark = (await one.request()).mark
        worker = other if by_peer else one
        assert (await worker.request(path="/first", cookie=mark)).body == b"first"
        assert (await worker.request(path="/second", cookie=mark)).body == b"second"
        assert len(one.app._worker.connections) == by_peer

    run(test)


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), KeyboardInterrupt()], ids=repr)
def test_whatever_the_app_raises_is_raised_in_the_worker_that_accepted_the_request_and_ends_no_worker(run, error):
    class RaisingApp(CountingApp):
        async def serve(self, scope, receive, send):
            if scope["path"] == "/raise":
                raise error
            await respond(send, b"still here")

    async def test(start):
        one, other = await start(RaisingApp()), await start()
        mark = (await one.request()).mark
        with pytest.raises(RemoteAppError, match=type(error).__name__):
            await other.request(path="/raise", cookie=mark)
        assert (await other.request(cookie=mark)).body == b"still here"

    run(test)


@pytest.mark.parametrize("message", [SEND, CLOSE], ids=["a message", "a close"])
def test_app_that_sends_to_a_client_that_has_closed_its_websocket_causes_no_error_in_the_log(run, message):
    """A server raises an OSError of its own for the message, and does not log it; it ignores the close."""

    class ClosingApp(CountingApp):
        error = None

        async def serve(self, scope, receive, send):
            if scope["type"] == "http":
                return await respond(send)
            await receive()
            await send(ACCEPT)
            await receive()
            try:
                await send(message)
            except Exception as error:
                self.error = error
                raise

    async def test(start):
        app = ClosingApp()
        one, other = await start(app), await start()
        mark = (await one.request()).mark
        client = websocket(cookie=mark)
        requesting = asyncio.ensure_future(client.request(other.app))
        await client.until(lambda sent: len(sent) == 1)
        client.messages.put_nowait({"type": "websocket.disconnect", "code": 1000, "reason": ""})
        await requesting
        assert [each["type"] for each in client.sent] == ["websocket.accept"]
        assert isinstance(app.error, OSError) is (message is SEND)
        assert one.app.workers.own_server.counters[Total.ERESP] == 0

    run(test)
