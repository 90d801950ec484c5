"""Servers at three addresses, and a name server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faces.discovery.dispatchers import A, B, C, FakeNameserver, Origins


@pytest.fixture(scope="module")
def origins() -> Iterator[Origins]:
    made = Origins([A, B, C])
    yield made
    made.close()


@pytest.fixture
def nameserver() -> Iterator[FakeNameserver]:
    made = FakeNameserver()
    yield made
    made.close()
