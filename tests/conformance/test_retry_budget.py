"""Fifty requests at once to five dead servers, through a real server of each face: how many attempts there are with and
without a `retry_budget`.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import anyio
import pytest

import sticky_asgi
import sticky_wsgi
from sticky_core.backend.backend import Backend
from sticky_core.backend.retries import RetryBudget
from sticky_core.clock import ManualClock
from sticky_core.decision import Decision
from sticky_core.server.server import Server
from tests.conformance.origins import bound
from tests.conformance.servers import serve_by_uvicorn, serve_by_waitress

HOST = "127.0.0.1"
DEADLINE = 300.0
REQUESTS = 50
SERVERS = 5


class MeetingAsgi:
    """An app around another that passes requests on when all have arrived."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._arrived = 0
        self._all = anyio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self._arrived += 1
            if self._arrived == REQUESTS:
                self._all.set()
            await self._all.wait()
        await self._app(scope, receive, send)


def meeting_wsgi(app: Any) -> Any:
    """Return an app around another that passes requests on when all have arrived."""
    barrier = threading.Barrier(REQUESTS)

    def meeting(environ: Any, start_response: Any) -> Any:
        barrier.wait(DEADLINE)
        return app(environ, start_response)

    return meeting


def serve_asgi(backend: Backend, stack: ExitStack) -> int:
    app: Any = MeetingAsgi(sticky_asgi.Dispatcher(backend))
    return serve_by_uvicorn(app, stack)


def serve_wsgi(backend: Backend, stack: ExitStack) -> int:
    dispatcher = sticky_wsgi.Dispatcher(backend)
    stack.callback(dispatcher.replicas.stop)
    return serve_by_waitress(meeting_wsgi(dispatcher), stack, REQUESTS)


@pytest.fixture(params=[serve_asgi, serve_wsgi], ids=["uvicorn", "waitress"])
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[[Backend], int]]:
    with ExitStack() as stack:
        yield partial(request.param, stack=stack)


def fetch(port: int) -> int:
    connection = http.client.HTTPConnection(HOST, port, timeout=DEADLINE)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    "budget, least, most",
    [
        pytest.param(None, 250, 250, id="without"),
        pytest.param(RetryBudget(share=0, per_second=10), 60, 60, id="ten retries a second"),
        pytest.param(RetryBudget(share=0.2, per_second=10), 60, 249, id="a fifth, and ten a second"),
    ],
)
def test_budget_limits_the_attempts_of_fifty_requests_at_five_dead_servers(serve, budget, least, most):
    decisions: list[Decision] = []
    with ExitStack() as stack:
        dead = [stack.enter_context(bound()) for _ in range(SERVERS)]  # bound, but not listening: they refuse
        servers = [Server(f"s{number}", f"http://{HOST}:{end.getsockname()[1]}") for number, end in enumerate(dead, 1)]
        backend = Backend(
            "web",
            servers,
            retries=SERVERS - 1,
            retry_budget=budget,
            log=decisions.append,
            clock=ManualClock(),  # so that a slow machine has no further second
        )
        port = serve(backend)
        with ThreadPoolExecutor(REQUESTS) as clients:
            statuses = [*clients.map(fetch, [port] * REQUESTS)]
    assert statuses == [503] * REQUESTS
    attempts = sum(len(decision.attempts) for decision in decisions)
    assert least <= attempts <= most
    denied = sum(decision.retry_denied for decision in decisions)
    assert bool(denied) is (budget is not None)
    if budget is not None:
        assert backend.granted_retries.denied == denied
    assert backend.granted_retries.in_flight == 0
