"""`execute` of both faces with a real Valkey: replies, invalidations; it dies, hangs, refuses and comes back."""

import asyncio
import itertools
import logging
import os
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
import trustme

import sticky_asgi.stores.client
import sticky_wsgi.stores.client
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError, StoreFailure
from sticky_core.stores.breaker import State
from sticky_core.stores.redis import Redis

pytestmark = pytest.mark.live


ROOT = Path(__file__).parents[2]
#: seconds, the longest that a store may be given: a busy machine must not be taken for a store that hangs
PATIENCE = 60.0


class AsgiCommands:
    """`execute` on an event loop that runs in a thread of its own."""

    def __init__(self):
        self._runner = asyncio.Runner()
        self.loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def execute(self, *commands):
        return self.run(sticky_asgi.stores.client.execute(commands))

    def at_once(self, commands):
        async def gathered():
            return await asyncio.gather(*(sticky_asgi.stores.client.execute([each]) for each in commands))

        return list(itertools.chain(*self.run(gathered())))

    def close_stores(self, *stores):
        self.run(sticky_asgi.stores.client.close(stores))

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self._runner.close()


class WsgiCommands:
    """`execute` in threads."""

    def execute(self, *commands):
        return sticky_wsgi.stores.client.execute(commands)

    def at_once(self, commands):
        with ThreadPoolExecutor(16) as threads:
            return list(itertools.chain(*threads.map(lambda each: sticky_wsgi.stores.client.execute([each]), commands)))

    def close_stores(self, *stores):
        sticky_wsgi.stores.client.close(stores)

    def close(self):
        pass


@pytest.fixture(params=[AsgiCommands, WsgiCommands], ids=["asgi", "wsgi"])
def face(request):
    face = request.param()
    yield face
    face.close()


@pytest.fixture
def store(valkey, face):
    """Make stores, each as another process would have it."""
    made = []

    def make(url=valkey.url, **options):
        made.append(Redis(url, **{"timeout": PATIENCE, **options}))
        return made[-1]

    yield make
    face.close_stores(*made)


class FakeLocalCache(dict[str, tuple[str, int]]):
    """A local cache: text and epoch by digest."""

    def on_invalidation(self, digest, text, epoch):
        if text is None:
            self.pop(digest, None)
        elif digest in self:
            self[digest] = text, epoch


TABLE = "app/sessions", 60.0


@pytest.fixture
def namespace(store):
    return store().namespace(*TABLE)


def is_listening(namespace):
    return namespace.is_fresh(namespace.epoch_of("unknown", None, namespace.sequence))


# -- replies


def test_key_is_reserved_by_the_first_and_moved_only_from_its_server(face, namespace):
    d = namespace.digest("ann")
    assert face.execute(namespace.recall(d)) == [None]
    assert face.execute(namespace.reserve(d, "s1")) == [None]
    assert face.execute(namespace.reserve(d, "s2")) == [b"s1"]
    assert face.execute(namespace.recall(d)) == [b"s1"]
    assert face.execute(namespace.move(d, "s3", "s4")) == [b"s1"]
    assert face.execute(namespace.move(d, "s1", "s4")) == [b"s4"]
    assert face.execute(namespace.move(d, "s1", "s4")) == [b"s4"]  # sent again, because the reply was lost
    assert face.execute(namespace.recall(d)) == [b"s4"]


def test_entry_that_the_store_has_lost_is_restored_from_a_copy(face, namespace):
    d, e = namespace.digest("ann"), namespace.digest("bob")
    assert face.execute(namespace.touch(d, "s1"), namespace.touch(d, "s2"), namespace.recall(d)) == [b"s1"] * 3
    assert face.execute(namespace.move(e, "s1", "s2"), namespace.recall(e)) == [b"s2"] * 2


def test_put_replaces_an_entry_and_forget_deletes_it_only_if_unchanged(face, namespace):
    d = namespace.digest("ann")
    assert face.execute(namespace.put(d, "s1"), namespace.put(d, "s2"), namespace.recall(d)) == [b"s1", b"s2", b"s2"]
    assert face.execute(namespace.forget(d, "s1"), namespace.recall(d)) == [b"s2", b"s2"]
    assert face.execute(namespace.forget(d, "s2"), namespace.forget(d, "s2"), namespace.recall(d)) == [None, None, None]


@pytest.mark.parametrize("step", ["recall", "reserve", "move", "put", "touch"])
def test_each_command_renews_the_expiry(face, valkey, namespace, step):
    d = namespace.digest("ann")
    words = {"recall": [], "move": ["s1", "s2"]}.get(step, ["s1"])
    if step != "reserve":
        face.execute(namespace.put(d, "s1"))
    with valkey.client() as client:
        (key,) = client.keys("*") or [b""]
        if key:
            client.pexpire(key, 5_000)
        face.execute(getattr(namespace, step)(d, *words))
        (key,) = client.keys("*")
        assert 5_000 < client.pttl(key) <= 60_000


def test_session_id_is_not_in_the_store(face, valkey, namespace):
    face.execute(namespace.put(namespace.digest("session-of-ann"), "s1"))
    with valkey.client() as client:
        (key,) = client.keys("*")
    assert key == b"sticky:app/sessions:" + namespace.digest("session-of-ann").encode()
    assert b"ann" not in key


def test_two_databases_of_one_server_share_nothing(face, valkey, store, until):
    one, other = (store(f"{valkey.url}?db={db}").namespace(*TABLE) for db in (1, 2))
    d = one.digest("ann")
    other.local_cache = FakeLocalCache({d: ("s7", 0)})
    assert face.execute(one.put(d, "s1"), other.recall(d)) == [b"s1", None]
    until(lambda: is_listening(other), "the other is_listening")
    with valkey.client() as client:
        assert client.pubsub_numsub(one.channel, other.channel) == [
            (one.channel.encode(), 1),
            (other.channel.encode(), 1),
        ]
    face.execute(one.put(d, "s2"))
    assert other.local_cache[d] == ("s7", 0)


def total_reads(client):
    return client.info("stats")["total_reads_processed"]


def test_commands_of_one_call_take_one_round_trip(face, valkey, namespace, until):
    face.execute(namespace.recall("d"))
    until(lambda: is_listening(namespace), "invalidations are received")
    with valkey.client() as client:
        before = total_reads(client)
        face.execute(*[namespace.recall(f"{number}") for number in range(100)])
        between = total_reads(client) - before - 1  # reading the statistics is one more
    assert between <= 2  # one, and perhaps a heartbeat


def test_commands_of_many_requests_in_one_turn_of_the_event_loop_share_a_round_trip(valkey, until):
    face = AsgiCommands()
    try:
        store = Redis(valkey.url, timeout=PATIENCE)
        namespace = store.namespace(*TABLE)
        face.execute(namespace.recall("d"))
        until(lambda: is_listening(namespace), "invalidations are received")
        with valkey.client() as client:
            before = total_reads(client)
            face.at_once([namespace.reserve(f"{number}", f"s{number}") for number in range(64)])
            replies = face.at_once([namespace.recall(f"{number}") for number in range(64)])
            between = total_reads(client) - before - 1
        assert replies == [f"s{number}".encode() for number in range(64)]
        assert between <= 3
        face.close_stores(store)
    finally:
        face.close()


def test_concurrent_callers_get_their_own_replies(face, namespace):
    numbers = range(400)
    assert face.at_once([namespace.reserve(f"{number}", f"s{number}") for number in numbers]) == [None] * 400
    assert face.at_once([namespace.recall(f"{number}") for number in numbers]) == [f"s{n}".encode() for n in numbers]


def test_of_many_reservations_of_one_key_one_wins_and_all_agree(face, namespace):
    replies = face.at_once([namespace.reserve("d", f"s{number}") for number in range(64)])
    (winner,) = face.execute(namespace.recall("d"))
    assert sorted(replies, key=str) == sorted([None] + [winner] * 63, key=str)


def test_commands_for_two_stores_go_out_together(face, valkey, store):
    one = store(f"{valkey.url}?db=1").namespace(*TABLE)
    two = store(f"{valkey.url}?db=2").namespace(*TABLE)
    face.execute(one.put("d", "s1"), two.put("d", "s2"))
    assert face.execute(two.recall("d"), one.recall("d"), two.recall("e"), one.recall("d")) == [
        b"s2",
        b"s1",
        None,
        b"s1",
    ]


def test_cancelled_request_takes_no_reply_from_another(valkey):
    async def cancel_one_of_two():
        store = Redis(valkey.url, timeout=PATIENCE)
        namespace = store.namespace(*TABLE)
        await sticky_asgi.stores.client.execute([namespace.put("d", "s1"), namespace.put("e", "s2")])
        cancelled = asyncio.ensure_future(sticky_asgi.stores.client.execute([namespace.recall("d")]))
        waiting = asyncio.ensure_future(sticky_asgi.stores.client.execute([namespace.recall("e")]))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert await waiting == [b"s2"]
        assert await sticky_asgi.stores.client.execute([namespace.recall("d")]) == [b"s1"]
        await sticky_asgi.stores.client.close([store])
        return cancelled.cancelled(), store.breaker.failures

    assert asyncio.run(cancel_one_of_two()) == (True, 0)


# -- invalidations


def test_local_copies_follow_a_client_that_is_moved(face, store, until):
    here, there = store().namespace(*TABLE), store().namespace(*TABLE)
    d, e = here.digest("ann"), here.digest("bob")
    face.execute(here.reserve(d, "s1"), here.reserve(e, "s1"), there.recall(d))
    until(lambda: is_listening(there), "the other is_listening")
    there.local_cache = FakeLocalCache({d: ("s1", there.epoch), e: ("s1", there.epoch)})
    face.execute(here.move(d, "s1", "s2"))
    until(lambda: there.local_cache[d] == ("s2", there.epoch), "the invalidation of ann has arrived")
    face.execute(here.put(e, "s3"))
    until(lambda: there.local_cache[e] == ("s3", there.epoch), "the invalidation of bob has arrived")
    face.execute(here.forget(d, "s2"))
    until(lambda: d not in there.local_cache, "ann is forgotten")


def test_channel_that_was_cut_is_opened_again_and_copies_from_before_are_not_fresh(face, valkey, namespace, until):
    face.execute(namespace.recall("d"))
    until(lambda: is_listening(namespace), "invalidations are received")
    epoch = namespace.epoch
    with valkey.client() as client:
        client.client_kill_filter(_type="pubsub")
        until(lambda: not namespace.is_fresh(epoch), "no copy is fresh")
        until(lambda: is_listening(namespace), "invalidations are received again")
    assert namespace.epoch != epoch
    assert namespace.store.breaker.openings == 0


def test_no_copy_is_fresh_as_soon_as_the_channel_is_lost(face, valkey, store, until):
    namespace = store(clock=ManualClock()).namespace(*TABLE)  # no time passes, so the channel has not expired
    face.execute(namespace.recall("d"))
    until(lambda: is_listening(namespace), "invalidations are received")
    valkey.kill()
    until(lambda: not is_listening(namespace), "no copy is fresh")


def test_another_event_loop_listens_after_the_first_has_ended(valkey, until):
    store = Redis(valkey.url, timeout=PATIENCE)
    namespace = store.namespace(*TABLE)
    for _ in range(2):
        face = AsgiCommands()
        face.execute(namespace.recall("d"))
        until(lambda: is_listening(namespace), "invalidations are received")
        face.close()
        assert not is_listening(namespace)
        assert store.listener is None


# -- a store that fails


def are_failures(replies):
    return [isinstance(reply, StoreFailure) for reply in replies]


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.WARNING, "sticky_sessions")
    return lambda: [message for message in caplog.messages if "no invalidations" not in message]


def test_store_that_is_killed_and_comes_back(face, valkey, namespace, until, logged):
    breaker = namespace.store.breaker
    face.execute(namespace.put("d", "s1"))
    until(lambda: is_listening(namespace), "invalidations are received")
    valkey.kill()
    until(
        lambda: all(are_failures(face.execute(namespace.recall("d"), namespace.recall("e")))),
        "the store does not reply",
    )
    until(lambda: not is_listening(namespace), "no copy is fresh")
    until(lambda: breaker.state is not State.CLOSED, "the breaker is open")
    until(lambda: len(logged()) == 1, "it is logged")
    assert logged()[0].startswith(f"store {valkey.url}: ")
    assert logged()[0].endswith("; going on with what this process knows until it is back")
    valkey.start()
    until(lambda: breaker.state is State.CLOSED, "it is back, although no request queries it")
    until(lambda: is_listening(namespace), "invalidations are received again")
    assert face.execute(namespace.touch("d", "s1")) == [b"s1"]
    assert len(logged()) == 2 and "back after" in logged()[1]


def test_few_commands_wait_for_a_store_that_hangs(face, valkey, store, until, logged):
    namespace = store(timeout=0.1).namespace(*TABLE)
    breaker = namespace.store.breaker
    face.execute(namespace.put("d", "s1"))
    valkey.freeze()
    assert are_failures(face.execute(namespace.recall("d"))) == [True]
    assert breaker.state is not State.CLOSED
    failures = breaker.failures
    assert all(are_failures(face.at_once([namespace.recall("d")] * 640)))
    assert breaker.failures < failures + 64  # one while it is half-open, and the listener
    valkey.thaw()
    until(
        lambda: face.execute(namespace.recall("d")) == [b"s1"],
        "a command after a pause finds that the store is back",
    )
    assert breaker.state is State.CLOSED


def test_connections_that_the_store_has_closed_are_opened_anew_without_a_failure(face, valkey, namespace):
    face.at_once([namespace.put(f"{number}", "s1") for number in range(64)])
    with valkey.client() as client:
        for _ in range(3):
            client.client_kill_filter(_type="normal")
            assert face.at_once([namespace.recall(f"{number}") for number in range(64)]) == [b"s1"] * 64
    assert namespace.store.breaker.failures == 0


def test_store_that_starts_later_is_found(face, valkey, namespace, until):
    valkey.kill()
    assert are_failures(face.execute(namespace.recall("d"))) == [True]
    valkey.start()
    until(lambda: face.execute(namespace.recall("d")) == [None], "it replies")


def test_refused_command_is_a_failure_and_logged(face, valkey, namespace, logged):
    with valkey.client() as client:
        client.hset(f"sticky:app/sessions:{'d'}", "no", "text")
    (reply,) = face.execute(namespace.recall("d"))
    assert isinstance(reply, StoreFailure)
    assert "WRONGTYPE" in reply.detail
    assert "WRONGTYPE" in logged()[0]


def test_password_is_used_and_never_shown(face, valkey, store, until, caplog):
    valkey.kill()
    valkey.start("--requirepass", "hush-hush")
    without_password = store().namespace(*TABLE)
    (reply,) = face.execute(without_password.recall("d"))
    assert isinstance(reply, StoreFailure) and "Authentication" in str(reply)
    with_password = store(f"{valkey.url}?password=hush-hush").namespace(*TABLE)
    assert face.execute(with_password.put("d", "s1")) == [b"s1"]
    wrong = store(f"{valkey.url}?password=hush-hush!").namespace(*TABLE)
    (reply,) = face.execute(wrong.recall("d"))
    assert isinstance(reply, StoreFailure)
    assert "hush" not in f"{reply} {caplog.text} {with_password.store!r} {wrong.store!r}"


def test_user_without_right_to_subscribe_is_logged_once_and_queries_each_time(face, valkey, store, until, caplog):
    with valkey.client() as client:
        client.acl_setuser("deaf", enabled=True, passwords=["+hush-hush"], categories=["+@all"], keys=["*"])
        client.execute_command("ACL", "SETUSER", "deaf", "resetchannels")
    namespace = store(f"{valkey.url.replace('unix://', 'unix://deaf@')}?password=hush-hush").namespace(*TABLE)
    assert face.execute(namespace.reserve("d", "s1")) == [None]
    until(lambda: "no invalidations" in caplog.text, "it is logged")
    assert face.execute(namespace.recall("d")) == [b"s1"]
    assert not is_listening(namespace)
    assert caplog.text.count("no invalidations") == 1
    namespace.presence.record("s1")
    until(lambda: "s1" in namespace.presence.marked_at, "the mark is set")


def test_user_needs_only_the_documented_rights(face, valkey, store, until):
    rights = "+getex +set +get +del +eval +publish +subscribe +ping ~sticky:* &sticky:*"
    assert rights in (ROOT / "docs" / "shared_tables.md").read_text()
    with valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "shop", "on", ">hush-hush", *rights.split())
    namespace = store(f"{valkey.url.replace('unix://', 'unix://shop@')}?password=hush-hush").namespace(*TABLE)
    replies = face.execute(
        namespace.recall("d"),
        namespace.reserve("d", "s1"),
        namespace.move("d", "s1", "s2"),
        namespace.put("d", "s3"),
        namespace.touch("d", "s3"),
        namespace.forget("d", "s3"),
    )
    assert replies == [None, None, b"s2", b"s3", b"s3", None]
    namespace.presence.record("s1")
    until(
        lambda: is_listening(namespace) and "s1" in namespace.presence.marked_at,
        "invalidations are received, and the mark of s1 is set",
    )


class TlsRelay:
    """TLS in front of a UNIX socket: the server in the wheel has none."""

    def __init__(self, path, context):
        self._path = path
        self._context = context
        self._face = AsgiCommands()  # for its event loop
        self._server = self._face.run(asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=context))
        self.port = self._server.sockets[0].getsockname()[1]

    async def _relay(self, reader, writer):
        other_reader, other_writer = await asyncio.open_unix_connection(self._path)

        async def pump(source, sink):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()

        pumps = {
            asyncio.ensure_future(pump(reader, other_writer)),
            asyncio.ensure_future(pump(other_reader, writer)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.transport.abort()
            other_writer.transport.abort()
            await asyncio.wait(pumps)  # an aborted transport ends the pump to it

    def close(self):
        self._face.loop.call_soon_threadsafe(self._server.close)
        self._face.close()


def test_tls_works_for_commands_and_invalidations_and_an_unknown_certificate_is_refused(
    face, valkey, store, until, tmp_path
):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    relay = TlsRelay(valkey.url.removeprefix("unix://"), context)
    try:
        trusting = store(f"rediss://127.0.0.1:{relay.port}/1?ssl_ca_certs={tmp_path / 'ca.pem'}")
        namespace = trusting.namespace(*TABLE)
        assert face.execute(namespace.reserve("d", "s1"), namespace.recall("d")) == [None, b"s1"]
        until(lambda: is_listening(namespace), "invalidations are received")
        (reply,) = face.execute(store(f"rediss://127.0.0.1:{relay.port}").namespace(*TABLE).recall("d"))
        assert isinstance(reply, StoreFailure)
        assert "CERTIFICATE_VERIFY_FAILED" in reply.detail
    finally:
        face.close_stores(trusting)
        relay.close()


@pytest.mark.parametrize("query", ["?db=one", "?socket_keepalive=perhaps&nonsense=1"])
def test_url_that_redis_py_cannot_parse_is_a_configuration_error(face, valkey, store, query):
    namespace = store(valkey.url + query).namespace(*TABLE)
    with pytest.raises(ConfigError, match="unix://"):
        face.execute(namespace.recall("d"))


@pytest.mark.parametrize(
    "query", ["?decode_responses=yes", "?protocol=3", "?socket_timeout=0.000001", "?max_connections=1"]
)
def test_url_options_that_are_fixed_have_no_effect(face, valkey, store, query):
    namespace = store(valkey.url + query).namespace(*TABLE)
    assert face.at_once([namespace.put(f"{number}", "s1") for number in range(32)]) == [b"s1"] * 32


# -- close and fork


def connection_ids(client):
    return {each["id"] for each in client.client_list()}


def test_close_leaves_nothing_open_and_the_next_command_opens_a_connection(face, valkey, namespace, until):
    with valkey.client() as client:
        before = connection_ids(client)
        for _ in range(2):
            face.at_once([namespace.recall("d")] * 32)
            until(lambda: is_listening(namespace), "invalidations are received")
            assert len(connection_ids(client)) > len(before)
            face.close_stores(namespace.store)
            until(lambda: connection_ids(client) == before, "the store has closed them")
            assert namespace.store.listener is None
            assert not is_listening(namespace)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_neither_uses_nor_closes_its_parents_connections(valkey, until):
    store = Redis(valkey.url, timeout=PATIENCE)
    namespace = store.namespace(*TABLE)
    face = WsgiCommands()
    face.execute(namespace.put("d", "s1"))
    until(lambda: is_listening(namespace), "invalidations are received")
    with valkey.client() as client:
        mine = connection_ids(client)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:  # a failure here must not return as a second run of the tests
            logged = b"are_failures"
            try:
                fresh = is_listening(namespace)
                reply = face.execute(namespace.recall("d"))
                until(lambda: is_listening(namespace), "the child receives invalidations")
                logged = b"%r %r %d" % (fresh, reply, len(connection_ids(client) - mine))
            finally:
                os.write(writing, logged)
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reading, 100) == b"False [b's1'] 3"  # one is the client of this test in the child
        os.close(reading)
        os.close(writing)
        assert face.execute(namespace.recall("d")) == [b"s1"]
        assert is_listening(namespace)
    face.close_stores(store)


def test_event_loop_other_than_asyncio_is_a_configuration_error(valkey):
    namespace = Redis(valkey.url, timeout=PATIENCE).namespace(*TABLE)

    async def ask():
        await sticky_asgi.stores.client.execute([namespace.recall("d")])

    with pytest.raises(ConfigError, match="a store needs asyncio"):
        trio.run(ask)
