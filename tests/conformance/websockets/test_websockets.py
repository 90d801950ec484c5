"""WebSockets through a gateway, by their bytes: every row of what proxies are known to get wrong, on real servers.

What a server makes impossible is named where it is left out. Granian sends none of the headers of an accept, tells its
apps a client's code but not the reason, nothing of a client that leaves before the accept, and its worker dies of a
denial with two headers of one name. Hypercorn tells its apps 1006 however a client has closed, and hears the last
Sec-WebSocket-Protocol only.
"""

import base64
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sticky_asgi import Backend, Cookie, Server, Timeouts

APPS = Path(__file__).parents[1] / "apps"
MB = 1 << 20

#: What an origin may hear of a client that is gone without a goodbye: nothing, or one that fits. Never 1005 or 1006
#: (RFC 6455, 7.4.1).
GONE = (None, (None, ""), (1000, ""), (1001, ""), (1011, ""))


# The handshake.


def test_the_handshake_goes_on_as_the_client_said_it(gateway, origin):
    gateway.knock(
        "/ws/r%2Ff/%7Ee;v=1?x=%20&y=a+b&y",
        ("Cookie", 'theme=dark; quoted="a b"'),
        ("Authorization", "Bearer t.o.k.e.n"),
        ("Origin", "https://app.example"),
        ("X-Twice", "one"),
        ("X-Twice", "two"),
    )
    request = origin.meet().request
    assert request.line == "GET /ws/r%2Ff/%7Ee;v=1?x=%20&y=a+b&y HTTP/1.1"
    assert request.values("host") == [f"127.0.0.1:{gateway.port}"]
    assert request.values("cookie") == ['theme=dark; quoted="a b"']
    assert request.values("authorization") == ["Bearer t.o.k.e.n"]
    assert request.values("origin") == ["https://app.example"]
    assert request.values("x-twice") == ["one", "two"]


def test_the_handshake_is_one_of_http_1_1_and_offers_no_extension(gateway, origin):
    gateway.knock("/ws", ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"))
    request = origin.meet().request
    assert [value.lower() for value in request.values("upgrade")] == ["websocket"]
    assert [value.lower() for value in request.values("connection")] == ["upgrade"]
    assert request.values("sec-websocket-version") == ["13"]
    (key,) = request.values("sec-websocket-key")
    assert len(base64.b64decode(key, validate=True)) == 16
    for name in ("sec-websocket-extensions", "sec-websocket-protocol", "content-length", "transfer-encoding"):
        assert request.values(name) == []


def test_what_concerns_one_connection_only_stays_behind(gateway, origin):
    gateway.knock(
        "/ws",
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers"),
        ("X-End-To-End", "1"),
        connection="Upgrade, X-Hop",
    )
    request = origin.meet().request
    for name in ("x-hop", "keep-alive", "proxy-authorization", "proxy-connection", "te"):
        assert request.values(name) == []
    assert request.values("x-end-to-end") == ["1"]


def test_the_origin_is_told_who_asked_and_how(gateway, origin):
    gateway.knock("/ws", ("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-Proto", "https"))
    request = origin.meet().request
    assert request.values("x-forwarded-for") == ["127.0.0.1"]  # nobody trusts the client
    assert request.values("x-forwarded-proto") == ["http"]  # as HAProxy and nginx say it: a WebSocket begins with a GET
    assert request.values("x-forwarded-host") == [f"127.0.0.1:{gateway.port}"]


@pytest.mark.parametrize(
    "sent, forwarded",
    [
        (["a=1; SERVERID=s1; b=2"], ["a=1; b=2"]),
        (["SERVERID=s1"], []),
        (["SERVERID=s9; a=1"], ["a=1"]),
        (["a=1", "SERVERID=s1", "b=2"], ["a=1", "b=2"]),
    ],
    ids=["among others", "alone", "of nobody", "in a header of its own"],
)
def test_our_cookie_is_stripped_and_the_others_are_left_as_they_are(gateway, origin, sent, forwarded):
    gateway.knock("/ws", *(("Cookie", value) for value in sent))
    assert origin.meet().request.values("cookie") == forwarded


def test_the_accept_carries_the_origins_headers_and_our_mark(gateway, origin):
    if gateway.server == "granian":
        pytest.skip("granian sends none of the headers of an accept")
    client = gateway.knock("/ws")
    expires = "app=1; expires=Thu, 01 Jan 2099 00:00:00 GMT; path=/"
    origin.meet().accept(
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


def test_a_bound_client_is_told_nothing_new(gateway, origin):
    client = gateway.knock("/ws", ("Cookie", "SERVERID=s1"))
    origin.meet().accept()
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
    ids=["the second", "the first of two lines", "none of those offered", "none where none was offered"],
)
def test_the_subprotocol_is_the_origins_choice(gateway, origin, offered, chosen):
    if gateway.server == "hypercorn" and len(offered) > 1:
        pytest.skip("hypercorn hears the last Sec-WebSocket-Protocol only")
    client = gateway.knock("/ws", *(("Sec-WebSocket-Protocol", value) for value in offered))
    upstream = origin.meet()
    arrived = ",".join(upstream.request.values("sec-websocket-protocol"))
    assert [name.strip() for name in arrived.split(",") if name] == (["chat", "superchat"] if offered else [])
    upstream.accept(*([("Sec-WebSocket-Protocol", chosen)] if chosen else []))
    head = client.head()
    assert (head.status, head.values("sec-websocket-protocol")) == (101, [chosen] if chosen else [])


def test_nothing_is_accepted_before_the_origin_has_accepted(gateway, origin):
    client = gateway.knock("/ws")
    upstream = origin.meet()
    assert gateway.look()["in_flight"] == 1  # the gateway has had its time
    assert client.is_quiet()
    upstream.accept()
    assert client.head().status == 101


def test_a_101_that_comes_in_pieces_with_frames_behind_it_is_read_to_the_last_byte(gateway, origin):
    client = gateway.knock("/ws")
    upstream = origin.meet()
    whole = upstream.accepting() + upstream.frame("text", "first") + upstream.frame("binary", b"second")
    assert len(whole) > 100
    for at in range(0, 40, 7):
        upstream.send(whole[at : at + 7])
    upstream.send(whole[42:])
    assert client.head().status == 101
    assert client.hear() == ("text", b"first")
    assert client.hear() == ("binary", b"second")


@pytest.mark.parametrize("informed", ["103 Early Hints", "100 Continue"])
def test_an_informational_answer_is_not_taken_for_the_answer(gateway, origin, informed):
    client = gateway.knock("/ws")
    upstream = origin.meet()
    upstream.send(f"HTTP/1.1 {informed}\r\nLink: </a.css>; rel=preload\r\n\r\n".encode())
    upstream.accept()
    upstream.tell("text", "here")
    assert client.head().status == 101
    assert client.hear() == ("text", b"here")


def test_a_base_path_goes_in_front(gateway, origin):
    client = gateway.knock("/base/x%20y?q=1")
    upstream = origin.meet()
    assert upstream.request.line == "GET /app/base/x%20y?q=1 HTTP/1.1"
    upstream.accept()
    assert client.head().status == 101


def test_an_origin_at_a_unix_socket_talks_as_any_other(gateway, origins):
    client = gateway.knock("/local")
    upstream = origins.local.meet()
    upstream.accept()
    assert client.head().status == 101
    client.tell("text", "tea")
    assert upstream.hear() == ("text", b"tea")
    upstream.tell("text", "cup")
    assert client.hear() == ("text", b"cup")


# Messages.

MESSAGES = {
    "text": ("text", b"tea"),
    "no text": ("text", b""),
    "no bytes": ("binary", b""),
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
def test_a_message_arrives_as_what_it_was(connected, kind, payload):
    client, upstream = connected()
    upstream.tell(kind, payload)
    assert client.hear() == (kind, payload)
    client.tell(kind, payload)
    assert upstream.hear() == (kind, payload)


def test_messages_that_come_at_once_arrive_one_by_one_and_in_order(connected):
    client, upstream = connected()
    messages = [("text", b"%d" % number) if number % 3 else ("binary", b"") for number in range(200)]
    upstream.send(b"".join(upstream.frame(kind, payload) for kind, payload in messages))
    assert [client.hear() for _ in messages] == messages
    client.send(b"".join(client.frame(kind, payload) for kind, payload in messages))
    assert [upstream.hear() for _ in messages] == messages


def test_a_message_in_fragments_arrives_whole(connected):
    client, upstream = connected()
    for teller, hearer in ((upstream, client), (client, upstream)):
        cheese = "Käse".encode()
        teller.tell("text", cheese[:2], more=True)  # in the middle of the ä
        teller.tell("continuation", b"", more=True)
        teller.tell("continuation", cheese[2:])
        assert hearer.hear() == ("text", cheese)
        teller.tell("binary", b"", more=True)
        teller.tell("continuation", b"\xff" * 70000)
        assert hearer.hear() == ("binary", b"\xff" * 70000)


def test_a_ping_of_the_origin_is_answered_with_what_it_carried(connected):
    client, upstream = connected()
    for payload in (b"", b"are you there?", bytes(range(125))):
        upstream.tell("ping", payload)
        assert upstream.hear() == ("pong", payload)
    upstream.tell("pong", b"that nobody asked for")
    upstream.tell("text", "tea")
    assert client.hear() == ("text", b"tea")  # pings and pongs are between two neighbours


def test_a_ping_between_two_fragments_is_answered_at_once(connected):
    client, upstream = connected()
    upstream.tell("text", "one ", more=True)
    upstream.tell("ping", b"now")
    assert upstream.hear() == ("pong", b"now")
    upstream.tell("continuation", "message")
    assert client.hear() == ("text", b"one message")


# Goodbyes.

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
def test_the_client_hears_the_origins_code_and_reason(connected, code, reason):
    client, upstream = connected()
    upstream.close(code, reason)
    assert client.hear_close() == (code, reason)
    assert upstream.hear_close()[0] == code
    client.close(code)
    assert client.ends()
    assert upstream.ends()


@pytest.mark.parametrize("code, reason", list(CLOSES.values()), ids=list(CLOSES))
def test_the_origin_hears_the_clients_code_and_reason(gateway, connected, code, reason):
    if gateway.server == "hypercorn":
        pytest.skip("hypercorn tells its apps 1006 however a client has closed")
    client, upstream = connected()
    client.close(code, reason)
    # granian tells its apps the code, but not the reason
    assert upstream.hear_close() == (code, "" if gateway.server == "granian" else reason)
    upstream.close(code)
    assert upstream.ends()
    assert client.hear_close()[0] == code
    assert client.ends()


def test_a_goodbye_of_the_origin_without_a_code_carries_no_1005(connected):
    client, upstream = connected()
    upstream.close()
    assert client.hear_close()[0] in (None, 1000)  # ASGI has no way to say nothing
    assert upstream.hear_close()[0] in (None, 1000)
    client.close()
    assert client.ends()
    assert upstream.ends()


def test_a_goodbye_of_the_client_without_a_code_carries_no_1005(gateway, connected):
    client, upstream = connected()
    client.close()
    if gateway.server == "hypercorn":  # tells its apps of a client that is gone without a goodbye
        assert upstream.leave() in GONE
    else:
        assert upstream.hear_close() == (None, "")
        upstream.close()
        assert upstream.ends()


def test_the_origin_may_go_on_talking_until_it_has_heard_the_goodbye(gateway, connected):
    if gateway.server == "hypercorn":
        pytest.skip("hypercorn tells its apps 1006 however a client has closed")
    client, upstream = connected()
    client.close(1000)
    upstream.send(upstream.frame("text", "one more") * 100)
    assert upstream.hear_close() == (1000, "")
    upstream.close(1000)
    assert upstream.ends()


def drop(upstream) -> None:
    upstream.hang_up()


def reset(upstream) -> None:
    upstream.vanish()


def drop_in_a_frame(upstream) -> None:
    upstream.send(upstream.frame("text", "half of it")[:-4])
    upstream.hang_up()


def drop_in_a_message(upstream) -> None:
    upstream.tell("text", "half of it", more=True)
    upstream.hang_up()


@pytest.mark.parametrize("die", [drop, reset, drop_in_a_frame, drop_in_a_message])
def test_an_origin_that_is_gone_without_a_goodbye_is_a_1011(connected, die):
    client, upstream = connected()
    upstream.tell("text", "tea")
    assert client.hear() == ("text", b"tea")
    die(upstream)
    assert client.hear_close()[0] == 1011
    client.close(1011)
    assert client.ends()


def test_an_origin_whose_process_is_killed_is_a_1011(gateway, origins):
    origins.first.forget()
    with subprocess.Popen([sys.executable, APPS / "silent_websocket.py"], stdin=origins.listeners[0]) as process:
        client = gateway.knock("/ws")
        assert client.head().status == 101
        assert client.hear() == ("text", b"hello")
        process.kill()
        assert client.hear_close()[0] == 1011


BROKEN = {
    "a masked frame": b"\x81\x83abcd\x15\x07\x02",
    "a reserved bit": b"\xc1\x03tea",
    "a reserved opcode": b"\x83\x03tea",
    "a continuation of nothing": b"\x80\x03tea",
    "a message within a message": b"\x01\x03tea\x81\x03cup",
    "text that is none": b"\x81\x02\xff\xfe",
    "a ping in fragments": b"\x09\x03tea",
    "a ping of 126 bytes": b"\x89\x7e\x00\x7e" + b"x" * 126,
    "a goodbye of one byte": b"\x88\x01\x03",
    "a goodbye with 1005": b"\x88\x02\x03\xed",
    "a goodbye with 1006": b"\x88\x02\x03\xee",
    "a goodbye with 999": b"\x88\x02\x03\xe7",
    "a goodbye whose reason is no text": b"\x88\x04\x03\xe8\xff\xfe",
    "a frame of 2^63 bytes": b"\x82\x7f\x80\x00\x00\x00\x00\x00\x00\x00",
}


@pytest.mark.parametrize("frames", list(BROKEN.values()), ids=list(BROKEN))
def test_an_origin_that_breaks_the_protocol_is_left_and_the_client_told_1011(connected, frames):
    client, upstream = connected()
    upstream.send(frames)
    assert client.hear_close()[0] == 1011
    client.close(1011)
    assert client.ends()
    assert upstream.ends()


# Those who leave.


@pytest.mark.parametrize("leave", ["hang_up", "vanish"], ids=["hangs up", "resets"])
def test_a_client_that_leaves_without_a_goodbye_ends_the_origins_connection(connected, leave):
    client, upstream = connected()
    client.tell("text", "tea")
    assert upstream.hear() == ("text", b"tea")
    getattr(client, leave)()
    assert upstream.leave() in GONE  # uvicorn takes it for a goodbye without a code


@pytest.mark.parametrize("leave", ["hang_up", "vanish"], ids=["hangs up", "resets"])
def test_a_client_that_leaves_before_the_answer_ends_the_origins_connection(gateway, origin, leave):
    client = gateway.knock("/ws")
    upstream = origin.meet()
    getattr(client, leave)()
    if gateway.server == "granian":  # tells its apps nothing of it before they accept
        upstream.accept()
    assert upstream.leave() in GONE


def test_a_client_that_leaves_while_the_origin_talks_ends_the_origins_connection(connected):
    client, upstream = connected()
    upstream.tell("text", "x" * 70000)
    assert client.read(2) == b"\x81\x7f"
    client.vanish()
    with pytest.raises(OSError):
        upstream.talk("text", "x" * 70000)


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
def test_a_denial_arrives_with_its_status_its_body_its_headers_and_our_mark(gateway, origin, status, body, header):
    client = gateway.knock("/ws")
    cookies = [] if gateway.server == "granian" else ["app=1", "lang=de"]  # two of one name kill granian's worker
    origin.meet().deny(status, body, header, *(("Set-Cookie", cookie) for cookie in cookies))
    head = client.head()
    assert head.status == int(status[:3])
    assert head.values(header[0].lower()) == [header[1]]
    assert [cookie.partition(";")[0] for cookie in head.values("set-cookie")] == [*cookies, "SERVERID=s1"]
    assert client.body(head) == body
    assert origin.is_alone()


def test_a_denial_in_chunks_arrives_with_its_body(gateway, origin):
    client = gateway.knock("/ws")
    upstream = origin.meet()
    upstream.send(b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nnot \r\n3\r\nyou\r\n0\r\n\r\n")
    head = client.head()
    assert head.status == 403
    assert client.body(head) == b"not you"


def test_a_denial_that_the_end_of_the_connection_ends_arrives_with_its_body(gateway, origin):
    client = gateway.knock("/ws")
    upstream = origin.meet()
    upstream.send(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\nnot you")
    upstream.hang_up()
    head = client.head()
    assert head.status == 403
    assert client.body(head) == b"not you"


# Those who fail, and those who step in.


def test_a_dead_server_gives_way_to_one_that_lives_before_anything_is_accepted(gateway, origins):
    client = gateway.knock("/failover")
    upstream = origins.second.meet()
    upstream.accept()
    head = client.head()
    assert head.status == 101
    if gateway.server != "granian":  # sends none of the headers of an accept
        assert [cookie.partition(";")[0] for cookie in head.values("set-cookie")] == ["SERVERID=s2"]
    client.tell("text", "tea")
    assert upstream.hear() == ("text", b"tea")


def test_a_client_of_a_dead_server_is_told_the_new_one_with_its_denial(gateway, origins):
    client = gateway.knock("/failover", ("Cookie", "SERVERID=s1"))
    origins.second.meet().deny("403 Forbidden", b"not you")
    head = client.head()
    assert head.status == 403
    assert [cookie.partition(";")[0] for cookie in head.values("set-cookie")] == ["SERVERID=s2"]


def test_two_dead_servers_are_a_denial(gateway):
    client = gateway.knock("/dead")
    head = client.head()
    assert (head.status, head.values("set-cookie")) == (503, [])
    assert client.body(head) != b""


def without(name: str, instead: str = ""):
    def tampered(upstream) -> bytes:
        lines: list[bytes] = upstream.accepting().split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith(name.encode())]
        return b"\r\n".join(kept[:1] + ([instead.encode()] if instead else []) + kept[1:])

    return tampered


BAD_ANSWERS = {
    "an accept of another key": without("sec-websocket-accept", "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    "no accept": without("sec-websocket-accept"),
    "no Upgrade": without("upgrade"),
    "an Upgrade to something else": without("upgrade", "Upgrade: h2c"),
    "no Connection": without("connection"),
    "a subprotocol nobody offered": lambda upstream: upstream.accepting(("Sec-WebSocket-Protocol", "chess")),
    "an extension nobody offered": lambda upstream: upstream.accepting(
        ("Sec-WebSocket-Extensions", "permessage-deflate")
    ),
    "a 200": lambda upstream: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "a 204": lambda upstream: b"HTTP/1.1 204 No Content\r\n\r\n",
    "garbage": lambda upstream: b"\x00\x01\x02\xff garbage \r\n\r\n",
    "another protocol": lambda upstream: b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "half a head": lambda upstream: upstream.accepting()[:40],
    "nothing": lambda upstream: b"",
}


@pytest.mark.parametrize("bad", list(BAD_ANSWERS.values()), ids=list(BAD_ANSWERS))
def test_an_answer_that_is_none_is_a_denial_with_502(gateway, origin, bad):
    client = gateway.knock("/ws", ("Sec-WebSocket-Protocol", "chat"))
    upstream = origin.meet()
    upstream.send(bad(upstream))
    if bad in (BAD_ANSWERS["nothing"], BAD_ANSWERS["half a head"]):
        upstream.hang_up()
    else:
        assert upstream.ends()
    head = client.head()
    assert (head.status, head.values("set-cookie")) == (502, [])
    client.body(head)
    assert origin.is_alone()


@pytest.mark.parametrize("bad", list(BAD_ANSWERS.values()), ids=list(BAD_ANSWERS))
def test_an_answer_that_is_none_gives_way_to_another_server_where_that_is_asked_for(gateway, origins, bad):
    client = gateway.knock("/retried", ("Sec-WebSocket-Protocol", "chat"))
    first = origins.first.meet()
    first.send(bad(first))
    first.hang_up()
    second = origins.second.meet()
    second.accept(("Sec-WebSocket-Protocol", "chat"))
    second.tell("text", "tea")
    head = client.head()
    assert (head.status, head.values("sec-websocket-protocol")) == (101, ["chat"])
    assert client.hear() == ("text", b"tea")


def test_a_status_to_be_retried_gives_way_to_another_server_and_leaves_nothing_behind(gateway, origins):
    client = gateway.knock("/retried")
    origins.first.meet().deny("503 Service Unavailable", b"later", ("Set-Cookie", "app=1"), ("X-Node", "1"))
    origins.second.meet().deny("403 Forbidden", b"not you", ("X-Node", "2"))
    head = client.head()
    assert (head.status, head.values("x-node")) == (403, ["2"])
    assert [cookie.partition(";")[0] for cookie in head.values("set-cookie")] == ["SERVERID=s2"]
    assert client.body(head) == b"not you"


def test_a_status_to_be_retried_is_told_when_nobody_is_left_to_ask(gateway, origins):
    client = gateway.knock("/retried")
    origins.first.meet().deny("503 Service Unavailable", b"later", ("X-Node", "1"))
    origins.second.meet().deny("503 Service Unavailable", b"much later", ("X-Node", "2"))
    head = client.head()
    assert (head.status, head.values("x-node")) == (503, ["2"])
    assert client.body(head) == b"much later"


# Those who do not read.

PIECE = 1 << 16
PIECES = 64 * MB // PIECE


def peak(pid: int) -> int:
    """The most memory that a process has ever had resident, in bytes."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_a_client_that_does_not_read_holds_the_origin_back_and_loses_nothing(gateway, connected):
    client, upstream = connected(buffer=PIECE)
    before = gateway.look()
    was = peak(before["pid"])
    stream = upstream.frame("binary", b"x" * PIECE) * PIECES
    taken = upstream.press(stream)
    assert taken < len(stream)
    assert peak(before["pid"]) - was < 20 * MB
    rest = threading.Thread(target=upstream.send, args=(memoryview(stream)[taken:],))
    rest.start()
    for _ in range(PIECES):
        assert client.hear() == ("binary", b"x" * PIECE)
    rest.join()
    assert peak(before["pid"]) - was < 20 * MB


def test_an_origin_that_does_not_read_holds_the_client_back_and_loses_nothing(gateway, connected):
    client, upstream = connected()
    before = gateway.look()
    was = peak(before["pid"])
    stream = client.frame("binary", b"x" * PIECE) * PIECES
    taken = client.press(stream)
    assert taken < len(stream)
    assert peak(before["pid"]) - was < 20 * MB
    rest = threading.Thread(target=client.send, args=(memoryview(stream)[taken:],))
    rest.start()
    for _ in range(PIECES):
        assert upstream.hear() == ("binary", b"x" * PIECE)
    rest.join()
    assert peak(before["pid"]) - was < 20 * MB


def test_a_client_that_does_not_read_and_leaves_ends_the_origins_connection(connected):
    client, upstream = connected(buffer=PIECE)
    stream = upstream.frame("binary", b"x" * PIECE) * PIECES
    assert upstream.press(stream) < len(stream)
    client.vanish()
    with pytest.raises(OSError):
        upstream.talk("binary", b"x" * PIECE)


# What servers say in different words: the app is called as one of them would call it.


@pytest.fixture
def backend(origins):
    cookie = Cookie("SERVERID", nocache=False, signed=False)
    return Backend("web", servers=[Server("s1", origins.address)], persist=cookie)


@pytest.fixture
def accepted(call, backend, origin):
    """A WebSocket that is open: the call, and the origin's end."""
    conversation = call(backend)
    conversation.tell(type="websocket.connect")
    upstream = origin.meet()
    upstream.accept()
    assert conversation.hear()["type"] == "websocket.accept"
    return conversation, upstream


def test_an_accept_carries_only_what_is_the_apps_to_say(call, backend, origin):
    conversation = call(backend, subprotocols=["chat", "superchat"])
    conversation.tell(type="websocket.connect")
    upstream = origin.meet()
    assert upstream.request.values("sec-websocket-protocol") == ["chat, superchat"]
    assert upstream.request.values("x-forwarded-for") == ["192.0.2.1"]
    upstream.accept(("Sec-WebSocket-Protocol", "chat"), ("Date", "now"), ("Server", "origin"), ("X-Node", "7"))
    message = conversation.hear()
    assert (message["type"], message["subprotocol"]) == ("websocket.accept", "chat")
    names = [name for name, _ in message["headers"]]
    assert names == [b"x-node", b"set-cookie"]


def test_an_accept_without_a_subprotocol_names_none(call, backend, origin):
    conversation = call(backend)
    conversation.tell(type="websocket.connect")
    upstream = origin.meet()
    assert upstream.request.values("sec-websocket-protocol") == []
    upstream.accept()
    assert conversation.hear().get("subprotocol") is None


@pytest.mark.parametrize(
    "message, heard",
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
def test_a_message_with_both_keys_is_the_one_that_is_there(accepted, message, heard):
    conversation, upstream = accepted
    conversation.tell(type="websocket.receive", **message)
    assert upstream.hear() == heard


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
def test_a_message_to_the_server_has_one_key_that_is_not_none(accepted, kind, payload, key, value):
    conversation, upstream = accepted
    upstream.tell(kind, payload)
    said = conversation.hear()
    assert said["type"] == "websocket.send"
    assert {name: content for name, content in said.items() if name != "type" and content is not None} == {key: value}
    assert type(said[key]) is type(value)


@pytest.mark.parametrize(
    "message, heard",
    [
        ({"code": 1000}, (1000, "")),
        ({"code": 4001, "reason": "the cup is empty"}, (4001, "the cup is empty")),
        ({"code": 1001, "reason": None}, (1001, "")),
        ({"code": 1005, "reason": ""}, (None, "")),
        ({}, (None, "")),
    ],
    ids=["a code", "a code and a reason", "a reason of None", "1005", "no code"],
)
def test_a_disconnect_is_told_as_a_goodbye(accepted, message, heard):
    conversation, upstream = accepted
    conversation.tell(type="websocket.disconnect", **message)
    assert upstream.hear_close() == heard
    upstream.close()
    assert upstream.ends()
    assert conversation.ends() == []


@pytest.mark.parametrize("code", [1004, 1006, 1015, 0, 999, 5000, None])
def test_a_disconnect_with_a_code_that_no_frame_may_carry_ends_the_connection_without_it(accepted, code):
    conversation, upstream = accepted
    conversation.tell(type="websocket.disconnect", code=code, reason="")
    assert upstream.leave() in GONE
    assert conversation.ends() == []


def test_a_goodbye_without_a_code_is_a_1000_to_the_server(accepted):
    conversation, upstream = accepted
    upstream.close()
    said = conversation.hear()
    assert (said["type"], said.get("code", 1000), said.get("reason") or "") == ("websocket.close", 1000, "")
    assert conversation.ends() == []


@pytest.mark.parametrize("extensions", [{"extensions": {}}, {"extensions": None}, {"extensions": {"tls": {}}}])
def test_a_denial_to_a_server_that_cannot_tell_one_is_a_close(call, backend, origin, extensions):
    conversation = call(backend, **extensions)
    conversation.tell(type="websocket.connect")
    origin.meet().deny("403 Forbidden", b"not you")
    assert conversation.hear()["type"] == "websocket.close"
    assert conversation.ends() == []


def test_a_websocket_in_which_nobody_speaks_ends_after_the_tunnel_timeout(call, origins, origin):
    quiet = Backend("web", servers=[Server("s1", origins.address)], timeouts=Timeouts(tunnel=0.3))
    conversation = call(quiet)
    conversation.tell(type="websocket.connect")
    upstream = origin.meet()
    upstream.accept()
    assert conversation.hear()["type"] == "websocket.accept"
    assert conversation.hear()["type"] == "websocket.close"
    assert upstream.leave() in GONE
    assert conversation.ends() == []


def test_a_client_that_leaves_before_the_answer_is_told_nothing(call, backend, origin):
    conversation = call(backend)
    conversation.tell(type="websocket.connect")
    upstream = origin.meet()
    conversation.tell(type="websocket.disconnect", code=1006)
    assert upstream.rest() == b""
    assert conversation.ends() == []
