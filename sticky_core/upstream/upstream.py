"""An upstream: a URL as an app. The common part of both faces; each adds its connections and the forwarding."""

from __future__ import annotations

from typing import ClassVar, Self, TypeVar

from sticky_core.durations import Duration, seconds
from sticky_core.errors import ConfigError
from sticky_core.http import http1
from sticky_core.http.forwarding import Forward, RequestHeads
from sticky_core.http.timeouts import Timeouts
from sticky_core.http.tls import TLS
from sticky_core.server.config import ServerConfig
from sticky_core.target import App, ForwardingApp, Location
from sticky_core.upstream.allocator import keep_freed_memory
from sticky_core.upstream.pool import PURGE_DELAY, Pool

#: how much of a body is kept for a replay when an upstream is used without a backend, in bytes
RETRY_BODY_LIMIT = 65536

C = TypeVar("C")


class Upstream(ForwardingApp):
    """A URL as an app that forwards requests to it. One option a line: meaning, type, default:

    - `url`: `http://host:port/base`, `https://host`, `unix:/run/app.sock`, str, required (HAProxy `server`, nginx
      `proxy_pass`).
    - `timeouts`: how long to wait for the upstream, `Timeouts`, its defaults.
    - `forward`: how the client is reported to the upstream, `Forward`, its defaults.
    - `tls`: certificates and verification for `https://`, `TLS`, its defaults.
    - `pool_max_conn`: how many idle connections are kept, int, None (no limit) (HAProxy `pool-max-conn`).
    - `pool_purge_delay`: how long a connection is kept idle, duration, 5 s (HAProxy `pool-purge-delay`).

    Raises `ConfigError` with every problem found.
    """

    #: how many bytes of bodies one thread buffers at once at most: the process keeps that much freed memory for them
    buffer_limit: ClassVar[int]

    def __init__(
        self,
        url: str,
        *,
        timeouts: Timeouts | None = None,
        forward: Forward | None = None,
        tls: TLS | None = None,
        pool_max_conn: int | None = None,
        pool_purge_delay: Duration | None = None,
    ) -> None:
        if timeouts is not None and timeouts.total is not None:
            raise ConfigError(
                "timeouts: total is over all attempts of a request, and an Upstream by itself makes one: pass it to a "
                "Backend, or set connect and server"
            )
        config = ServerConfig(
            name="upstream", target=url, tls=tls, pool_max_conn=pool_max_conn, pool_purge_delay=pool_purge_delay
        )
        self._set_up(config, timeouts or Timeouts(), forward or Forward())

    @classmethod
    def build(cls, config: ServerConfig, timeouts: Timeouts, forward: Forward) -> Self:
        """Build the upstream of a server's configuration."""
        upstream = cls.__new__(cls)
        upstream._set_up(config, timeouts, forward)
        return upstream

    def _set_up(self, config: ServerConfig, timeouts: Timeouts, forward: Forward) -> None:
        http1.require()
        keep_freed_memory(self.buffer_limit)
        assert isinstance(config.target, str)
        self._config = config
        self._is_retired = False
        self.url = config.target
        self.timeouts = timeouts.in_seconds
        self._location = Location.parse(config.target)
        self._heads = RequestHeads(Location.parse(config.host_url), forward)
        tls = config.tls or TLS()
        self._context = tls.context() if self._location.scheme == "https" else None
        self._sni = tls.sni or self._location.host

    def _build_pool(self) -> Pool[C]:
        delay = self._config.pool_purge_delay
        return Pool(
            0 if self._is_retired else self._config.pool_max_conn, PURGE_DELAY if delay is None else seconds(delay)
        )

    @property
    def app(self) -> App:
        """The app that forwards, and raises `ServerFailure` if the upstream fails."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the idle connections."""
        raise NotImplementedError

    def retire(self) -> None:
        """Send no more requests here: close all idle connections now, and those in use after their request."""
        self._is_retired = True

    def __repr__(self) -> str:
        return f"<Upstream {self.url}>"
