"""Redis as a store, without a server: its options, the commands it makes, and which local copies are fresh."""

import gc
import logging
import weakref
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError, StoreFailure
from sticky_core.persistence.stick.config import Stick
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.invalidation import InvalidationFeed
from sticky_core.stores.redis import Redis, pack_commands
from sticky_core.stores.store import FEED_TIMEOUT, HEARTBEAT_INTERVAL

SECRET = "a-secret-of-the-store-tests"


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def store(clock):
    return Redis("redis://cache", clock=clock)


@pytest.fixture
def namespace(store):
    return store.namespace("app/sessions", 1800.0)


class FakeLocalCache(dict[str, tuple[str, int]]):
    """A local cache: text and epoch by digest."""

    def on_invalidation(self, digest, text, epoch):
        if text is None:
            self.pop(digest, None)
        elif digest in self:
            self[digest] = text, epoch


# -- options


@pytest.mark.parametrize(
    "url, name, db",
    [
        pytest.param("redis://cache", "redis://cache", "0", id="a host"),
        pytest.param("redis://cache:6380/2", "redis://cache:6380/2", "2", id="a port and a database"),
        pytest.param("redis://ann:pass%40word@cache/1", "redis://cache/1", "1", id="a user and a password"),
        pytest.param("redis://:hush@[::1]:6379", "redis://[::1]:6379", "0", id="a password and an address of IPv6"),
        pytest.param("rediss://cache?ssl_ca_certs=ca.pem", "rediss://cache", "0", id="TLS"),
        pytest.param("redis://cache?db=3&password=hush", "redis://cache", "3", id="the database in the query"),
        pytest.param("unix:///run/cache.sock", "unix:///run/cache.sock", "0", id="a UNIX socket"),
        pytest.param(
            "unix://ann@/run/cache.sock?db=4&password=hush",
            "unix:///run/cache.sock?db=4",
            "4",
            id="a UNIX socket, a user, a password and a database",
        ),
    ],
)
def test_store_is_named_by_its_url_without_user_and_password(url, name, db):
    store = Redis(url)
    assert (store.name, store.db, store.url) == (name, db, url)
    texts = [repr(store), repr(store.breaker), repr(store.namespace("app/sessions", 60.0)), str(store.failure())]
    assert not any(word in text for text in texts for word in ("ann", "hush", "pass"))


@pytest.mark.parametrize("url, asked", [("valkey://cache", "redis://cache"), ("valkeys://cache/1", "rediss://cache/1")])
def test_url_of_valkey_is_passed_to_redis_py_as_one_of_redis(url, asked):
    assert Redis(url).url == asked


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param(
            {"url": "cache:6379"}, "store cache:…: write redis://host:port, rediss:// or unix://", id="no scheme"
        ),
        pytest.param({"url": "http://cache"}, "write redis://host:port, rediss:// or unix://", id="another scheme"),
        pytest.param({"timeout": 0}, "timeout 0 is not above 0 and at most 60 s", id="a timeout of zero"),
        pytest.param({"timeout": "soon"}, "'soon' is not a duration", id="a timeout that is no duration"),
        pytest.param(
            {"on_store_failure": "panic"}, "write 'local' or 'fail'", id="an unknown word for on_store_failure"
        ),
        pytest.param({"prefix": ""}, "prefix ''", id="an empty prefix"),
        pytest.param({"secret": "short"}, "at least 16 bytes, or none at all", id="a secret that can be guessed"),
        pytest.param({"secret": []}, "at least 16 bytes, or none at all", id="an empty list of secrets"),
    ],
)
def test_invalid_option_is_an_error_that_names_the_way_out(options, problem):
    with pytest.raises(ConfigError) as raised:
        Redis(**{"url": "redis://cache", **options})
    assert problem in str(raised.value)


def test_all_problems_are_reported_at_once():
    wrong: dict[str, Any] = {"timeout": "soon", "on_store_failure": "panic", "prefix": "", "secret": "short"}
    with pytest.raises(ConfigError) as raised:
        Redis("cache", **wrong)
    assert len(raised.value.problems) == 5


def test_error_without_redis_py_names_the_extra(monkeypatch):
    monkeypatch.setattr("sticky_core.stores.redis.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sticky-sessions\[redis\]'"):
        Redis("redis://cache")


@pytest.mark.parametrize("expire", [None, 0.0])
def test_table_without_expire_is_an_error(store, expire):
    with pytest.raises(ConfigError, match="it needs an expire"):
        store.namespace("app/sessions", expire)


# -- keys and commands


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


def test_of_several_secrets_the_oldest_is_used():
    def digest(*secrets):
        return Redis("redis://cache", secret=list(secrets)).namespace("app/sessions", 60.0).digest("ann")

    assert digest(SECRET, SECRET + "2") == digest(SECRET) != digest(SECRET + "2")


@pytest.mark.parametrize(
    "key, same",
    [(17, "17"), (b"ann", "ann"), ("\u00e9", "\u00e9".encode())],
    ids=["a number", "bytes", "a text that is not ASCII"],
)
def test_keys_of_all_types_have_a_digest(namespace, key, same):
    assert namespace.digest(key) == namespace.digest(same)


def test_commands_name_a_key_of_prefix_backend_and_table(namespace):
    assert namespace.recall("d").words == ("GETEX", "sticky:app/sessions:d", "PX", 1800000)
    assert namespace.reserve("d", "s1").words == (
        *("SET", "sticky:app/sessions:d", "s1"),
        *("NX", "GET", "PX", 1800000),
    )
    scripts = [
        namespace.move("d", "s1", "s2"),
        namespace.put("d", "s2"),
        namespace.touch("d", "s2"),
        namespace.forget("d", "s2"),
    ]
    assert {ask.words[0] for ask in scripts} == {"EVAL"}
    assert {ask.words[2:4] for ask in scripts} == {(1, "sticky:app/sessions:d")}
    assert {ask.store for ask in (namespace.recall("d"), *scripts)} == {namespace.store}


def test_commands_are_encoded_as_redis_reads_them():
    commands = [("PING",), ("SET", "k", "\u00e9", "PX", 10), ("GET", b"\xff")]
    assert pack_commands(commands) == (
        b"*1\r\n$4\r\nPING\r\n"
        b"*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\xc3\xa9\r\n$2\r\nPX\r\n$2\r\n10\r\n"
        b"*2\r\n$3\r\nGET\r\n$1\r\n\xff\r\n"
    )


def test_reply_is_a_text_or_none_or_a_store_failure(namespace):
    assert namespace.read_reply(b"s1") == "s1"
    assert namespace.read_reply(None) is None
    with pytest.raises(StoreFailure, match="store redis://cache: refused"):
        namespace.read_reply(StoreFailure("redis://cache", "refused"))


# -- the listener, and which copies are fresh


def connected_feed(store, clock, received=()):
    """Return a feed with replies to all its commands so far, after which it has received more."""
    feed = InvalidationFeed(store, clock.monotonic())
    while (command := feed.next_command(clock.monotonic())) is not None:
        match command:
            case ("PING",):
                feed.on_reply([b"pong", b""])
            case ("SUBSCRIBE", *channels):
                for number, channel in enumerate(channels):
                    feed.on_reply([b"subscribe", str(channel).encode(), number + 1])
    for reply in received:
        feed.on_reply(reply)
    return feed


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


def message(namespace, payload):
    return [b"message", namespace.channel.encode(), payload]


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


def test_one_client_listens_and_after_it_another_may(store, namespace, clock):
    one, other = object(), object()
    assert [store.acquire_listener(one), store.acquire_listener(other)] == [True, False]
    connected_feed(store, clock)
    epoch = namespace.epoch_of("d", "s1", namespace.sequence)
    store.release_listener(other)
    assert (store.listener, namespace.is_fresh(epoch)) == (one, True)
    store.release_listener(one)
    assert (store.listener, namespace.is_fresh(epoch)) == (None, False)
    assert store.acquire_listener(other)


def test_forked_child_has_no_fresh_copies_and_no_listener(store, namespace, clock):
    store.acquire_listener(object())
    connected_feed(store, clock)
    epoch = namespace.epoch_of("d", "s1", namespace.sequence)
    store.after_fork()
    assert (store.listener, namespace.is_fresh(epoch)) == (None, False)


def test_lost_channel_is_logged_once_until_it_is_back(store, clock, caplog):
    caplog.set_level(logging.WARNING, "sticky_sessions")
    for _ in range(3):
        store.on_feed_failed("NOPERM no permissions")
    assert caplog.messages == [
        "store redis://cache: no invalidations (NOPERM no permissions); each request queries the store"
    ]
    connected_feed(store, clock)
    store.on_feed_failed("connection lost")
    assert len(caplog.messages) == 2


def test_repr_shows_breaker_and_channel(store, namespace, clock):
    assert repr(store) == "<Redis redis://cache closed, disconnected>"
    connected_feed(store, clock)
    store.breaker.record_failure(0.0, "refused")
    assert repr(store) == "<Redis redis://cache open, listening>"
    assert repr(namespace) == "<RedisNamespace app/sessions in redis://cache>"


def test_error_for_replicas_that_share_a_table_names_the_way_out(store):
    table = StickTable("ip", expire="30m", store=store)
    with pytest.raises(ConfigError, match="StickyWorkers"):
        Backend(
            "cart",
            servers=Server.replicas(lambda: lambda environ, start_response: [], 2),
            persist=Stick.on("src", table),
        )
