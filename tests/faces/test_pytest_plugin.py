"""The fixture `sticky_cluster` in the test suite of a user's app: pytest runs inside pytest."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import fastapi
import flask
import pytest
import trio

import sticky_asgi.testing
import sticky_wsgi.testing

#: Imported before, since pytester removes modules that a run inside it was the first to import; FastAPI can't be
#: imported twice.
IMPORTED = (fastapi, flask, trio, sticky_asgi.testing, sticky_wsgi.testing)

PLUGIN = "sticky_core.pytest_plugin"
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

#: runs a test file and returns its result; with `alone=True` in a process of its own
Run = Callable[..., pytest.RunResult]

FASTAPI = """
import contextlib

from fastapi import FastAPI, Request

started, ended = [], []

def create_app():
    visits = []

    async def lifespan(app):
        started.append(visits)
        yield {"number": len(started)}
        ended.append(visits)

    app = FastAPI(lifespan=contextlib.asynccontextmanager(lifespan))

    @app.post("/visit")
    async def visit(request: Request) -> int:
        assert request.state.number
        visits.append("visit")
        return len(visits)

    return app
"""

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

started = []

def create_app():
    visits = []
    started.append(visits)

    async def visit(request):
        visits.append("visit")
        return PlainTextResponse(str(len(visits)))

    return Starlette(routes=[Route("/visit", visit, methods=["POST"])])
"""

FLASK = """
import flask

started = []

def create_app():
    visits = []
    started.append(visits)
    app = flask.Flask("shop")

    @app.post("/visit")
    def visit():
        visits.append("visit")
        return str(len(visits))

    return app
"""

APPS = {"FastAPI": FASTAPI, "Starlette": STARLETTE, "Flask": FLASK}
FACES = {"FastAPI": "sticky_asgi", "Starlette": "sticky_asgi", "Flask": "sticky_wsgi"}


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    # Where the package is installed, pytest also finds its entry point, and it refuses to load a plugin twice.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))

    def run_pytest(*parts: str, alone: bool = False) -> pytest.RunResult:
        pytester.path.joinpath("test_shop.py").write_text("\n".join(parts))
        with_pytest = pytester.runpytest_subprocess if alone else pytester.runpytest_inprocess
        # pytest warns that it can't rewrite the assertions of a plugin that is imported already; it has none.
        warnings = ("-W", "error", "-W", "ignore::pytest.PytestAssertRewriteWarning")
        return with_pytest("-p", PLUGIN, "-p", "no:cacheprovider", *warnings)

    return run_pytest


@pytest.mark.parametrize("name", APPS)
def test_fixture_makes_a_cluster_of_any_app(run: Run, name: str) -> None:
    outcome = run(
        APPS[name],
        f"""
def test_it(sticky_cluster):
    cluster = sticky_cluster(create_app, replicas=3)
    assert type(cluster).__module__ == "{FACES[name]}.testing"
    clients = [cluster.client() for _ in range(6)]
    assert [client.post("/visit").text for client in clients] == list("111222")
    assert [client.post("/visit").text for client in clients] == list("333444")
    for client in clients:
        cluster.assert_sticky(client)
    cluster.kill("r1")
    assert clients[0].post("/visit").status_code == 200
    assert cluster.server_of(clients[0]) != "r1"
""",
    )
    outcome.assert_outcomes(passed=1)


@pytest.mark.parametrize("name", APPS)
def test_factory_is_called_once_per_replica_and_again_by_restart(run: Run, name: str) -> None:
    outcome = run(
        APPS[name],
        """
def test_it(sticky_cluster):
    cluster = sticky_cluster(create_app, 4)
    assert len(started) == 4
    clients = [cluster.client() for _ in range(8)]
    for client in clients:
        client.post("/visit")
    assert [len(visits) for visits in started] == [2, 2, 2, 2], "the first app that was made is a replica, too"
    assert len(started) == 4
    cluster.restart("r1")
    assert len(started) == 5
""",
    )
    outcome.assert_outcomes(passed=1)


def test_fixture_passes_options_to_the_cluster(run: Run) -> None:
    outcome = run(
        FLASK,
        """
def test_it(sticky_cluster):
    cluster = sticky_cluster(create_app, replicas=2, persist=None, name="shop")
    client = cluster.client()
    assert [client.post("/visit").text for _ in range(4)] == list("1122")
    assert "<Backend shop: r1 UP 0/2, r2 UP 0/2>" in repr(cluster)
""",
    )
    outcome.assert_outcomes(passed=1)


def test_cluster_of_an_asgi_app_can_run_on_trio(run: Run) -> None:
    outcome = run(
        FASTAPI,
        """
import anyio

def create_app_with_library():
    app = create_app()

    @app.get("/library")
    async def library() -> str:
        return anyio.get_cancelled_exc_class().__module__.partition(".")[0]

    return app

def test_it(sticky_cluster):
    cluster = sticky_cluster(create_app_with_library, anyio_backend="trio")
    assert cluster.client().get("/library").json() == "trio"
""",
    )
    outcome.assert_outcomes(passed=1)


def test_clusters_end_with_their_test_even_if_it_fails(run: Run) -> None:
    outcome = run(
        FASTAPI,
        """
def test_one(sticky_cluster):
    sticky_cluster(create_app, 2)
    sticky_cluster(create_app, 1)
    assert (len(started), len(ended)) == (3, 0)

def test_two():
    assert (len(started), len(ended)) == (3, 3)

def test_three(sticky_cluster):
    sticky_cluster(create_app, 2)
    assert not "this test fails"

def test_four():
    assert (len(started), len(ended)) == (5, 5)
""",
    )
    outcome.assert_outcomes(passed=3, failed=1)


def test_app_of_unknown_kind_raises_with_the_classes_to_use(run: Run) -> None:
    outcome = run(
        """
import pytest
from sticky_core.errors import ConfigError

def app(*arguments):
    "Takes two arguments, or three."

def test_it(sticky_cluster):
    with pytest.raises(ConfigError) as refused:
        sticky_cluster(lambda: app)
    assert "does not show whether it is an ASGI app" in str(refused.value)
    for face in ("sticky_asgi", "sticky_wsgi"):
        assert f"{face}.testing" in str(refused.value)
"""
    )
    outcome.assert_outcomes(passed=1)


@pytest.mark.parametrize("name", ["Starlette", "Flask"])
def test_app_in_place_of_a_factory_is_a_config_error(run: Run, name: str) -> None:
    outcome = run(
        APPS[name],
        """
import pytest
from sticky_core.errors import ConfigError

def test_it(sticky_cluster):
    with pytest.raises(ConfigError, match="rather than a factory"):
        sticky_cluster(create_app())
""",
    )
    outcome.assert_outcomes(passed=1)


def test_exception_of_a_factory_fails_the_test(run: Run) -> None:
    outcome = run(
        """
def create_app():
    raise ValueError("no database")

def test_it(sticky_cluster):
    sticky_cluster(create_app)
"""
    )
    outcome.assert_outcomes(failed=1)
    outcome.stdout.fnmatch_lines(["E *ValueError: no database"])


def test_factory_that_returns_nothing_fails_the_test_with_the_line_to_write(run: Run) -> None:
    outcome = run(
        """
def create_app():
    pass

def test_it(sticky_cluster):
    sticky_cluster(create_app)
"""
    )
    outcome.assert_outcomes(failed=1)
    outcome.stdout.fnmatch_lines(["E *factory create_app returned None: it has to end with `return app`"])


def test_only_the_needed_test_client_is_imported(run: Run) -> None:
    outcome = run(
        """
import sys

STARLETTE, WERKZEUG = "starlette.testclient", "werkzeug.test"

def test_none_before_the_fixture_is_used(sticky_cluster):
    assert not {"starlette", "werkzeug"} & sys.modules.keys()

def test_a_wsgi_app_needs_no_starlette(sticky_cluster):
    sticky_cluster(lambda: lambda environ, start_response: [])
    assert WERKZEUG in sys.modules
    assert "starlette" not in sys.modules

def test_an_asgi_app_needs_no_werkzeug(sticky_cluster):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("werkzeug", "sticky_wsgi")]:
        del sys.modules[name]

    async def app(scope, receive, send):
        pass

    sticky_cluster(lambda: app)
    assert STARLETTE in sys.modules
    assert "werkzeug" not in sys.modules
""",
        alone=True,
    )
    outcome.assert_outcomes(passed=3)


def test_entry_point_names_the_plugin() -> None:
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"]["pytest11"]
    ((name, value),) = declared.items()
    assert value == PLUGIN
    assert hasattr(EntryPoint(name, value, "pytest11").load(), "sticky_cluster")


def test_pytest_lists_the_fixture_with_its_docstring(pytester: pytest.Pytester, run: Run) -> None:
    run("")
    outcome = pytester.runpytest_inprocess("-p", PLUGIN, "--fixtures")
    outcome.stdout.fnmatch_lines(["sticky_cluster*", "*sticky_cluster(create_app, replicas=3)*"])
