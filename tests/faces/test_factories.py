"""Factories that return no app: the reason is reported when the replica is to start."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from starlette.applications import Starlette

from sticky_core.errors import ConfigError
from sticky_core.server.server import Server
from tests.faces.running import running

if TYPE_CHECKING:
    from tests.faces.conftest import Face


def create_app() -> Any:
    """A factory that lacks `return app`."""


def test_factory_that_returns_nothing_is_reported_at_the_start(face: Face, caplog: pytest.LogCaptureFixture):
    backend = face.backend(*Server.replicas(create_app, 2))
    problem = "factory create_app returned None: it has to end with `return app`"
    if face.name == "asgi":
        failed = pytest.raises(RuntimeError, match=f"backend web: replica r1 failed to start: ConfigError: {problem}")
        with failed, running(face, backend):
            pytest.fail("it has started")
    else:
        assert face.client(backend)().status == 503
        records = [record for record in caplog.records if "failed to start" in record.getMessage()]
        assert [(record.levelno, record.getMessage(), record.exc_info) for record in records] == [
            (logging.ERROR, f"backend web: replica {name} failed to start and is DOWN: {problem}", None)
            for name in ("r1", "r2")
        ]


def test_server_with_a_factory_that_returns_no_app_is_not_added(face: Face):
    backend = face.backend(face.server("s1"))
    other: Any = Flask if face.name == "asgi" else Starlette
    made: Any = (lambda: other("shop")) if other is Flask else other
    with running(face, backend):
        with pytest.raises(RuntimeError, match="replica s2 failed to start: ConfigError: factory create_app"):
            backend.add(Server("s2", factory=create_app)).wait()
        with pytest.raises(RuntimeError, match=f"which is no {face.name.upper()} app: import from sticky_"):
            backend.add(Server("s3", factory=made)).wait()
        assert [server.name for server in backend.servers] == ["s1"]


def test_cluster_reports_a_factory_that_returns_nothing_with_the_line_to_write(face: Face):
    testing = __import__(f"{face.package.__name__}.testing").testing
    failed = pytest.raises((ConfigError, RuntimeError), match="factory create_app returned None: it has to end with")
    with failed, testing.Cluster(create_app):
        pytest.fail("it has started")
