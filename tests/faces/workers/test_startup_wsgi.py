"""How workers start under a WSGI server, and what stops them from it."""

import sys
from types import ModuleType

import pytest
from flask import Flask
from flask_socketio import SocketIO  # type: ignore[import-untyped]
from werkzeug.middleware.proxy_fix import ProxyFix

from sticky_core.errors import ConfigError
from sticky_wsgi import StickyWorkers
from tests.faces.workers.wsgi import FakeServer, RecordingApp


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"wsgi.multiprocess": False}, id="one process"),
        pytest.param({"wsgi.run_once": True}, id="a process for each request"),
    ],
)
def test_worker_without_peers_serves_and_sets_no_cookie(folder, variables):
    app = RecordingApp()
    alone = FakeServer(StickyWorkers(app, directory=folder), **variables)
    response = alone.request()
    assert alone.cookie is None and "sticky.decision" not in app.seen[-1]
    assert response.status == "200 OK" and alone.app.workers is None


def test_config_error_has_every_problem():
    with pytest.raises(ConfigError) as caught:
        StickyWorkers(RecordingApp(), threads=0, on_lost="sorry", name="a b")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("is_around", "warnings"), [pytest.param(True, 1, id="around"), pytest.param(False, 0, id="inside")]
)
def test_socketio_around_the_workers_is_reported_with_the_line_to_write(folder, caplog, is_around, warnings):
    app = Flask("chat")
    if not is_around:
        SocketIO(app, async_mode="threading")
    workers = app.wsgi_app = StickyWorkers(app.wsgi_app, directory=folder)  # type: ignore[method-assign]
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    if is_around:
        SocketIO(app, async_mode="threading")
    server = FakeServer(app)
    for _ in range(2):
        assert server.request().status == "404 NOT FOUND"
    workers.stop()
    reported = [record.message for record in caplog.records if "Socket.IO is around StickyWorkers" in record.message]
    assert len(reported) == warnings


@pytest.fixture
def patch(monkeypatch):
    """Makes this process look as if a library had replaced some of the modules."""

    def patch(module, function, *replaced):
        library = ModuleType(module)
        setattr(library, function, lambda name: name in replaced)
        monkeypatch.setitem(sys.modules, module, library)

    return patch


PATCHED = [
    pytest.param("gevent.monkey", "is_module_patched", "socket", id="gevent, sockets"),
    pytest.param("gevent.monkey", "is_module_patched", "threading", id="gevent, threads"),
    pytest.param("eventlet.patcher", "is_monkey_patched", "socket", id="eventlet, sockets"),
    pytest.param("eventlet.patcher", "is_monkey_patched", "thread", id="eventlet, threads"),
]


@pytest.mark.parametrize(("module", "function", "replaced"), PATCHED)
def test_process_with_patched_threads_or_sockets_is_refused(patch, module, function, replaced):
    patch(module, function, replaced)
    with pytest.raises(ConfigError, match=f"{module.partition('.')[0]} has replaced .*: run gunicorn -k gthread"):
        StickyWorkers(RecordingApp())


@pytest.mark.parametrize(("module", "function", "replaced"), PATCHED)
def test_worker_that_is_patched_after_the_app_was_loaded_logs_that_once_and_responds_with_500(
    patch, folder, caplog, module, function, replaced
):
    app = RecordingApp()
    server = FakeServer(StickyWorkers(app, directory=folder))
    patch(module, function, replaced)
    with pytest.raises(ConfigError, match="gthread"):
        server.app.start()
    responses = [server.request() for _ in range(3)]
    assert {response.status for response in responses} == {"500 Internal Server Error"}
    assert server.cookie is None and app.seen == []
    (record,) = caplog.records
    assert "run gunicorn -k gthread" in record.getMessage() and record.exc_info is None


def test_worker_that_is_patched_and_has_no_peers_serves(patch, folder):
    server = FakeServer(StickyWorkers(RecordingApp(), directory=folder), **{"wsgi.multiprocess": False})
    patch("gevent.monkey", "is_module_patched", "socket")
    assert server.request().status == "200 OK"


def test_library_that_has_replaced_nothing_is_no_problem(patch, worker):
    patch("gevent.monkey", "is_module_patched")
    patch("eventlet.patcher", "is_monkey_patched", "os")
    assert worker(RecordingApp()).request().status == "200 OK"


def test_directory_that_other_users_can_enter_is_logged_once_and_a_500_until_it_is_repaired(folder, caplog):
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    sticky = StickyWorkers(RecordingApp(), directory=shared)
    server = FakeServer(sticky)
    try:
        assert [server.request().status for _ in range(3)] == ["500 Internal Server Error"] * 3
        (record,) = caplog.records
        assert "is not a directory that only this user can enter" in record.getMessage()
        shared.chmod(0o700)
        assert server.request().status == "200 OK"
    finally:
        sticky.stop()
