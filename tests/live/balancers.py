"""HAProxy, nginx, Caddy and Traefik in front of upstream servers, clients that keep their cookies, and our gateway.

A balancer inherits its listening sockets from the test, which gives the same sockets to our gateway afterwards: so
ports stay the same, and no other process can take one in between.
"""

from __future__ import annotations

import json
import os
import select
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import waitress  # type: ignore[import-untyped]  # it has no types

import sticky_asgi
import sticky_wsgi
from tests.conformance.servers import close_waitress

HOST = "127.0.0.1"

#: Seconds for what takes an instant: for hangs only.
DEADLINE = 300.0

#: the upstream servers that the balancers know
NAMES = ("s1", "s2", "s3")


# Upstream servers


class UpstreamServer(socketserver.ThreadingTCPServer):
    """A server that responds with its name and the cookies that it got, and sets the cookies of `X-Set`, with its name
    in the place of `{name}`. It takes headers of any size.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name: str) -> None:
        super().__init__((HOST, 0), _UpstreamHandler)
        self.name = name

    @property
    def address(self) -> str:
        return f"{HOST}:{self.server_address[1]}"


class _UpstreamHandler(socketserver.StreamRequestHandler):
    server: UpstreamServer

    def handle(self) -> None:
        try:
            self._respond()
        except ConnectionError:  # the balancer has ended
            pass

    def _respond(self) -> None:
        while self.rfile.readline():
            lines = [line.rstrip(b"\r\n").decode("latin-1") for line in iter(self.rfile.readline, b"\r\n")]
            fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
            cookie = "; ".join(value for name, value in fields if name == "cookie")
            body = json.dumps({"server": self.server.name, "cookie": cookie}).encode()
            head = ["HTTP/1.1 200 OK", "Content-Type: application/json", f"Content-Length: {len(body)}"]
            head += [f"Set-Cookie: {value}".format(name=self.server.name) for name, value in fields if name == "x-set"]
            self.wfile.write("".join(f"{line}\r\n" for line in (*head, "")).encode("latin-1") + body)


@contextmanager
def upstreams(*names: str) -> Iterator[dict[str, str]]:
    """Serve upstream servers, and return the address of each."""
    servers = [UpstreamServer(name) for name in names]
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
    try:
        yield {server.name: server.address for server in servers}
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


# Clients


@dataclass(frozen=True)
class Page:
    """What a client received: from which server, and the cookies that this server got."""

    server: str
    cookies: dict[str, str]
    set_cookie: list[str]


class Client:
    """A client that keeps its cookies as browsers do."""

    def __init__(self, jar: CookieJar | None = None) -> None:
        self.jar = CookieJar() if jar is None else jar
        self._opener = urllib.request.OpenerDirector()  # without the TLS and the proxies of the environment
        for handler in (
            urllib.request.HTTPHandler(),
            urllib.request.HTTPCookieProcessor(self.jar),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self._opener.add_handler(handler)

    def get(self, port: int, *sets: str, path: str = "/shop/cart") -> Page:
        """Send a request. `sets`: the cookies that the server sets in its response."""
        request = urllib.request.Request(f"http://{HOST}:{port}{path}")
        for text in sets:
            request.add_header("X-Set", text)
        with self._opener.open(request, timeout=DEADLINE) as response:
            seen = json.loads(response.read())
            return Page(seen["server"], pairs(seen["cookie"]), response.headers.get_all("Set-Cookie") or [])

    def forget(self, name: str) -> None:
        """Remove a cookie from the jar."""
        for cookie in [each for each in self.jar if each.name == name]:
            self.jar.clear(cookie.domain, cookie.path, cookie.name)

    def copy(self) -> Client:
        """Return a client with the same cookies."""
        jar = CookieJar()
        for cookie in self.jar:
            jar.set_cookie(copy(cookie))
        return Client(jar)

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies of the jar. No two have one name."""
        names = [cookie.name for cookie in self.jar]
        assert len({*names}) == len(names), f"two cookies of one name: {names}"
        return {cookie.name: cookie.value or "" for cookie in self.jar}


def pairs(text: str) -> dict[str, str]:
    """Return the cookies of a Cookie header."""
    return dict(pair.strip().partition("=")[::2] for pair in text.split(";") if pair.strip())


# Balancers


@dataclass(frozen=True)
class Balancer:
    """How a balancer is configured and started, with one listening socket for each mode.

    - `part`: the name of its program.
    - `config`: returns its configuration for the modes, each with its lines, and for the folder of its files.
    - `command`: returns the command line, for its program and its folder.
    - `variables`: returns the environment variables, for its folder and the descriptors of the sockets.
    """

    part: str
    config: Callable[[Path, Sequence[Listener], Mapping[str, str]], str]
    command: Callable[[str, Path, Sequence[Listener]], Sequence[str]]
    variables: Callable[[Path, Sequence[Listener]], Mapping[str, str]]


@dataclass(frozen=True)
class Listener:
    """The listening socket of a mode: its number, and the lines of the configuration."""

    number: int
    lines: Mapping[str, str]
    socket: socket.socket

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    @property
    def fd(self) -> int:
        return self.socket.fileno()


def haproxy_config(folder: Path, listeners: Sequence[Listener], servers: Mapping[str, str]) -> str:
    lines = ["global", "  nbthread 1", "defaults", "  mode http", "  balance roundrobin"]
    lines += [f"  timeout {what} 300s" for what in ("client", "server", "queue", "connect")]
    for each in listeners:
        lines += [f"listen m{each.number}", f"  bind fd@{each.fd}"]
        lines += [f"  {line}" for line in each.lines["backend"].splitlines()]
        lines += [f"  server {name} {at}{each.lines['server'].format(name=name)}" for name, at in servers.items()]
    return "\n".join((*lines, ""))


def nginx_config(folder: Path, listeners: Sequence[Listener], servers: Mapping[str, str]) -> str:
    paths = (f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    lines = ["daemon off;", "master_process off;", f"pid {folder}/pid;", "events {}", "http {", "access_log off;"]
    lines += paths
    for each in listeners:
        members = [f"server {at}{each.lines['server'].format(name=name)};" for name, at in servers.items()]
        lines.append(f"upstream m{each.number} {{ {' '.join(members)} {each.lines['backend']}; }}")
        lines.append(f"server {{ listen {HOST}:{each.port}; location / {{ proxy_pass http://m{each.number}; }} }}")
    return "\n".join((*lines, "}", ""))


def caddy_config(folder: Path, listeners: Sequence[Listener], servers: Mapping[str, str]) -> str:
    lines = ["{", "admin off", "auto_https off", "persist_config off", "}"]
    for each in listeners:
        lines += [f"http://:{each.port} {{", f"bind fd/{each.fd}", f"reverse_proxy {' '.join(servers.values())} {{"]
        lines += [f"{each.lines['backend']} {{", "fallback round_robin", "}", "}", "}"]
    return "\n".join((*lines, ""))


def traefik_config(folder: Path, listeners: Sequence[Listener], servers: Mapping[str, str]) -> str:
    names = [f"m{each.number}" for each in listeners]
    services = [each.lines["service"] or name for name, each in zip(names, listeners, strict=True)]
    members = [{"url": f"http://{at}"} for at in servers.values()]
    routers = {
        name: {"rule": "PathPrefix(`/`)", "service": service, "entryPoints": [name]}
        for name, service in zip(names, services, strict=True)
    }
    balancers = {
        service: {"loadBalancer": {"sticky": {"cookie": json.loads(each.lines["backend"])}, "servers": members}}
        for service, each in zip(services, listeners, strict=True)
    }
    return json.dumps({"http": {"routers": routers, "services": balancers}})  # JSON is YAML


#: It moves the inherited sockets to the descriptors from 3 on, as systemd does, and becomes the program.
_AS_SYSTEMD = """
import fcntl, os, sys
copies = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 1000) for number in sys.argv[1].split(",")]
for number, copied in enumerate(copies, 3):
    os.dup2(copied, number)
    os.close(copied)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


def traefik_command(program: str, folder: Path, listeners: Sequence[Listener]) -> Sequence[str]:
    return [
        *(sys.executable, "-I", "-S", "-c", _AS_SYSTEMD, ",".join(f"{each.fd}" for each in listeners)),
        *(program, "--global.checkNewVersion=false", "--global.sendAnonymousUsage=false", "--log.level=ERROR"),
        f"--providers.file.filename={folder}/config.yml",
        *(f"--entryPoints.m{each.number}.address={HOST}:{each.port}" for each in listeners),
    ]


HAPROXY = Balancer(
    "haproxy",
    haproxy_config,
    lambda program, folder, listeners: [program, "-db", "-q", "-f", f"{folder}/config.yml"],
    lambda folder, listeners: {},
)
NGINX = Balancer(
    "nginx",
    nginx_config,
    lambda program, folder, listeners: [
        *(program, "-c", f"{folder}/config.yml", "-p", f"{folder}", "-e", f"{folder}/errors")
    ],
    lambda folder, listeners: {"NGINX": "".join(f"{each.fd};" for each in listeners)},
)
CADDY = Balancer(
    "caddy",
    caddy_config,
    lambda program, folder, listeners: (program, "run", "--config", f"{folder}/config.yml", "--adapter", "caddyfile"),
    lambda folder, listeners: dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), f"{folder}"),
)
TRAEFIK = Balancer(
    "traefik",
    traefik_config,
    traefik_command,
    lambda folder, listeners: {
        "HOME": f"{folder}",
        "LISTEN_FDS": f"{len(listeners)}",
        "LISTEN_FDNAMES": ":".join(f"m{each.number}" for each in listeners),
    },
)


@contextmanager
def listening(modes: Sequence[Mapping[str, str]]) -> Iterator[Sequence[Listener]]:
    """Return a listening socket for each mode."""
    with ExitStack() as stack:
        yield [
            Listener(number, lines, stack.enter_context(closing(socket.create_server((HOST, 0), backlog=64))))
            for number, lines in enumerate(modes)
        ]


@contextmanager
def running(
    balancer: Balancer,
    program: str,
    folder: Path,
    listeners: Sequence[Listener],
    servers: Mapping[str, str],
    until: Callable[[Callable[[], object], str], None],
) -> Iterator[None]:
    """Run a balancer in front of `servers`. The listening sockets stay open after its end."""
    (folder / "config.yml").write_text(balancer.config(folder, listeners, servers))
    log = folder / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            balancer.command(program, folder, listeners),
            env={**os.environ, **balancer.variables(folder, listeners)},
            pass_fds=[each.fd for each in listeners],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder,
        )  # fmt: skip
    try:
        for each in listeners:
            until(partial(_responds_or_has_ended, process, each.port), f"{balancer.part} responds")
        assert process.poll() is None, log.read_text(errors="replace")
        yield
        assert process.poll() is None, log.read_text(errors="replace")
    finally:
        process.kill()
        process.wait()


def _responds_or_has_ended(process: subprocess.Popen[bytes], port: int) -> bool:
    """Return whether the balancer has responded with 200, or has ended. Its port accepts connections in any case."""
    with socket.create_connection((HOST, port), DEADLINE) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
        while not select.select([connection], [], [], 0.05)[0]:
            if process.poll() is not None:
                return True
        try:
            return connection.recv(12) == b"HTTP/1.1 200"
        except ConnectionError:
            return process.poll() is not None


# Our gateway


def serve_by_uvicorn(backend: Any, listener: socket.socket, stack: ExitStack, until: Callable[..., None]) -> None:
    app: Any = sticky_asgi.Dispatcher(backend)
    server = uvicorn.Server(uvicorn.Config(app, http="httptools", ws="none", log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    stack.callback(thread.join)
    stack.callback(setattr, server, "should_exit", True)
    until(lambda: server.started or not thread.is_alive(), "the gateway listens")


def serve_by_waitress(backend: Any, listener: socket.socket, stack: ExitStack, until: Callable[..., None]) -> None:
    dispatcher = sticky_wsgi.Dispatcher(backend)
    server: Any = waitress.create_server(dispatcher, sockets=[listener], threads=2)
    thread = threading.Thread(target=server.run)
    thread.start()
    stack.callback(dispatcher.replicas.stop)
    stack.callback(thread.join)
    stack.callback(close_waitress, server)
    stack.callback(server.task_dispatcher.shutdown)


@dataclass(frozen=True)
class Face:
    """A face: its package, and the function that serves a backend at a listening socket until the stack ends."""

    package: Any
    serve: Callable[[Any, socket.socket, ExitStack, Callable[..., None]], None]


FACES = [
    pytest.param(Face(sticky_asgi, serve_by_uvicorn), id="uvicorn"),
    pytest.param(Face(sticky_wsgi, serve_by_waitress), id="waitress"),
]
