"""The directory of a group of workers: where it is, which processes share it, and when it is removed.

Workers of one parent process are a group, and so are all with one `name=`. Process ids are unique only within a PID
namespace, and containers may share the directory, so the directory of a parent's workers has both in its name, and a
digest of the app's identity. The interface of the app belongs to it as well: workers of different interfaces send each
other different frames.

Each worker holds a shared lock of the directory of its group. So a process may remove that of a group that has ended,
even if it can't see the parent: it removes only what it can lock exclusively. systemd-tmpfiles leaves a locked
directory alone, too.

The default is a directory in the system's temporary directory, not in `$XDG_RUNTIME_DIR`: logind removes that when its
user logs out, while a service that was started from there runs on; and workers with the same `name=`, of which one was
started by a login and one by a supervisor, would not find each other.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from contextlib import suppress
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from sticky_core.clock import Clock
from sticky_core.errors import ConfigError
from sticky_core.workers.record import Face

#: the age, in seconds, at which the directory of a group may be removed once the parent process has ended
STALE_AFTER: Final = 60.0
#: what a system without the necessary functions gets, such as Windows
UNSUPPORTED: Final = (
    "StickyWorkers needs lock files and UNIX sockets, which this system does not have: leave StickyWorkers out here, "
    "with one worker process, or serve on Linux or macOS"
)

#: The directory of the group of one parent process: PID namespace, parent, digest of the app. No `name=` begins so.
GROUP_OF_PARENT: Final = re.compile("@([0-9a-f]*)-([0-9]+)-[0-9a-f]+")


def require_system() -> None:
    """Raise ConfigError unless this system has what workers need."""
    if not hasattr(os, "geteuid"):
        raise ConfigError(UNSUPPORTED)
    fcntl()


def fcntl() -> Any:
    """Return the module `fcntl`. ConfigError on a system without it."""
    try:
        return import_module("fcntl")
    except ImportError:
        raise ConfigError(UNSUPPORTED) from None


def app_digest(name: str | None, app: str, face: Face) -> str:
    """Return six hexadecimal digits that tell the app with this identity from others, or the group `name`."""
    return sha256(f"{face} {name if name is not None else app}".encode()).hexdigest()[:6]


def default_directory() -> Path:
    """Return the directory that has the groups of this user, unless `directory=` names another one. ConfigError on a
    system without users, or without a temporary directory.
    """
    require_system()
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError as error:  # the file system is read-only, as that of a container may be
        raise ConfigError(
            f"StickyWorkers: {error.strerror}, and workers open their sockets there: mount one (docker run --tmpfs "
            "/tmp), or pass directory=, a directory that this user may write to"
        ) from None
    return Path(temporary) / f"sticky-{os.geteuid()}"


def make_group_directory(
    name: str | None,
    app: str,
    face: Face,
    clock: Clock,
    directory: str | os.PathLike[str] | None = None,
    *,
    namespace: str | None = None,
) -> Path:
    """Make the directory of the group of workers that this process is one of, if it does not exist, and return it.

    - `name`: the name of the group; None: the group is that of the parent process and the app.
    - `app`: the identity of the app.
    - `face`: which interface the app has.
    - `directory`: where it is made, instead of the system's temporary directory.
    - `namespace`: the PID namespace, hexadecimal; by default this process's.

    ConfigError if it can't be made, or other users can enter it.
    """
    base = Path(directory) if directory is not None else default_directory()
    require_system()
    make_private(base)
    if name is not None:
        path = base / f"{name}@{face}"
    else:
        if namespace is None:
            namespace = pid_namespace()
        _remove_stale_groups(base, clock, namespace)
        path = base / f"@{namespace}-{os.getppid()}-{app_digest(None, app, face)}"
    make_private(path)
    return path


def make_private(path: Path) -> None:
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


def lock_directory(path: Path) -> int:
    """Lock the directory of a group, so that no process removes it while this worker runs; make it if it has just been
    removed. Return the descriptor.
    """
    module = fcntl()
    while True:
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another process has just removed it, as that of a group that has ended
            with suppress(ConfigError):  # a program that cleans directories may have removed that one, too
                make_private(path.parent)
            make_private(path)
            continue
        with suppress(OSError):  # a file system without locks of directories: nothing removes this one then
            module.flock(directory, module.LOCK_SH)
        if is_at(directory, path):
            return directory
        os.close(directory)


def is_at(descriptor: int, path: str | os.PathLike[str]) -> bool:
    """Return whether an open file or directory is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def pid_namespace() -> str:
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
        group = GROUP_OF_PARENT.fullmatch(path.name)
        if group is None or (group[1] == namespace and process_exists(int(group[2]))):
            continue
        with suppress(OSError):  # a worker holds its lock, or another process removes it at the same time
            _remove_group(path, clock)


def _remove_group(path: Path, clock: Clock) -> None:
    """Remove the directory of a group, unless it was changed a short time ago: workers may be about to start. OSError
    if a worker has locked it.
    """
    module = fcntl()
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        module.flock(directory, module.LOCK_EX | module.LOCK_NB)
        if is_at(directory, path) and os.fstat(directory).st_mtime < clock.wall() - STALE_AFTER:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    finally:
        os.close(directory)


def process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True
