"""Wraps every app that a framework's own test suite calls, and records the outcome of each of its tests.

This module runs in the suite's environment: as a plugin of its pytest, and at the start of the processes that its tests
start. Environment variables name the suite, the wrapping, and the file that the outcomes are written to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from sticky_core.backend.backend import Backend
    from sticky_wsgi import StickyWorkers

SUITE = "STICKY_PEERS_SUITE"
#: one of the functions below `wrapped_asgi` and `wrapped_wsgi`; without it no app is wrapped
WRAPPING = "STICKY_PEERS_WRAPPING"
#: present if backends have a cookie
COOKIE = "STICKY_PEERS_COOKIE"
OUTCOMES = "STICKY_PEERS_OUTCOMES"
#: where workers find each other
DIRECTORY = "STICKY_PEERS_DIRECTORY"
#: the folder of this module, for processes that tests start
CHILDREN = "STICKY_PEERS_CHILDREN"
#: A line that the suite's environment runs at the start of each process (a file `.pth` in its site-packages).
AT_START = (
    f'import os, sys; path = os.environ.get("{CHILDREN}"); '
    'path and (sys.path.append(path), __import__("wrapped_apps").wrap_apps())'
)

App = Callable[..., Any]

SECRET = "the secret of a test suite"

count = 0  #: how many apps have been wrapped in this process
started: list[StickyWorkers] = []  #: workers that listen until they are stopped, and nothing else stops
outcomes: dict[str, str] = {}  #: the worst outcome of the phases of each test
VARIABLES = dict(os.environ)  #: as they were: some tests clear them
FOLDER = str(Path.cwd())  #: of this run: some tests have paths in their ids


def backend_of(app: App) -> Backend:
    """Return a backend with `app` as its only server."""
    from sticky_core.backend.backend import Backend
    from sticky_core.persistence.cookie.config import Cookie
    from sticky_core.server.server import Server

    persist: Sequence[Cookie] = [Cookie("STICKY", secret=SECRET)] if COOKIE in VARIABLES else []
    return Backend("peers", [Server("s1", app)], persist=persist)


def wrapped_asgi(app: App, wrapping: str) -> App:
    """Return the ASGI app `app` in the middleware that `wrapping` names."""
    import sticky_asgi

    global count
    count += 1
    match wrapping:
        case "Dispatcher":
            return sticky_asgi.Dispatcher(backend_of(app))
        case "StickyMiddleware":
            return sticky_asgi.StickyMiddleware(app, backend_of(app))
        case "StickyWorkers":
            return sticky_asgi.StickyWorkers(app)
        case _:
            raise ValueError(f"{wrapping} is no wrapping")


def wrapped_wsgi(app: App, wrapping: str) -> App:
    """Return the WSGI app `app` in the middleware that `wrapping` names. `StickyWorkers` serves a process that can't
    have peers without further ado; with a name it takes a worker slot, marks clients and listens.
    """
    import sticky_wsgi

    global count
    count += 1
    match wrapping:
        case "Dispatcher":
            return sticky_wsgi.Dispatcher(backend_of(app))
        case "StickyMiddleware":
            return sticky_wsgi.StickyMiddleware(app, backend_of(app))
        case "StickyWorkers":
            return sticky_wsgi.StickyWorkers(app)
        case "StickyWorkers with a name":
            # a group needs a cookie or a key; no request of the suites has this header
            marks: dict[str, Any] = {"cookie": None, "key": "hdr(X-Sticky-Key)"}
            if COOKIE in VARIABLES:
                marks = {"secret": SECRET}
            sticky = sticky_wsgi.StickyWorkers(app, name=str(count), directory=VARIABLES[DIRECTORY], **marks)
            started.append(sticky)
            return sticky
        case _:
            raise ValueError(f"{wrapping} is no wrapping")


def is_wrapped(app: App) -> bool:
    """Whether `app` is one of the middlewares under test."""
    return type(app).__module__.startswith(("sticky_asgi.", "sticky_wsgi."))


def wrap_argument(owner: object, name: str, argument: str, wrap: Callable[[App], App]) -> None:
    """Replace the function or constructor `name` of `owner` by one that wraps the app, its argument `argument`."""
    original: Callable[..., Any] = getattr(owner, name)
    parameters = signature(original)

    @wraps(original)
    def replacement(*arguments: Any, **named: Any) -> Any:
        bound = parameters.bind(*arguments, **named)
        bound.arguments[argument] = wrap(bound.arguments[argument])
        return original(*bound.args, **bound.kwargs)

    setattr(owner, name, replacement)


def wrap_asgi_clients(wrapping: str) -> None:
    """Wrap the apps that Starlette's TestClient and the transports of httpx and httpx2 call."""
    from starlette.testclient import TestClient, _is_asgi3, _WrapASGI2

    def wrap(app: Any) -> App:
        if is_wrapped(app):  # such as the app of another client
            wrapped: App = app
            return wrapped
        return wrapped_asgi(app if _is_asgi3(app) else _WrapASGI2(app), wrapping)

    wrap_argument(TestClient, "__init__", "app", wrap)
    for name in ("httpx", "httpx2"):
        try:
            httpx = __import__(name)
        except ImportError:
            continue
        wrap_argument(httpx.ASGITransport, "__init__", "app", wrap)


def wrap_wsgi_clients(wrapping: str) -> None:
    """Wrap the apps that Werkzeug's test functions call, and those that its server serves."""
    from werkzeug import serving, test

    def wrap(app: App) -> App:
        # a client calls `run_wsgi_app` with its app, which is wrapped once for all its requests
        return app if is_wrapped(app) else wrapped_wsgi(app, wrapping)

    wrap_argument(test.Client, "__init__", "application", wrap)
    wrap_argument(test, "run_wsgi_app", "app", wrap)
    wrap_argument(serving.BaseWSGIServer, "__init__", "app", wrap)


def wrap_flask_apps(wrapping: str) -> None:
    """Wrap the `wsgi_app` of each Flask app, as Flask documents it for middleware."""
    from flask import Flask

    original = Flask.__init__

    @wraps(original)
    def replacement(app: Flask, *arguments: Any, **named: Any) -> None:
        original(app, *arguments, **named)
        app.wsgi_app = wrapped_wsgi(app.wsgi_app, wrapping)  # type: ignore[method-assign] # as Flask documents it

    setattr(Flask, "__init__", replacement)  # noqa: B010 # to mypy it has another type


WRAPS = {
    "starlette": wrap_asgi_clients,
    "fastapi": wrap_asgi_clients,
    "werkzeug": wrap_wsgi_clients,
    "flask": wrap_flask_apps,
}


def wrap_apps() -> None:
    """Wrap the apps of the suite in this process, if a wrapping is given."""
    if WRAPPING in VARIABLES:
        WRAPS[VARIABLES[SUITE]](VARIABLES[WRAPPING])


def pytest_configure() -> None:
    wrap_apps()
    os.environ[CHILDREN] = str(Path(__file__).parent)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        outcomes[f"the collection of {report.nodeid}"] = report.outcome


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    test = report.nodeid.replace(FOLDER, ".")
    if (report.when == "call" or report.outcome != "passed") and outcomes.get(test) != "failed":
        outcomes[test] = report.outcome


def pytest_runtest_teardown() -> None:
    for each in started:
        each.stop()
    started.clear()


def pytest_sessionfinish() -> None:
    Path(VARIABLES[OUTCOMES]).write_text(json.dumps({"outcomes": outcomes, "wrapped": count}))
