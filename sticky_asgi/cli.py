"""The command `sticky`. It needs click and uvicorn. If one of them is not installed, it prints the command that
installs both: `pip install 'sticky-sessions[serve]'`.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import importlib.util
import ipaddress
import json
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sticky_asgi import __version__
from sticky_asgi.messages import ASGIApp
from sticky_asgi.workers.link import listens
from sticky_asgi.workers.middleware import StickyWorkers
from sticky_core.clock import SystemClock
from sticky_core.errors import ConfigError
from sticky_core.options.callables import is_async
from sticky_core.target import own_app_problem, possible_kinds, require_made_app
from sticky_core.workers import frames
from sticky_core.workers.directory import default_directory
from sticky_core.workers.survey import read_groups

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import click

_REQUIRED = ("click", "uvicorn")


def main() -> None:
    """Run the command."""
    try:
        _commands()()
    except ModuleNotFoundError as error:
        if error.name not in _REQUIRED:
            raise
        sys.stderr.write(
            f"sticky: {error.name} is not installed. Install it with: pip install 'sticky-sessions[serve]'\n"
        )
        sys.exit(1)


def _commands() -> click.Group:
    import click

    @click.group(help="Session persistence for Python.")
    @click.version_option(__version__, prog_name="sticky-sessions")
    def sticky() -> None:
        pass

    @sticky.command(help="Serve a small shop in several replicas; its page shows which one gets each request, and why.")
    @click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
    @click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 finds a free one.")
    @click.option(
        "--replicas", default=3, show_default=True, type=click.IntRange(1, 12), help="The number of replicas."
    )
    def demo(host: str, port: int, replicas: int) -> None:
        from sticky_asgi.demo import create_demo

        try:
            listener = _listen(host, port)
        except OSError as error:
            raise click.ClickException(_listen_problem(error, host, port)) from None
        if _is_loopback(host):
            app = create_demo(replicas)
        else:
            app = create_demo(replicas, hosts=None)
            click.echo(
                f"{host} is not a loopback address: every client that can reach it can take replicas down. "
                "For this machine only, use --host 127.0.0.1.",
                err=True,
            )

        def announce() -> None:
            shop = f"{replicas} replicas of a small shop, each" if replicas > 1 else "A small shop"
            click.echo(f"{shop} with carts in its own memory:")
            click.echo(f"    {_url(listener)}")
            click.echo("Add something to your cart, put your replica into maint, and see which one serves you then.")
            click.echo("Press Ctrl-C to stop.")

        _serve(app, listener, announce)

    @sticky.command(help="Serve APP (module:name) in several worker processes; each client stays with one of them.")
    @click.argument("app")
    @click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
    @click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
    @click.option(
        "--workers", default=_cpus, show_default="one per CPU", type=click.IntRange(1), help="The number of processes."
    )
    @click.option("--factory", is_flag=True, help="APP is a function that returns the app.")
    def run(app: str, host: str, port: int, workers: int, factory: bool) -> None:
        import uvicorn

        if (problem := _app_problem(app, factory)) is not None:
            raise click.ClickException(problem)
        os.environ[_APP] = json.dumps([app, factory])
        uvicorn.run("sticky_asgi.cli:create_run", factory=True, host=host, port=port, workers=workers)

    @sticky.command(help="Show the groups of StickyWorkers of this user: which workers run, and what others have left.")
    @click.option(
        "--directory",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="The directory=... of StickyWorkers.  [default: that in the system's temporary directory]",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
    def workers(directory: Path | None, as_json: bool) -> None:
        try:
            directory = directory or default_directory()
            groups = read_groups(directory, SystemClock(), listens)
        except ConfigError as error:
            raise click.ClickException(str(error)) from None
        if as_json:
            found = [{**asdict(group), "is_broken": group.is_broken} for group in groups]
            click.echo(json.dumps({"directory": str(directory), "groups": found}, indent=2))
        else:
            click.echo("\n\n".join(map(str, groups)) or f"No workers have run in {directory}.")
        sys.exit(any(group.is_broken for group in groups))

    return sticky


#: the environment variable by which `sticky run` passes the name of the app to its workers
_APP = "STICKY_RUN"


def create_run() -> ASGIApp:
    """Return the app that `sticky run` serves, wrapped in StickyWorkers unless it already is."""
    from uvicorn.importer import import_from_string

    name, factory = json.loads(os.environ[_APP])
    app = import_from_string(name)
    try:
        if factory:
            create_app, app = app, app()
            require_made_app(app, create_app, "asgi")
        return _with_workers(app)
    except ConfigError as error:
        sys.stderr.write(f"Error: {name}: {error}\n")
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid is not None:
            os.kill(parent.pid, signal.SIGTERM)  # or uvicorn starts the worker again and again
        sys.exit(1)


class _NamedWorkers(StickyWorkers):
    """StickyWorkers around the app that the command line names."""

    def _identify(self, app: ASGIApp) -> str:
        return str(json.loads(os.environ[_APP])[0])


def _with_workers(app: Any) -> ASGIApp:
    if isinstance(app, StickyWorkers):
        return app
    if own_app_problem(app, "asgi", "StickyWorkers") is not None:  # Quart
        if not isinstance(app.asgi_app, StickyWorkers):
            app.asgi_app = _NamedWorkers(app.asgi_app)
        served: ASGIApp = app
        return served
    return _NamedWorkers(app)


def _cpus() -> int:
    return os.cpu_count() or 1


def _app_problem(app: str, factory: bool) -> str | None:
    """Return why `app` can't be served, or None. Checked before workers are started: uvicorn restarts again and again
    workers that fail to import the app.
    """
    try:
        frames.require()
    except ConfigError as error:
        return str(error)
    module, colon, name = app.partition(":")
    if not (module and colon and name):
        return f"{app!r} is not the name of an app: write module:name, for example main:app"
    if sys.path[:1] != [""]:
        sys.path.insert(0, "")  # as with `python -m`, modules are found in the current directory
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        found = None
    if found is None:
        return f"module {module!r} is not found: change to the directory that contains it, or install it"
    # In a process of its own: what the module starts and loads stays out of the parent of the workers.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_problem, args=(sender, app, factory))
    process.start()
    sender.close()
    try:
        problem: str | None = receiver.recv()
    except EOFError:  # it has ended at the import: so will the workers, and print why
        problem = None
    process.join()
    return problem


def _send_problem(sender: Connection, app: str, factory: bool) -> None:
    sender.send(_problem_of_import(app, factory))


def _problem_of_import(app: str, factory: bool) -> str | None:
    """Import `app`, and return why it can't be served, or None."""
    module, _, name = app.partition(":")
    try:
        imported = importlib.import_module(module)
    except ConfigError as error:
        return f"module {module!r} can't be imported: {error}"
    except Exception as error:
        traceback.print_exc()
        return f"module {module!r} can't be imported: {type(error).__name__}: {error}"
    value: object = imported
    for part in name.split("."):
        if not hasattr(value, part):
            return _missing_problem(module, name, imported)
        value = getattr(value, part)
    return _kind_problem(app, value, factory)


def _missing_problem(module: str, name: str, imported: object) -> str:
    """Return a message for a name that the module lacks, with the nearest one, or else the apps that it has."""
    names = [key for key in vars(imported) if not key.startswith("_")]
    near = difflib.get_close_matches(name, names, 1)
    apps = near or [key for key in names if possible_kinds(vars(imported)[key]) == frozenset(("asgi",))]
    write = f": write {' or '.join(f'{module}:{key}' for key in apps)}" if apps else ""
    return f"module {module!r} has no {name!r}{write}"


def _kind_problem(app: str, value: object, factory: bool) -> str | None:
    """Return why `value`, the object with the name `app`, can't be served, or None."""
    kinds = possible_kinds(value)
    if factory:
        if is_async(value) and "factory" in kinds:
            return f"{app} is async: a factory returns an app; put what it has to await into the app's lifespan"
        if "factory" in kinds:
            return None
        if kinds:
            return f"{app} needs arguments, so it is an app rather than a factory: leave out --factory"
        return f"{app} can't be called without arguments, so it is no factory"
    if "asgi" in kinds:
        return None
    if "factory" in kinds:
        return f"{app} takes no arguments, so it is a factory rather than an app: add --factory"
    if "wsgi" in kinds:
        own = "app.wsgi_app = StickyWorkers(app.wsgi_app)" if hasattr(value, "wsgi_app") else "app = StickyWorkers(app)"
        return (
            f"{app} is a WSGI app, and this serves ASGI apps: import StickyWorkers from sticky_wsgi, write {own}, and "
            f"run gunicorn -w 4 {app}"
        )
    return f"{app} is no app: {value!r}"


def _listen(host: str, port: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family)


def _listen_problem(error: OSError, host: str, port: int) -> str:
    """Return a message that explains why listening failed."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} at {host} is in use: stop the process that listens there, "
            "or choose another port with --port (0 finds a free one)"
        )
    return f"can't listen at {host}, port {port}: {error.strerror or error}. Choose another address with --host"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url(listener: socket.socket) -> str:
    """Return the URL for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1" if listener.family is socket.AF_INET else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _serve(app: ASGIApp, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; call `announce` once requests are accepted."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Generator[None]:
            # uvicorn's own method raises each signal again after the shutdown, so that Ctrl-C ends in a traceback and
            # SIGTERM in a failure.
            numbers = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, self.handle_exit) for number in numbers}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            announce()

    Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main()
