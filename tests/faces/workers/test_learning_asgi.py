"""Keys in the bodies of responses over ASGI: the worker knows a key before the client does, and passes on what the app
sends as it is.
"""

import pytest

from sticky_core.samples import response as res
from tests.faces.workers.asgi import CountingApp, FakeClient, respond

LEARN = {"key": "url_param(session_id)", "learn": res.sse_endpoint("session_id")}
STREAM = [b": hello\n\n", b"event: endpoint\r\nda", b"ta: /m?session_id=abc\r\n\r\n", b"data: 1\n\n", b""]


class StreamingApp(CountingApp):
    """Sends STREAM piece by piece."""

    async def serve(self, scope, receive, send):
        headers = iter([(b"Content-Type", b"text/event-stream")])  # once only; and servers accept upper case
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, piece in enumerate(STREAM, 1):
            await send({"type": "http.response.body", "body": piece, "more_body": number < len(STREAM)})


@pytest.mark.parametrize("by_peer", [False, True], ids=["by this worker", "handed over"])
def test_worker_that_serves_knows_the_key_when_the_client_receives_it(run, by_peer):
    async def test(start):
        one, other = await start(StreamingApp()), await start()
        (owner,) = {f"w1@{one.backend.own_server.instance}"}
        known = []

        class Client(FakeClient):
            async def send(self, message):
                known.append(one.backend.keys.last_owner("abc"))
                await super().send(message)

        mark = (await FakeClient().request(one.app)).mark if by_peer else ""
        one.backend.keys.table.clear()
        client = Client(cookie=mark)
        await client.request(other.app if by_peer else one.app)
        assert client.body == b"".join(STREAM)
        assert [bytes(message["body"]) for message in client.sent[1:]] == STREAM
        if not by_peer:  # handed over, the worker that serves may be ahead of the client
            assert known == [None] * 3 + [owner] * 3
        assert known[3] == owner

    run(test, **LEARN)


def test_messages_that_are_no_body_are_passed_on(run):
    class FileApp(CountingApp):
        async def serve(self, scope, receive, send):
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.pathsend", "path": "/a/file"})

    async def test(start):
        one = await start(FileApp())
        client = await one.request(extensions={"http.response.pathsend": {}})
        assert client.sent[1] == {"type": "http.response.pathsend", "path": "/a/file"}

    run(test, key="url_param(sid)", learn=res.json_field("sid"))


def test_app_gets_the_send_of_the_server_unless_there_is_something_to_learn(run):
    sends = []

    class App(CountingApp):
        async def serve(self, scope, receive, send):
            sends.append(type(send.__self__).__name__)
            await respond(send)

    async def test(start):
        learning, other = await start(App()), await start(App(), learn=None)
        await learning.request()
        await learning.request(query_string=b"session_id=mine")
        await other.request()
        assert [name == "LearningSend" for name in sends] == [True, False, False]

    run(test, **LEARN)
