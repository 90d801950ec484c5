"""The entries of one table in a store: digests of keys, replies, and which local copies are fresh."""

import pytest

from sticky_core.errors import ConfigError
from sticky_core.stores.redis import Redis
from sticky_core.stores.store import FEED_TIMEOUT
from tests.core.stores.feed import connected_feed, message

SECRET = "a-secret-of-the-store-tests"


@pytest.mark.parametrize("expire", [None, 0.0])
def test_table_without_expire_is_an_error(store, expire):
    with pytest.raises(ConfigError, match="it needs an expire"):
        store.namespace("app/sessions", expire)


def test_digest_does_not_reveal_its_key_and_is_the_same_in_every_process(namespace):
    digest = namespace.digest("session-of-ann")
    assert len(digest) == 32
    assert set(digest) <= set("0123456789abcdef")
    assert Redis("redis://elsewhere").namespace("app/sessions", 5.0).digest("session-of-ann") == digest


def test_digests_of_one_key_differ_by_table_and_secret(store, namespace):
    others = [
        store.namespace("app/other", 60.0),
        Redis("redis://cache", secret=SECRET).namespace("app/sessions", 60.0),
        Redis("redis://cache", secret=SECRET + "!").namespace("app/sessions", 60.0),
    ]
    assert len({each.digest("ann") for each in (namespace, *others)}) == 4


@pytest.mark.parametrize(
    "key, same",
    [(17, "17"), (b"ann", "ann"), ("\u00e9", "\u00e9".encode())],
    ids=["a number", "bytes", "a text that is not ASCII"],
)
def test_keys_of_all_types_have_a_digest(namespace, key, same):
    assert namespace.digest(key) == namespace.digest(same)


def test_no_copy_is_fresh_before_a_client_listens(namespace):
    assert not namespace.is_fresh(namespace.epoch_of("d", "s1", namespace.sequence))


def test_copy_is_fresh_for_as_long_as_the_channel_is_alive(store, namespace, clock):
    connected_feed(store, clock)
    epoch = namespace.epoch_of("d", "s1", namespace.sequence)
    assert namespace.is_fresh(epoch)
    clock.advance(FEED_TIMEOUT - 0.01)
    assert namespace.is_fresh(epoch)
    clock.advance(0.02)
    assert not namespace.is_fresh(epoch)


def test_copy_from_before_the_channel_was_lost_is_not_fresh_when_it_is_back(store, namespace, clock):
    connected_feed(store, clock)
    epoch = namespace.epoch_of("d", "s1", namespace.sequence)
    store.on_disconnected()
    assert not namespace.is_fresh(epoch)
    connected_feed(store, clock)
    assert not namespace.is_fresh(epoch)
    assert namespace.is_fresh(namespace.epoch_of("d", "s1", namespace.sequence))


def test_reply_to_a_query_from_before_the_channel_was_back_is_not_fresh(store, namespace, clock):
    connected_feed(store, clock)
    sequence = namespace.sequence
    store.on_disconnected()
    connected_feed(store, clock)
    assert namespace.epoch_of("d", "s1", sequence) == 0


@pytest.mark.parametrize(
    "payloads, reply, is_fresh",
    [
        pytest.param([], "s1", True, id="no invalidation"),
        pytest.param([b"d s2"], "s1", False, id="the reply may be older than the invalidation"),
        pytest.param([b"d s2"], "s2", True, id="both have the same text"),
        pytest.param([b"d"], "s1", False, id="it was forgotten meanwhile"),
        pytest.param([b"d"], None, True, id="it was forgotten, and the reply has none"),
        pytest.param([b"e s2"], "s1", True, id="an invalidation of another entry"),
        pytest.param([b"d s2", b"d s1"], "s1", True, id="moved away and back"),
        pytest.param(
            [b"e%d s2" % number for number in range(5000)], "s1", False, id="too many invalidations to remember"
        ),
    ],
)
def test_reply_that_contradicts_an_invalidation_received_before_it_is_not_fresh(
    store, namespace, clock, payloads, reply, is_fresh
):
    feed = connected_feed(store, clock, [message(namespace, b"d s7")])
    sequence = namespace.sequence
    for payload in payloads:
        feed.on_reply(message(namespace, payload))
    assert namespace.is_fresh(namespace.epoch_of("d", reply, sequence)) is is_fresh
