"""Slots: who of several worker processes is which. A private directory, a lock file for each slot, and the names of the
sockets in it, which say who lives where.

Files are all that is touched here: the sockets themselves are the faces'. A worker takes the lowest slot that is free
and holds its lock until it ends, however it ends. Its socket is called `<slot>.<life>.sock`, so that a look at the
directory tells every worker there is, and so that a name is never used twice: whoever finds that nobody listens there
may remove it.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from sticky_core.clock import Clock
from sticky_core.errors import ConfigError

#: how many workers there may be
MOST: Final = 128
#: of the path of a socket, in bytes: what the least of systems lets pass
LONGEST_PATH: Final = 103
#: How coarse the dates of a directory may be, in seconds: what has changed within may look as if it had not.
GRAIN: Final = 0.1
#: seconds after which a directory may be taken away whose servers are gone
STALE: Final = 60.0

SOCKET: Final = ".sock"


class Slots:
    """The directory of one family of workers. ConfigError if it is not private to this user."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        self._seen: dict[int, str] = {}
        self._as_of = -1

    @classmethod
    def of(cls, name: str | None, app: int, clock: Clock, directory: str | os.PathLike[str] | None = None) -> Slots:
        """Those that this process shares with its siblings: all that the same parent has started, or all of that
        `name`. `app`: the number of this app among those of a process. `directory`: where, rather than in the system's
        temporary one.
        """
        base = Path(directory) if directory is not None else Path(tempfile.gettempdir()) / f"sticky-{os.geteuid()}"
        _private(base)
        if name is None:
            _sweep(base, clock)
        slots = cls(base / (f"{os.getppid()}-{app}" if name is None else name), clock)
        _private(slots.path)
        longest = os.fsencode(slots.path / f"{MOST}.{'0' * 16}{SOCKET}")
        if len(longest) > LONGEST_PATH:
            raise ConfigError(
                f"{slots.path} is too long a path for sockets in it: pass directory=, "
                f"at most {LONGEST_PATH - len(longest) + len(os.fsencode(base))} characters for this name"
            )
        return slots

    def secret(self) -> str:
        """The secret that these workers have made for themselves: the first of them makes it."""
        path = self.path / "secret"
        try:
            return path.read_text()
        except FileNotFoundError:
            pass
        draft = self.path / f"secret.{os.getpid()}.{secrets.token_hex(4)}"
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
        try:
            os.link(draft, path)  # whole, or not at all; and only the first succeeds
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return path.read_text()

    def take(self, life: str) -> Slot:
        """The lowest slot that is free, for a worker whose life is `life`. What an earlier one has left there is
        removed. ConfigError if all are taken.
        """
        fcntl = _fcntl()
        for number in range(1, MOST + 1):
            lock = os.open(self.path / f"{number}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            for stale in self.path.glob(f"{number}.*{SOCKET}*"):
                stale.unlink(missing_ok=True)
            return Slot(self, number, life, lock)
        raise ConfigError(f"StickyWorkers: all {MOST} slots in {self.path} are taken: run fewer workers")

    def news(self) -> dict[int, str] | None:
        """The lives by slot, of all who listen or have not been buried; None if that is as it was."""
        try:
            changed = os.stat(self.path).st_mtime_ns
        except FileNotFoundError:  # somebody tidies up; who is known stays known
            return None
        if changed == self._as_of:
            return None
        # a directory that has changed just now may change once more, and look the same
        self._as_of = changed if changed < (self._clock.wall() - GRAIN) * 1e9 else -1
        seen: dict[int, str] = {}
        for name in os.listdir(self.path):
            if name.endswith(SOCKET):
                number, _, life = name.removesuffix(SOCKET).partition(".")
                if number.isdecimal():
                    seen[int(number)] = life
        if seen == self._seen:
            return None
        self._seen = seen
        return seen

    def socket(self, number: int, life: str) -> str:
        """Where the worker of that life in that slot listens."""
        return str(self.path / f"{number}.{life}{SOCKET}")

    def bury(self, number: int, life: str) -> None:
        """Nobody listens there any more, and nobody ever will."""
        Path(self.socket(number, life)).unlink(missing_ok=True)


class Slot:
    """A worker's own. It is held until it is released, or the process ends."""

    def __init__(self, slots: Slots, number: int, life: str, lock: int) -> None:
        self.number = number
        self.life = life
        self._lock: int | None = lock
        #: where to listen at first: nobody looks there
        self.draft = slots.socket(number, life) + "~"
        self.path = slots.socket(number, life)

    def open(self) -> None:
        """It listens: from here on siblings find it."""
        os.chmod(self.draft, 0o600)
        os.rename(self.draft, self.path)

    def leave(self) -> None:
        """It is found no more."""
        for path in (self.path, self.draft):
            Path(path).unlink(missing_ok=True)

    def release(self) -> None:
        """It is another's to take."""
        self.leave()
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child it is still the parent's: let go without a word."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)  # which releases it only if nobody else has it open


def _private(path: Path) -> None:
    """Make `path` a directory of ours that nobody else can enter; ConfigError if it is there and is not."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(f"{path} can't be made: {error.strerror}: pass directory=, one that can") from None
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"{path} is not a directory that only this user can enter, and workers speak to each other there: "
            "remove it, or pass directory=, another one"
        )


def _sweep(base: Path, clock: Clock) -> None:
    """Take away what families have left behind whose parent is gone."""
    for each in base.iterdir():
        parent = each.name.partition("-")[0]
        if not parent.isdecimal() or _runs(int(parent)):
            continue
        try:
            # who is just about to begin under a number that was used before is left alone
            if each.lstat().st_mtime < clock.wall() - STALE:
                for file in each.iterdir():
                    file.unlink()
                each.rmdir()
        except OSError:  # another worker is about it as well
            pass


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _fcntl() -> Any:
    try:
        return import_module("fcntl")
    except ImportError:
        raise ConfigError("StickyWorkers needs lock files and UNIX sockets, which this system does not have") from None
