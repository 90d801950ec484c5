"""Worker slots: the numbered places of the worker processes of one group. A private directory holds a lock file for
each worker slot, with the record of its worker, and the sockets of the workers. Their names show which instance listens
in which worker slot.

Only files are touched here; the faces open the sockets. A worker takes the lowest free worker slot and holds its lock
until it ends, however it ends. Its socket is called `<slot>.<instance>.sock`, so a listing of the directory shows all
workers, and no name is ever used twice: a process that was refused a connection there may remove it.

Programs that clean temporary directories may remove any of these files while their worker runs. So a lock that is
missing shows nothing, and a socket that is missing shows nothing unless the lock is there (`has_ended`). On Linux each
worker has an abstract socket besides, which no program can remove: a process that starts learns from it which worker
slots are taken in a directory that was cleaned. `repair` makes again what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from sticky_core.clock import Clock
from sticky_core.errors import ConfigError
from sticky_core.workers.directory import fcntl, is_at, lock_directory, make_group_directory, pid_namespace
from sticky_core.workers.generated_secret import read_secret
from sticky_core.workers.record import Face, WorkerRecord, read_record, write_record

#: how many worker slots a group has
MAX_WORKERS: Final = 128
#: the longest path of a socket, in bytes: the smallest limit of all systems
MAX_SOCKET_PATH: Final = 103
#: The resolution of a directory's mtime, in seconds: two changes within it may leave the same mtime.
MTIME_RESOLUTION: Final = 0.1
#: how often a process tries to lock a worker slot that only processes which read its record have locked
_LOCK_TRIES: Final = 1000

SOCKET_SUFFIX: Final = ".sock"


class WorkerSlots:
    """The directory of one group of workers. ConfigError if it is not private to this user."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        named = f"{pid_namespace()} {os.stat(path).st_dev} {path}"
        self._abstract = f"\0sticky-sessions-{sha256(named.encode()).hexdigest()[:16]}-"
        self._instances: dict[int, str] = {}  # as of the last change
        self._mtime = -1  # of the directory when it was read last; -1: read it again, a later change may have the same

    @classmethod
    def of_group(
        cls,
        name: str | None,
        app: str,
        face: Face,
        clock: Clock,
        directory: str | os.PathLike[str] | None = None,
        *,
        namespace: str | None = None,
    ) -> WorkerSlots:
        """Return the worker slots that this process shares with its peers; the arguments are those of
        `make_group_directory`. ConfigError if no sockets can be opened there.
        """
        slots = cls(make_group_directory(name, app, face, clock, directory, namespace=namespace), clock)
        longest = os.fsencode(slots.path / f"{MAX_WORKERS}.{'0' * 16}{SOCKET_SUFFIX}")
        if len(longest) > MAX_SOCKET_PATH:
            most = MAX_SOCKET_PATH - len(longest) + len(os.fsencode(slots.path.parent))
            raise ConfigError(
                f"{slots.path} is too long a path for sockets in it: pass directory=, at most {most} characters for "
                "this name"
            )
        return slots

    def acquire(self, record: WorkerRecord, listens: Callable[[str], bool] = lambda path: False) -> WorkerSlot:
        """Acquire the lowest free worker slot for the worker of `record`, and remove the sockets that an earlier worker
        has left there. `listens`: returns whether a process has a socket at this address. ConfigError if all are
        taken.
        """
        directory = lock_directory(self.path)
        try:
            for uses_abstract in (True, False):  # other users can open abstract sockets: they can only delay a worker
                for number in range(1, MAX_WORKERS + 1):
                    lock = self.lock(number)
                    if lock is None:
                        continue
                    left = list(self.path.glob(f"{number}.*{SOCKET_SUFFIX}*"))
                    is_taken = uses_abstract and listens(self.abstract_address(number))
                    if is_taken or any(listens(str(path)) for path in left):
                        os.close(lock)
                        continue
                    for path in left:
                        path.unlink(missing_ok=True)
                    return WorkerSlot(self, number, record, lock, directory)
        except BaseException:
            os.close(directory)
            raise
        os.close(directory)
        raise ConfigError(
            f"StickyWorkers: all {MAX_WORKERS} worker slots in {self.path} are taken: run fewer workers, and in tests "
            "end each that they have started (on WSGI by stop(), on ASGI by the shutdown of the lifespan)"
        )

    def needs_repair(self, listens: Callable[[str], bool], needs_secret: bool) -> bool:
        """Return whether something is missing here that a worker which runs will make again: its socket or, if
        `needs_secret`, the secret. `listens`: returns whether a process has a socket at this address.
        """
        published = self._published()
        running = [number for number in range(1, MAX_WORKERS + 1) if listens(self.abstract_address(number))]
        if any(number not in published for number in running):
            return True
        if not needs_secret or read_secret(self.path) is not None:
            return False
        return bool(running) or any(listens(self.socket_path(*each)) for each in published.items())

    def has_ended(self, number: int, instance: str) -> bool | None:
        """Return whether the worker `instance`, which was in the worker slot `number`, has ended or is about to end;
        None if nothing shows that, because its lock file is missing.
        """
        try:
            lock = os.open(self.lock_path(number), os.O_RDONLY)
        except OSError:
            return None
        try:
            if not is_locked(lock):
                return True
            record = read_record(lock)
            return record is not None and (record.instance != instance or record.is_draining)
        finally:
            os.close(lock)

    def lock(self, number: int) -> int | None:
        """Lock a worker slot and return the descriptor; None if the worker slot is taken."""
        module = fcntl()
        lock = os.open(self.lock_path(number), os.O_RDWR | os.O_CREAT, 0o600)
        for _ in range(_LOCK_TRIES):
            try:
                module.flock(lock, module.LOCK_EX | module.LOCK_NB)
            except BlockingIOError:
                if is_locked(lock):
                    break
                # else a process that reads the record has had a shared lock for a moment
            else:
                return lock
        os.close(lock)
        return None

    def lock_path(self, number: int) -> Path:
        """Return the path of the lock file of the worker slot `number`."""
        return self.path / f"{number}.lock"

    def running(self) -> Iterator[WorkerRecord]:
        """Yield the records of the workers that hold a worker slot."""
        for path in self.path.glob("*.lock"):
            try:
                lock = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                record = read_record(lock) if is_locked(lock) else None
            finally:
                os.close(lock)
            if record is not None:
                yield record

    def require_same_app(self, record: WorkerRecord) -> None:
        """Raise ConfigError if a worker in these worker slots serves another app than the worker of `record`: each
        would get requests of the other's clients.
        """
        for other in self.running():
            if other.app != record.app:
                raise ConfigError(
                    f"StickyWorkers: name={record.group!r} is that of workers that serve {other.app} (process "
                    f"{other.pid}), and this process serves {record.app}, so each app would get requests of the other: "
                    "give each app a name of its own. If they are one app, put StickyWorkers around it in one module "
                    "that all processes import, or end the workers of before first"
                )

    def changed_instances(self) -> dict[int, str] | None:
        """Return the instances of all published workers, by the number of their worker slot; None if nothing has
        changed since the last call.
        """
        try:
            mtime = os.stat(self.path).st_mtime_ns
        except FileNotFoundError:  # something has removed the directory; keep what is known
            return None
        if mtime == self._mtime:
            return None
        # the directory may change again within the resolution of its mtime: then read it again at the next call
        self._mtime = mtime if mtime < (self._clock.wall() - MTIME_RESOLUTION) * 1e9 else -1
        instances = self._published()
        if instances == self._instances:
            return None
        self._instances = instances
        return instances

    def has_announced_end(self, number: int, instance: str) -> bool:
        """Return whether the worker `instance` in the worker slot `number` has recorded that it is about to end."""
        record = read_record(self.lock_path(number))
        return record is not None and record.instance == instance and record.is_draining

    def _published(self) -> dict[int, str]:
        """Return the instances of all published workers, by the number of their worker slot: of two the older one,
        from which a worker has taken the worker slot in a directory that was cleaned, and gives it back.
        """
        found: dict[int, str] = {}
        for number, instance in self.sockets():
            found[number] = min(instance, found.get(number, instance))
        return found

    def sockets(self) -> Iterator[tuple[int, str]]:
        """Yield the number and the instance of each socket."""
        with suppress(FileNotFoundError):
            for name in os.listdir(self.path):
                if name.endswith(SOCKET_SUFFIX):
                    number, _, instance = name.removesuffix(SOCKET_SUFFIX).partition(".")
                    if number.isdecimal():
                        yield int(number), instance

    def abstract_address(self, number: int) -> str:
        """Return the address of the abstract socket of the worker slot `number`. Abstract sockets belong to a network,
        which containers may share that do not share directories.
        """
        return f"{self._abstract}{number}"

    def socket_path(self, number: int, instance: str) -> str:
        """Return the path of the socket of the worker `instance` in the worker slot `number`."""
        return str(self.path / f"{number}.{instance}{SOCKET_SUFFIX}")

    def remove_socket(self, number: int, instance: str) -> None:
        """Remove a socket at which no worker listens any more, nor ever will."""
        Path(self.socket_path(number, instance)).unlink(missing_ok=True)


class WorkerSlot:
    """The worker slot of one worker. It is held until it is released, or the process ends.

    - `slots`: the worker slots of the group.
    - `number`: which of them it is.
    - `record`: what the worker is.
    - `lock`, `directory`: the descriptors of the lock file and of the directory, both locked.
    """

    def __init__(self, slots: WorkerSlots, number: int, record: WorkerRecord, lock: int, directory: int) -> None:
        self.number = number
        self.instance = record.instance
        self._slots = slots
        self._record = record
        self._lock = lock
        self._directory = directory
        #: whether the locks are held: not after a release, nor in a forked child
        self.is_held = True
        write_record(lock, record)
        self.path = slots.socket_path(number, record.instance)
        #: where to bind a datagram socket that is never read: it shows that this worker runs
        self.abstract_address = slots.abstract_address(number)
        #: where to bind the socket, before peers can see it
        self.draft_path = self.path + "~"

    def publish(self) -> None:
        """Make the socket visible to peers. It listens already."""
        os.chmod(self.draft_path, 0o600)
        os.rename(self.draft_path, self.path)

    def drain(self) -> None:
        """Record that this worker is about to end, and remove the socket."""
        if self.is_held:  # recorded first: a peer that misses the socket reads the record
            self._record = replace(self._record, is_draining=True)
            write_record(self._lock, self._record)
        self.unpublish()

    def unpublish(self) -> None:
        """Remove the socket: peers do not find this worker any more."""
        for path in (self.path, self.draft_path):
            Path(path).unlink(missing_ok=True)

    def release(self) -> None:
        """Remove the socket, and make the worker slot free."""
        self.drain()
        self.after_fork()

    def after_fork(self) -> None:
        """Close the lock files, and leave the worker slot to the parent. Called in a forked child."""
        if self.is_held:
            self.is_held = False
            for each in (self._lock, self._directory):
                os.close(each)  # the lock itself ends with the last process that has the file open

    def restore_directory(self) -> bool:
        """Make and lock the directory again if it was removed. Return whether it was."""
        if is_at(self._directory, self._slots.path):
            return False
        restored = lock_directory(self._slots.path)
        os.close(self._directory)
        self._directory = restored
        return True

    def restore_lock(self) -> bool:
        """Make and lock the lock file again if it was removed. Return whether that was done: another worker may have
        taken the worker slot meanwhile.
        """
        if is_at(self._lock, self._slots.lock_path(self.number)):
            return False
        restored = self._slots.lock(self.number)
        if restored is None:
            return False
        os.close(self._lock)
        self._lock = restored
        write_record(restored, self._record)
        return True

    def touch(self) -> None:
        """Make the files look used: programs remove those that were not used for long."""
        for path in (self._slots.path, self._slots.lock_path(self.number), self.path, self._slots.path / "secret"):
            with suppress(OSError):
                os.utime(path)


def is_locked(lock: int) -> bool:
    """Return whether another process, or another descriptor, holds a lock file exclusively, as a worker does."""
    module = fcntl()
    try:
        module.flock(lock, module.LOCK_SH | module.LOCK_NB)
    except BlockingIOError:
        return True
    module.flock(lock, module.LOCK_UN)
    return False
