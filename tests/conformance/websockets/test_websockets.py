"""WebSockets through a gateway, byte by byte: every known mistake of proxies, on real servers.

What a server makes impossible is named where it is left out. Granian sends none of the headers of an accept, passes
its apps a client's code but not the reason, and nothing of a client that disconnects before the accept; its worker
ends with a denial that has two headers of one name. Hypercorn passes its apps 1006 however a client has closed, and
reads the last Sec-WebSocket-Protocol only.
"""

import base64
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from sticky_asgi import Backend, Cookie, Server, Timeouts
from sticky_core.server.counters import Total
from tests.conformance.websockets.conftest import until

APPS = Path(__file__).parents[1] / "apps"
MB = 1 << 20

#: What an origin may receive of a client that disconnects without a close: nothing, or a suitable close. Never 1005
#: or 1006 (RFC 6455, 7.4.1).
CLOSE_OF_A_LOST_CLIENT = (None, (None, ""), (1000, ""), (1001, ""), (1011, ""))


# The handshake.


def test_handshake_is_forwarded_as_the_client_sent_it(gateway, origin):
    gateway.request_websocket(
        "/ws/r%2Ff/%7Ee;v=1?x=%20&y=a+b&y",
        ("Cookie", 'theme=dark; quoted="a b"'),
        ("Authorization", "Bearer t.o.k.e.n"),
        ("Origin", "https://app.example"),
        ("X-Twice", "one"),
        ("X-Twice", "two"),
    )
    request = origin.next_connection().request
    assert request.line == "GET /ws/r%2Ff/%7Ee;v=1?x=%20&y=a+b&y HTTP/1.1"
    assert request.values("host") == [f"127.0.0.1:{gateway.port}"]
    assert request.values("cookie") == ['theme=dark; quoted="a b"']
    assert request.values("authorization") == ["Bearer t.o.k.e.n"]
    assert request.values("origin") == ["https://app.example"]
    assert request.values("x-twice") == ["one", "two"]


def test_handshake_is_http_1_1_and_offers_no_extension(gateway, origin):
    gateway.request_websocket("/ws", ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"))
    request = origin.next_connection().request
    assert [value.lower() for value in request.values("upgrade")] == ["websocket"]
    assert [value.lower() for value in request.values("connection")] == ["upgrade"]
    assert request.values("sec-websocket-version") == ["13"]
    (key,) = request.values("sec-websocket-key")
    assert len(base64.b64decode(key, validate=True)) == 16
    for name in ("sec-websocket-extensions", "sec-websocket-protocol", "content-length", "transfer-encoding"):
        assert request.values(name) == []


def test_hop_by_hop_headers_are_not_forwarded(gateway, origin):
    gateway.request_websocket(
        "/ws",
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers"),
        ("X-End-To-End", "1"),
        connection="Upgrade, X-Hop",
    )
    request = origin.next_connection().request
    for name in ("x-hop", "keep-alive", "proxy-connection", "te"):
        assert request.values(name) == []
    assert request.values("proxy-authorization") == ["Basic eDp5"]
    assert request.values("x-end-to-end") == ["1"]


def test_origin_receives_address_and_scheme_of_the_client(gateway, origin):
    gateway.request_websocket("/ws", ("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-Proto", "https"))
    request = origin.next_connection().request
    assert request.values("x-forwarded-for") == ["127.0.0.1"]  # the client is not trusted
    assert request.values("x-forwarded-proto") == [
        "http"
    ]  # as HAProxy and nginx have it: a WebSocket begins with a GET
    assert request.values("x-forwarded-host") == [f"127.0.0.1:{gateway.port}"]


@pytest.mark.parametrize(
    "sent, forwarded",
    [
        (["a=1; SERVERID=s1; b=2"], ["a=1; b=2"]),
        (["SERVERID=s1"], []),
        (["SERVERID=s9; a=1"], ["a=1"]),
        (["a=1", "SERVERID=s1", "b=2"], ["a=1", "b=2"]),
    ],
    ids=["among others", "alone", "of an unknown server", "in a header of its own"],
)
def test_session_cookie_is_removed_and_others_are_unchanged(gateway, origin, sent, forwarded):
    gateway.request_websocket("/ws", *(("Cookie", value) for value in sent))
    assert origin.next_connection().request.values("cookie") == forwarded


def test_accept_has_the_origins_headers_and_the_mark(gateway, origin):
    if gateway.server == "granian":
        pytest.skip("granian sends none of the headers of an accept")
    client = gateway.request_websocket("/ws")
    expires = "app=1; expires=Thu, 01 Jan 2099 00:00:00 GMT; path=/"
    origin.next_connection().accept(
        ("Set-Cookie", expires), ("Set-Cookie", "lang=de"), ("X-Node", "7"), ("Keep-Alive", "timeout=5")
    )
    head = client.head()
    assert head.status == 101
    cookies = head.values("set-cookie")
    assert cookies[:2] == [expires, "lang=de"]
    assert [cookie.partition(";")[0] for cookie in cookies[2:]] == ["SERVERID=s1"]
    assert head.values("x-node") == ["7"]
    assert head.values("keep-alive") == []
    for name in ("sec-websocket-accept", "upgrade", "connection"):
        assert len(head.values(name)) == 1
    assert head.values("sec-websocket-accept") == ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]


def test_bound_client_gets_no_mark(gateway, origin):
    client = gateway.request_websocket("/ws", ("Cookie", "SERVERID=s1"))
    origin.next_connection().accept()
    head = client.head()
    assert (head.status, head.values("set-cookie")) == (101, [])


@pytest.mark.parametrize(
    "offered, chosen",
    [
        (["chat, superchat"], "superchat"),
        (["chat", "superchat"], "chat"),
        (["chat, superchat"], None),
        ([], None),
    ],
    ids=["the second", "the first of two lines", "none of those offered", "none if none was offered"],
)
def test_origin_chooses_the_subprotocol(gateway, origin, offered, chosen):
    if gateway.server == "hypercorn" and len(offered) > 1:
        pytest.skip("hypercorn reads the last Sec-WebSocket-Protocol only")
    client = gateway.request_websocket("/ws", *(("Sec-WebSocket-Protocol", value) for value in offered))
    upstream = origin.next_connection()
    arrived = ",".join(upstream.request.values("sec-websocket-protocol"))
    assert [name.strip() for name in arrived.split(",") if name] == (["chat", "superchat"] if offered else [])
    upstream.accept(*([("Sec-WebSocket-Protocol", chosen)] if chosen else []))
    head = client.head()
    assert (head.status, head.values("sec-websocket-protocol")) == (101, [chosen] if chosen else [])


def test_client_is_accepted_after_the_origin_has_accepted(gateway, origin):
    client = gateway.request_websocket("/ws")
    upstream = origin.next_connection()
    assert gateway.counts()["in_flight"] == 1  # the gateway has had time to accept
    assert client.is_quiet()
    upstream.accept()
    assert client.head().status == 101


def test_101_in_pieces_with_frames_after_it_is_read_to_the_last_byte(gateway, origin):
    client = gateway.request_websocket("/ws")
    upstream = origin.next_connection()
    whole = upstream.accepting() + upstream.frame("text", "first") + upstream.frame("binary", b"second")
    assert len(whole) > 100
    for at in range(0, 40, 7):
        upstream.send(whole[at : at + 7])
    upstream.send(whole[42:])
    assert client.head().status == 101
    assert client.read_message() == ("text", b"first")
    assert client.read_message() == ("binary", b"second")


@pytest.mark.parametrize("informed", ["103 Early Hints", "100 Continue"])
def test_interim_response_is_not_taken_for_the_final_one(gateway, origin, informed):
    client = gateway.request_websocket("/ws")
    upstream = origin.next_connection()
    upstream.send(f"HTTP/1.1 {informed}\r\nLink: </a.css>; rel=preload\r\n\r\n".encode())
    upstream.accept()
    upstream.send_frame("text", "here")
    assert client.head().status == 101
    assert client.read_message() == ("text", b"here")


def test_base_path_is_prepended(gateway, origin):
    client = gateway.request_websocket("/base/x%20y?q=1")
    upstream = origin.next_connection()
    assert upstream.request.line == "GET /app/base/x%20y?q=1 HTTP/1.1"
    upstream.accept()
    assert client.head().status == 101


def test_origin_at_a_unix_socket_works(gateway, origins):
    client = gateway.request_websocket("/local")
    upstream = origins.local.next_connection()
    upstream.accept()
    assert client.head().status == 101
    client.send_frame("text", "tea")
    assert upstream.read_message() == ("text", b"tea")
    upstream.send_frame("text", "cup")
    assert client.read_message() == ("text", b"cup")


# Messages.

MESSAGES = {
    "text": ("text", b"tea"),
    "empty text": ("text", b""),
    "empty bytes": ("binary", b""),
    "text beyond ASCII": ("text", "Käse 🧀 \x00".encode()),
    "bytes": ("binary", bytes(range(256))),
    "125 bytes": ("binary", b"x" * 125),
    "126 bytes": ("binary", b"x" * 126),
    "65 535 bytes": ("text", b"x" * 65535),
    "65 536 bytes": ("text", b"x" * 65536),
    "1 MB of bytes": ("binary", bytes(range(256)) * 4096),
    "1 MB of text": ("text", "Käse ".encode() * 174762),
}


@pytest.mark.parametrize("kind, payload", list(MESSAGES.values()), ids=list(MESSAGES))
def test_message_arrives_unchanged(connected, kind, payload):
    client, upstream = connected()
    upstream.send_frame(kind, payload)
    assert client.read_message() == (kind, payload)
    client.send_frame(kind, payload)
    assert upstream.read_message() == (kind, payload)


def test_messages_sent_at_once_arrive_one_by_one_and_in_order(connected):
    client, upstream = connected()
    messages = [("text", b"%d" % number) if number % 3 else ("binary", b"") for number in range(200)]
    upstream.send(b"".join(upstream.frame(kind, payload) for kind, payload in messages))
    assert [client.read_message() for _ in messages] == messages
    client.send(b"".join(client.frame(kind, payload) for kind, payload in messages))
    assert [upstream.read_message() for _ in messages] == messages


def test_message_in_fragments_arrives_whole(connected):
    client, upstream = connected()
    for sender, receiver in ((upstream, client), (client, upstream)):
        cheese = "Käse".encode()
        sender.send_frame("text", cheese[:2], more=True)  # in the middle of the ä
        sender.send_frame("continuation", b"", more=True)
        sender.send_frame("continuation", cheese[2:])
        assert receiver.read_message() == ("text", cheese)
        sender.send_frame("binary", b"", more=True)
        sender.send_frame("continuation", b"\xff" * 70000)
        assert receiver.read_message() == ("binary", b"\xff" * 70000)


def test_ping_of_the_origin_gets_a_pong_with_its_payload(connected):
    client, upstream = connected()
    for payload in (b"", b"are you there?", bytes(range(125))):
        upstream.send_frame("ping", payload)
        assert upstream.read_message() == ("pong", payload)
    upstream.send_frame("pong", b"without a ping")
    upstream.send_frame("text", "tea")
    assert client.read_message() == ("text", b"tea")  # pings and pongs belong to one connection


def test_ping_between_two_fragments_gets_a_pong_at_once(connected):
    client, upstream = connected()
    upstream.send_frame("text", "one ", more=True)
    upstream.send_frame("ping", b"now")
    assert upstream.read_message() == ("pong", b"now")
    upstream.send_frame("continuation", "message")
    assert client.read_message() == ("text", b"one message")


# Closes.

CLOSES = {
    "1000": (1000, ""),
    "1000 and a reason": (1000, "done"),
    "1001": (1001, "going away"),
    "1003": (1003, ""),
    "1008": (1008, "not you"),
    "1011": (1011, ""),
    "1012": (1012, "restarting"),
    "3000": (3000, ""),
    "4001 and a reason": (4001, "the cup is empty"),
    "the longest reason": (4999, "é" * 61),
}


@pytest.mark.parametrize("code, reason", list(CLOSES.values()), ids=list(CLOSES))
def test_client_receives_the_origins_code_and_reason(connected, code, reason):
    client, upstream = connected()
    upstream.close(code, reason)
    assert client.read_close() == (code, reason)
    assert upstream.read_close()[0] == code
    client.close(code)
    assert client.has_ended()
    assert upstream.has_ended()


@pytest.mark.parametrize("code, reason", list(CLOSES.values()), ids=list(CLOSES))
def test_origin_receives_the_clients_code_and_reason(gateway, connected, code, reason):
    if gateway.server == "hypercorn":
        pytest.skip("hypercorn passes 1006 to its apps, however a client has closed")
    client, upstream = connected()
    client.close(code, reason)
    # granian passes its apps the code, but not the reason
    assert upstream.read_close() == (code, "" if gateway.server == "granian" else reason)
    upstream.close(code)
    assert upstream.has_ended()
    assert client.read_close()[0] == code
    assert client.has_ended()


@pytest.fixture
def drained(gateway):
    """Return a function that drains the servers behind a path, for the duration of a test."""
    paths = []

    def drain(path):
        paths.append(path)
        return gateway.drain(path)

    yield drain
    for path in paths:
        gateway.drain(path, "ready")


def test_websocket_is_closed_with_1012_when_its_server_has_drained(gateway, connected, drained):
    client, upstream = connected()
    assert drained("/ws") == [], "the WebSocket is open"
    assert client.read_close() == (1012, "server has drained")
    assert upstream.read_close()[0] == 1012
    upstream.close(1012)
    client.close(1012)
    assert client.has_ended()
    assert upstream.has_ended()
    until(lambda: gateway.drain("/ws", "look") == ["s1"], "a server that has drained")


def test_websocket_of_a_replica_is_closed_with_1012_when_that_has_drained(gateway, drained):
    client = gateway.request_websocket("/replica")
    assert client.head().status == 101
    client.send_frame("text", b"hello")
    assert client.read_message() == ("text", b"hello")
    assert drained("/replica") == [], "the WebSocket is open"
    assert client.read_close() == (1012, "server has drained")
    client.close(1012)
    assert client.has_ended()
    until(lambda: gateway.drain("/replica", "look") == ["r1"], "a replica that has drained")


def test_close_of_the_origin_without_a_code_carries_no_1005(connected):
    client, upstream = connected()
    upstream.close()
    assert client.read_close()[0] in (None, 1000)  # ASGI requires a code
    assert upstream.read_close()[0] in (None, 1000)
    client.close()
    assert client.has_ended()
    assert upstream.has_ended()


def test_close_of_the_client_without_a_code_carries_no_1005(gateway, connected):
    client, upstream = connected()
    client.close()
    if gateway.server in ("hypercorn", "granian"):  # which report it as they report a client that is lost
        assert upstream.complete_close() in CLOSE_OF_A_LOST_CLIENT
    else:
        assert upstream.read_close() == (None, "")
        upstream.close()
        assert upstream.has_ended()


def test_origin_may_send_until_it_has_received_the_close(gateway, connected):
    if gateway.server == "hypercorn":
        pytest.skip("hypercorn passes 1006 to its apps, however a client has closed")
    client, upstream = connected()
    client.close(1000)
    upstream.send(upstream.frame("text", "one more") * 100)
    assert upstream.read_close() == (1000, "")
    upstream.close(1000)
    assert upstream.has_ended()


def drop(upstream) -> None:
    upstream.close_socket()


def reset(upstream) -> None:
    upstream.reset_socket()


def drop_in_a_frame(upstream) -> None:
    upstream.send(upstream.frame("text", "half of it")[:-4])
    upstream.close_socket()


def drop_in_a_message(upstream) -> None:
    upstream.send_frame("text", "half of it", more=True)
    upstream.close_socket()


@pytest.mark.parametrize("fail", [drop, reset, drop_in_a_frame, drop_in_a_message])
def test_origin_that_disconnects_without_a_close_is_a_1011(connected, fail):
    client, upstream = connected()
    upstream.send_frame("text", "tea")
    assert client.read_message() == ("text", b"tea")
    fail(upstream)
    assert client.read_close()[0] == 1011
    client.close(1011)
    assert client.has_ended()


def test_killed_origin_is_a_1011(gateway, origins):
    origins.first.close_connections()
    with subprocess.Popen([sys.executable, APPS / "silent_websocket.py"], stdin=origins.listeners[0]) as process:
        client = gateway.request_websocket("/ws")
        assert client.head().status == 101
        assert client.read_message() == ("text", b"hello")
        process.kill()
        assert client.read_close()[0] == 1011


BROKEN = {
    "a masked frame": b"\x81\x83abcd\x15\x07\x02",
    "a reserved bit": b"\xc1\x03tea",
    "a reserved opcode": b"\x83\x03tea",
    "a continuation without a first frame": b"\x80\x03tea",
    "a message within a message": b"\x01\x03tea\x81\x03cup",
    "text that is not UTF-8": b"\x81\x02\xff\xfe",
    "a ping in fragments": b"\x09\x03tea",
    "a ping of 126 bytes": b"\x89\x7e\x00\x7e" + b"x" * 126,
    "a close of one byte": b"\x88\x01\x03",
    "a close with 1005": b"\x88\x02\x03\xed",
    "a close with 1006": b"\x88\x02\x03\xee",
    "a close with 999": b"\x88\x02\x03\xe7",
    "a close with a reason that is not UTF-8": b"\x88\x04\x03\xe8\xff\xfe",
    "a frame of 2^63 bytes": b"\x82\x7f\x80\x00\x00\x00\x00\x00\x00\x00",
}


@pytest.mark.parametrize("frames", list(BROKEN.values()), ids=list(BROKEN))
def test_protocol_error_of_the_origin_closes_it_and_is_a_1011(connected, frames):
    client, upstream = connected()
    upstream.send(frames)
    assert client.read_close()[0] == 1011
    client.close(1011)
    assert client.has_ended()
    assert upstream.has_ended()


def test_frames_behind_a_close_of_the_origin_are_ignored(connected):
    client, upstream = connected()
    tea, late = upstream.frame("text", "tea"), upstream.frame("text", "late") + upstream.frame("ping", "late")
    upstream.send(tea + b"\x88\x02\x03\xe8" + late)
    assert client.read_message() == ("text", b"tea")
    assert client.read_close()[0] == 1000
    assert upstream.read_close()[0] == 1000
    with suppress(OSError):  # the connection may be closed already
        upstream.send(late)
    client.close(1000)
    assert client.has_ended()


def test_ping_of_an_origin_that_has_received_the_close_does_no_harm(gateway, connected):
    if gateway.server in ("hypercorn", "granian"):
        pytest.skip("hypercorn passes 1006 to its apps, however a client has closed, and granian a code only")
    client, upstream = connected()
    client.close(4001)
    assert upstream.read_close()[0] == 4001
    upstream.send_frame("ping", "still here")
    upstream.close(4001)
    assert upstream.has_ended()
    assert client.read_close()[0] == 4001


# Disconnects.


def test_client_that_sends_before_the_accept_keeps_no_slot(gateway, origin):
    client = gateway.request_websocket("/ws")
    client.send_frame("text", "early")
    upstream = origin.next_connection()
    if gateway.server == "hypercorn":
        assert client.head().status == 400  # and no app gets a disconnect
    upstream.accept()
    client.close_socket()
    upstream.rest()
    until(lambda: gateway.counts()["in_flight"] == 0, "a free slot")


@pytest.mark.parametrize("disconnect", ["close_socket", "reset_socket"], ids=["closes", "resets"])
def test_client_that_disconnects_without_a_close_ends_the_origins_connection(connected, disconnect):
    client, upstream = connected()
    client.send_frame("text", "tea")
    assert upstream.read_message() == ("text", b"tea")
    getattr(client, disconnect)()
    assert upstream.complete_close() is None


@pytest.mark.parametrize("disconnect", ["close_socket", "reset_socket"], ids=["closes", "resets"])
def test_client_that_disconnects_before_the_response_ends_the_origins_connection(gateway, origin, disconnect):
    client = gateway.request_websocket("/ws")
    upstream = origin.next_connection()
    getattr(client, disconnect)()
    if gateway.server == "granian":  # reports it to its apps only after they accept
        upstream.accept()
    assert upstream.complete_close() is None


def test_client_that_disconnects_while_the_origin_sends_ends_the_origins_connection(connected):
    client, upstream = connected()
    upstream.send_frame("text", "x" * 70000)
    assert client.read(2) == b"\x81\x7f"
    client.reset_socket()
    with pytest.raises(OSError):
        upstream.send_frames_for_ever("text", "x" * 70000)


# Denials.

DENIALS = {
    "403 with a page": ("403 Forbidden", b"<h1>not you</h1>", ("Content-Type", "text/html")),
    "401 with a challenge": ("401 Unauthorized", b"", ("WWW-Authenticate", 'Basic realm="tea"')),
    "404 with JSON": ("404 Not Found", b'{"detail":"Not Found"}', ("Content-Type", "application/json")),
    "302 elsewhere": ("302 Found", b"", ("Location", "https://login.example/?next=%2Fws")),
    "426": ("426 Upgrade Required", b"version 14, please", ("Sec-WebSocket-Version", "14")),
    "429": ("429 Too Many Requests", b"slowly", ("Retry-After", "120")),
    "500": ("500 Internal Server Error", b"oops", ("X-Why", "7")),
    "503": ("503 Service Unavailable", b"later", ("Retry-After", "5")),
    "64 KB": ("403 Forbidden", b"no! " * 16384, ("Content-Type", "text/plain")),
}


@pytest.mark.parametrize("status, body, header", list(DENIALS.values()), ids=list(DENIALS))
def test_denial_arrives_with_status_body_headers_and_mark(gateway, origin, status, body, header):
    client = gateway.request_websocket("/ws")
    cookies = [] if gateway.server == "granian" else ["app=1", "lang=de"]  # two of one name end granian's worker
    origin.next_connection().deny(status, body, header, *(("Set-Cookie", cookie) for cookie in cookies))
    head = client.head()
    assert head.status == int(status[:3])
    assert head.values(header[0].lower()) == [header[1]]
    assert [cookie.partition(";")[0] for cookie in head.values("set-cookie")] == [*cookies, "SERVERID=s1"]
    assert client.body(head) == body
    assert origin.has_no_connection()


def test_denial_in_chunks_arrives_with_its_body(gateway, origin):
    client = gateway.request_websocket("/ws")
    upstream = origin.next_connection()
    upstream.send(b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nnot \r\n3\r\nyou\r\n0\r\n\r\n")
    head = client.head()
    assert head.status == 403
    assert client.body(head) == b"not you"


def test_denial_that_ends_with_its_connection_arrives_with_its_body(gateway, origin):
    client = gateway.request_websocket("/ws")
    upstream = origin.next_connection()
    upstream.send(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\nnot you")
    upstream.close_socket()
    head = client.head()
    assert head.status == 403
    assert client.body(head) == b"not you"


# Failures and retries.


def test_refusing_server_is_retried_at_another_before_the_accept(gateway, origins):
    client = gateway.request_websocket("/failover")
    upstream = origins.second.next_connection()
    upstream.accept()
    head = client.head()
    assert head.status == 101
    if gateway.server != "granian":  # sends none of the headers of an accept
        assert [cookie.partition(";")[0] for cookie in head.values("set-cookie")] == ["SERVERID=s2"]
    client.send_frame("text", "tea")
    assert upstream.read_message() == ("text", b"tea")


def test_client_of_a_refusing_server_gets_the_new_mark_with_its_denial(gateway, origins):
    client = gateway.request_websocket("/failover", ("Cookie", "SERVERID=s1"))
    origins.second.next_connection().deny("403 Forbidden", b"not you")
    head = client.head()
    assert head.status == 403
    assert [cookie.partition(";")[0] for cookie in head.values("set-cookie")] == ["SERVERID=s2"]


def test_two_refusing_servers_give_a_denial(gateway):
    client = gateway.request_websocket("/dead")
    head = client.head()
    assert (head.status, head.values("set-cookie")) == (503, [])
    assert client.body(head) != b""


def without(name: str, instead: str = ""):
    def accept_with(upstream) -> bytes:
        lines: list[bytes] = upstream.accepting().split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith(name.encode())]
        return b"\r\n".join(kept[:1] + ([instead.encode()] if instead else []) + kept[1:])

    return accept_with


BAD_RESPONSES = {
    "an accept of another key": without("sec-websocket-accept", "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    "no accept": without("sec-websocket-accept"),
    "no Upgrade": without("upgrade"),
    "an Upgrade to something else": without("upgrade", "Upgrade: h2c"),
    "no Connection": without("connection"),
    "a subprotocol that was not offered": lambda upstream: upstream.accepting(("Sec-WebSocket-Protocol", "chess")),
    "an extension that was not offered": lambda upstream: upstream.accepting(
        ("Sec-WebSocket-Extensions", "permessage-deflate")
    ),
    "a 200": lambda upstream: b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    "a 204": lambda upstream: b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    "garbage": lambda upstream: b"\x00\x01\x02\xff garbage \r\n\r\n",
    "another protocol": lambda upstream: b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "half a head": lambda upstream: upstream.accepting()[:40],
    "nothing": lambda upstream: b"",
}


@pytest.mark.parametrize("bad", list(BAD_RESPONSES.values()), ids=list(BAD_RESPONSES))
def test_invalid_response_gives_a_denial_with_502(gateway, origin, bad):
    client = gateway.request_websocket("/ws", ("Sec-WebSocket-Protocol", "chat"))
    upstream = origin.next_connection()
    upstream.send(bad(upstream))
    if bad in (BAD_RESPONSES["nothing"], BAD_RESPONSES["half a head"]):
        upstream.close_socket()
    else:
        assert upstream.has_ended()
    head = client.head()
    assert (head.status, head.values("set-cookie")) == (502, [])
    client.body(head)
    assert origin.has_no_connection()


@pytest.mark.parametrize("bad", list(BAD_RESPONSES.values()), ids=list(BAD_RESPONSES))
def test_invalid_response_is_retried_if_retry_on_names_it(gateway, origins, bad):
    client = gateway.request_websocket("/retried", ("Sec-WebSocket-Protocol", "chat"))
    first = origins.first.next_connection()
    first.send(bad(first))
    first.close_socket()
    second = origins.second.next_connection()
    second.accept(("Sec-WebSocket-Protocol", "chat"))
    second.send_frame("text", "tea")
    head = client.head()
    assert (head.status, head.values("sec-websocket-protocol")) == (101, ["chat"])
    assert client.read_message() == ("text", b"tea")


def test_status_in_retry_on_is_retried_and_its_response_is_discarded(gateway, origins):
    client = gateway.request_websocket("/retried")
    origins.first.next_connection().deny("503 Service Unavailable", b"later", ("Set-Cookie", "app=1"), ("X-Node", "1"))
    origins.second.next_connection().deny("403 Forbidden", b"not you", ("X-Node", "2"))
    head = client.head()
    assert (head.status, head.values("x-node")) == (403, ["2"])
    assert [cookie.partition(";")[0] for cookie in head.values("set-cookie")] == ["SERVERID=s2"]
    assert client.body(head) == b"not you"


def test_status_in_retry_on_is_forwarded_when_no_server_is_left(gateway, origins):
    client = gateway.request_websocket("/retried")
    origins.first.next_connection().deny("503 Service Unavailable", b"later", ("X-Node", "1"))
    origins.second.next_connection().deny("503 Service Unavailable", b"much later", ("X-Node", "2"))
    head = client.head()
    assert (head.status, head.values("x-node")) == (503, ["2"])
    assert client.body(head) == b"much later"


# Backpressure.

PIECE = 1 << 16
PIECES = 64 * MB // PIECE


def peak_memory(pid: int) -> int:
    """Return the peak of the resident memory of a process, in bytes."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_slow_client_slows_the_origin_down_and_loses_nothing(gateway, connected):
    client, upstream = connected(buffer=PIECE)
    before = gateway.counts()
    was = peak_memory(before["pid"])
    stream = upstream.frame("binary", b"x" * PIECE) * PIECES
    taken = upstream.send_until_blocked(stream)
    assert taken < len(stream)
    assert peak_memory(before["pid"]) - was < 20 * MB
    rest = threading.Thread(target=upstream.send, args=(memoryview(stream)[taken:],))
    rest.start()
    for _ in range(PIECES):
        assert client.read_message() == ("binary", b"x" * PIECE)
    rest.join()
    assert peak_memory(before["pid"]) - was < 20 * MB


def test_slow_origin_slows_the_client_down_and_loses_nothing(gateway, connected):
    client, upstream = connected()
    before = gateway.counts()
    was = peak_memory(before["pid"])
    stream = client.frame("binary", b"x" * PIECE) * PIECES
    taken = client.send_until_blocked(stream)
    assert taken < len(stream)
    assert peak_memory(before["pid"]) - was < 20 * MB
    rest = threading.Thread(target=client.send, args=(memoryview(stream)[taken:],))
    rest.start()
    for _ in range(PIECES):
        assert upstream.read_message() == ("binary", b"x" * PIECE)
    rest.join()
    assert peak_memory(before["pid"]) - was < 20 * MB


def test_slow_client_that_disconnects_ends_the_origins_connection(connected):
    client, upstream = connected(buffer=PIECE)
    stream = upstream.frame("binary", b"x" * PIECE) * PIECES
    assert upstream.send_until_blocked(stream) < len(stream)
    client.reset_socket()
    with pytest.raises(OSError):
        upstream.send_frames_for_ever("binary", b"x" * PIECE)


# Differences of servers: the app is called as one of them calls it.


@pytest.fixture
def backend(origins):
    cookie = Cookie("SERVERID", nocache=False, signed=False)
    return Backend("web", servers=[Server("s1", origins.address)], persist=cookie)


@pytest.fixture
def open_websocket(call, backend, origin):
    """An open WebSocket: the call of the app, and the origin's end."""
    conversation = call(backend)
    conversation.send_frame(type="websocket.connect")
    upstream = origin.next_connection()
    upstream.accept()
    assert conversation.read_message()["type"] == "websocket.accept"
    return conversation, upstream


def test_accept_has_only_headers_that_an_app_may_set(call, backend, origin):
    conversation = call(backend, subprotocols=["chat", "superchat"])
    conversation.send_frame(type="websocket.connect")
    upstream = origin.next_connection()
    assert upstream.request.values("sec-websocket-protocol") == ["chat, superchat"]
    assert upstream.request.values("x-forwarded-for") == ["192.0.2.1"]
    upstream.accept(("Sec-WebSocket-Protocol", "chat"), ("Date", "now"), ("Server", "origin"), ("X-Node", "7"))
    message = conversation.read_message()
    assert (message["type"], message["subprotocol"]) == ("websocket.accept", "chat")
    names = [name for name, _ in message["headers"]]
    assert names == [b"x-node", b"set-cookie"]


def test_accept_without_a_subprotocol_has_none(call, backend, origin):
    conversation = call(backend)
    conversation.send_frame(type="websocket.connect")
    upstream = origin.next_connection()
    assert upstream.request.values("sec-websocket-protocol") == []
    upstream.accept()
    assert conversation.read_message().get("subprotocol") is None


@pytest.mark.parametrize(
    "message, received",
    [
        ({"text": "tea", "bytes": None}, ("text", b"tea")),
        ({"text": None, "bytes": b"tea"}, ("binary", b"tea")),
        ({"text": "", "bytes": None}, ("text", b"")),
        ({"text": None, "bytes": b""}, ("binary", b"")),
        ({"text": "tea"}, ("text", b"tea")),
        ({"bytes": b"tea"}, ("binary", b"tea")),
        ({"bytes": bytearray(b"tea")}, ("binary", b"tea")),
    ],
    ids=[
        "text and None",
        "None and bytes",
        "empty text and None",
        "None and no bytes",
        "text alone",
        "bytes alone",
        "a bytearray",
    ],
)
def test_message_with_both_keys_is_the_one_that_is_not_none(open_websocket, message, received):
    conversation, upstream = open_websocket
    conversation.send_frame(type="websocket.receive", **message)
    assert upstream.read_message() == received


@pytest.mark.parametrize(
    "kind, payload, key, value",
    [
        ("text", b"", "text", ""),
        ("binary", b"", "bytes", b""),
        ("text", b"tea", "text", "tea"),
        ("binary", b"tea", "bytes", b"tea"),
    ],
    ids=["no text", "no bytes", "text", "bytes"],
)
def test_message_to_the_server_has_one_key_that_is_not_none(open_websocket, kind, payload, key, value):
    conversation, upstream = open_websocket
    upstream.send_frame(kind, payload)
    message_sent = conversation.read_message()
    assert message_sent["type"] == "websocket.send"
    assert {name: content for name, content in message_sent.items() if name != "type" and content is not None} == {
        key: value
    }
    assert type(message_sent[key]) is type(value)


@pytest.mark.parametrize(
    "message, received",
    [
        ({"code": 1000}, (1000, "")),
        ({"code": 4001, "reason": "the cup is empty"}, (4001, "the cup is empty")),
        ({"code": 1001, "reason": None}, (1001, "")),
        ({"code": 1005, "reason": ""}, (None, "")),
        ({"reason": ""}, (None, "")),
    ],
    ids=["a code", "a code and a reason", "a reason of None", "1005", "no code"],
)
def test_disconnect_is_forwarded_as_a_close(open_websocket, message, received):
    conversation, upstream = open_websocket
    conversation.send_frame(type="websocket.disconnect", **message)
    assert upstream.read_close() == received
    upstream.close()
    assert upstream.has_ended()
    assert conversation.has_ended() == []


@pytest.mark.parametrize("message", [{"code": 1006, "reason": ""}, {"code": 1005}, {}], ids=["1006", "1005", "no code"])
def test_loss_of_the_client_is_a_loss_to_the_upstream(open_websocket, message):
    conversation, upstream = open_websocket
    conversation.send_frame(type="websocket.disconnect", **message)
    assert upstream.complete_close() is None
    assert conversation.has_ended() == []


@pytest.mark.parametrize("code", [1004, 1006, 1015, 0, 999, 5000, None])
def test_disconnect_with_a_code_that_is_not_allowed_ends_the_connection_without_it(open_websocket, code):
    conversation, upstream = open_websocket
    conversation.send_frame(type="websocket.disconnect", code=code, reason="")
    assert upstream.complete_close() in CLOSE_OF_A_LOST_CLIENT
    assert conversation.has_ended() == []


def test_close_without_a_code_is_a_1000_to_the_server(open_websocket):
    conversation, upstream = open_websocket
    upstream.close()
    message_sent = conversation.read_message()
    assert (message_sent["type"], message_sent.get("code", 1000), message_sent.get("reason") or "") == (
        "websocket.close",
        1000,
        "",
    )
    assert conversation.has_ended() == []


@pytest.mark.parametrize("extensions", [{"extensions": {}}, {"extensions": None}, {"extensions": {"tls": {}}}])
def test_denial_to_a_server_without_that_extension_is_a_close(call, backend, origin, extensions):
    conversation = call(backend, **extensions)
    conversation.send_frame(type="websocket.connect")
    origin.next_connection().deny("403 Forbidden", b"not you")
    assert conversation.read_message()["type"] == "websocket.close"
    assert conversation.has_ended() == []


@pytest.mark.parametrize("response", ["a 200", "a 204"])
def test_handshake_at_a_path_without_a_websocket_takes_no_server_down(call, origins, origin, response):
    web = Backend("web", servers=[Server("s1", origins.address, max_fails=1)])
    conversation = call(web)
    conversation.send_frame(type="websocket.connect")
    upstream = origin.next_connection()
    upstream.send(BAD_RESPONSES[response](upstream))
    assert conversation.read_message()["type"] == "websocket.close"
    assert conversation.has_ended() == []
    server = web["s1"]
    assert (server.status, server.counters[Total.ERESP], len(server.in_flight)) == ("UP", 0, 0)


def test_idle_websocket_ends_after_the_tunnel_timeout(call, origins, origin):
    quiet = Backend("web", servers=[Server("s1", origins.address)], timeouts=Timeouts(tunnel=0.3))
    conversation = call(quiet)
    conversation.send_frame(type="websocket.connect")
    upstream = origin.next_connection()
    upstream.accept()
    assert conversation.read_message()["type"] == "websocket.accept"
    assert conversation.read_message()["type"] == "websocket.close"
    assert upstream.complete_close() in CLOSE_OF_A_LOST_CLIENT
    assert conversation.has_ended() == []


def test_client_that_disconnects_before_the_response_gets_no_message(call, backend, origin):
    conversation = call(backend)
    conversation.send_frame(type="websocket.connect")
    upstream = origin.next_connection()
    conversation.send_frame(type="websocket.disconnect", code=1006)
    assert upstream.rest() == b""
    assert conversation.has_ended() == []
