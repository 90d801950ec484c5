"""The fixture that the tests of placement and forks share."""

from collections.abc import Callable, Sequence

import pytest

from sticky_core.backend.backend import Backend
from tests.core.backend.backends import Ask, WaitingRequest


@pytest.fixture
def wait(ask: Ask) -> Callable[..., WaitingRequest]:
    def wait(
        backend: Backend, bound: str | None = None, tried: Sequence[str] = (), alive: bool = True
    ) -> WaitingRequest:
        placed = backend.placement.acquire_or_enqueue(
            backend.snapshot, ask(), backend[bound] if bound else None, tuple(backend[name] for name in tried)
        )
        return WaitingRequest(backend, placed, alive)

    return wait
