"""How a request is packed for another worker: its scope comes out as it went in, and its body is sent if need be."""

import pytest

from sticky_asgi.workers.protocol import Additions, BodyMode, body_mode, pack_scope, unpack_scope
from sticky_core.workers.frames import Frames, Kind
from tests.faces.workers import asgi

HTTP = asgi.scope("/é", raw_path=b"/%C3%A9", scheme="https", query_string=b"a=1", headers=[(b"x", b"")])
WEBSOCKET = {**{name: value for name, value in HTTP.items() if name != "method"}, "type": "websocket"}


def transfer(scope, additions=None, state=None):
    """Return the scope as the worker that serves it gets it."""
    items = Kind.REQUEST, "NONE", "NO_COOKIE", None, BodyMode.EMPTY.value, *pack_scope(scope, additions)
    (frame,) = Frames().feed(Frames().pack(*items))
    return unpack_scope(frame, {}, state)


@pytest.mark.parametrize(
    "scope",
    [
        pytest.param(HTTP, id="HTTP"),
        pytest.param({**HTTP, "client": None, "server": ("/run/app.sock", None)}, id="no addresses"),
        pytest.param({**HTTP, "extensions": {"tls": {"tls_version": 772}}}, id="an extension"),
        pytest.param({**HTTP, "headers": []}, id="no headers"),
        pytest.param({**WEBSOCKET, "subprotocols": ["chat", "v2"]}, id="WebSocket"),
        pytest.param({**WEBSOCKET, "method": "GET", "subprotocols": []}, id="WebSocket with a method"),
        *(
            pytest.param({key: value for key, value in HTTP.items() if key != name}, id=f"no {name}")
            for name in ("client", "server", "raw_path", "root_path", "scheme")
        ),
    ],
)
def test_scope_comes_out_as_it_went_in(scope):
    assert transfer(scope) == scope


def test_extensions_that_pass_more_than_messages_are_left_out():
    scope = {**HTTP, "extensions": {"http.response.trailers": {}, "http.response.zerocopysend": {}}}
    assert transfer(scope)["extensions"] == {"http.response.trailers": {}}


def test_what_middleware_has_added_is_put_into_the_scope_and_the_state_of_the_lifespan():
    additions = Additions(scope={"user": "ann"}, state={"trace": 7})
    assert transfer(HTTP, additions, {"pool": 1}) == {**HTTP, "user": "ann", "state": {"pool": 1, "trace": 7}}


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([None, None, None], id="nothing"),
        pytest.param([None, None, None, "lifespan", *[False] * 11], id="a lifespan"),
        pytest.param([None, None, None, [], *[False] * 11], id="a list for a type"),
        pytest.param([None, None, None, "http", {}], id="too few values"),
        pytest.param([None, None, None, "http", *[False] * 12], id="too many values"),
    ],
)
def test_frame_without_a_scope_is_refused(values):
    (frame,) = Frames().feed(Frames().pack(Kind.REQUEST, "NONE", "NO_COOKIE", None, 1, *values))
    with pytest.raises((ValueError, TypeError, LookupError)):
        unpack_scope(frame, {}, None)


@pytest.mark.parametrize(
    "headers, version, mode",
    [
        ([], "1.1", BodyMode.EMPTY),
        ([], "1.0", BodyMode.EMPTY),
        ([], "2", BodyMode.AT_ONCE),
        ([(b"content-length", b"0")], "1.1", BodyMode.EMPTY),
        ([(b"content-length", b"5")], "1.1", BodyMode.AT_ONCE),
        ([(b"transfer-encoding", b"chunked")], "1.1", BodyMode.AT_ONCE),
        ([(b"transfer-encoding", b"0")], "1.1", BodyMode.AT_ONCE),
        ([(b"content-length", b"5"), (b"expect", b"100-continue")], "1.1", BodyMode.ON_DEMAND),
        ([(b"expect", b"100-continue"), (b"content-length", b"5")], "2", BodyMode.ON_DEMAND),
    ],
)
def test_body_is_sent_at_once_on_demand_or_never(headers, version, mode):
    assert body_mode({**HTTP, "headers": headers, "http_version": version}) is mode


def test_messages_of_a_websocket_are_sent_at_once():
    assert body_mode(WEBSOCKET) is BodyMode.AT_ONCE
