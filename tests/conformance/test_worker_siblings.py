"""Processes of one app that neither multiprocessing nor gunicorn has started: with one listening socket from their
parent they are workers; otherwise they say that they do not know each other, and a name makes them workers. Groups in
two PID namespaces are apart.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path

import pytest

from tests.conformance.servers import HERE, ROOT, environment, start
from tests.conformance.wire import HOST, Client

APP = ["-m", "uvicorn", "--no-access-log", "workers_asgi:app"]
SHARED = """
import socket, subprocess, sys
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    command = [sys.executable, *sys.argv[1:], "--fd", str(listener.fileno())]
    servers = [subprocess.Popen(command, pass_fds=[listener.fileno()]) for _ in range(2)]
    sys.stdin.read()
for each in servers:
    each.terminate()
for each in servers:
    each.wait()
"""


@pytest.fixture
def directory():
    """Where workers find each other: the paths of pytest are too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="w") as path:
        yield Path(path)


def variables(directory, **options):
    """The environment of the servers."""
    options["directory"] = str(directory / "run")
    path = os.pathsep.join((str(HERE / "apps"), str(ROOT)))
    return {**environment(), "PYTHONPATH": path, "STICKY": json.dumps(options)}


_names = (f"c{number}" for number in count())


def count_wrong(ports, until, workers=2):
    """Return how many of the responses to new clients, which alternate between the ports, were wrong."""
    opened: list[Client] = []
    pids: set[int] = set()
    wrong = 0

    def ask(client, name, port):
        client.port = port
        return json.loads(client.request(f"/count?client={name}").body)

    def all_respond():
        for port in ports:
            with suppress_oserror():
                pids.add(ask(Client(port, []), "x", port)["pid"])
        return len(pids) >= workers

    until(all_respond, "responses from all processes")
    for name in islice(_names, 8):
        client = Client(ports[0], [])
        opened.append(client)
        for expected in range(1, 9):
            wrong += ask(client, name, ports[expected % len(ports)])["n"] != expected
    return wrong


@contextmanager
def suppress_oserror():
    try:
        yield
    except OSError:  # it does not listen yet
        pass


def test_processes_with_one_listening_socket_from_their_parent_are_workers(directory, until):
    command = [sys.executable, "-c", SHARED, *APP]
    with (
        open(directory / "log", "w", encoding="utf-8") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=variables(directory), text=True
        ) as parent,
    ):
        assert parent.stdout is not None
        wrong = count_wrong([int(parent.stdout.readline())], until)
        parent.communicate()
    assert wrong == 0
    assert "pass name=" not in (directory / "log").read_text()


def free_ports(count):
    """Return ports that no process listens at."""
    opened = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in opened]
    for each in opened:
        each.close()
    return ports


@contextmanager
def supervised(directory, **options):
    """Run two servers under supervisord, each with a port of its own; yield the ports and the path of their log."""
    program = shutil.which("supervisord", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("supervisord is not installed")
    ports = free_ports(2)
    log = directory / "log"
    lines: list[str] = [
        "[supervisord]",
        f"logfile={directory}/supervisord.log",
        f"pidfile={directory}/pid",
        "nodaemon=true",
    ]
    for port in ports:
        program_line = " ".join((sys.executable, *APP, "--port", str(port)))
        lines += [
            f"[program:web{port}]",
            f"command={program_line}",
            f"stdout_logfile={log}-{port}",
            "redirect_stderr=true",
        ]
    (directory / "supervisord.conf").write_text("\n".join(lines))
    command = [program, "-c", str(directory / "supervisord.conf")]
    with subprocess.Popen(command, env=variables(directory, **options), stdout=subprocess.DEVNULL) as parent:
        try:
            yield ports, lambda: "".join(Path(f"{log}-{port}").read_text() for port in ports)
        finally:
            parent.terminate()


def test_processes_of_supervisord_are_workers_by_name_and_otherwise_say_that_they_do_not_know_each_other(
    directory, until
):
    with supervised(directory) as (ports, log):
        assert count_wrong(ports, until) > 20
        assert log().count("which does not know it as a worker") == 1
        assert "serves workers_asgi:Starlette as well as this process" in log()
    with supervised(directory, name="shop") as (ports, log):
        assert count_wrong(ports, until) == 0
        assert "does not know" not in log()


UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.mark.parametrize("order", [((), UNSHARE), (UNSHARE, ())], ids=["outside first", "inside first"])
def test_group_that_starts_in_another_pid_namespace_leaves_a_running_one_alone(launch, until, directory, order):
    if shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], check=False).returncode != 0:
        pytest.skip("unshare --pid is not permitted here")
    command = ["uvicorn", "--workers", "2", "--no-access-log", "workers_asgi:app"]
    options = {"STICKY": json.dumps({"directory": str(directory / "run")}), "STICKY_SECRET": ""}
    ports: list[int] = []
    for container in order:
        for each in directory.glob("run/@*"):
            os.utime(each, (1000, 1000))  # old enough to be removed, if its parent process counted
        launch_there = partial(launch, *command, variables=options, container=container)
        ports.append(start(launch_there).port)
        assert [count_wrong([port], until) for port in ports] == [0] * len(ports)
    assert len(list(directory.glob("run/@*"))) == 2
