"""Server: what it shows, the backend it belongs to, and replicas."""

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.errors import ConfigError
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def create_app():
    return app


@pytest.mark.parametrize(
    "health, state, in_flight, total, text",
    [
        (Health.UP, AdminState.READY, 0, 0, "<Server s1 UP 0/0>"),
        (Health.UP, AdminState.READY, 3, 100, "<Server s1 UP 3/100>"),
        (Health.UP, AdminState.DRAIN, 0, 100, "<Server s1 DRAIN 0/100>"),
        (Health.UP, AdminState.MAINT, 0, 0, "<Server s1 MAINT 0/0>"),
        (Health.DOWN, AdminState.READY, 0, 0, "<Server s1 DOWN 0/0>"),
        (Health.DOWN, AdminState.MAINT, 0, 0, "<Server s1 MAINT 0/0>"),
    ],
)
def test_repr_shows_name_status_and_requests(health: Health, state: AdminState, in_flight: int, total: int, text: str):
    server = Server("s1", app)
    server.health = health
    server.state = state
    server.in_flight.extend([None] * in_flight)
    server.counters.cell[Total.HRSP_2XX] += total - in_flight
    assert repr(server) == text


def test_server_belongs_to_one_backend():
    server = Server("s1", app)
    Backend("web", [server])
    with pytest.raises(ConfigError, match="server s1: belongs to another backend already"):
        Backend("api", [server])


def test_backend_that_could_not_be_built_does_not_attach_its_servers():
    free, taken = Server("s1", app), Server("s2", app)
    Backend("web", [taken])
    with pytest.raises(ConfigError, match="server s2"):
        Backend("api", [free, taken])
    assert Backend("api", [free]).servers == (free,)


def test_replicas_are_named_by_number_and_share_the_factory():
    replicas = Server.replicas(create_app, 3)
    assert [replica.name for replica in replicas] == ["r1", "r2", "r3"]
    assert {replica.config.factory for replica in replicas} == {create_app}
    assert all(replica.is_in_process and replica.config.target is None for replica in replicas)
    assert [replica.name for replica in Server.replicas(create_app, 2, prefix="cart-")] == ["cart-1", "cart-2"]


def test_making_replicas_makes_no_app():
    def explode():
        raise AssertionError("an app is made in the process that serves, not before")

    Backend("web", Server.replicas(explode, 3))


@pytest.mark.parametrize("n", [0, -1])
def test_number_of_replicas_below_1_is_refused(n: int):
    with pytest.raises(ConfigError, match="is below 1: write how many servers"):
        Server.replicas(create_app, n)


def test_replicas_of_an_app_rather_than_a_factory_are_refused():
    with pytest.raises(
        ConfigError, match=r"replicas: .* rather than a factory, .* write Server.replicas\(create_app, 3\)"
    ):
        Server.replicas(app, 3)  # type: ignore[arg-type] # what a caller without types may hand over


def test_replicas_of_a_url_are_refused_with_the_server_to_write():
    with pytest.raises(ConfigError, match=r"replicas: .*; a server at a URL is Server\(name, 'http://10.0.0.1'\)"):
        Server.replicas("http://10.0.0.1", 3)  # type: ignore[arg-type] # what a caller without types may hand over


def test_number_of_replicas_that_is_a_text_is_refused():
    with pytest.raises(ConfigError, match="replicas: n='3' is no number: write how many servers"):
        Server.replicas(create_app, "3")  # type: ignore[arg-type] # what a caller without types may hand over


@pytest.mark.parametrize(
    "server, expected",
    [
        pytest.param(Server("s1", app), True, id="an app"),
        pytest.param(Server("s1", factory=create_app), True, id="a factory"),
        pytest.param(Server("s1", app, stateless=True), False, id="an app that keeps nothing"),
        pytest.param(Server("s1", "http://10.0.0.1"), False, id="an upstream"),
    ],
)
def test_is_in_process(server: Server, expected: bool):
    assert server.is_in_process is expected
