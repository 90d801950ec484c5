"""Worker records: what each worker writes into its lock file, for operators and for the other workers.

A record shows what a worker is, never whether it runs: that is shown by the lock of the file alone. A worker that was
killed leaves its record.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final, Literal, TypeAlias

from sticky_core.deferred.dataclass import dataclass

#: which interface an app has
Face: TypeAlias = Literal["asgi", "wsgi"]

#: the longest record that is read, in bytes
_MAX_RECORD: Final = 4096


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What one worker is."""

    pid: int  #: its process id, in the PID namespace of that process
    instance: str  #: the id of this start of it, as the marks of its clients have it
    started: float  #: when it took its worker slot, as a wall-clock time in seconds
    app: str  #: the identity of its app, such as `main:FastAPI`
    group: str  #: the name of its group: that of `name=`, else empty
    face: Face
    is_draining: bool = False  #: whether it is about to end, and gets no further requests of peers


def write_record(descriptor: int, record: WorkerRecord) -> None:
    """Write `record` into an open file, in place of what is there. Nothing if the file system fails: the record only
    informs.
    """
    text = json.dumps(asdict(record)).encode() + b"\n"
    with suppress(OSError):
        # A process may read the file between these two: it reads one line, so it ignores what is left of a longer one.
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))


def read_record(file: int | str | os.PathLike[str]) -> WorkerRecord | None:
    """Return the record in a lock file, an open descriptor or a path; None if there is none, or no valid one."""
    try:
        if isinstance(file, int):
            data = os.pread(file, _MAX_RECORD, 0)
        else:
            with open(file, "rb") as opened:
                data = opened.read(_MAX_RECORD)
        found: Any = json.loads(data.partition(b"\n")[0])
    except (OSError, ValueError, RecursionError):
        return None
    match found:
        case {
            "pid": int(pid),
            "instance": str(instance),
            "started": int() | float() as started,
            "app": str(app),
            "group": str(group),
            "face": "asgi" | "wsgi" as face,
            "is_draining": bool(is_draining),
        }:
            return WorkerRecord(pid, instance, float(started), app, group, face, is_draining)
        case _:
            return None
