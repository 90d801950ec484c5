"""A client that brings the cookie of another balancer stays at its server, and has our cookie afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sticky_core.persistence import foreign
from sticky_core.persistence.claim import Reason
from sticky_core.persistence.cookie.config import Cookie
from tests.faces.running import running

if TYPE_CHECKING:
    from tests.faces.conftest import Face

DELETED = "Expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/"
TLS = "; Secure; SameSite=None"

# the values of s2, which was 127.0.0.1:18082
ROWS = [
    pytest.param(
        foreign.caddy("old", secret="s3cret"),
        "8b79997e5c03c09b1a0734e0a7480c1a449fd1522c4b4772c74489cb10bde1d3",
        DELETED,
        id="caddy",
    ),
    pytest.param(foreign.traefik("old"), "238e99ca93e11d58", DELETED, id="traefik"),
    pytest.param(foreign.envoy("old"), '"MTI3LjAuMC4xOjE4MDgy"', "", id="envoy"),
    pytest.param(foreign.apache("old"), "abc.s2", DELETED, id="apache"),
    pytest.param(foreign.table("old", {"4a5b": "s2"}, path="/"), "4a5b", DELETED, id="table"),
    pytest.param(
        foreign.ingress_nginx("old", endpoints=["127.0.0.1:18082", "127.0.0.1:1"]),
        "1700000002.5.32.8|3ec0ac2d8dd2cda20a93dee13e737231",
        "",
        id="ingress_nginx",
    ),
]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("cookie, value, deletion", ROWS)
def test_client_of_another_balancer_stays(face: Face, cookie: Any, value: str, deletion: str, scheme: str) -> None:
    ours = Cookie("NEW", secret="a secret of these tests", accepts=[cookie])
    servers = [face.server(f"s{number}", formerly=[f"127.0.0.1:1808{number}"]) for number in (1, 2, 3)]
    with running(face, face.backend(*servers, persist=ours)) as run:
        response = run.get(cookie=f"a=1; old={value}", scheme=scheme)
        assert (response.server, response.decision.reason) == ("s2", Reason.ACCEPTED)
        assert response.seen is not None and response.seen.cookies == ("a=1",)
        *others, mark = response.all("set-cookie")
        assert others == ([f"old=; {deletion}{TLS if scheme == 'https' else ''}"] if deletion else [])
        # a cookie that could not be deleted is ignored from then on
        again = run.get(cookie=f"old={value}; {mark.partition(';')[0]}", scheme=scheme)
        assert (again.server, again.decision.reason, again.all("set-cookie")) == ("s2", Reason.BOUND, [])
        unknown = run.get(cookie="old=junk\x00\xff", scheme=scheme)
        assert unknown.decision.reason in (Reason.UNKNOWN, Reason.ACCEPTED)
