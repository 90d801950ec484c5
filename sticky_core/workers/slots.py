"""Worker slots: the numbered places of the worker processes of one group. A private directory holds a lock file for
each worker slot, with the record of its worker, and the sockets of the workers. Their names show which instance listens
in which worker slot.

Only files are touched here; the faces open the sockets. A worker takes the lowest free worker slot and holds its lock
until it ends, however it ends. (Programs that clean temporary directories may remove the lock file. So a worker slot in
which a worker listens is taken, too.) Its socket is called `<slot>.<instance>.sock`, so a listing of the directory
shows all workers, and no name is ever used twice: a process that finds that no worker listens at a socket may remove
it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from sticky_core.clock import Clock
from sticky_core.errors import ConfigError
from sticky_core.workers.directory import fcntl, lock_directory, make_group_directory
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

    def shared_secret(self) -> str:
        """Return the secret of this group, which the first worker to call this generates."""
        path = self.path / "secret"
        try:
            return path.read_text()
        except FileNotFoundError:
            pass
        draft = self.path / f"secret.{os.getpid()}.{secrets.token_hex(4)}"
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
        try:
            os.link(draft, path)  # the file appears with all its content, and only the first process succeeds
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return path.read_text()

    def acquire(self, record: WorkerRecord, listens: Callable[[str], bool] = lambda path: False) -> WorkerSlot:
        """Acquire the lowest free worker slot for the worker of `record`, and remove the sockets that an earlier worker
        has left there. `listens`: returns whether a process listens at the socket with this path. ConfigError if all
        are taken.
        """
        directory = lock_directory(self.path)
        try:
            for number in range(1, MAX_WORKERS + 1):
                lock = self._lock_slot(number)
                if lock is None:
                    continue
                left = list(self.path.glob(f"{number}.*{SOCKET_SUFFIX}*"))
                if any(listens(str(path)) for path in left):
                    os.close(lock)
                    continue
                for path in left:
                    path.unlink(missing_ok=True)
                return WorkerSlot(self, number, record, (lock, directory))
        except BaseException:
            os.close(directory)
            raise
        os.close(directory)
        raise ConfigError(f"StickyWorkers: all {MAX_WORKERS} worker slots in {self.path} are taken: run fewer workers")

    def _lock_slot(self, number: int) -> int | None:
        """Lock a worker slot and return the descriptor; None if the worker slot is taken."""
        module = fcntl()
        lock = os.open(self._lock_path(number), os.O_RDWR | os.O_CREAT, 0o600)
        for _ in range(_LOCK_TRIES):
            try:
                module.flock(lock, module.LOCK_EX | module.LOCK_NB)
            except BlockingIOError:
                if _is_locked(lock):
                    break
                # else a process that reads the record has had a shared lock for a moment
            else:
                return lock
        os.close(lock)
        return None

    def _lock_path(self, number: int) -> Path:
        return self.path / f"{number}.lock"

    def running(self) -> Iterator[WorkerRecord]:
        """Yield the records of the workers that hold a worker slot."""
        for path in self.path.glob("*.lock"):
            try:
                lock = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                record = read_record(lock) if _is_locked(lock) else None
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
        instances: dict[int, str] = {}
        for name in os.listdir(self.path):
            if name.endswith(SOCKET_SUFFIX):
                number, _, instance = name.removesuffix(SOCKET_SUFFIX).partition(".")
                if number.isdecimal():
                    instances[int(number)] = instance
        if instances == self._instances:
            return None
        self._instances = instances
        return instances

    def has_announced_end(self, number: int, instance: str) -> bool:
        """Return whether the worker `instance` in the worker slot `number` has recorded that it is about to end."""
        record = read_record(self._lock_path(number))
        return record is not None and record.instance == instance and record.is_draining

    def socket_path(self, number: int, instance: str) -> str:
        """Return the path of the socket of the worker `instance` in the worker slot `number`."""
        return str(self.path / f"{number}.{instance}{SOCKET_SUFFIX}")

    def remove_socket(self, number: int, instance: str) -> None:
        """Remove a socket at which no worker listens any more, nor ever will."""
        Path(self.socket_path(number, instance)).unlink(missing_ok=True)


class WorkerSlot:
    """The worker slot of one worker. It is held until it is released, or the process ends."""

    def __init__(self, slots: WorkerSlots, number: int, record: WorkerRecord, locks: Sequence[int]) -> None:
        self.number = number
        self.instance = record.instance
        self._record = record
        self._locks = locks  # descriptors of the locked files: that of this worker slot, and the directory
        write_record(locks[0], record)
        self.path = slots.socket_path(number, record.instance)
        #: where to bind the socket, before peers can see it
        self.draft_path = self.path + "~"

    def publish(self) -> None:
        """Make the socket visible to peers. It listens already."""
        os.chmod(self.draft_path, 0o600)
        os.rename(self.draft_path, self.path)

    def drain(self) -> None:
        """Record that this worker is about to end, and remove the socket."""
        if self._locks:  # recorded first: a peer that misses the socket reads the record
            self._record = replace(self._record, is_draining=True)
            write_record(self._locks[0], self._record)
        self.unpublish()

    def unpublish(self) -> None:
        """Remove the socket: peers do not find this worker any more."""
        for path in (self.path, self.draft_path):
            Path(path).unlink(missing_ok=True)

    def release(self) -> None:
        """Remove the socket, and make the worker slot free."""
        self.unpublish()
        self.after_fork()

    def after_fork(self) -> None:
        """Close the lock files, and leave the worker slot to the parent. Called in a forked child."""
        locks, self._locks = self._locks, ()
        for lock in locks:
            os.close(lock)  # the lock itself ends with the last process that has the file open


def _is_locked(lock: int) -> bool:
    """Return whether another process, or another descriptor, holds a lock file exclusively, as a worker does."""
    module = fcntl()
    try:
        module.flock(lock, module.LOCK_SH | module.LOCK_NB)
    except BlockingIOError:
        return True
    module.flock(lock, module.LOCK_UN)
    return False
