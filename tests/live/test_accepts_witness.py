"""Clients of HAProxy, nginx, Caddy and Traefik stay at their servers when our gateway takes the balancer's place and
accepts its cookie.

The gateway has one server more, which gets every client that it does not recognise.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import pytest

import sticky_asgi
from sticky_core.persistence.persistence import Persist
from tests.live.balancers import (
    CADDY,
    DEADLINE,
    FACES,
    HAPROXY,
    HOST,
    NAMES,
    NGINX,
    TRAEFIK,
    Balancer,
    Client,
    Face,
    Listener,
    listening,
    running,
    upstreams,
)

pytestmark = pytest.mark.live

OURS = "STICKY"
SECRET = "a-secret-of-the-live-tests"
NEWCOMERS = "new"  #: the server that only our gateway knows


@dataclass(frozen=True)
class Mode:
    """A mode of a balancer's cookie.

    - `lines`: the lines of its configuration: those of the backend, and what follows the address of a server.
    - `accepts`: what our cookie accepts. `name`: the name of ours.
    - `old`: the name of the balancer's cookie.
    - `word`: our servers' `cookie=`, with the server's name for `{name}`. `formerly`: the same for their `formerly=`.
    - `sets`: the cookies that the application sets at a login. `sent`: the cookies that it gets from then on.
    - `is_left`: whether the balancer's cookie stays in browsers: because it is the application's, or its path is not
      known.
    """

    id: str
    balancer: Balancer
    lines: Mapping[str, str]
    accepts: Persist
    old: str
    name: str = OURS
    word: str | None = None
    formerly: str = ""
    sets: Sequence[str] = ()
    sent: Mapping[str, str] = field(default_factory=dict)
    is_left: bool = False

    def cookie(self) -> sticky_asgi.Cookie:
        return sticky_asgi.Cookie(self.name, secret=SECRET, accepts=[self.accepts])


def haproxy(backend: str, *, has_words: bool = True) -> Mapping[str, str]:
    return {"backend": backend, "server": " cookie at-{name}" if has_words else ""}


def nginx(backend: str, server: str = "") -> Mapping[str, str]:
    return {"backend": backend, "server": server}


def caddy(backend: str) -> Mapping[str, str]:
    return {"backend": backend}


def traefik(**cookie: str) -> Mapping[str, str]:
    return {"backend": json.dumps(cookie), "service": "" if cookie else "shop"}


WORD = "at-{name}"
PLAIN = sticky_asgi.Cookie("SERVERID", signed=False)
MODES = [
    Mode("HAProxy, insert", HAPROXY, haproxy("cookie SERVERID insert indirect nocache"), PLAIN, "SERVERID", word=WORD),
    Mode("HAProxy, insert, and ours has the same name", HAPROXY, haproxy("cookie SERVERID insert indirect"), PLAIN,
        "SERVERID", name="SERVERID", word=WORD),
    Mode("HAProxy, insert, and servers have other ids", HAPROXY, haproxy("cookie SERVERID insert indirect"), PLAIN,
        "SERVERID", formerly=WORD),
    Mode("HAProxy, insert with dates", HAPROXY, haproxy("cookie SERVERID insert indirect maxidle 30m maxlife 8h"),
        sticky_asgi.Cookie("SERVERID", signed=False, maxidle="30m", maxlife="8h"), "SERVERID", word=WORD),
    Mode("HAProxy, insert with a domain", HAPROXY, haproxy(f"cookie SERVERID insert indirect domain {HOST} httponly"),
        sticky_asgi.Cookie("SERVERID", signed=False, domain=HOST), "SERVERID", word=WORD),
    Mode("HAProxy, dynamic", HAPROXY,
        haproxy("cookie SERVERID insert indirect dynamic\ndynamic-cookie-key MYKEY", has_words=False),
        sticky_asgi.Cookie("SERVERID", signed=False, dynamic="MYKEY"), "SERVERID"),
    Mode("HAProxy, rewrite", HAPROXY, haproxy("cookie APP rewrite"),
        sticky_asgi.Cookie("APP", mode="rewrite", signed=False), "APP", word=WORD,
        sets=("APP=here; Path=/",), sent={"APP": WORD}, is_left=True),
    Mode("HAProxy, prefix", HAPROXY, haproxy("cookie JSESSIONID prefix"),
        sticky_asgi.Cookie("JSESSIONID", mode="prefix", signed=False), "JSESSIONID", word=WORD,
        sets=("JSESSIONID=abc~def; Path=/",), sent={"JSESSIONID": "abc~def"}, is_left=True),
    Mode("HAProxy, passive", HAPROXY, haproxy("cookie APP"),
        sticky_asgi.Cookie("APP", mode="passive"), "APP", word=WORD,
        sets=("APP=at-{name}; Path=/",), sent={"APP": WORD}, is_left=True),
    Mode("nginx, md5", NGINX, nginx("sticky cookie srv_id path=/"), sticky_asgi.NginxCookie("srv_id", path="/"),
        "srv_id"),
    Mode("nginx, md5 without path", NGINX, nginx("sticky cookie srv_id"), sticky_asgi.NginxCookie("srv_id"), "srv_id",
        is_left=True),
    Mode("nginx, route", NGINX, nginx("sticky cookie srv_id expires=1h httponly path=/", " route=at-{name}"),
        sticky_asgi.NginxCookie("srv_id", expires="1h", httponly=True, path="/"), "srv_id", word=WORD),
    Mode("nginx, route, and servers have other ids", NGINX, nginx("sticky cookie srv_id path=/", " route=at-{name}"),
        sticky_asgi.NginxCookie("srv_id", path="/"), "srv_id", word="now-{name}", formerly=WORD),
    Mode("nginx, route without path", NGINX, nginx("sticky cookie srv_id", " route=at-{name}"),
        sticky_asgi.NginxCookie("srv_id"), "srv_id", word=WORD, is_left=True),
    Mode("Caddy", CADDY, caddy("lb_policy cookie"), sticky_asgi.accepts.caddy(), "lb"),
    Mode("Caddy, with a name and a secret", CADDY, caddy("lb_policy cookie srv s3cret"),
        sticky_asgi.accepts.caddy("srv", "s3cret"), "srv"),
    Mode("Caddy, with a placeholder that it does not replace", CADDY, caddy("lb_policy cookie srv {env.HOME}"),
        sticky_asgi.accepts.caddy("srv", "{env.HOME}"), "srv"),
    Mode("Traefik, given name", TRAEFIK, traefik(name="shop id"), sticky_asgi.accepts.traefik("shop id"), "shop_id"),
    Mode("Traefik, name made of the service", TRAEFIK, traefik(), sticky_asgi.accepts.traefik(service="shop@file"),
        "_8705d"),
    Mode("Traefik, with a path and a domain", TRAEFIK, traefik(name="shop", path="/shop", domain=HOST),
        sticky_asgi.accepts.traefik("shop", path="/shop", domain=HOST), "shop"),
]  # fmt: skip


# What runs


@dataclass(frozen=True)
class Place:
    """Where a balancer has run: the listening socket, and a client of each server with the balancer's cookie."""

    listener: Listener
    clients: Mapping[str, Client]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    """The addresses of the upstream servers."""
    with upstreams(NEWCOMERS, *NAMES) as addresses:
        yield addresses


@pytest.fixture(name="places", scope="module")
def _places(
    part: Callable[[str], str],
    until: Callable[[Callable[[], object], str], None],
    servers: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Mode], Place]]:
    """Return the place of a mode. A balancer runs once for all its modes, and has ended when this returns."""
    places: dict[str, Place] = {}
    with ExitStack() as stack:

        def place_of(mode: Mode) -> Place:
            if mode.id not in places:
                modes = [each for each in MODES if each.balancer is mode.balancer]
                program, folder = part(mode.balancer.part), tmp_path_factory.mktemp(mode.balancer.part)
                listeners = stack.enter_context(listening([each.lines for each in modes]))
                known = {name: servers[name] for name in NAMES}
                with running(mode.balancer, program, folder, listeners, known, until):
                    for each, listener in zip(modes, listeners, strict=True):
                        places[each.id] = Place(listener, clients_of(each, listener))
            return places[mode.id]

        yield place_of


def clients_of(mode: Mode, listener: Listener) -> Mapping[str, Client]:
    """Visit the balancer until there is a client of each server. Each client stays at its server."""
    clients: dict[str, Client] = {}
    for _ in range(50):
        client = Client()
        clients.setdefault(client.get(listener.port, *mode.sets).server, client)
        if len(clients) == len(NAMES):
            break
    assert sorted(clients) == sorted(NAMES)
    for server, client in clients.items():
        assert mode.old in client.cookies, f"{mode.id}: the balancer sets no {mode.old}"
        assert client.get(listener.port).server == server
    return clients


@dataclass(frozen=True)
class Gateway:
    """Our gateway in the place of the balancer."""

    mode: Mode
    place: Place
    backend: Any

    @property
    def port(self) -> int:
        return self.place.listener.port


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> Face:
    assert isinstance(request.param, Face)
    return request.param


@pytest.fixture
def replace(
    face: Face,
    places: Callable[[Mode], Place],
    servers: dict[str, str],
    until: Callable[..., None],
) -> Iterator[Callable[[Mode], Gateway]]:
    """Put our gateway in the place of the balancer of a mode."""
    with ExitStack() as stack:

        def gateway(mode: Mode) -> Gateway:
            place = places(mode)
            made = [
                face.package.Server(
                    name,
                    f"http://{at}",
                    cookie=mode.word and mode.word.format(name=name),
                    formerly=[mode.formerly.format(name=name)] if mode.formerly else (),
                )
                for name, at in servers.items()
            ]
            backend = face.package.Backend(
                "shop",
                made,
                persist=mode.cookie(),
                balance="first",  # the server of newcomers is the first
            )
            face.serve(backend, stack.enter_context(closing(place.listener.socket.dup())), stack, until)
            return Gateway(mode, place, backend)

        yield gateway


@pytest.mark.parametrize("mode", [pytest.param(mode, id=mode.id) for mode in MODES])
def test_clients_of_the_balancer_stay_at_their_servers(replace: Callable[[Mode], Gateway], mode: Mode) -> None:
    gateway = replace(mode)
    assert Client().get(gateway.port).server == NEWCOMERS
    values = {server: client.cookies[mode.old] for server, client in gateway.place.clients.items()}
    for server, original in gateway.place.clients.items():
        client = original.copy()
        page = client.get(gateway.port)
        assert page.server == server
        expected = {name: value.format(name=server) for name, value in mode.sent.items()}
        assert page.cookies == expected
        assert set(client.cookies) == {mode.name} | ({mode.old} if mode.is_left else set())
        if mode.is_left:  # what is left does not count
            for cookie in client.jar:
                if cookie.name == mode.old:
                    cookie.value = next(value for other, value in values.items() if other != server)
        again = client.get(gateway.port)
        assert (again.server, again.set_cookie) == (server, [])
    (count,) = gateway.backend.accepted_marks
    assert (count.cookie, count.honoured, count.unknown) == (mode.name, len(NAMES), 0)


# Clients that send anything


class Bait:
    """A listening socket with an address that hostile cookies name."""

    def __init__(self) -> None:
        self.socket = socket.create_server((HOST, 0))
        self.socket.setblocking(False)
        self.address = f"{HOST}:{self.socket.getsockname()[1]}"

    def values(self) -> Iterator[bytes]:
        """Return the address as each balancer would write it."""
        url = f"http://{self.address}"
        yield self.address.encode()
        yield url.encode()
        yield f'"{self.address}"'.encode()
        yield base64.b64encode(self.address.encode())
        for text in (self.address, url):
            yield hashlib.md5(text.encode()).hexdigest().encode()
            yield hashlib.sha256(text.encode()).hexdigest()[:16].encode()
            yield hmac.new(b"", text.encode(), "sha256").hexdigest().encode()

    def was_dialled(self) -> bool:
        try:
            self.socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True


HOSTILE = [
    b"", b"~", b"|", b"||", b"=", b"==", b'"', b'""', b'"""', b"%", b"%00", b"\\", b"!", b"=?=", b".", b"..", b":",
    bytes(range(0x80, 0x100)), b"\xff" * 300, "é→😀".encode(), b"\t", b"a\tb",
    b"http://", b"http://[::1", b"//", b"unix:", b"unix:/", b"[::]:0", b"Cg==", b"CgA=", b"0" * 16, b"f" * 32,
    b"F" * 64,
    b"A" * 65536, b"=" * 65536, b'"' * 65536, b"~" * 65536, b"|" * 65536, b"A=" * 32768,
]  # fmt: skip


def responses(port: int, name: str, values: Sequence[bytes]) -> Iterator[tuple[bytes, str, bytes]]:
    """Send a request with each value of a cookie, one after another on a connection. Return each value, with the status
    and the body of its response.
    """
    with socket.create_connection((HOST, port), DEADLINE) as connection, connection.makefile("rb") as reader:
        for value in values:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nCookie: {name}=".encode() + value + b"\r\n\r\n")
            lines = [line.rstrip(b"\r\n").decode("latin-1") for line in iter(reader.readline, b"\r\n")]
            fields = {key.lower(): text.strip() for key, _, text in (line.partition(":") for line in lines[1:])}
            yield value, lines[0].split()[1], reader.read(int(fields["content-length"]))


@pytest.mark.parametrize("mode", [pytest.param(mode, id=mode.id) for mode in MODES])
def test_hostile_cookies_are_no_error_and_no_address_is_dialled(
    replace: Callable[[Mode], Gateway], mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = replace(mode)
    bait = Bait()
    with closing(bait.socket):
        valid = [client.cookies[mode.old].encode() for client in gateway.place.clients.values()]
        changed = [text for each in valid for text in (each + b"x", each + b"A" * 65536, each[:-1], each.swapcase())]
        repeated = b"; ".join([b"x", *(mode.old.encode() + b"=" + each for each in valid)] * 50)
        values = [*HOSTILE, *bait.values(), *changed, repeated]
        for name in {mode.old, mode.name}:
            for value, status, body in responses(gateway.port, name, values):
                assert status == "200", (value[:100], body)
        assert not bait.was_dialled()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
