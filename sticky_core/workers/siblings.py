"""Processes that serve the same app without being known as workers: neither Python's multiprocessing nor gunicorn has
started them, and no `name=` joins them.

A process that has its listening socket from its parent (`uvicorn --fd`, systemd's socket units, supervisord's
`fcgi-program`) is a worker: other processes may accept connections there, too. They are the group of that socket. Any
other process that serves registers its presence, with its first request, in a file that it keeps locked; if another
process that serves the same app is there, it logs that once: requests of one client may reach either.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import tempfile
from collections.abc import Container
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from sticky_core.errors import ConfigError
from sticky_core.workers.directory import fcntl, make_private, require_system
from sticky_core.workers.record import WorkerRecord, read_record, write_record
from sticky_core.workers.slots import is_locked

_log = logging.getLogger("sticky_sessions")

#: the directories that are no groups, but show the presence of processes, have names that begin so; no group has
PRESENCE_PREFIX: Final = "+"
#: at most how many files of other processes are looked at
_MOST: Final = 1000
_SOCKET: Final = re.compile(r"socket:\[([0-9]+)\]")
#: the first descriptor that systemd passes to a service (sd_listen_fds(3))
_FIRST_DESCRIPTOR: Final = 3

_held: list[int] = []  # the descriptors of the files that show the presence of this process


def inherited_socket(listening: Container[int]) -> int | None:
    """Return which of the sockets `listening`, by their inodes, this process has from its parent; None if none, or if
    the system does not show it.
    """
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        with suppress(OSError):
            inode = os.fstat(_FIRST_DESCRIPTOR).st_ino
            if inode in listening:
                return inode
    folder = f"/proc/{os.getppid()}/fd"
    with suppress(OSError):  # another system than Linux, or another user's process
        for name in os.listdir(folder):
            with suppress(OSError):  # closed meanwhile
                found = _SOCKET.fullmatch(os.readlink(f"{folder}/{name}"))
                if found is not None and int(found[1]) in listening:
                    return int(found[1])
    return None


def report_presence(record: WorkerRecord, directory: str | os.PathLike[str] | None) -> None:
    """Register this process, and log once if another one that runs serves the same app from the same directory.
    Nothing if the file system fails.

    - `record`: what this process is.
    - `directory`: as for `make_group_directory`.
    """
    try:
        require_system()
        base = Path(directory) if directory is not None else Path(tempfile.gettempdir()) / f"sticky-{os.geteuid()}"
        make_private(base)
        # two checkouts of one app are two apps here: their processes are more likely to have nothing in common
        named = f"{record.face} {record.app} {os.getcwd()}"
        folder = base / f"{PRESENCE_PREFIX}{sha256(named.encode()).hexdigest()[:8]}"
        make_private(folder)
        other = _find_other(folder, _register(folder, record))
    except (OSError, ConfigError):
        return
    if other is not None:
        _log.warning(
            "StickyWorkers: process %d serves %s as well as this process (%d), which does not know it as a worker. If "
            "requests of one client may reach either, each has sessions that the other does not have: pass name='...' "
            "to StickyWorkers, the same in both. If they have nothing in common, pass different names",
            other.pid,
            record.app,
            record.pid,
        )


def _register(folder: Path, record: WorkerRecord) -> str:
    """Write the file of this process, which is locked before others can see it, and return its name."""
    module = fcntl()
    name = f"{record.pid}-{secrets.token_hex(4)}"
    descriptor = os.open(folder / f".{name}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    _held.append(descriptor)
    module.flock(descriptor, module.LOCK_EX | module.LOCK_NB)
    write_record(descriptor, record)
    os.rename(folder / f".{name}", folder / name)
    return name


def _find_other(folder: Path, own: str) -> WorkerRecord | None:
    """Return the record of another process that runs; None if there is none. Remove the files of those that ended."""
    found: WorkerRecord | None = None
    for name in os.listdir(folder)[:_MOST]:
        if name == own or name.startswith("."):
            continue
        with suppress(FileNotFoundError):
            descriptor = os.open(folder / name, os.O_RDONLY)
            try:
                if not is_locked(descriptor):
                    os.unlink(folder / name)
                elif found is None:
                    found = read_record(descriptor)
            finally:
                os.close(descriptor)
    return found
