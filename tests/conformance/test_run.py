"""`sticky run` with an app that it can't serve: one line that names the mistake and the way out, and no worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sticky_asgi.cli import _problem_of_import, create_run
from sticky_asgi.workers.middleware import StickyWorkers
from tests.conformance.servers import environment
from tests.conformance.wire import DEADLINE

MODULE = """
from flask import Flask
from sticky_asgi import StickyWorkers
from starlette.applications import Starlette

app = Starlette()
flask = Flask("shop")

class Quart:
    async def __call__(self, scope, receive, send):
        await self.asgi_app(scope, receive, send)

    async def asgi_app(self, scope, receive, send): ...

quart = Quart()
wrapped = StickyWorkers(app)

def wsgi(environ, start_response): ...

def create_app():
    return app

async def create_app_later(): ...

def create_nothing(): ...
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "shop.py").write_text(MODULE)
    (tmp_path / "failing.py").write_text("raise OSError('no disk')")
    (tmp_path / "wrong.py").write_text("from sticky_asgi import StickyWorkers\napp = StickyWorkers(None)")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for module in ("shop", "failing", "wrong"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize(
    "arguments, line",
    [
        pytest.param(
            ["shop:nope"], "module 'shop' has no 'nope': write shop:app or shop:quart or shop:wrapped", id="no"
        ),
        pytest.param(["shop:ap"], "module 'shop' has no 'ap': write shop:app", id="misspelt"),
        pytest.param(["shop:app.asgi"], "module 'shop' has no 'app.asgi': write shop:app", id="no attribute"),
        pytest.param(
            ["shop:flask"],
            "shop:flask is a WSGI app, and this serves ASGI apps: import StickyWorkers from sticky_wsgi, write "
            "app.wsgi_app = StickyWorkers(app.wsgi_app), and run gunicorn -w 4 shop:flask",
            id="Flask",
        ),
        pytest.param(
            ["shop:wsgi"],
            "shop:wsgi is a WSGI app, and this serves ASGI apps: import StickyWorkers from sticky_wsgi, write "
            "app = StickyWorkers(app), and run gunicorn -w 4 shop:wsgi",
            id="WSGI",
        ),
        pytest.param(
            ["shop:create_app"],
            "shop:create_app takes no arguments, so it is a factory rather than an app: add --factory",
            id="a factory",
        ),
        pytest.param(
            ["shop:app", "--factory"],
            "shop:app needs arguments, so it is an app rather than a factory: leave out --factory",
            id="no factory",
        ),
        pytest.param(
            ["shop:create_app_later", "--factory"],
            "shop:create_app_later is async: a factory returns an app; put what it has to await into the app's",
            id="a coroutine function as the factory",
        ),
        pytest.param(["shop:MODULE_NAME"], "module 'shop' has no 'MODULE_NAME': write ", id="nothing alike"),
        pytest.param(["shop:__doc__"], "shop:__doc__ is no app: None", id="no app"),
        pytest.param(["failing:app"], "module 'failing' can't be imported: OSError: no disk", id="fails"),
        pytest.param(
            ["wrong:app"],
            "module 'wrong' can't be imported: StickyWorkers: None is no ASGI app: pass the app itself",
            id="wrong configuration",
        ),
    ],
)
def test_app_that_cannot_be_served_is_refused_with_the_way_out(arguments: list[str], line: str):
    problem = _problem_of_import(arguments[0], "--factory" in arguments)
    assert problem is not None and problem.startswith(line) and "\n" not in problem


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sticky_asgi.cli", "run", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=DEADLINE)


def test_name_that_the_module_lacks_is_one_line_and_no_worker_starts(folder: Path):
    ended = run("shop:ap", "--workers", "2", "--port", "1", folder=folder)
    assert (ended.returncode, ended.stderr) == (1, "Error: module 'shop' has no 'ap': write shop:app\n")


@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "2"])
def test_factory_that_returns_nothing_ends_the_server(workers: str, folder: Path):
    ended = run("shop:create_nothing", "--factory", "--workers", workers, "--port", "0", folder=folder)
    assert "Error: shop:create_nothing: factory create_nothing returned None: it has to end with" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_worker_with_a_factory_that_returns_nothing_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("STICKY_RUN", '["shop:create_nothing", true]')
    with pytest.raises(SystemExit):
        create_run()
    assert capsys.readouterr().err.startswith("Error: shop:create_nothing: factory create_nothing returned None: ")


def test_workers_wrap_the_app_once(monkeypatch: pytest.MonkeyPatch):
    for name in ("shop:app", "shop:wrapped"):
        monkeypatch.setenv("STICKY_RUN", f'["{name}", false]')
        app = create_run()
        assert isinstance(app, StickyWorkers) and not isinstance(app.app, StickyWorkers)
    monkeypatch.setenv("STICKY_RUN", '["shop:quart", false]')
    for _ in range(2):
        quart = create_run()
        inner = quart.asgi_app  # type: ignore[attr-defined]  # Quart's
        assert isinstance(inner, StickyWorkers) and not isinstance(inner.app, StickyWorkers)
