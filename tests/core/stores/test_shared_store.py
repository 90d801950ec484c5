"""The base of stores: its options, the one listener of a process, and what it does in the background."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from sticky_core.errors import ConfigError, StoreFailure
from sticky_core.stores.breaker import State
from sticky_core.stores.redis import Redis, pack_commands
from sticky_core.stores.store import HEARTBEAT_INTERVAL
from tests.core.stores.feed import connected_feed

SECRET = "a-secret-of-the-store-tests"


@pytest.mark.parametrize(
    "options, problem",
    [
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


def test_of_several_secrets_the_oldest_is_used():
    def digest(*secrets):
        return Redis("redis://cache", secret=list(secrets)).namespace("app/sessions", 60.0).digest("ann")

    assert digest(SECRET, SECRET + "2") == digest(SECRET) != digest(SECRET + "2")


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


def test_client_of_a_face_that_the_store_does_not_have_is_an_error():
    class AsgiOnly(Redis):
        clients: ClassVar[Mapping[str, str]] = {"asgi": "collections:OrderedDict"}

    only = AsgiOnly("redis://cache")
    assert only.load_client("asgi").__name__ == "OrderedDict"
    with pytest.raises(ConfigError, match="store redis://cache: AsgiOnly has no client for WSGI"):
        only.load_client("wsgi")


def test_failure_names_the_store_and_the_latest_error(store):
    store.breaker.record_failure(0.0, "refused")
    assert str(store.failure()) == "store redis://cache: refused"


def test_background_commands_of_all_tables_are_due_once_a_second(store, namespace, clock):
    other = store.namespace("app/other", 60.0)
    namespace.presence.record("s1")
    other.presence.record("s2")
    commands = store.background_commands(clock.monotonic())
    assert {command.command[1] for command in commands} == {
        *("sticky:app/sessions:bound:s1", "sticky:app/other:bound:s2"),
    }
    for command in commands:
        command.on_reply(b"OK")
    namespace.presence.record("s3")
    clock.advance(HEARTBEAT_INTERVAL - 0.01)
    assert store.background_commands(clock.monotonic()) == []
    clock.advance(0.02)
    assert [command.command[1] for command in store.background_commands(clock.monotonic())] == [
        "sticky:app/sessions:bound:s3"
    ]


@pytest.mark.parametrize("reply, text", [(b"s1", "s1"), ("s1", "s1"), (None, None), (b"", "")])
def test_reply_is_a_text_or_nothing(store, reply, text):
    assert store.read_reply(reply) == text
    assert store.breaker.state is State.CLOSED


@pytest.mark.parametrize(
    "reply", [1, 0, 1.5, True, [b"s1"], [], {}, range(3), ValueError("s1"), bytearray(b"s1")], ids=repr
)
def test_reply_that_is_no_text_is_a_failure_and_opens_the_breaker(store, reply, caplog):
    caplog.set_level(logging.WARNING, "sticky_sessions")
    failure = store.read_reply(reply)
    assert isinstance(failure, StoreFailure)
    assert failure.detail == f"a reply is a text or nothing, not {reply!r}"
    assert store.breaker.state is State.OPEN
    assert caplog.messages == [
        f"store redis://cache: {failure.detail}; going on with what this process knows until it is back"
    ]


def test_failure_in_place_of_a_reply_is_returned_and_was_counted_before(store):
    failure = StoreFailure("redis://cache", "refused")
    assert store.read_reply(failure) is failure
    assert store.breaker.failures == 0


def test_only_the_beginning_of_a_long_reply_is_logged(store):
    assert len(store.read_reply([b"x" * 100_000]).detail) < 200


def test_bytes_that_are_no_text_are_sent_back_as_they_came_so_that_the_entry_can_be_replaced(store):
    text = store.read_reply(b"s1\xff\xfe")
    assert b"$4\r\ns1\xff\xfe\r\n" in pack_commands([("EVAL", text)])


@pytest.mark.parametrize("replies", [None, [], [b"s1"], [b"s1", b"s1", b"s1"], b"s1", {1: b"s1", 2: b"s2"}], ids=repr)
def test_client_that_does_not_return_one_reply_for_each_command_is_a_failure(store, replies):
    with pytest.raises(StoreFailure, match="commands: 2, replies: "):
        store.count_replies(replies, 2)
    store.count_replies([b"s1", None], 2)
