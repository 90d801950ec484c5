"""Sessions with ids that servers make, learned from their responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import sticky_asgi.testing
import sticky_wsgi.testing
from sticky_asgi import Learn, Stick, StickTable, cook, hdr, path_param, res, url_param
from sticky_core.backend.backend import Backend
from sticky_core.errors import Failure, ServerFailure
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.persistence import Persist
from sticky_core.server.state import AdminState

if TYPE_CHECKING:
    from tests.faces.conftest import Face


def backend_of(face: Face, *persist: Persist, **options: Any) -> Backend:
    return face.backend(*(face.server(name) for name in ("s1", "s2", "s3")), persist=persist, **options)


def keys(table: StickTable) -> dict[str, str]:
    """Return the server of each key, without the instance that follows the name of a replica."""
    return {entry.key: entry.server.partition("@")[0] for entry in table}


HAPROXY = StickTable("string", length=64)

WAYS = [
    pytest.param([Learn.cookie("JSESSIONID")], ("Set-Cookie", "JSESSIONID=abc; Path=/; HttpOnly"),
                 {"cookie": "a=1; JSESSIONID=abc"}, id="JSESSIONID"),
    pytest.param([Learn.header("Mcp-Session-Id")], ("Mcp-Session-Id", "abc"), {"headers": [("mcp-session-id", "abc")]},
                 id="Mcp-Session-Id"),
    pytest.param([Learn(res.url_param("sid"), url_param("sid"))], ("Location", "https://shop.example/next?sid=abc"),
                 {"path": "/next?sid=abc"}, id="sid in the Location"),
    pytest.param([Learn(res.path_param("jsessionid"), path_param("jsessionid"))], ("Location", "/next;jsessionid=abc"),
                 {"path": "/next;jsessionid=abc"}, id="jsessionid in the Location"),
    pytest.param([Learn(res.cook("sid"), [cook("sid"), url_param("sid")])], ("Set-Cookie", "sid=abc"),
                 {"path": "/?sid=abc"}, id="sent in a cookie, returned in the URL"),
    pytest.param([Stick.match("cook(X)", HAPROXY), Stick.store_response("res.cook(X)", HAPROXY)],
                 ("Set-Cookie", "X=abc"), {"cookie": "X=abc"}, id="in HAProxy's rules"),
]  # fmt: skip


@pytest.mark.parametrize(("persist", "header", "options"), WAYS)
def test_request_with_an_id_that_a_server_has_sent_goes_back_to_it(
    face: Face, persist: list[Any], header: tuple[str, str], options: dict[str, Any]
):
    table = persist[0].table
    table.clear()
    get = face.client(backend_of(face, *persist))
    # an id that no server has sent is not recognised
    unknown = get(**options)
    assert (unknown.server, unknown.decision.claim, len(table)) == ("s1", Claim.NONE, 0)
    assert unknown.decision.reason is Reason.NO_ENTRY
    face.apps["s2"].headers = [header]
    response = get("/login")
    values = [value for name, value in response.headers if name == header[0].lower()]
    assert (response.server, values) == ("s2", [header[1]])
    face.apps["s2"].headers = ()
    for _ in range(2):
        response = get(**options)
        assert (response.server, response.letters) == ("s2", "VN")
        assert response.all("set-cookie") == []
    assert keys(table) == {"abc": "s2"}


@pytest.mark.parametrize(
    "line",
    ["sid=abc; Max-Age=0", "sid=; Path=/", "sid=abc; Expires=Thu, 01 Jan 1970 00:00:00 GMT", "sid=deleted; max-age=-1"],
)
def test_a_response_that_deletes_the_cookie_removes_the_session(face: Face, line: str):
    learn = Learn.cookie("sid")
    get = face.client(backend_of(face, learn))
    face.apps["s1"].headers = [("Set-Cookie", "sid=abc")]
    get("/login")
    face.apps["s1"].headers = [("Set-Cookie", line)]
    assert get("/logout", cookie="sid=abc").all("set-cookie") == [line]
    assert keys(learn.table) == {}
    assert get(cookie="sid=abc").decision.claim is Claim.NONE


def test_invented_session_ids_are_not_stored(face: Face):
    learn = Learn.cookie("sid", table=StickTable("string", size=1))
    get = face.client(backend_of(face, learn))
    face.apps["s1"].headers = [("Set-Cookie", "sid=live")]
    get()
    face.apps["s1"].headers = ()
    for number in range(10):
        get(cookie=f"sid={number}")
    assert get(cookie="sid=live").server == "s1"


def test_a_session_of_a_server_in_maintenance_moves_to_another(face: Face):
    learn = Learn.header("Mcp-Session-Id")
    backend = backend_of(face, learn)
    get = face.client(backend)
    face.apps["s1"].headers = [("mcp-session-id", "abc")]
    get()
    face.apps["s1"].headers = ()
    session = [("mcp-session-id", "abc")]
    backend["s1"].state = AdminState.MAINT
    response = get(headers=session)
    assert (response.decision.claim, response.decision.reason) == (Claim.DOWN, Reason.MAINT)
    moved = response.server
    backend["s1"].state = AdminState.READY
    assert [get(headers=session).server for _ in range(2)] == [moved, moved]  # no fail-back


def test_redispatch_moves_the_session(face: Face):
    learn = Learn.cookie("sid")
    get = face.client(backend_of(face, learn))
    face.apps["s1"].headers = [("Set-Cookie", "sid=abc")]
    get()
    face.apps["s1"].raises = ServerFailure(Failure.REFUSED, "s1")
    assert get(cookie="sid=abc").decision.attempts == ("s1", "s2")
    face.apps["s1"].raises = None
    assert get(cookie="sid=abc").decision.attempts == ("s2",)


def test_session_is_learned_from_an_error_response(face: Face):
    learn = Learn.cookie("sid")
    get = face.client(backend_of(face, learn))
    face.apps["s1"].status = 500
    face.apps["s1"].headers = [("Set-Cookie", "sid=abc")]
    assert get().status == 500
    assert keys(learn.table) == {"abc": "s1"}


def test_restarted_replica_has_no_sessions(face: Face):
    """Check that entries of a replica are invalid after its restart, which loses its memory."""
    table = StickTable("string")

    def create() -> Any:
        return face.app("any")

    cluster_of = {"asgi": sticky_asgi.testing.Cluster, "wsgi": sticky_wsgi.testing.Cluster}[face.name]
    with cluster_of(create, persist=Stick.on(hdr("x"), table)) as cluster:
        client = cluster.client()
        assert client.get("/", headers={"x": "a"}).status_code == 200
        assert client.get("/", headers={"x": "a"}).status_code == 200
        assert [(each.server, each.claim) for each in cluster.decisions] == [("r1", Claim.NONE), ("r1", Claim.VALID)]
        cluster.restart("r1")
        client.get("/", headers={"x": "a"})
        last = cluster.decisions[-1]
        assert (last.claim, last.reason) == (Claim.INVALID, Reason.OTHER_INSTANCE)
        client.get("/", headers={"x": "a"})
        assert (cluster.decisions[-1].server, cluster.decisions[-1].claim) == (last.server, Claim.VALID)
