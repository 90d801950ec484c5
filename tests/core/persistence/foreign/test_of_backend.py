"""A signed cookie of a backend that had another name."""

import pickle

import pytest

from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.foreign import of_backend
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import label_of
from tests.core.fakes import FakeRequest, RecordedResponse
from tests.core.persistence.cookie.marks import marked_value
from tests.core.persistence.foreign.clients import SECRET, at

OLD = Cookie("SRV", secret=SECRET, path="/shop")


@pytest.mark.parametrize("options", [{}, {"opaque": True}, {"signed": False, "opaque": True}, {"maxlife": 60}])
@pytest.mark.parametrize("name", ["SRV", "NEW"])
def test_client_of_the_backend_under_its_old_name_stays(options: dict[str, object], name: str):
    old = Cookie("SRV", secret=SECRET, **options)  # type: ignore[arg-type]
    servers, clock = at("http://10.0.0.1", "http://10.0.0.2"), ManualClock()
    value = marked_value(old.build("shop", servers, clock), servers[1], name="SRV")
    new = Cookie(name, secret=SECRET, accepts=[of_backend("shop", old)], **options)  # type: ignore[arg-type]
    lost = Cookie(name, secret=SECRET, accepts=[of_backend("other", old)], **options)  # type: ignore[arg-type]
    request, response = FakeRequest((f"SRV={value}",)), RecordedResponse()
    assert lost.build("store", servers, clock).recognise(request).claim is Claim.INVALID
    request.forwarded_cookies = None
    engine = new.build("store", servers, clock)
    result = engine.recognise(request)
    assert (result.reason, result.server, request.cookies) == (Reason.ACCEPTED, servers[1], ("",))
    engine.stamp_response(result, servers[1], True, request, response)
    assert [text.partition("=")[0] for text in response.set_cookies] == list(dict.fromkeys(["SRV", name]))


def test_it_is_the_cookie_otherwise():
    cookie = of_backend("shop", OLD)
    assert label_of(cookie) == "accepts.of_backend('shop', Cookie('SRV'))"
    assert cookie.cookie_scopes() == OLD.cookie_scopes()
    assert cookie.deletions(is_tls=True) == OLD.deletions(is_tls=True)
    assert pickle.loads(pickle.dumps(cookie)) == cookie == of_backend("shop", OLD) != of_backend("other", OLD)
    assert SECRET.decode() not in repr(cookie)


@pytest.mark.parametrize(
    "backend, cookie, problem",
    [
        ("", OLD, "'' is no name of a backend: write accepts.of_backend('old name', Cookie(...))"),
        (OLD, OLD, "is no name of a backend: write accepts.of_backend("),
        ("shop", NginxCookie("SRV"), "is no Cookie: only what a Cookie signs depends on the name of the backend"),
        ("shop", Cookie("SRV", signed=False), "Cookie('SRV') is not signed, so the name of the backend has no effect"),
        (
            "shop",
            Cookie("SRV", secret=SECRET, accepts=[NginxCookie("A")]),
            "Cookie('SRV') has accepts of its own, which would have no effect: put all in one list",
        ),
    ],
)
def test_wrong_arguments_are_named(backend: str, cookie: Cookie, problem: str):
    with pytest.raises(ConfigError) as caught:
        of_backend(backend, cookie)
    (told,) = caught.value.problems
    assert told.startswith("accepts.of_backend ") and problem in told
