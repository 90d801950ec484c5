"""An `Upstream` as the target of a server is refused: it would respond by itself where another server can be tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sticky_core.errors import ConfigError
from sticky_core.server.server import Server

if TYPE_CHECKING:
    from tests.faces.conftest import Face


@pytest.mark.parametrize("what", ["the app", "a method of it"])
def test_upstream_as_a_target_is_refused_with_the_url_to_write(face: Face, what: str) -> None:
    upstream: Any = face.package.Upstream("http://10.0.0.1:8000/base")
    with pytest.raises(ConfigError) as refused:
        Server("s1", upstream if what == "the app" else upstream.app)
    assert str(refused.value) == (
        "server s1: <Upstream http://10.0.0.1:8000/base> responds by itself if its URL fails, so no other server would "
        "be tried and no check would find that out: write the URL, Server(name, 'http://10.0.0.1:8000/base'); tls, "
        "pool_max_conn and pool_purge_delay are options of Server, timeouts and forward of Backend"
    )


def test_upstream_as_the_app_around_which_the_middleware_is_put_is_an_app_like_any_other(face: Face) -> None:
    upstream: Any = face.package.Upstream("http://10.0.0.1:8000/base")
    face.package.StickyMiddleware(upstream, routes={"/cart": face.backend(face.server("s1"))})
