"""Redis as a store, without a server: its URL and options, and the commands it makes."""

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.errors import ConfigError
from sticky_core.persistence.stick.config import Stick
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.redis import Redis, pack_commands


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
    ],
)
def test_invalid_option_is_an_error_that_names_the_way_out(options, problem):
    with pytest.raises(ConfigError) as raised:
        Redis(**{"url": "redis://cache", **options})
    assert problem in str(raised.value)


def test_error_without_redis_py_names_the_extra(monkeypatch):
    monkeypatch.setattr("sticky_core.stores.redis.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sticky-sessions\[redis\]'"):
        Redis("redis://cache")


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


def test_error_for_replicas_that_share_a_table_names_the_way_out(store):
    table = StickTable("ip", expire="30m", store=store)
    with pytest.raises(ConfigError, match="StickyWorkers"):
        Backend(
            "cart",
            servers=Server.replicas(lambda: lambda environ, start_response: [], 2),
            persist=Stick.on("src", table),
        )
