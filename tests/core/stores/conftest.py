"""A clock that tests move, a store in Redis without a server, and the namespace of one table in it."""

import pytest

from sticky_core.clock import ManualClock
from sticky_core.stores.redis import Redis, RedisNamespace


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock) -> Redis:
    return Redis("redis://cache", clock=clock)


@pytest.fixture
def namespace(store: Redis) -> RedisNamespace:
    return store.namespace("app/sessions", 1800.0)
