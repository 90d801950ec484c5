"""Commands as values: a query remembers which invalidations had been received when it was sent."""

import pytest

from sticky_core.clock import ManualClock
from sticky_core.stores.redis import Redis, RedisNamespace
from sticky_core.stores.store import FEED_TIMEOUT, HEARTBEAT_INTERVAL, StoreCommand, StoreQuery
from tests.core.stores.feed import connected_feed


@pytest.mark.parametrize("changed, is_fresh", [(False, True), (True, False)], ids=["no change", "a change meanwhile"])
def test_query_decides_by_its_number_whether_its_reply_is_fresh(
    store: Redis, namespace: RedisNamespace, clock: ManualClock, changed: bool, is_fresh: bool
):
    connected_feed(store, clock)
    query = StoreQuery(namespace.recall("d"), namespace.sequence)
    if changed:
        namespace.on_invalidation("d", "s2")
    query.set_reply(b"s1")
    assert query.reply == "s1"
    assert namespace.is_fresh(namespace.epoch_of("d", query.reply, query.sequence)) is is_fresh


def test_command_is_for_the_store_of_its_namespace(store: Redis, namespace: RedisNamespace):
    command = StoreQuery(namespace.recall("d"), 0).command
    assert isinstance(command, StoreCommand)
    assert command.store is store and command.store.on_store_failure == "local"


def test_channel_is_alive_if_one_heartbeat_is_lost():
    assert 2 * HEARTBEAT_INTERVAL < FEED_TIMEOUT
