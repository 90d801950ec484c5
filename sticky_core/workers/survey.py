"""What the directories of groups of workers show: which groups there are, which workers run, and what was left behind.

Only files are read, and nothing is changed. Whether a worker runs is shown by its lock: this process takes a shared one
for an instant, and a worker that acquires a worker slot at that moment tries again (`sticky_core.workers.slots`).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

from sticky_core.clock import Clock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError
from sticky_core.workers.directory import GROUP_OF_PARENT, pid_namespace, process_exists
from sticky_core.workers.keys import PREFIX
from sticky_core.workers.record import WorkerRecord, read_record
from sticky_core.workers.siblings import PRESENCE_PREFIX
from sticky_core.workers.slots import SOCKET_SUFFIX, is_locked

#: How long a worker may take, in seconds, from its worker slot to its socket: until then it is starting.
STARTING: Final = 10.0

#: What a worker is at. `unreachable`: it runs, and peers can't connect to it.
WorkerState: TypeAlias = Literal["serves", "starts", "drains", "unreachable"]

_SILENT: Final = "no process listens at its socket: restart it"
_REPAIRED: Final = "and it makes that again within a second unless it is stopped or its event loop is blocked"
_NEXT_WORKER: Final = "the next worker in that worker slot removes it, or a peer that tries to connect"
_NEXT_GROUP: Final = "the next worker without name= that starts in this directory removes it, once it is a minute old"


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker that runs.

    - `slot`: its worker slot: `w1`, `w2`, …
    - `pid`: its process id, in its PID namespace; 0 if it is unknown.
    - `instance`: the id of this start of it, as in the marks of its clients.
    - `age`: for how long it has had its worker slot, in seconds.
    - `socket`: the path of its socket; empty if there is none.
    - `state`: what it is at.
    - `problem`: what is broken; empty if nothing is.
    """

    slot: str
    pid: int
    instance: str
    age: float
    socket: str
    state: WorkerState
    problem: str = ""

    @property
    def pid_text(self) -> str:
        """Its process id as a text; `?` if it is unknown."""
        return f"{self.pid or '?'}"


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file of a worker, or the directory of a group, that has ended without removing it.

    - `path`: where it is.
    - `removed_by`: what will remove it.
    """

    path: str
    removed_by: str


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """One group of workers.

    - `path`: its directory.
    - `name`: its name (`name=`); empty for the workers of one parent process.
    - `parent`: the process id of the parent, in its PID namespace; 0 for a group with a name.
    - `app`: the identity of its app, such as `main:FastAPI`; empty if no worker runs.
    - `face`: the interface of the app; empty if it is unknown.
    - `workers`: the workers that run, by worker slot.
    - `leftovers`: what workers have left behind.
    """

    path: str
    name: str
    parent: int
    app: str
    face: str
    workers: tuple[WorkerStatus, ...]
    leftovers: tuple[Leftover, ...]

    @property
    def is_broken(self) -> bool:
        """Whether a worker has a problem."""
        return any(worker.problem for worker in self.workers)

    @property
    def title(self) -> str:
        """The group in words."""
        words = f"group {self.name}" if self.name else f"workers of process {self.parent}"
        details = ", ".join(filter(None, (self.app, self.face.upper())))
        return f"{words} ({details})" if details else words

    @property
    def notes(self) -> list[str]:
        """A line for each problem, and for what was left behind."""
        return [
            *(f"  PROBLEM: {worker.slot}: {worker.problem}" for worker in self.workers if worker.problem),
            *(f"  left behind: {each.path}: {each.removed_by}" for each in self.leftovers),
        ]

    def __str__(self) -> str:
        lines = [self.title]
        if self.workers:
            head = ("worker", "process", "instance", "age", "state")
            rows = [(each.slot, each.pid_text, each.instance, age(each.age), each.state) for each in self.workers]
            lines += aligned([head, *rows])
        else:
            lines.append("  no workers run")
        return "\n".join([*lines, *self.notes])


def read_groups(directory: Path, clock: Clock, listens: Callable[[str], bool]) -> list[GroupStatus]:
    """Return the groups below a directory, by name. `listens`: returns whether a process listens at the socket with
    this path. ConfigError if the directory can't be read.
    """
    try:
        paths = sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{directory} can't be read: {error.strerror}") from None
    groups: list[GroupStatus] = []
    for path in paths:
        if not path.is_dir() or path.name.startswith(PRESENCE_PREFIX):
            continue
        try:
            groups.append(read_group(path, clock, listens))
        except FileNotFoundError:  # a worker that starts has just removed it
            continue
        except OSError as error:
            raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    return groups


def read_group(path: Path, clock: Clock, listens: Callable[[str], bool]) -> GroupStatus:
    """Return the group with this directory. OSError if it can't be read."""
    parent = GROUP_OF_PARENT.fullmatch(path.name)
    is_in_this_namespace = parent is not None and parent[1] == pid_namespace()
    sockets: defaultdict[int, list[Path]] = defaultdict(list)
    numbers: set[int] = set()
    for file in path.iterdir():
        digits, _, rest = file.name.partition(".")
        if digits.isdecimal():
            if rest == "lock":
                numbers.add(int(digits))
            elif rest.removesuffix("~").endswith(SOCKET_SUFFIX):
                sockets[int(digits)].append(file)
    workers: list[WorkerStatus] = []
    leftovers: list[Leftover] = []
    records: list[WorkerRecord] = []
    for number in sorted(numbers | sockets.keys()):
        record, is_running = _read_lock(path / f"{number}.lock")
        open_sockets = [file for file in sockets[number] if listens(str(file))]
        if is_running or open_sockets:
            has_socket = bool(sockets[number])
            workers.append(_status(number, record, is_running, has_socket, open_sockets, clock, is_in_this_namespace))
            records += [record] if record is not None else []
        own = f"{number}.{record.instance}{SOCKET_SUFFIX}" if is_running and record is not None else ""
        leftovers += (
            Leftover(str(file), _NEXT_WORKER)
            for file in sockets[number]
            if file not in open_sockets and file.name.removesuffix("~") != own and file.exists()
        )
    if parent is not None and not workers and not (is_in_this_namespace and process_exists(int(parent[2]))):
        leftovers = [Leftover(str(path), _NEXT_GROUP)]
    name, _, face = path.name.partition("@") if parent is None else ("", "", records[0].face if records else "")
    return GroupStatus(
        path=str(path),
        name=name,
        parent=int(parent[2]) if parent is not None else 0,
        app=records[0].app if records else "",
        face=face,
        workers=tuple(workers),
        leftovers=tuple(leftovers),
    )


def _read_lock(path: Path) -> tuple[WorkerRecord | None, bool]:
    """Return the record in a lock file, and whether a worker holds it."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None, False
    try:
        return read_record(lock), is_locked(lock)
    finally:
        os.close(lock)


def _status(
    number: int,
    record: WorkerRecord | None,
    is_locked: bool,
    has_socket: bool,
    open_sockets: Sequence[Path],
    clock: Clock,
    is_in_this_namespace: bool,
) -> WorkerStatus:
    """Return the status of the worker in a worker slot that is locked, or has a socket at which a process listens."""
    seconds = max(0.0, clock.wall() - record.started) if record is not None else 0.0
    problem = ""
    state: WorkerState = "serves"
    if record is not None and record.is_draining and is_locked:
        state = "drains"
    elif not open_sockets:
        state = "starts" if record is not None and seconds < STARTING else "unreachable"
        if state == "unreachable":
            problem = _SILENT if has_socket else f"its socket is missing, {_REPAIRED}"
    elif not is_locked:
        problem = f"its lock file is missing, {_REPAIRED}"
        record = None  # that of an earlier worker
    if record is not None and is_in_this_namespace and not process_exists(record.pid):
        problem = f"process {record.pid} has ended, and one that it has forked holds its worker slot: end that one"
    path = open_sockets[0] if open_sockets else None
    return WorkerStatus(
        slot=f"{PREFIX}{number}",
        pid=record.pid if record is not None else 0,
        instance=record.instance if record is not None else path.name.split(".")[1] if path is not None else "",
        age=seconds,
        socket=str(path) if path is not None else "",
        state=state,
        problem=problem,
    )


def age(seconds: float) -> str:
    """Return a length of time in words, as `ps` and `kubectl` shorten it: `8s`, `12m`, `5h`, `3d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
