"""Responses as clients get them: Set-Cookie, Cache-Control, and the cookie that the application sets."""

import re

import pytest

from sticky_core.persistence.claim import NO_COOKIE, Mark
from sticky_core.server.server import Server
from tests.core.fakes import FakeRequest, RecordedResponse
from tests.core.persistence.cookie.marks import (
    NAME,
    NEW,
    app,
    build,
    cookie,
    marked_value,
    recognise,
    three_servers,
)


@pytest.mark.parametrize(
    "options, secure, line",
    [
        pytest.param({"signed": False}, True, "SRV=r1; path=/", id="plain"),
        pytest.param(
            {
                "signed": False,
                "domain": [".a.example", ".b.example"],
                "httponly": True,
                "secure": True,
                "attr": ["SameSite=None", "Priority=High"],
            },
            False,
            "SRV=r1; path=/; domain=.a.example; domain=.b.example; HttpOnly; Secure; SameSite=None; Priority=High",
            id="HAProxy's order",
        ),
        pytest.param({"signed": False, "maxlife": 60}, False, "SRV=r1|ZVPxA|ZVPxA; path=/", id="plain dates"),
        pytest.param({"secret": NEW}, False, "SRV=r1.SIG; path=/; HttpOnly; SameSite=Lax", id="signed"),
        pytest.param(
            {"secret": NEW}, True, "SRV=r1.SIG; path=/; HttpOnly; Secure; SameSite=Lax", id="signed, over TLS"
        ),
        pytest.param(
            {"secret": NEW, "secure": True},
            False,
            "SRV=r1.SIG; path=/; HttpOnly; Secure; SameSite=Lax",
            id="secure anyway",
        ),
        pytest.param(
            {"secret": NEW, "secure": False}, True, "SRV=r1.SIG; path=/; HttpOnly; SameSite=Lax", id="never secure"
        ),
        pytest.param(
            {"secret": NEW, "httponly": False, "samesite": None, "path": "/shop"},
            False,
            "SRV=r1.SIG; path=/shop",
            id="less",
        ),
        pytest.param(
            {"secret": NEW, "max_age": "1d"},
            False,
            "SRV=r1|ZVPxA.SIG; path=/; Max-Age=86400; HttpOnly; SameSite=Lax",
            id="max_age",
        ),
        pytest.param(
            {"secret": NEW, "partitioned": True, "samesite": "None"},
            False,
            "SRV=r1.SIG; path=/; HttpOnly; Secure; SameSite=None; Partitioned",
            id="partitioned",
        ),
    ],
)
def test_set_cookie_as_the_client_gets_it(options: dict[str, object], secure: bool, line: str):
    servers = three_servers()
    response = RecordedResponse()
    persistence = build(cookie(**options), servers)
    assert (
        persistence.stamp_response(NO_COOKIE, servers[0], False, FakeRequest(secure=secure), response) is Mark.INSERTED
    )
    (written,) = response.values("set-cookie")
    assert re.sub(r"\.[\w-]{43};", ".SIG;", written) == line
    assert response.values("cache-control") == ["private"]


@pytest.mark.parametrize(
    "options, application, is_bound, expected, mark",
    [
        pytest.param(
            {"mode": "rewrite"},
            "SRV=x; Path=/; HttpOnly",
            False,
            "SRV=r1; Path=/; HttpOnly",
            Mark.REWRITTEN,
            id="rewrite",
        ),
        pytest.param(
            {"mode": "rewrite"},
            'SRV = "x;y" ; Path=/',
            True,
            "SRV=r1 ; Path=/",
            Mark.REWRITTEN,
            id="rewrite: quotes and spaces, bound",
        ),
        pytest.param(
            {"mode": "rewrite"},
            "SRV=; expires=1970",
            False,
            "SRV=r1; expires=1970",
            Mark.REWRITTEN,
            id="rewrite: a deletion still deletes",
        ),
        pytest.param({"mode": "rewrite"}, "OTHER=x", False, "OTHER=x", Mark.NONE, id="rewrite: another cookie"),
        pytest.param({"mode": "prefix"}, "SRV=x; Path=/", False, "SRV=r1~x; Path=/", Mark.REWRITTEN, id="prefix"),
        pytest.param(
            {"mode": "prefix"},
            "SRV=; Max-Age=0",
            False,
            "SRV=r1~; Max-Age=0",
            Mark.REWRITTEN,
            id="prefix: a deletion still deletes",
        ),
        pytest.param({"mode": "prefix"}, 'SRV=""', False, 'SRV=r1~""', Mark.REWRITTEN, id="prefix: empty quotes"),
        pytest.param({"mode": "prefix"}, "SRV", False, "SRV", Mark.NONE, id="prefix: no ="),
        pytest.param(
            {"mode": "prefix", "indirect": True}, "SRV=x", True, None, Mark.DELETED, id="prefix indirect, bound"
        ),
        pytest.param({"mode": "passive"}, "SRV=x", True, "SRV=x", Mark.PASSED, id="passive"),
        pytest.param(
            {"mode": "passive", "indirect": True}, "SRV=x", True, None, Mark.DELETED, id="passive indirect, bound"
        ),
        pytest.param(
            {"mode": "passive", "indirect": True},
            "SRV=x",
            False,
            "SRV=x",
            Mark.PASSED,
            id="passive indirect, not bound",
        ),
        pytest.param(
            {"mode": "passive", "indirect": True, "preserve": True},
            "SRV=x",
            True,
            "SRV=x",
            Mark.PASSED,
            id="passive indirect preserve",
        ),
        pytest.param({}, "SRV=x", True, None, Mark.DELETED, id="insert, bound"),
        pytest.param({}, "SRV=x", False, "SRV=r1; path=/", Mark.INSERTED, id="insert, not bound"),
        pytest.param({"preserve": True}, "SRV=x", False, "SRV=x", Mark.PASSED, id="insert preserve"),
    ],
)
def test_cookie_that_the_application_sets_under_our_name(
    options: dict[str, object], application: str, is_bound: bool, expected: str | None, mark: Mark
):
    signing: dict[str, object] = {} if options.get("mode") == "passive" else {"signed": False}
    servers = three_servers()
    persistence = build(cookie(**signing, **options), servers)
    result = recognise(persistence, "SRV=r1") if is_bound else NO_COOKIE
    response = RecordedResponse()
    response.add("set-cookie", application)
    response.add("set-cookie", "KEEP=me; Path=/")
    assert persistence.stamp_response(result, servers[0], is_bound, FakeRequest(), response) is mark
    lines = [line for line in response.values("set-cookie") if line != "KEEP=me; Path=/"]
    assert lines == ([] if expected is None else [expected])
    assert len(response.values("set-cookie")) == len(lines) + 1


@pytest.mark.parametrize(
    "text, mark, lines",
    [
        pytest.param("", Mark.NONE, [], id="no cookie in the request"),
        pytest.param(
            "SRV=Z",
            Mark.DELETED,
            ["SRV=; Expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/"],
            id="a cookie in the request",
        ),
    ],
)
def test_server_without_an_id_deletes_the_cookie_of_a_client_that_sent_one(text: str, mark: Mark, lines: list[str]):
    servers = [Server("s1", app), Server("bk", app, backup=True)]
    persistence = build(cookie(signed=False), servers)
    response = RecordedResponse()
    result = recognise(persistence, text)
    assert persistence.stamp_response(result, servers[1], False, FakeRequest(), response) is mark
    assert response.values("set-cookie") == lines


@pytest.mark.parametrize("method, marked", [("POST", True), ("GET", False), ("PUT", False), ("post", False)])
def test_postonly_marks_only_responses_to_post(method: str, marked: bool):
    servers = three_servers()
    persistence = build(cookie(signed=False, postonly=True), servers)
    response = RecordedResponse()
    assert (
        persistence.stamp_response(NO_COOKIE, servers[0], False, FakeRequest(method=method), response) is Mark.INSERTED
    ) is marked
    assert bool(response.values("set-cookie")) is marked


@pytest.mark.parametrize(
    "cache_control, is_added",
    [
        ([], True),
        (["public, max-age=60"], True),
        (["no-cache"], True),
        (['private="x-user"'], True),
        (["private"], False),
        (["max-age=60, Private"], False),
        (["no-store"], False),
        (["public", "No-Store , max-age=0"], False),
    ],
    ids=str,
)
@pytest.mark.parametrize("nocache", [True, False], ids=["nocache", "cached"])
def test_response_with_a_mark_is_private(cache_control: list[str], is_added: bool, nocache: bool):
    servers = three_servers()
    persistence = build(cookie(signed=False, nocache=nocache), servers)
    response = RecordedResponse()
    for text in cache_control:
        response.add("cache-control", text)
    persistence.stamp_response(NO_COOKIE, servers[0], False, FakeRequest(), response)
    assert response.values("cache-control") == ([*cache_control, "private"] if is_added and nocache else cache_control)


def test_response_without_a_mark_is_not_changed():
    servers = three_servers()
    persistence = build(cookie(secret=NEW), servers)
    result = recognise(persistence, f"{NAME}={marked_value(persistence, servers[0])}")
    response = RecordedResponse()
    assert persistence.stamp_response(result, servers[0], True, FakeRequest(), response) is Mark.NONE
    assert response == RecordedResponse()
