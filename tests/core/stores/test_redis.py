"""Redis as a store, without one: what is asked for, which commands are made, what news do to a near copy."""

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
def space(store):
    return store.namespace("app/sessions", 1800.0)


class Copy(dict[str, tuple[str, int]]):
    """A near copy: text and era by digest."""

    def on_invalidation(self, digest, text, era):
        if text is None:
            self.pop(digest, None)
        elif digest in self:
            self[digest] = text, era


# -- what is asked for


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
def test_a_store_is_named_by_its_url_without_user_and_password(url, name, db):
    store = Redis(url)
    assert (store.name, store.db, store.url) == (name, db, url)
    told = [repr(store), repr(store.breaker), repr(store.namespace("app/sessions", 60.0)), str(store.failure())]
    assert not any(word in text for text in told for word in ("ann", "hush", "pass"))


@pytest.mark.parametrize("url, asked", [("valkey://cache", "redis://cache"), ("valkeys://cache/1", "rediss://cache/1")])
def test_valkey_is_reached_by_the_same_client(url, asked):
    assert Redis(url).url == asked


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param(
            {"url": "cache:6379"}, "store cache:…: write redis://host:port, rediss:// or unix://", id="no scheme"
        ),
        pytest.param({"url": "http://cache"}, "write redis://host:port, rediss:// or unix://", id="another scheme"),
        pytest.param({"timeout": 0}, "timeout 0 is not above 0 and at most 60 s", id="no time"),
        pytest.param({"timeout": "soon"}, "'soon' is not a duration", id="no duration"),
        pytest.param({"on_store_failure": "panic"}, "write 'local' or 'fail'", id="another word"),
        pytest.param({"prefix": ""}, "prefix ''", id="no prefix"),
        pytest.param({"secret": "short"}, "at least 16 bytes, or none at all", id="a secret that can be guessed"),
        pytest.param({"secret": []}, "at least 16 bytes, or none at all", id="an empty list of secrets"),
    ],
)
def test_what_cannot_work_is_told_with_the_way_out(options, problem):
    with pytest.raises(ConfigError) as raised:
        Redis(**{"url": "redis://cache", **options})
    assert problem in str(raised.value)


def test_all_problems_are_told_at_once():
    wrong: dict[str, Any] = {"timeout": "soon", "on_store_failure": "panic", "prefix": "", "secret": "short"}
    with pytest.raises(ConfigError) as raised:
        Redis("cache", **wrong)
    assert len(raised.value.problems) == 5


def test_without_redis_py_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("sticky_core.stores.redis.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sticky-sessions\[redis\]'"):
        Redis("redis://cache")


@pytest.mark.parametrize("expire", [None, 0.0])
def test_a_table_without_expire_would_fill_the_store_for_ever(store, expire):
    with pytest.raises(ConfigError, match="it needs an expire"):
        store.namespace("app/sessions", expire)


# -- keys and commands


def test_a_key_is_not_to_be_read_from_its_digest_and_has_the_same_in_every_process(space):
    digest = space.digest("session-of-ann")
    assert len(digest) == 32
    assert set(digest) <= set("0123456789abcdef")
    assert Redis("redis://elsewhere").namespace("app/sessions", 5.0).digest("session-of-ann") == digest


def test_keys_are_told_apart_by_table_and_secret(store, space):
    others = [
        store.namespace("app/other", 60.0),
        Redis("redis://cache", secret=SECRET).namespace("app/sessions", 60.0),
        Redis("redis://cache", secret=SECRET + "!").namespace("app/sessions", 60.0),
    ]
    assert len({each.digest("ann") for each in (space, *others)}) == 4


def test_of_several_secrets_the_oldest_counts_so_that_a_new_one_can_be_told_before_it_does():
    def digest(*secrets):
        return Redis("redis://cache", secret=list(secrets)).namespace("app/sessions", 60.0).digest("ann")

    assert digest(SECRET, SECRET + "2") == digest(SECRET) != digest(SECRET + "2")


@pytest.mark.parametrize(
    "key, same",
    [(17, "17"), (b"ann", "ann"), ("\u00e9", "\u00e9".encode())],
    ids=["a number", "bytes", "a text that is not ASCII"],
)
def test_keys_of_all_types_have_a_digest(space, key, same):
    assert space.digest(key) == space.digest(same)


def test_commands_go_to_a_key_that_names_prefix_backend_and_table(space):
    assert space.recall("d").words == ("GETEX", "sticky:app/sessions:d", "PX", 1800000)
    assert space.reserve("d", "s1").words == (
        *("SET", "sticky:app/sessions:d", "s1"),
        *("NX", "GET", "PX", 1800000),
    )
    scripts = [space.move("d", "s1", "s2"), space.put("d", "s2"), space.touch("d", "s2"), space.forget("d", "s2")]
    assert {ask.words[0] for ask in scripts} == {"EVAL"}
    assert {ask.words[2:4] for ask in scripts} == {(1, "sticky:app/sessions:d")}
    assert {ask.store for ask in (space.recall("d"), *scripts)} == {space.store}


def test_commands_are_packed_as_redis_reads_them():
    commands = [("PING",), ("SET", "k", "\u00e9", "PX", 10), ("GET", b"\xff")]
    assert pack_commands(commands) == (
        b"*1\r\n$4\r\nPING\r\n"
        b"*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\xc3\xa9\r\n$2\r\nPX\r\n$2\r\n10\r\n"
        b"*2\r\n$3\r\nGET\r\n$1\r\n\xff\r\n"
    )


def test_an_answer_is_a_text_or_nothing_or_the_store_s_failure(space):
    assert space.read_reply(b"s1") == "s1"
    assert space.read_reply(None) is None
    with pytest.raises(StoreFailure, match="store redis://cache: refused"):
        space.read_reply(StoreFailure("redis://cache", "refused"))


# -- who listens, and what is believed


def heard(store, clock, answers=()):
    """One connection to the channel of news on which everything is answered."""
    news = InvalidationFeed(store, clock.monotonic())
    while (command := news.next_command(clock.monotonic())) is not None:
        match command:
            case ("PING",):
                news.on_reply([b"pong", b""])
            case ("SUBSCRIBE", *channels):
                for number, channel in enumerate(channels):
                    news.on_reply([b"subscribe", str(channel).encode(), number + 1])
    for answer in answers:
        news.on_reply(answer)
    return news


def test_nothing_is_believed_before_anybody_listens(space):
    assert not space.is_fresh(space.epoch_of("d", "s1", space.sequence))


def test_what_is_kept_while_the_channel_is_alive_is_believed_for_as_long(store, space, clock):
    heard(store, clock)
    era = space.epoch_of("d", "s1", space.sequence)
    assert space.is_fresh(era)
    clock.advance(FEED_TIMEOUT - 0.01)
    assert space.is_fresh(era)
    clock.advance(0.02)
    assert not space.is_fresh(era)


def test_each_beat_that_is_answered_lets_it_be_believed_for_longer(store, space, clock):
    news = heard(store, clock)
    era = space.epoch_of("d", "s1", space.sequence)
    for _ in range(10):
        clock.advance(HEARTBEAT_INTERVAL)
        assert news.delay(clock.monotonic()) == 0.0
        assert news.next_command(clock.monotonic()) == ("PING",)
        assert news.next_command(clock.monotonic()) is None
        news.on_reply([b"pong", b""])
        assert space.is_fresh(era)


def test_a_beat_proves_nothing_about_what_came_after_it_was_sent(store, space, clock):
    news = heard(store, clock)
    era = space.epoch_of("d", "s1", space.sequence)
    clock.advance(HEARTBEAT_INTERVAL)
    assert news.next_command(clock.monotonic()) == ("PING",)
    clock.advance(FEED_TIMEOUT - 0.5)
    news.on_reply([b"pong", b""])
    assert space.is_fresh(era)
    clock.advance(0.6)
    assert not space.is_fresh(era)


def test_a_channel_that_does_not_answer_is_lost(store, space, clock):
    news = heard(store, clock)
    clock.advance(HEARTBEAT_INTERVAL)
    assert news.next_command(clock.monotonic()) == ("PING",)
    clock.advance(FEED_TIMEOUT)
    with pytest.raises(StoreFailure, match="silent for 3 s"):
        news.next_command(clock.monotonic())


def test_what_was_kept_before_the_channel_was_lost_is_not_believed_when_it_is_back(store, space, clock):
    heard(store, clock)
    era = space.epoch_of("d", "s1", space.sequence)
    store.disconnected()
    assert not space.is_fresh(era)
    heard(store, clock)
    assert not space.is_fresh(era)
    assert space.is_fresh(space.epoch_of("d", "s1", space.sequence))


def test_what_was_asked_before_the_channel_was_back_is_not_believed_either(store, space, clock):
    heard(store, clock)
    since = space.sequence
    store.disconnected()
    heard(store, clock)
    assert space.epoch_of("d", "s1", since) == 0


def test_a_table_that_comes_later_is_subscribed_to_with_the_next_beat(store, space, clock):
    news = heard(store, clock)
    later = store.namespace("app/later", 60.0)
    assert not later.is_fresh(later.epoch_of("d", "s1", later.sequence))
    assert news.next_command(clock.monotonic()) == ("SUBSCRIBE", "sticky:0:app/later")
    assert news.next_command(clock.monotonic()) is None
    news.on_reply([b"subscribe", b"sticky:0:app/later", 2])
    assert later.is_fresh(later.epoch_of("d", "s1", later.sequence))


def test_two_near_copies_of_one_table_both_hear_its_news(store, space, clock):
    news = heard(store, clock)
    era = space.epoch
    again = store.namespace("app/sessions", 60.0)
    assert news.next_command(clock.monotonic()) == ("SUBSCRIBE", "sticky:0:app/sessions")
    news.on_reply([b"subscribe", b"sticky:0:app/sessions", 1])
    assert space.epoch == era  # it has heard all the time
    space.local_cache, again.local_cache = Copy(d=("s1", space.epoch)), Copy(d=("s1", again.epoch))
    news.on_reply(message(space, b"d s2"))
    assert (space.local_cache["d"], again.local_cache["d"]) == (("s2", space.epoch), ("s2", again.epoch))
    assert space.is_fresh(space.epoch) and again.is_fresh(again.epoch)


def test_a_near_copy_that_nobody_has_any_more_is_let_go(store, clock):
    gone = weakref.ref(store.namespace("app/gone", 60.0))
    gc.collect()
    assert gone() is None
    assert InvalidationFeed(store, clock.monotonic()).next_command(clock.monotonic()) == ("PING",)


def message(space, payload):
    return [b"message", space.channel.encode(), payload]


@pytest.mark.parametrize(
    "payload, after",
    [
        pytest.param(b"d s2", {"d": "s2", "e": "s1"}, id="it was moved"),
        pytest.param(b"d", {"e": "s1"}, id="it was forgotten"),
        pytest.param(b"f s2", {"d": "s1", "e": "s1"}, id="it is none that we have"),
    ],
)
def test_news_change_what_a_near_copy_has_and_nothing_else(store, space, clock, payload, after):
    news = heard(store, clock)
    space.local_cache = Copy({"d": ("s1", space.epoch), "e": ("s1", space.epoch)})
    news.on_reply(message(space, payload))
    assert {digest: text for digest, (text, _) in space.local_cache.items()} == after
    assert all(space.is_fresh(era) for _, era in space.local_cache.values())


def test_news_are_of_one_table(store, space, clock):
    other = store.namespace("app/other", 60.0)
    space.local_cache, other.local_cache = Copy(d=("s1", 1)), Copy(d=("s1", 1))
    heard(store, clock, [message(other, b"d s2"), [b"message", b"sticky:0:app/nobody", b"d s3"]])
    assert (space.local_cache["d"][0], other.local_cache["d"][0]) == ("s1", "s2")


@pytest.mark.parametrize(
    "payloads, answer, believed",
    [
        pytest.param([], "s1", True, id="nothing was heard"),
        pytest.param([b"d s2"], "s1", False, id="the answer is older than the news, or is it"),
        pytest.param([b"d s2"], "s2", True, id="both say the same"),
        pytest.param([b"d"], "s1", False, id="it was forgotten meanwhile"),
        pytest.param([b"d"], None, True, id="it was forgotten, and is not there"),
        pytest.param([b"e s2"], "s1", True, id="news of another"),
        pytest.param([b"d s2", b"d s1"], "s1", True, id="there and back again"),
        pytest.param([b"e%d s2" % number for number in range(5000)], "s1", False, id="too much news to remember"),
    ],
)
def test_an_answer_that_contradicts_news_that_came_before_it_is_not_believed(
    store, space, clock, payloads, answer, believed
):
    news = heard(store, clock, [message(space, b"d s7")])
    since = space.sequence
    for payload in payloads:
        news.on_reply(message(space, payload))
    assert space.is_fresh(space.epoch_of("d", answer, since)) is believed


def test_one_listens_and_when_it_stops_another_may(store, space, clock):
    one, other = object(), object()
    assert [store.acquire_listener(one), store.acquire_listener(other)] == [True, False]
    heard(store, clock)
    era = space.epoch_of("d", "s1", space.sequence)
    store.release_listener(other)
    assert (store.listener, space.is_fresh(era)) == (one, True)
    store.release_listener(one)
    assert (store.listener, space.is_fresh(era)) == (None, False)
    assert store.acquire_listener(other)


def test_a_forked_child_believes_nothing_and_has_to_listen_for_itself(store, space, clock):
    store.acquire_listener(object())
    heard(store, clock)
    era = space.epoch_of("d", "s1", space.sequence)
    store.after_fork()
    assert (store.listener, space.is_fresh(era)) == (None, False)


def test_that_no_news_come_is_told_once_until_they_do(store, clock, caplog):
    caplog.set_level(logging.WARNING, "sticky_sessions")
    for _ in range(3):
        store.feed_failed("NOPERM no permissions")
    assert caplog.messages == [
        "store redis://cache: no invalidations (NOPERM no permissions); each request queries the store"
    ]
    heard(store, clock)
    store.feed_failed("connection lost")
    assert len(caplog.messages) == 2


def test_a_store_says_how_it_is(store, space, clock):
    assert repr(store) == "<Redis redis://cache closed, disconnected>"
    heard(store, clock)
    store.breaker.record_failure(0.0, "refused")
    assert repr(store) == "<Redis redis://cache open, listening>"
    assert repr(space) == "<RedisNamespace app/sessions in redis://cache>"


def test_replicas_can_t_share_a_table_and_the_way_out_is_named(store):
    table = StickTable("ip", expire="30m", store=store)
    with pytest.raises(ConfigError, match="StickyWorkers"):
        Backend(
            "cart",
            servers=Server.replicas(lambda: lambda environ, start_response: [], 2),
            persist=Stick.on("src", table),
        )
