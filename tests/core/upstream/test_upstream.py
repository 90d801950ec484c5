"""The common part of upstreams: options, the pool of idle connections, and its end."""

import pytest

pytest.importorskip("httptools")

from sticky_core.errors import ConfigError
from sticky_core.http.forwarding import Forward
from sticky_core.http.timeouts import Timeouts
from sticky_core.http.tls import TLS
from sticky_core.server.config import ServerConfig
from sticky_core.upstream.pool import Pool
from sticky_core.upstream.upstream import Upstream


class PooledUpstream(Upstream):
    """An upstream with a pool of connections that are texts."""

    buffer_limit = 1024

    def pool(self) -> Pool[str]:
        return self._build_pool()


def test_the_repr_names_the_url():
    assert repr(PooledUpstream("http://10.0.0.1:8080")) == "<Upstream http://10.0.0.1:8080>"


def test_an_upstream_is_built_from_the_configuration_of_a_server():
    config = ServerConfig(name="s1", target="http://10.0.0.1:8080", pool_max_conn=1)
    upstream = PooledUpstream.build(config, Timeouts(connect="250ms"), Forward())
    assert upstream.url == "http://10.0.0.1:8080"
    assert upstream.timeouts.connect == 0.25
    pool = upstream.pool()
    assert [pool.release("a", 0.0), pool.release("b", 0.0)] == [True, False]


def test_the_pool_keeps_connections_for_the_purge_delay():
    pool = PooledUpstream("http://10.0.0.1", pool_purge_delay="10s").pool()
    pool.release("a", 0.0)
    assert pool.purge(10.0) == []
    assert pool.purge(10.1) == ["a"]


def test_a_retired_upstream_keeps_no_connections():
    upstream = PooledUpstream("http://10.0.0.1")
    upstream.retire()
    assert not upstream.pool().release("a", 0.0)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"url": "10.0.0.1:8080"}, "is no URL"),
        ({"url": "http://10.0.0.1", "tls": TLS()}, "tls"),
        ({"url": "http://10.0.0.1", "pool_max_conn": -1}, "pool_max_conn"),
    ],
    ids=["not a URL", "TLS without https", "a limit below 0"],
)
def test_invalid_options_are_refused(options: dict[str, object], problem: str):
    with pytest.raises(ConfigError, match=problem):
        PooledUpstream(**options)  # type: ignore[arg-type]
