"""Systems without lock files, such as Windows: one process serves, several are refused with the way out."""

import asyncio
import multiprocessing
import os
import sys
from typing import Any

import pytest

import sticky_asgi
import sticky_wsgi
from sticky_core.errors import ConfigError
from tests.faces.workers import asgi, wsgi


@pytest.fixture(autouse=True)
def _windows(monkeypatch):
    monkeypatch.delattr(os, "geteuid")
    monkeypatch.setitem(sys.modules, "fcntl", None)


def spawn(monkeypatch):
    monkeypatch.setattr(multiprocessing, "parent_process", object)


def test_one_asgi_process_serves_and_one_of_several_is_refused(monkeypatch):
    app = sticky_asgi.StickyWorkers(asgi.CountingApp())
    assert asyncio.run(asgi.FakeClient().request(app)).body == b"1"
    spawn(monkeypatch)
    with pytest.raises(ConfigError, match="leave StickyWorkers out here"):
        asyncio.run(asgi.FakeClient().request(sticky_asgi.StickyWorkers(asgi.CountingApp())))


def test_one_wsgi_process_serves_and_one_of_several_is_refused(monkeypatch, caplog):
    def app(environ, start_response):
        start_response("200 OK", [])
        return [b"served"]

    alone: dict[str, Any] = {"wsgi.multiprocess": False}
    assert wsgi.FakeServer(sticky_wsgi.StickyWorkers(app), **alone).request().data == b"served"
    spawn(monkeypatch)
    assert wsgi.FakeServer(sticky_wsgi.StickyWorkers(app), **alone).request().status.startswith("500")
    assert "leave StickyWorkers out here" in caplog.text


@pytest.mark.parametrize("package", [sticky_asgi, sticky_wsgi])
def test_name_is_refused_at_construction(package):
    app: Any = asgi.CountingApp() if package is sticky_asgi else lambda environ, start_response: []
    with pytest.raises(ConfigError, match="leave StickyWorkers out here"):
        package.StickyWorkers(app, name="shop")
