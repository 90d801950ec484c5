"""A process without descriptors: its servers stay up, clients stay at their servers, and the log names the limit."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Any, NoReturn

import pytest

import sticky_asgi.background.probes
import sticky_wsgi.background.probes
from sticky_core.backend.backend import Backend
from sticky_core.errors import Failure
from sticky_core.health.check import Check, CheckStatus
from sticky_core.http.timeouts import Timeouts
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.counters import Total
from sticky_core.upstream import local_limits
from sticky_core.upstream.local_limits import LocalLimitLog
from sticky_core.upstream.probe import HttpProbe, ProbeTarget
from tests.faces.conftest import Face

LIMIT = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def out_of_descriptors(*args: Any, **kwargs: Any) -> NoReturn:
    raise LIMIT


async def out_of_descriptors_on_asyncio(*args: Any, **kwargs: Any) -> NoReturn:
    raise LIMIT


@pytest.fixture
def _limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_limits, "LOG", LocalLimitLog())
    monkeypatch.setattr(socket, "create_connection", out_of_descriptors)
    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", out_of_descriptors_on_asyncio)
    monkeypatch.setattr(sticky_asgi.background.probes, "_connect_socket", out_of_descriptors_on_asyncio)
    monkeypatch.setattr(sticky_wsgi.background.probes, "_connect", out_of_descriptors)


def backend_of(face: Face, **options: Any) -> Backend:
    servers = [face.package.Server(name, "http://127.0.0.1:1", max_fails=1) for name in ("s1", "s2")]
    backend: Backend = face.package.Backend(
        "web", servers, persist=Cookie("SRV", signed=False), timeouts=Timeouts(connect=0.02), **options
    )
    return backend


@pytest.mark.usefixtures("_limit")
def test_request_without_a_descriptor_takes_no_server_down_and_moves_no_client(
    face: Face, caplog: pytest.LogCaptureFixture
) -> None:
    backend = backend_of(face)
    response = face.client(backend)(cookie="SRV=s2")
    assert (response.status, response.decision.attempts) == (503, ("s2",) * 4)
    assert set(response.decision.failures) == {Failure.LOCAL_LIMIT}
    assert [server.status for server in backend.servers] == ["UP", "UP"]
    assert [server.counters[Total.ECON] for server in backend.servers] == [0, 0]
    assert response.all("set-cookie") == []
    lines = [each for each in caplog.records if "Too many open files" in each.getMessage()]
    assert len(lines) == 1


@pytest.mark.usefixtures("_limit")
def test_check_without_a_descriptor_has_no_result(face: Face) -> None:
    backend = backend_of(face, check=Check())
    server = backend["s1"]
    assert server.checking is not None
    probe = HttpProbe(ProbeTarget.of_check(server.config, server.checking.check), server.checking)
    if face.name == "asgi":

        async def exchange() -> Any:
            network = sticky_asgi.background.probes.Network(asyncio.get_running_loop())
            return await network.exchange(probe, server, 1.0, None)

        result = asyncio.run(exchange())
    else:
        result = sticky_wsgi.background.probes.Network().exchange(probe, server, 1.0, None)
    assert (result.status, result.info) == (CheckStatus.UNK, "Too many open files")
    for _ in range(10):
        backend.monitor.record_check(server, result)
    assert server.status == "UP"


@pytest.mark.parametrize("error", [LIMIT, RuntimeError("out of order")], ids=["a limit", "another error"])
def test_replica_that_meets_the_limit_is_not_taken_down(face: Face, error: Exception) -> None:
    check = Check(observe="layer7", error_limit=1, on_error="mark-down", inter=60)
    backend = face.backend(face.server("s1", raises=error), face.server("s2"), check=check)
    dispatcher: Any = face.dispatcher(backend)
    assert face.client(dispatcher).outcome().raised is error
    assert backend["s1"].status == ("UP" if error is LIMIT else "DOWN")
    if face.name == "wsgi":
        dispatcher.replicas.stop()


@pytest.mark.parametrize("hosts", [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1")], ids=["last", "first"])
def test_server_that_refuses_is_taken_down_on_a_machine_that_lacks_one_of_its_addresses(
    face: Face, hosts: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def addresses(host: object, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]

    def connect(connection: object, address: tuple[str, int]) -> NoReturn:
        number = errno.EADDRNOTAVAIL if address[0] == "127.0.0.2" else errno.ECONNREFUSED
        raise OSError(number, os.strerror(number))

    server = face.package.Server("s1", "http://two-addresses:1", max_fails=1)
    spare = face.server("s2")
    backend: Backend = face.package.Backend("web", [server, spare], balance="first")
    get = face.client(backend)
    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    monkeypatch.setattr(socket.socket, "connect", connect)
    response = get()
    assert (response.status, set(response.decision.failures)) == (200, {Failure.REFUSED})
    assert server.status == "DOWN"
