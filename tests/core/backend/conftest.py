"""The fixture that the tests of placement and forks share."""

from collections.abc import Callable, Sequence

import pytest

from sticky_core.backend.backend import Backend
from tests.core.backend.backends import WaitingRequest
from tests.core.fakes import FakeRequest


@pytest.fixture
def wait() -> Callable[..., WaitingRequest]:
    def wait(
        backend: Backend, bound: str | None = None, tried: Sequence[str] = (), alive: bool = True
    ) -> WaitingRequest:
        placed = backend.placement.acquire_or_enqueue(
            backend.snapshot, FakeRequest(), backend[bound] if bound else None, tuple(backend[name] for name in tried)
        )
        return WaitingRequest(backend, placed, alive)

    return wait
