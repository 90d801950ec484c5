"""Begin: WSGI has no lifespan, so replicas are made by the first request, in the process that serves."""

from __future__ import annotations

from sticky_core.replicas import Replicas as CoreReplicas
from sticky_core.server import Server
from sticky_wsgi.messages import WSGIApp


class Replicas(CoreReplicas):
    """The apps behind a backend's servers."""

    kind = "wsgi"
    apps: dict[Server, WSGIApp | None]
