"""`Timeouts(total=...)` behind a real server of each face: an upstream that accepts connections and never answers."""

from __future__ import annotations

import http.client
import socket
from contextlib import ExitStack, closing
from typing import Any

import pytest

import sticky_asgi
import sticky_wsgi
from sticky_core.backend.backend import Backend
from sticky_core.decision import Decision
from sticky_core.errors import Failure
from sticky_core.http.timeouts import Timeouts
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from tests.conformance.servers import serve_by_uvicorn, serve_by_waitress
from tests.conformance.wire import DEADLINE, HOST


def serve(backend: Backend, kind: str, stack: ExitStack) -> int:
    if kind == "uvicorn":
        return serve_by_uvicorn(sticky_asgi.Dispatcher(backend), stack)
    dispatcher = sticky_wsgi.Dispatcher(backend)
    stack.callback(dispatcher.replicas.stop)
    return serve_by_waitress(dispatcher, stack, threads=1)


@pytest.mark.parametrize("kind", ["uvicorn", "waitress"])
def test_client_of_an_upstream_that_never_answers_gets_a_504_and_the_upstream_is_not_blamed(kind: str):
    log: list[Decision] = []
    timeouts = Timeouts(connect=DEADLINE, server=DEADLINE, total=0.2)
    with ExitStack() as stack:
        # the system accepts connections for it, and takes in what is sent
        silent = stack.enter_context(closing(socket.create_server((HOST, 0))))
        upstream = Server("s1", f"http://{HOST}:{silent.getsockname()[1]}", max_fails=1)
        options: dict[str, Any] = {"timeouts": timeouts, "retry_on": "all-retryable-errors", "log": log.append}
        port = serve(Backend("web", [upstream], **options), kind, stack)
        client = stack.enter_context(closing(http.client.HTTPConnection(HOST, port, timeout=DEADLINE)))
        client.request("GET", "/")
        response = client.getresponse()
        assert (response.status, b"took too long" in response.read()) == (504, True)
        assert upstream.status == "UP"
    ((attempts, failures),) = [(decision.attempts, decision.failures) for decision in log]
    assert (attempts, failures) == (("s1",), (Failure.TOTAL_TIMEOUT,))
    assert [upstream.counters[total] for total in (Total.ECON, Total.ERESP)] == [0, 0]
    assert len(upstream.in_flight) == 0
