"""Clients of a balancer with a cookie that nothing else can read get ours while both run, as `docs/moving.md` tells.

HAProxy is that balancer here: nothing accepts its cookie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.live.balancers import (
    FACES,
    HAPROXY,
    HOST,
    NAMES,
    Client,
    Face,
    listening,
    running,
    upstreams,
)

pytestmark = pytest.mark.live

THEIRS = "AWSALB"
OURS = "SHOP"
SECRET = "a-secret-of-the-live-tests"
MODE = {"backend": f"cookie {THEIRS} insert indirect", "server": " cookie {name}"}


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> Face:
    assert isinstance(request.param, Face)
    return request.param


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def servers(stack: ExitStack) -> dict[str, str]:
    """The addresses of the upstream servers."""
    return stack.enter_context(upstreams(*NAMES))


def clients_of(port: int) -> dict[str, Client]:
    """Visit a balancer that takes turns until there is a client of each server."""
    clients: dict[str, Client] = {}
    for _ in range(50):
        client = Client()
        clients.setdefault(client.get(port).server, client)
        if len(clients) == len(NAMES):
            break
    assert sorted(clients) == sorted(NAMES)
    return clients


def test_gateway_behind_the_old_balancer_gives_each_client_a_cookie_of_its_server(
    face: Face,
    servers: dict[str, str],
    stack: ExitStack,
    part: Callable[[str], str],
    until: Callable[..., None],
    tmp_path: Path,
) -> None:
    def backend(here: str | None) -> Any:
        return face.package.Backend(
            "shop",
            [
                face.package.Server(name, f"http://{at}", weight=int(here in (name, None)))
                for name, at in servers.items()
            ],
            persist=face.package.Cookie(OURS, secret=SECRET),
        )

    old, *gateways = stack.enter_context(listening([MODE] * (1 + len(NAMES))))
    program = part("haproxy")
    with running(HAPROXY, program, tmp_path, [old], servers, until):  # as it was
        clients = clients_of(old.port)
    for name, gateway in zip(NAMES, gateways, strict=True):
        face.serve(backend(name), stack.enter_context(closing(gateway.socket.dup())), stack, until)
    targets = {name: f"{HOST}:{gateway.port}" for name, gateway in zip(NAMES, gateways, strict=True)}
    with running(HAPROXY, program, tmp_path, [old], targets, until):
        for server, client in clients.items():
            assert OURS not in client.cookies
            assert client.get(old.port).server == server
            assert set(client.cookies) == {OURS, THEIRS}
    face.serve(backend(None), stack.enter_context(closing(old.socket.dup())), stack, until)
    for server, client in clients.items():
        client.forget(THEIRS)  # it has ended
        assert [client.get(old.port).server for _ in range(3)] == [server] * 3


def test_clients_of_the_old_balancer_go_through_it_and_new_ones_do_not(
    face: Face,
    servers: dict[str, str],
    stack: ExitStack,
    part: Callable[[str], str],
    until: Callable[..., None],
    tmp_path: Path,
) -> None:
    old, ours = stack.enter_context(listening([MODE] * 2))
    stack.enter_context(running(HAPROXY, part("haproxy"), tmp_path, [old], servers, until))
    clients = clients_of(old.port)
    made = [face.package.Server(name, f"http://{at}") for name, at in servers.items()]
    backend = face.package.Backend(
        "shop",
        [*made, face.package.Server("aws", f"http://{HOST}:{old.port}", weight=0, cookie="")],
        persist=face.package.Cookie(OURS, secret=SECRET),
        use_server={"aws": face.package.cook(THEIRS)},
    )
    face.serve(backend, stack.enter_context(closing(ours.socket.dup())), stack, until)
    for server, client in clients.items():
        assert [client.get(ours.port).server for _ in range(3)] == [server] * 3
        assert set(client.cookies) == {THEIRS}
    assert backend["aws"].total == 3 * len(clients)
    for server, client in clients_of(ours.port).items():
        assert client.get(ours.port).server == server
        assert set(client.cookies) == {OURS}
    assert backend["aws"].total == 3 * len(clients)
