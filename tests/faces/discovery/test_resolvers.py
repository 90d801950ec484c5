"""Names are resolved by a function, by the system or by a name server, which is one of ours on loopback."""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from sticky_core.dns.resolvers import Query, Resolvers
from sticky_core.errors import ConfigError
from sticky_core.server.server import Server
from tests.faces.discovery.dispatchers import (
    NAME,
    OFTEN,
    A,
    B,
    C,
    FakeNameserver,
    Origins,
    addresses,
    running,
    template,
)
from tests.faces.running import until

if TYPE_CHECKING:
    from tests.faces.conftest import Face


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_the_system_resolves_by_default(face: Face, origins: Origins, library: str) -> None:
    if face.name == "wsgi" and library == "trio":
        pytest.skip("WSGI has no event loop")
    backend = face.backend(*Server.template("web", 2, f"localhost:{origins.port}"))
    with running(face, backend, library):
        until(lambda: addresses(backend) == [A, None])


@pytest.mark.parametrize(
    "number, word", [(socket.EAI_NONAME, "nx"), (socket.EAI_AGAIN, "timeout"), (socket.EAI_FAIL, "other")]
)
def test_failure_of_the_system_s_resolver_is_logged(
    face: Face, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int, word: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(number, "as asked")

    backend = face.backend(
        *Server.template("web", 1, f"{NAME}:80", resolvers=Resolvers(**OFTEN | {"timeout_retry": 0.05}))
    )
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with running(face, backend) as run:
        assert run.get().status == 503
        until(lambda: f"{NAME} does not resolve: {word} (as asked)" in caplog.text)


def test_coroutine_function_is_awaited_on_asgi_and_refused_on_wsgi(face: Face, origins: Origins) -> None:
    async def resolve(query: Query) -> list[str]:
        await anyio.lowlevel.checkpoint()
        return [A]

    backend = face.backend(*template(origins, resolve))
    if face.name == "wsgi":
        with pytest.raises(ConfigError, match=r"server web1: resolver .* is a coroutine function"):
            face.dispatcher(backend)
        return
    with running(face, backend) as run:
        assert run.address() == A


def test_decorated_coroutine_function_is_awaited_on_asgi_and_gives_no_address_on_wsgi(
    face: Face, origins: Origins, caplog: pytest.LogCaptureFixture
) -> None:
    async def resolve(query: Query) -> list[str]:
        await anyio.lowlevel.checkpoint()
        return [A]

    @functools.wraps(resolve)
    def decorated(query: Query) -> Any:
        return resolve(query)

    with running(face, face.backend(*template(origins, decorated))) as run:
        if face.name == "asgi":
            assert run.address() == A
        else:
            assert run.get().status == 503
            until(lambda: "the resolver is a coroutine function" in caplog.text)


@pytest.fixture(params=["asyncio", "trio"])
def library(request: pytest.FixtureRequest, face: Face) -> str:
    """The libraries of event loops; trio can resolve names, though it can't forward to URLs."""
    if face.name == "wsgi" and request.param == "trio":
        pytest.skip("WSGI has no event loop")
    return str(request.param)


def by_nameserver(nameserver: FakeNameserver, **options: Any) -> Resolvers:
    return Resolvers(nameservers=[nameserver.address], **{**OFTEN, **options})


def test_name_server_is_queried_for_addresses(face: Face, nameserver: FakeNameserver, library: str) -> None:
    nameserver.zone[NAME, "A"] = [B, A]
    backend = face.backend(*Server.template("web", 3, f"{NAME}:8080", resolvers=by_nameserver(nameserver)))
    with running(face, backend, library):
        until(lambda: addresses(backend) == [A, B, None])
        nameserver.zone[NAME, "A"] = [B]
        until(lambda: addresses(backend) == [None, B, None])
    assert set(nameserver.queries) == {(NAME, "A")}


def test_srv_records_give_hosts_ports_and_weights(face: Face, nameserver: FakeNameserver, library: str) -> None:
    service = f"_http._tcp.{NAME}"
    nameserver.zone[service, "SRV"] = [f"0 0 8081 a.{NAME}.", f"0 512 8082 b.{NAME}."]
    nameserver.zone[f"a.{NAME}", "A"] = [A]
    nameserver.zone[f"b.{NAME}", "A"] = [B]
    backend = face.backend(*Server.template("web", 3, service, resolvers=by_nameserver(nameserver)))
    with running(face, backend, library):
        until(lambda: addresses(backend) == [A, B, None])
        assert [server.target for server in backend.servers] == ["http://127.0.0.1:8081", "http://127.0.0.2:8082", None]
        assert [server.weight for server in backend.servers] == [1, 3, 1]
        # a host with a new address keeps its server; a host without a record loses it
        nameserver.zone[f"b.{NAME}", "A"] = [C]
        until(lambda: addresses(backend) == [A, C, None])
        nameserver.zone[service, "SRV"] = [f"0 0 8082 b.{NAME}."]
        until(lambda: addresses(backend) == [None, C, None])
        until(lambda: backend["web2"].weight == 1)


def test_additional_addresses_of_srv_records_are_used(face: Face, nameserver: FakeNameserver) -> None:
    service = f"_http._tcp.{NAME}"
    nameserver.zone[service, "SRV"] = [f"0 0 8081 a.{NAME}."]
    nameserver.additional[f"a.{NAME}", "A"] = [A]
    backend = face.backend(*Server.template("web", 1, service, resolvers=by_nameserver(nameserver)))
    with running(face, backend):
        until(lambda: addresses(backend) == [A])
    assert set(nameserver.queries) == {(service, "SRV")}


@pytest.mark.parametrize(
    "error, word", [("NXDOMAIN", "nx"), ("REFUSED", "refused"), ("SERVFAIL", "other"), ("silent", "timeout")]
)
def test_kind_of_failure_decides_how_long_servers_keep_their_addresses(
    face: Face, nameserver: FakeNameserver, caplog: pytest.LogCaptureFixture, error: str, word: str
) -> None:
    nameserver.zone[NAME, "A"] = [A]
    resolvers = by_nameserver(nameserver, timeout_retry=0.1, **{f"hold_{word}": 0.1})
    backend = face.backend(*Server.template("web", 2, f"{NAME}:8080", resolvers=resolvers))
    with running(face, backend):
        until(lambda: addresses(backend) == [A, None])
        nameserver.error = error
        until(lambda: addresses(backend) == [None, None])
        assert f"{NAME} does not resolve: {word}" in caplog.text
        nameserver.error = None
        until(lambda: addresses(backend) == [A, None])
