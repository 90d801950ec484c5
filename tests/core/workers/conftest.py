"""A group of workers in a private directory: files only, no sockets and no processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sticky_core.workers.backend import Workers, group_slots, join_workers
from sticky_core.workers.config import WorkersConfig

SECRET = "a-secret-of-sixteen-bytes-at-least"


async def app(scope: object, receive: object, send: object) -> None: ...


def publish(workers: Workers) -> None:
    """Put a file where a face would put the socket, so that peers find this worker."""
    Path(workers.slot.draft_path).touch()
    workers.slot.publish()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="sticky-") as path:
        yield Path(path)


@pytest.fixture
def join(folder: Path) -> Iterator[Callable[..., Workers]]:
    """Starts one more worker of a group, with these options, and publishes it."""
    started: list[Workers] = []

    def join(**options: Any) -> Workers:
        config = WorkersConfig(**{"name": "group", "secret": SECRET, **options})
        slots = group_slots(config, folder / "run")
        workers = join_workers(config, slots, app, lambda workers, number: app, lambda path: False)
        started.append(workers)
        publish(workers)
        return workers

    yield join
    for workers in started:
        workers.slot.release()


@pytest.fixture
def kill() -> Callable[[Workers], None]:
    """Ends a worker as SIGKILL does: its lock is released, its socket stays."""

    def kill(workers: Workers) -> None:
        workers.slot.after_fork()
        assert os.path.exists(workers.slot.path)

    return kill
