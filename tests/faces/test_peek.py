"""A sample of the body: its beginning is read before a server is chosen, and all of it arrives there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sticky_asgi import Cookie, Hash, Stick, StickTable, cook, samples
from sticky_core.backend.backend import Backend
from sticky_core.errors import Failure, ServerFailure
from sticky_core.persistence.claim import Claim
from sticky_core.persistence.persistence import Persist

if TYPE_CHECKING:
    from tests.faces.conftest import Face

FORM = ("content-type", "application/x-www-form-urlencoded")
JSON = ("content-type", "application/json")
LIMIT = 100
USER = samples.form("user", LIMIT)


def over(face: Face, *persist: Persist, **options: Any) -> Backend:
    return face.backend(*(face.server(name) for name in ("s1", "s2", "s3")), persist=persist, **options)


BODIES = [
    pytest.param(b"user=ann", True, id="short"),
    pytest.param(b"user=ann&rest=" + b"x" * (LIMIT - 14), True, id="as long as the limit"),
    pytest.param(b"user=ann&rest=" + b"x" * 200_000, True, id="longer than whatever is kept"),
    pytest.param(b"rest=" + b"x" * 200_000 + b"&user=ann", False, id="what is looked for comes too late"),
    pytest.param(b"user=" + b"x" * 200_000, False, id="what is looked for does not end in time"),
    pytest.param(b"other=ann", False, id="not there"),
    pytest.param(b"", False, id="no body"),
    pytest.param(bytes(range(256)) * 4, False, id="no form at all"),
]


@pytest.mark.parametrize("pieces", [0, 1000, 7], ids=["with a length", "chunked", "in small pieces"])
@pytest.mark.parametrize(("body", "found"), BODIES)
def test_the_body_arrives_whole_whatever_was_looked_at(face: Face, body: bytes, found: bool, pieces: int):
    if len(body) > 2000 and pieces == 7:
        body = body[:2000]
        found = body.startswith(b"user=ann&")
    post = face.client(over(face, Stick.on(USER)))
    for number in range(3):
        response = post(method="POST", headers=[FORM], body=body, pieces=pieces)
        assert response.seen is not None and response.seen.body == body
        assert response.decision.claim is (Claim.VALID if found and number else Claim.NONE)


@pytest.mark.parametrize("pieces", [0, 7], ids=["with a length", "chunked"])
@pytest.mark.parametrize("size", [10, 5_000, 200_000], ids=["short", "longer than the limit", "longer than is kept"])
def test_it_arrives_whole_at_the_server_that_steps_in(face: Face, size: int, pieces: int):
    body = b"user=ann&rest=" + b"x" * size
    pieces = pieces and max(7, size // 50)
    backend = over(face, Stick.on(USER))
    face.apps["s1"].raises = ServerFailure(Failure.NOT_STARTED, "s1")
    post = face.client(backend)
    outcome = post.outcome(method="POST", headers=[FORM], body=body, pieces=pieces)
    assert all(seen.body == body for seen in outcome.tried)
    if outcome.status == 503:  # s1 has read it, and so much is not stored: no server rather than one that gets a part
        assert size > 65536 and len(outcome.tried) == 1
        return
    assert outcome.decision.attempts == ("s1", "s2")
    assert post(method="POST", headers=[FORM], body=body, pieces=pieces).decision.attempts == ("s2",)


def test_json_is_read_as_well(face: Face):
    post = face.client(over(face, Stick.on(samples.json_field("user"))))
    bodies = [b'{"user": "ann"}', b'{"user": "bob"}', b'{"user": "ann", "cart": [1, 2, 3]}']
    responses = [post(method="POST", headers=[JSON], body=body) for body in bodies]
    assert [response.server for response in responses] == ["s1", "s2", "s1"]
    assert [response.seen.body for response in responses if response.seen is not None] == bodies


@pytest.mark.parametrize(
    "persist, options",
    [
        (Stick.on(samples.json_field("user", LIMIT)), {}),
        ((), {"balance": Hash(samples.json_field("user", LIMIT))}),
    ],
    ids=["a stick rule", "balance"],
)
def test_chat_that_grows_past_the_limit_keeps_its_server(face: Face, persist: Any, options: dict[str, Any]):
    post = face.client(over(face, *([persist] if persist else []), **options))
    bodies = [b'{"user": "ann", "messages": ["' + b"x" * size + b'"]}' for size in (1, LIMIT, 200_000)]
    responses = [post(method="POST", headers=[JSON], body=body) for body in bodies]
    assert len({response.server for response in responses}) == 1
    assert [response.seen.body for response in responses if response.seen is not None] == bodies


def test_decision_says_that_a_body_was_too_long_for_its_key(face: Face):
    post = face.client(over(face, Stick.on(samples.json_field("user", LIMIT)), Stick.on(USER)), debug=True)
    response = post(method="POST", headers=[JSON], body=b'{"messages": ["' + b"x" * LIMIT + b'"], "user": "ann"}')
    note = "json_field('user'): not within the first 100 bytes of the body"
    assert response.decision.missing_keys == (note,)
    assert response.decision.why == f"request has no key ({note}); balance chose s1"
    assert f'why="request has no key ({note}); balance chose s1"' in response.all("x-sticky")[0]
    response = post(method="POST", headers=[FORM], body=b"x" * 2 * LIMIT + b"&user=ann")
    assert response.decision.missing_keys == ("form('user'): not within the first 100 bytes of the body",)
    assert post(method="POST", headers=[FORM], body=b"user=ann").decision.missing_keys == ()


def test_a_request_without_such_a_body_is_not_held_up(face: Face):
    get = face.client(over(face, Stick.on(USER)))
    assert [get().server for _ in range(3)] == ["s1", "s2", "s3"]
    response = get(method="POST", headers=[("content-type", "text/plain")], body=b"user=ann")
    assert response.seen is not None and response.seen.body == b"user=ann"


def test_the_body_is_not_read_if_a_cookie_names_a_server(face: Face):
    calls: list[int] = []

    def watched(request: Any) -> str | None:
        calls.append(1)
        return USER(request)

    backend = over(face, Cookie("SRV", signed=False, nocache=False), Stick.on(watched))
    response = face.client(backend)(method="POST", headers=[FORM], body=b"user=ann", cookie="SRV=s3")
    assert response.server == "s3"
    assert response.seen is not None and response.seen.body == b"user=ann"
    assert len(calls) == 1  # it was not called again with the body


def test_a_body_beside_what_is_known_without_it(face: Face):
    keys = StickTable("string")
    post = face.client(over(face, Stick.on(cook("sid"), keys), Stick.on(USER)))
    assert post(method="POST", headers=[FORM], body=b"user=ann", cookie="sid=1").server == "s1"
    assert post(method="POST", headers=[FORM], body=b"user=ann").server == "s1"
    assert post(cookie="sid=1").server == "s1"


def test_balance_may_read_the_body(face: Face):
    post = face.client(over(face, balance=Hash(USER)))
    for user in ("ann", "bob", "eve"):
        body = f"user={user}".encode()
        responses = [post(method="POST", headers=[FORM], body=body) for _ in range(3)]
        assert len({response.server for response in responses}) == 1
        assert all(response.seen is not None and response.seen.body == body for response in responses)


def test_a_condition_may_read_the_body(face: Face):
    backend = over(face, use_server={"s3": lambda request: USER(request) == "ann"})
    post = face.client(backend)
    assert post(method="POST", headers=[FORM], body=b"user=ann").server == "s3"
    assert post(method="POST", headers=[FORM], body=b"user=bob").server == "s1"
