"""Balance algorithms compared with nginx: the same servers and requests, in order, must come to the same choices.

nginx is also its own servers, over UNIX sockets, and requests are sent many at a time.
"""

import random
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from sticky_core.balance import (
    IpHash,
    NginxHash,
    NginxLeastConn,
    Smooth,
)
from sticky_core.http.messages import Request
from tests.live.balance_rows import (
    EQUAL,
    KEYS,
    SERVERS,
    WEIGHTS,
    Change,
    FakeRequest,
    HeldRequests,
    HeldRow,
    Row,
    accepts_connections,
    addresses,
    chosen_servers,
    differences,
    many,
    servers_of_responses,
    uris,
    word,
)

pytestmark = pytest.mark.live


def single_users(rng: random.Random) -> Iterator[FakeRequest]:
    """Requests with the header, with an empty one, or without it."""
    for _ in range(KEYS):
        probability = rng.random()
        headers = () if probability < 0.1 else (("x-user", "" if probability < 0.2 else word(rng, 30)),)
        yield FakeRequest(headers=headers)


def request_uri(request: Request) -> str:
    return f"{request.path}?{request.query}" if request.query else request.path


def user(request: Request) -> str | None:
    return next(iter(request.header("x-user")), None)


NGINX = [
    *(
        Row(f"round robin {weights}", (), Smooth(start=0), many, weights)
        for weights in ((1, 1, 1), (3, 1, 1, 1), (5, 3, 1, 1), (2, 3, 3), (7, 4, 2, 9), (30, 10, 20, 11), WEIGHTS)
    ),
    Row("round robin, two down", (), Smooth(start=0), many, disabled=(1, 6)),
    Row("ip_hash", ("ip_hash",), IpHash(start=0), addresses),
    Row("ip_hash among equals", ("ip_hash",), IpHash(start=0), addresses, EQUAL),
    Row("ip_hash, two down", ("ip_hash",), IpHash(start=0), addresses, disabled=(3, 6)),
    Row("ip_hash, all but one down", ("ip_hash",), IpHash(start=0), addresses, (1, 1, 1, 1), disabled=(1, 2, 4)),
    Row("hash", ("hash $http_x_user",), NginxHash(user, start=0), single_users),
    Row("hash by URI", ("hash $request_uri",), NginxHash(request_uri, start=0), uris, EQUAL),
    Row("hash, two down", ("hash $http_x_user",), NginxHash(user, start=0), single_users, disabled=(3, 6)),
    Row("hash consistent", ("hash $http_x_user consistent",), NginxHash(user, True, 0), single_users),
    Row("hash consistent by URI", ("hash $request_uri consistent",), NginxHash(request_uri, True, 0), uris, EQUAL),
    Row("hash consistent, two down", ("hash $request_uri consistent",), NginxHash(request_uri, True, 0), uris,
        disabled=(3, 6)),
    Row("least_conn, all idle", ("least_conn",), NginxLeastConn(start=0), many),
]  # fmt: skip
NGINX_HELD_ROWS = [
    HeldRow("least_conn", ("least_conn",), NginxLeastConn()),
    HeldRow("least_conn by weight", ("least_conn",), NginxLeastConn(), (1, 2, 3, 4)),
]


def nginx_config(folder: Path, places: Sequence[str], holding_sockets: Sequence[socket.socket]) -> str:
    """Return nginx.conf, with an upstream for each row, and a server for each server, which names itself."""
    paths = (f"{kind}_temp_path {folder}/{kind}" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    lines = ["daemon off", "master_process off", f"pid {folder}/pid", f"error_log {folder}/log"]
    http = ["access_log off", *paths, "real_ip_header X-Src", "set_real_ip_from unix:"]
    servers = [
        f"server {{ listen {place.removeprefix('http://')}; add_header X-Server s{number}; return 204; }}"
        for number, place in enumerate(places, 1)
    ]
    upstreams: list[str] = []
    for number, row in enumerate(NGINX):
        members = [
            f"server {place} weight={weight}{' down' if nth in row.disabled else ''}"
            for nth, (place, weight) in enumerate(zip(places, row.weights, strict=False), 1)
        ]
        upstreams.append(f"upstream row{number} {{ {'; '.join((*row.lines, *members))}; }}")
    for number, held in enumerate(NGINX_HELD_ROWS):
        members = [
            f"server {holding_socket.getsockname()[0]}:{holding_socket.getsockname()[1]} weight={weight}"
            for holding_socket, weight in zip(holding_sockets, held.weights, strict=True)
        ]
        upstreams.append(f"upstream held{number} {{ {'; '.join((*held.lines, *members))}; }}")
    http_socket = f"server {{ listen unix:{folder}/http_socket; keepalive_requests 100000; "
    http_socket += "location / { proxy_pass http://$http_x_row; } }"
    directives = [f"{line};" for line in lines]
    inner = [f"{line};" for line in http]
    return "\n".join((*directives, "events {}", "http {", *inner, *upstreams, *servers, http_socket, "}", ""))


@dataclass(frozen=True)
class Nginx:
    """A running nginx."""

    folder: Path
    places: Sequence[str]
    holding_sockets: Sequence[socket.socket]

    def servers(self, row: Row) -> list[str]:
        (requests,) = [step for step in row.steps if not isinstance(step, Change)]
        return servers_of_responses(
            self.folder / "http_socket", [each.encode(x_row=f"row{NGINX.index(row)}") for each in requests]
        )


@pytest.fixture(scope="module")
def nginx(part: Callable[[str], str], until: Callable[[Callable[[], object], str], None]) -> Iterator[Nginx]:
    program = part("nginx")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        with ExitStack() as sockets:
            # nginx hashes the address as written: with a port, or a path
            bound = [
                sockets.enter_context(closing(socket.create_server((f"127.0.0.{number}", 0))))
                for number in range(1, SERVERS)
            ]
            places = ["{}:{}".format(*listener.getsockname()) for listener in bound]
        places.append(f"unix:{folder}/s10")
        holding_sockets = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(4)]
        config = folder / "nginx.conf"
        config.write_text(nginx_config(folder, places, holding_sockets))
        process = subprocess.Popen(
            [program, "-c", config, "-p", folder, "-e", folder / "log"], stdin=subprocess.DEVNULL
        )
        try:
            until(
                lambda: process.poll() is not None or accepts_connections(folder / "http_socket"),
                "nginx accepts connections",
            )
            assert process.poll() is None, (folder / "log").read_text()
            yield Nginx(folder, places, holding_sockets)
            assert process.poll() is None, (folder / "log").read_text()
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in NGINX])
def test_nginx_chooses_the_same_servers(nginx: Nginx, row: Row) -> None:
    theirs = nginx.servers(row)
    if not row.id.endswith("all but one down"):
        assert len(set(theirs)) > 1, "one server for all requests proves nothing"
    targets = [place if place.startswith("unix:") else f"http://{place}" for place in nginx.places]
    assert differences(row, theirs, chosen_servers(row, targets)) == []


@pytest.mark.parametrize("held", [pytest.param(held, id=held.id) for held in NGINX_HELD_ROWS])
def test_nginx_chooses_the_same_servers_while_requests_stay_in_flight(nginx: Nginx, held: HeldRow) -> None:
    name = f"held{NGINX_HELD_ROWS.index(held)}"
    with closing(HeldRequests(held, nginx.folder / "http_socket", name, nginx.holding_sockets)) as flight:
        flight.compare()


def test_ids_of_rows_are_unique() -> None:
    ids = [row.id for row in NGINX]
    assert sorted(set(ids)) == sorted(ids)
