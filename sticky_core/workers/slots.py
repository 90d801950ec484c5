"""Worker slots: the numbered places of the worker processes of one group. A private directory holds a lock file for
each worker slot, with the record of its worker, and the sockets of the workers. Their names show which instance listens
in which worker slot.

Only files are touched here; the faces open the sockets. A worker takes the lowest free worker slot and holds its lock
until it ends, however it ends. (Programs that clean temporary directories may remove the lock file. So a worker slot in
which a worker listens is taken, too.) Its socket is called `<slot>.<instance>.sock`, so a listing of the directory
shows all workers, and no name is ever used twice: a process that finds that no worker listens at a socket may remove
it.

Workers of one parent process are a group. Process ids are unique only within a PID namespace, and containers may share
the directory, so the name of a group has both. Each worker holds a shared lock of the directory of its group. So a
process may remove that of a group that has ended, even if it can't see the parent: it removes only what it can lock
exclusively.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from sticky_core.clock import Clock
from sticky_core.errors import ConfigError
from sticky_core.workers.record import WorkerRecord, write_record

#: how many worker slots a group has
MAX_WORKERS: Final = 128
#: the longest path of a socket, in bytes: the smallest limit of all systems
MAX_SOCKET_PATH: Final = 103
#: The resolution of a directory's mtime, in seconds: two changes within it may leave the same mtime.
MTIME_RESOLUTION: Final = 0.1
#: the age, in seconds, at which the directory of a group may be removed once the parent process has ended
STALE_AFTER: Final = 60.0

SOCKET_SUFFIX: Final = ".sock"

#: The directory of the group of one parent process: PID namespace, parent, number of the app. No `name=` begins so.
_GROUP_OF_PARENT: Final = re.compile("@([0-9a-f]*)-([0-9]+)-[0-9]+")


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
        app: int,
        clock: Clock,
        directory: str | os.PathLike[str] | None = None,
        *,
        namespace: str | None = None,
    ) -> WorkerSlots:
        """Return the worker slots that this process shares with its peers: all processes of the same parent, or all of
        the group `name`. `app`: the number of this app among those of a process that have workers. `directory`: where
        to put them, instead of the system's temporary directory. `namespace`: the PID namespace, hexadecimal; by
        default this process's.
        """
        base = Path(directory) if directory is not None else Path(tempfile.gettempdir()) / f"sticky-{os.geteuid()}"
        _make_private(base)
        if name is None:
            if namespace is None:
                namespace = _pid_namespace()
            _remove_stale_groups(base, clock, namespace)
            name = f"@{namespace}-{os.getppid()}-{app}"
        slots = cls(base / name, clock)
        _make_private(slots.path)
        longest = os.fsencode(slots.path / f"{MAX_WORKERS}.{'0' * 16}{SOCKET_SUFFIX}")
        if len(longest) > MAX_SOCKET_PATH:
            raise ConfigError(
                f"{slots.path} is too long a path for sockets in it: pass directory=, "
                f"at most {MAX_SOCKET_PATH - len(longest) + len(os.fsencode(base))} characters for this name"
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
        directory = self._lock_directory()
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

    def _lock_directory(self) -> int:
        """Lock the directory, so that no process removes it while this worker runs. Return the descriptor."""
        fcntl = _fcntl()
        while True:
            try:
                directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:  # another process has just removed it, as that of a group that has ended
                _make_private(self.path)
                continue
            with suppress(OSError):  # a file system without locks of directories: nothing removes this one then
                fcntl.flock(directory, fcntl.LOCK_SH)
            if _is_at(directory, self.path):
                return directory
            os.close(directory)

    def _lock_slot(self, number: int) -> int | None:
        """Lock a worker slot and return the descriptor; None if the worker slot is taken."""
        fcntl = _fcntl()
        lock = os.open(self.path / f"{number}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

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
        """Remove the socket, as this worker is about to end, and record that."""
        self.unpublish()
        if self._locks:
            self._record = replace(self._record, is_draining=True)
            write_record(self._locks[0], self._record)

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


def _make_private(path: Path) -> None:
    """Make the directory `path`, which only this user can enter. ConfigError if `path` exists and is not such a
    directory.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(
            f"{path} can't be created: {error.strerror}: pass directory=, a directory that this user may write to"
        ) from None
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"{path} is not a directory that only this user can enter, and workers open their sockets there: "
            "remove it, or pass directory=, another one"
        )


def _pid_namespace() -> str:
    """Return what tells apart processes with the same id: an id of the host's start and of the PID namespace there, as
    hexadecimal text. Empty where the system has no PID namespaces.
    """
    known = b""
    with suppress(OSError):
        known += b"%d " % os.stat("/proc/self/ns/pid").st_ino
    with suppress(OSError):
        known += Path("/proc/sys/kernel/random/boot_id").read_bytes()
    return sha256(known).hexdigest()[:8] if known else ""


def _remove_stale_groups(base: Path, clock: Clock, namespace: str) -> None:
    """Remove the directories of groups that have ended: no worker has locked the directory, and the parent process has
    ended, if it is in this PID namespace.
    """
    for path in base.iterdir():
        group = _GROUP_OF_PARENT.fullmatch(path.name)
        if group is None or (group[1] == namespace and _process_exists(int(group[2]))):
            continue
        with suppress(OSError):  # a worker holds its lock, or another process removes it at the same time
            _remove_group(path, clock)


def _remove_group(path: Path, clock: Clock) -> None:
    """Remove the directory of a group, unless it was changed a short time ago: workers may be about to start. OSError
    if a worker has locked it.
    """
    fcntl = _fcntl()
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(directory, path) and os.fstat(directory).st_mtime < clock.wall() - STALE_AFTER:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    finally:
        os.close(directory)


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file or directory is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True


def _fcntl() -> Any:
    try:
        return import_module("fcntl")
    except ImportError:
        raise ConfigError("StickyWorkers needs lock files and UNIX sockets, which this system does not have") from None
