"""The secret that the workers of a group generate where none is configured: a file in their directory.

It begins with the instance of the worker that has generated it, so the older one of two is known. That is the one
that the marks of more clients are signed with, so it is the one that stays, if another program has removed the file and
a worker that has just started has generated a second one.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from sticky_core.workers.directory import fcntl, is_at

_SECRET: Final = re.compile(r"[0-9a-f]{16}\.[\w-]{43}", re.ASCII)


def read_secret(directory: Path) -> str | None:
    """Return the secret of the group with this directory; None if there is none, or no valid one."""
    try:
        found = (directory / "secret").read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return found if _SECRET.fullmatch(found) else None


def shared_secret(directory: Path, instance: str) -> str:
    """Return the secret of the group, which the first worker to call this generates. `instance`: that of the worker."""
    return restore_secret(directory, f"{instance}.{secrets.token_urlsafe(32)}", is_new=True)


def restore_secret(directory: Path, secret: str, *, is_new: bool = False) -> str:
    """Write `secret` unless the group has one that counts more, and return the one that counts: an older one, or, if
    `secret` is new, any. OSError if it can't be written.
    """
    while True:
        found = read_secret(directory)
        if found is not None and (is_new or found <= secret):
            return found
        draft = directory / f"secret.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                file.write(secret)
            if found is not None:
                os.replace(draft, directory / "secret")
                return secret
            try:
                os.link(draft, directory / "secret")  # it appears with all its content, and only the first succeeds
            except FileExistsError:
                _replace_unless_secret(draft, directory)
        finally:
            draft.unlink(missing_ok=True)


def _replace_unless_secret(draft: Path, directory: Path) -> None:
    """Replace what is no secret by `draft`. Of several workers the first does it: the others find another file then."""
    path, module = directory / "secret", fcntl()
    with suppress(FileNotFoundError), path.open("rb") as file:
        module.flock(file, module.LOCK_EX)
        if is_at(file.fileno(), path) and read_secret(directory) is None:
            os.replace(draft, path)
