"""The apps of one backend: when they are built, which targets a face can serve, and what ends requests early."""

from __future__ import annotations

from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.clock import ManualClock
from sticky_core.health.check import Check
from sticky_core.runtime.apps import Replicas
from sticky_core.server.server import Server
from sticky_core.server.state import Health
from sticky_core.target import ForwardingApp
from sticky_core.upstream.upstream import Upstream


class RecordingApp:
    """An app with requests that can be ended: it records the reasons."""

    def __init__(self, app: Any, server: Server) -> None:
        self.app = app
        self.reasons: list[str] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("no request is sent")

    def interrupt(self, reason: str) -> None:
        self.reasons.append(reason)


class WsgiReplicas(Replicas):
    """The apps of a face for WSGI that sends no requests."""

    kind = "wsgi"
    upstream_class = Upstream
    interruptible_app = RecordingApp


def app(environ: object, start_response: object) -> list[bytes]:
    return []


async def asgi_app(scope: object, receive: object, send: object) -> None: ...


def failing_factory() -> Any:
    raise OSError("no file")


def replicas_of(*servers: Server) -> WsgiReplicas:
    return Backend("app", servers, clock=ManualClock()).component(WsgiReplicas)


def test_apps_are_built_once_when_a_request_first_needs_them():
    made: list[object] = []

    def factory() -> Any:
        made.append(app)
        return app

    replicas = replicas_of(Server("s1", factory=factory), Server("s2", app))
    assert (replicas.is_ready, made) == (False, [])
    replicas.get_ready()
    replicas.get_ready()
    assert (replicas.apps_built, len(made)) == (True, 1)
    assert [replicas.apps[server] for server in replicas.backend.servers] == [app, app]
    assert not replicas.build_apps()


def test_server_is_down_if_its_app_fails_to_start_and_the_others_serve(caplog: pytest.LogCaptureFixture):
    replicas = replicas_of(Server("s1", factory=failing_factory), Server("s2", app))
    replicas.get_ready()
    one, other = replicas.backend.servers
    assert (one.health, other.health) == (Health.DOWN, Health.UP)
    assert (replicas.apps[one], replicas.apps[other]) == (None, app)
    assert caplog.messages[0] == "backend app: replica s1 failed to start and is DOWN"


def test_server_is_down_if_its_factory_returns_an_upstream(caplog: pytest.LogCaptureFixture):
    class Forwarder(ForwardingApp):
        url = "http://10.0.0.1"

        def __call__(self, environ: object, start_response: object) -> list[bytes]:
            return []

    replicas = replicas_of(Server("s1", factory=Forwarder), Server("s2", app))
    replicas.get_ready()
    assert replicas.backend["s1"].health is Health.DOWN
    assert "write the URL, Server(name, 'http://10.0.0.1')" in caplog.text


@pytest.mark.parametrize(
    "target, problems",
    [
        pytest.param(app, [], id="an app of the face"),
        pytest.param(asgi_app, ["is no WSGI app: import from sticky_asgi, or pass another app"], id="another face"),
    ],
)
def test_app_of_another_face_is_a_problem_that_names_the_way_out(target: Any, problems: list[str]):
    found = list(replicas_of(Server("s1", target)).problems())
    assert [each.rpartition("> ")[2] for each in found] == problems


def test_removed_server_has_no_app():
    assert replicas_of(Server("s1", app)).apps[Server("s9", app)] is None


@pytest.mark.parametrize(
    "health, reasons", [(Health.DOWN, ["marked down"]), (Health.UP, [])], ids=["marked down", "still up"]
)
def test_requests_end_when_their_server_is_marked_down_if_it_is_configured(health: Health, reasons: list[str]):
    replicas = replicas_of(Server("s1", app, check=Check(on_marked_down="shutdown-sessions")), Server("s2", app))
    replicas.get_ready()
    replicas.make_interruptible(replicas.backend.servers)
    one, other = replicas.backend.servers
    wrapped = replicas.apps[one]
    assert isinstance(wrapped, RecordingApp) and wrapped.app is app and replicas.apps[other] is app
    one.health = health
    assert wrapped.reasons == reasons


def test_forked_child_builds_apps_of_its_own():
    replicas = replicas_of(Server("s1", app))
    replicas.get_ready()
    [server] = replicas.backend.servers
    before = server.instance
    replicas.after_fork()
    assert (replicas.apps_built, replicas.apps[server], server.instance) == (False, None, "")
    replicas.get_ready()
    assert replicas.apps[server] is app and before != server.instance != ""
