"""The channel of invalidations: its commands, its heartbeats, and the local copies that its messages change."""

import gc
import weakref

import pytest

from sticky_core.errors import StoreFailure
from sticky_core.stores.invalidation import InvalidationFeed
from sticky_core.stores.store import FEED_TIMEOUT, HEARTBEAT_INTERVAL
from tests.core.stores.feed import FakeLocalCache, connected_feed, message


def test_each_heartbeat_with_a_reply_keeps_copies_fresh(store, namespace, clock):
    feed = connected_feed(store, clock)
    epoch = namespace.epoch_of("d", "s1", namespace.sequence)
    for _ in range(10):
        clock.advance(HEARTBEAT_INTERVAL)
        assert feed.delay(clock.monotonic()) == 0.0
        assert feed.next_command(clock.monotonic()) == ("PING",)
        assert feed.next_command(clock.monotonic()) is None
        feed.on_reply([b"pong", b""])
        assert namespace.is_fresh(epoch)


def test_heartbeat_keeps_copies_fresh_from_when_it_was_sent(store, namespace, clock):
    feed = connected_feed(store, clock)
    epoch = namespace.epoch_of("d", "s1", namespace.sequence)
    clock.advance(HEARTBEAT_INTERVAL)
    assert feed.next_command(clock.monotonic()) == ("PING",)
    clock.advance(FEED_TIMEOUT - 0.5)
    feed.on_reply([b"pong", b""])
    assert namespace.is_fresh(epoch)
    clock.advance(0.6)
    assert not namespace.is_fresh(epoch)


def test_channel_without_replies_is_lost(store, namespace, clock):
    feed = connected_feed(store, clock)
    clock.advance(HEARTBEAT_INTERVAL)
    assert feed.next_command(clock.monotonic()) == ("PING",)
    clock.advance(FEED_TIMEOUT)
    with pytest.raises(StoreFailure, match="silent for 3 s"):
        feed.next_command(clock.monotonic())


def test_table_that_is_added_later_is_subscribed_to_with_the_next_heartbeat(store, namespace, clock):
    feed = connected_feed(store, clock)
    later = store.namespace("app/later", 60.0)
    assert not later.is_fresh(later.epoch_of("d", "s1", later.sequence))
    assert feed.next_command(clock.monotonic()) == ("SUBSCRIBE", "sticky:0:app/later")
    assert feed.next_command(clock.monotonic()) is None
    feed.on_reply([b"subscribe", b"sticky:0:app/later", 2])
    assert later.is_fresh(later.epoch_of("d", "s1", later.sequence))


def test_two_local_caches_of_one_table_both_receive_invalidations(store, namespace, clock):
    feed = connected_feed(store, clock)
    epoch = namespace.epoch
    again = store.namespace("app/sessions", 60.0)
    assert feed.next_command(clock.monotonic()) == ("SUBSCRIBE", "sticky:0:app/sessions")
    feed.on_reply([b"subscribe", b"sticky:0:app/sessions", 1])
    assert namespace.epoch == epoch  # it was subscribed all the time
    namespace.local_cache, again.local_cache = (
        FakeLocalCache(d=("s1", namespace.epoch)),
        FakeLocalCache(d=("s1", again.epoch)),
    )
    feed.on_reply(message(namespace, b"d s2"))
    assert (namespace.local_cache["d"], again.local_cache["d"]) == (("s2", namespace.epoch), ("s2", again.epoch))
    assert namespace.is_fresh(namespace.epoch) and again.is_fresh(again.epoch)


def test_namespace_without_references_is_released(store, clock):
    gone = weakref.ref(store.namespace("app/gone", 60.0))
    gc.collect()
    assert gone() is None
    assert InvalidationFeed(store, clock.monotonic()).next_command(clock.monotonic()) == ("PING",)


@pytest.mark.parametrize(
    "payload, after",
    [
        pytest.param(b"d s2", {"d": "s2", "e": "s1"}, id="the entry was moved"),
        pytest.param(b"d", {"e": "s1"}, id="the entry was forgotten"),
        pytest.param(b"f s2", {"d": "s1", "e": "s1"}, id="there is no copy of the entry"),
    ],
)
def test_invalidation_changes_a_copy_that_exists_and_nothing_else(store, namespace, clock, payload, after):
    feed = connected_feed(store, clock)
    namespace.local_cache = FakeLocalCache({"d": ("s1", namespace.epoch), "e": ("s1", namespace.epoch)})
    feed.on_reply(message(namespace, payload))
    assert {digest: text for digest, (text, _) in namespace.local_cache.items()} == after
    assert all(namespace.is_fresh(epoch) for _, epoch in namespace.local_cache.values())


def test_invalidation_is_for_one_table(store, namespace, clock):
    other = store.namespace("app/other", 60.0)
    namespace.local_cache, other.local_cache = FakeLocalCache(d=("s1", 1)), FakeLocalCache(d=("s1", 1))
    connected_feed(store, clock, [message(other, b"d s2"), [b"message", b"sticky:0:app/nobody", b"d s3"]])
    assert (namespace.local_cache["d"][0], other.local_cache["d"][0]) == ("s1", "s2")


@pytest.mark.parametrize(
    "received",
    [
        [b"message", b"\xff\xfe", b"d s2"],
        [b"subscribe", b"\xff", 1],
        [b"message", 7, [b"d"]],
        [b"message"],
        [],
        [[b"message"], b"sticky:0:app/sessions", b"d"],
        b"PONG",
        7,
        None,
    ],
    ids=repr,
)
def test_what_is_no_invalidation_is_ignored(store, namespace, clock, received):
    namespace.local_cache = cache = FakeLocalCache({"d": ("s1", 1)})
    connected_feed(store, clock, [received])
    assert cache == {"d": ("s1", 1)}


def test_invalidation_with_a_text_that_names_no_server_is_applied(store, namespace, clock):
    namespace.local_cache = cache = FakeLocalCache({"d": ("s1", 1)})
    connected_feed(store, clock, [message(namespace, b"d \xff")])
    assert cache["d"] == (store.read_reply(b"\xff"), namespace.epoch)
