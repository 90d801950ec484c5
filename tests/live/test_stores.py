"""What both faces' `ask` makes of a real Valkey: answers, news, a store that dies, hangs, refuses and comes back."""

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
#: seconds: a busy machine is no store that hangs
PATIENCE = 60.0  # the longest that a store may be given


class Asgi:
    """`ask` on an event loop that runs in a thread of its own."""

    def __init__(self):
        self._runner = asyncio.Runner()
        self.loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def ask(self, *asks):
        return self.run(sticky_asgi.stores.client.execute(asks))

    def at_once(self, asks):
        async def gathered():
            return await asyncio.gather(*(sticky_asgi.stores.client.execute([each]) for each in asks))

        return list(itertools.chain(*self.run(gathered())))

    def end(self, *stores):
        self.run(sticky_asgi.stores.client.close(stores))

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self._runner.close()


class Wsgi:
    """`ask` in threads."""

    def ask(self, *asks):
        return sticky_wsgi.stores.client.execute(asks)

    def at_once(self, asks):
        with ThreadPoolExecutor(16) as threads:
            return list(itertools.chain(*threads.map(lambda each: sticky_wsgi.stores.client.execute([each]), asks)))

    def end(self, *stores):
        sticky_wsgi.stores.client.close(stores)

    def close(self):
        pass


@pytest.fixture(params=[Asgi, Wsgi], ids=["asgi", "wsgi"])
def face(request):
    face = request.param()
    yield face
    face.close()


@pytest.fixture
def store(valkey, face):
    """Makes stores, each as another process would have it."""
    made = []

    def make(url=valkey.url, **options):
        made.append(Redis(url, **{"timeout": PATIENCE, **options}))
        return made[-1]

    yield make
    face.end(*made)


class Copy(dict[str, tuple[str, int]]):
    """A near copy: text and era by digest."""

    def on_invalidation(self, digest, text, era):
        if text is None:
            self.pop(digest, None)
        elif digest in self:
            self[digest] = text, era


TABLE = "app/sessions", 60.0


@pytest.fixture
def space(store):
    return store().namespace(*TABLE)


def listens(space):
    return space.is_fresh(space.epoch_of("nobody", None, space.sequence))


# -- answers


def test_a_key_is_reserved_by_the_first_and_moved_only_from_where_it_is(face, space):
    d = space.digest("ann")
    assert face.ask(space.recall(d)) == [None]
    assert face.ask(space.reserve(d, "s1")) == [None]
    assert face.ask(space.reserve(d, "s2")) == [b"s1"]
    assert face.ask(space.recall(d)) == [b"s1"]
    assert face.ask(space.move(d, "s3", "s4")) == [b"s1"]
    assert face.ask(space.move(d, "s1", "s4")) == [b"s4"]
    assert face.ask(space.move(d, "s1", "s4")) == [b"s4"]  # said again, because the answer had been lost
    assert face.ask(space.recall(d)) == [b"s4"]


def test_what_the_store_has_lost_is_put_back_by_who_knows_it(face, space):
    d, e = space.digest("ann"), space.digest("bob")
    assert face.ask(space.touch(d, "s1"), space.touch(d, "s2"), space.recall(d)) == [b"s1"] * 3
    assert face.ask(space.move(e, "s1", "s2"), space.recall(e)) == [b"s2"] * 2


def test_what_is_put_counts_and_only_what_is_still_so_is_forgotten(face, space):
    d = space.digest("ann")
    assert face.ask(space.put(d, "s1"), space.put(d, "s2"), space.recall(d)) == [b"s1", b"s2", b"s2"]
    assert face.ask(space.forget(d, "s1"), space.recall(d)) == [b"s2", b"s2"]
    assert face.ask(space.forget(d, "s2"), space.forget(d, "s2"), space.recall(d)) == [None, None, None]


@pytest.mark.parametrize("step", ["recall", "reserve", "move", "put", "touch"])
def test_the_store_keeps_each_entry_for_as_long_as_it_was_last_used(face, valkey, space, step):
    d = space.digest("ann")
    words = {"recall": [], "move": ["s1", "s2"]}.get(step, ["s1"])
    if step != "reserve":
        face.ask(space.put(d, "s1"))
    with valkey.client() as client:
        (key,) = client.keys("*") or [b""]
        if key:
            client.pexpire(key, 5_000)
        face.ask(getattr(space, step)(d, *words))
        (key,) = client.keys("*")
        assert 5_000 < client.pttl(key) <= 60_000


def test_no_session_id_is_to_be_read_in_the_store(face, valkey, space):
    face.ask(space.put(space.digest("session-of-ann"), "s1"))
    with valkey.client() as client:
        (key,) = client.keys("*")
    assert key == b"sticky:app/sessions:" + space.digest("session-of-ann").encode()
    assert b"ann" not in key


def test_two_databases_of_one_server_have_nothing_in_common(face, valkey, store, until):
    one, other = (store(f"{valkey.url}?db={db}").namespace(*TABLE) for db in (1, 2))
    d = one.digest("ann")
    other.local_cache = Copy({d: ("s7", 0)})
    assert face.ask(one.put(d, "s1"), other.recall(d)) == [b"s1", None]
    until(lambda: listens(other), "the other listens")
    with valkey.client() as client:
        assert client.pubsub_numsub(one.channel, other.channel) == [
            (one.channel.encode(), 1),
            (other.channel.encode(), 1),
        ]
    face.ask(one.put(d, "s2"))
    assert other.local_cache[d] == ("s7", 0)


def reads(client):
    return client.info("stats")["total_reads_processed"]


def test_all_that_is_asked_for_together_takes_one_round_trip(face, valkey, space, until):
    face.ask(space.recall("d"))
    until(lambda: listens(space), "the news are heard")
    with valkey.client() as client:
        before = reads(client)
        face.ask(*[space.recall(f"{number}") for number in range(100)])
        between = reads(client) - before - 1  # that we look is one more
    assert between <= 2  # one, and perhaps a beat


def test_what_many_requests_ask_for_in_one_turn_of_the_event_loop_shares_a_round_trip(valkey, until):
    face = Asgi()
    try:
        store = Redis(valkey.url, timeout=PATIENCE)
        space = store.namespace(*TABLE)
        face.ask(space.recall("d"))
        until(lambda: listens(space), "the news are heard")
        with valkey.client() as client:
            before = reads(client)
            face.at_once([space.reserve(f"{number}", f"s{number}") for number in range(64)])
            answers = face.at_once([space.recall(f"{number}") for number in range(64)])
            between = reads(client) - before - 1
        assert answers == [f"s{number}".encode() for number in range(64)]
        assert between <= 3
        face.end(store)
    finally:
        face.close()


def test_who_asks_at_the_same_time_gets_his_own_answer(face, space):
    numbers = range(400)
    assert face.at_once([space.reserve(f"{number}", f"s{number}") for number in numbers]) == [None] * 400
    assert face.at_once([space.recall(f"{number}") for number in numbers]) == [f"s{n}".encode() for n in numbers]


def test_of_many_who_reserve_one_key_one_wins_and_all_agree(face, space):
    answers = face.at_once([space.reserve("d", f"s{number}") for number in range(64)])
    (winner,) = face.ask(space.recall("d"))
    assert sorted(answers, key=str) == sorted([None] + [winner] * 63, key=str)


def test_two_stores_are_asked_in_one_go(face, valkey, store):
    one = store(f"{valkey.url}?db=1").namespace(*TABLE)
    two = store(f"{valkey.url}?db=2").namespace(*TABLE)
    face.ask(one.put("d", "s1"), two.put("d", "s2"))
    assert face.ask(two.recall("d"), one.recall("d"), two.recall("e"), one.recall("d")) == [b"s2", b"s1", None, b"s1"]


def test_a_request_that_is_over_takes_no_answer_from_another(valkey):
    async def scene():
        store = Redis(valkey.url, timeout=PATIENCE)
        space = store.namespace(*TABLE)
        await sticky_asgi.stores.client.execute([space.put("d", "s1"), space.put("e", "s2")])
        given_up = asyncio.ensure_future(sticky_asgi.stores.client.execute([space.recall("d")]))
        waiting = asyncio.ensure_future(sticky_asgi.stores.client.execute([space.recall("e")]))
        await asyncio.sleep(0)
        given_up.cancel()
        assert await waiting == [b"s2"]
        assert await sticky_asgi.stores.client.execute([space.recall("d")]) == [b"s1"]
        await sticky_asgi.stores.client.close([store])
        return given_up.cancelled(), store.breaker.failures

    assert asyncio.run(scene()) == (True, 0)


# -- news


def test_a_client_that_is_moved_is_followed_by_whoever_has_him_in_his_near_copy(face, store, until):
    here, there = store().namespace(*TABLE), store().namespace(*TABLE)
    d, e = here.digest("ann"), here.digest("bob")
    face.ask(here.reserve(d, "s1"), here.reserve(e, "s1"), there.recall(d))
    until(lambda: listens(there), "the other listens")
    there.local_cache = Copy({d: ("s1", there.epoch), e: ("s1", there.epoch)})
    face.ask(here.move(d, "s1", "s2"))
    until(lambda: there.local_cache[d] == ("s2", there.epoch), "the news of ann have come")
    face.ask(here.put(e, "s3"))
    until(lambda: there.local_cache[e] == ("s3", there.epoch), "the news of bob have come")
    face.ask(here.forget(d, "s2"))
    until(lambda: d not in there.local_cache, "ann is forgotten")


def test_a_channel_that_was_cut_is_opened_again_and_what_was_kept_before_is_not_believed(face, valkey, space, until):
    face.ask(space.recall("d"))
    until(lambda: listens(space), "the news are heard")
    era = space.epoch
    with valkey.client() as client:
        client.client_kill_filter(_type="pubsub")
        until(lambda: not space.is_fresh(era), "nothing is believed")
        until(lambda: listens(space), "the news are heard again")
    assert space.epoch != era
    assert space.store.breaker.openings == 0


def test_as_soon_as_the_channel_is_lost_nothing_is_believed(face, valkey, store, until):
    space = store(clock=ManualClock()).namespace(
        *TABLE
    )  # no time passes: it is not that nothing was heard for too long
    face.ask(space.recall("d"))
    until(lambda: listens(space), "the news are heard")
    valkey.kill()
    until(lambda: not listens(space), "nothing is believed")


def test_when_the_event_loop_that_listened_has_ended_another_takes_over(valkey, until):
    store = Redis(valkey.url, timeout=PATIENCE)
    space = store.namespace(*TABLE)
    for _ in range(2):
        face = Asgi()
        face.ask(space.recall("d"))
        until(lambda: listens(space), "the news are heard")
        face.close()
        assert not listens(space)
        assert store.listener is None


# -- a store that fails


def failed(answers):
    return [isinstance(answer, StoreFailure) for answer in answers]


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "sticky_sessions")
    return lambda: [message for message in caplog.messages if "no invalidations" not in message]


def test_a_store_that_is_killed_and_comes_back(face, valkey, space, until, said):
    breaker = space.store.breaker
    face.ask(space.put("d", "s1"))
    until(lambda: listens(space), "the news are heard")
    valkey.kill()
    until(lambda: all(failed(face.ask(space.recall("d"), space.recall("e")))), "the store does not answer")
    until(lambda: not listens(space), "nothing is believed")
    until(lambda: breaker.state is not State.CLOSED, "the breaker is open")
    until(lambda: len(said()) == 1, "it is told")
    assert said()[0].startswith(f"store {valkey.url}: ")
    assert said()[0].endswith("; going on with what this process knows until it is back")
    valkey.start()
    until(lambda: breaker.state is State.CLOSED, "it is back, though nobody asks")
    until(lambda: listens(space), "the news are heard again")
    assert face.ask(space.touch("d", "s1")) == [b"s1"]
    assert len(said()) == 2 and "back after" in said()[1]


def test_a_store_that_hangs_is_waited_for_by_few(face, valkey, store, until, said):
    space = store(timeout=0.1).namespace(*TABLE)
    breaker = space.store.breaker
    face.ask(space.put("d", "s1"))
    valkey.freeze()
    assert failed(face.ask(space.recall("d"))) == [True]
    assert breaker.state is not State.CLOSED
    failures = breaker.failures
    assert all(failed(face.at_once([space.recall("d")] * 640)))
    assert breaker.failures < failures + 64  # who finds out when it is half-open, and the one who listens
    valkey.thaw()
    until(
        lambda: face.ask(space.recall("d")) == [b"s1"], "whoever comes when a pause is over finds out that it is back"
    )
    assert breaker.state is State.CLOSED


def test_connections_that_the_store_has_closed_are_opened_anew_and_nobody_notices(face, valkey, space):
    face.at_once([space.put(f"{number}", "s1") for number in range(64)])
    with valkey.client() as client:
        for _ in range(3):
            client.client_kill_filter(_type="normal")
            assert face.at_once([space.recall(f"{number}") for number in range(64)]) == [b"s1"] * 64
    assert space.store.breaker.failures == 0


def test_a_store_that_is_not_there_yet_is_found_when_it_comes(face, valkey, space, until):
    valkey.kill()
    assert failed(face.ask(space.recall("d"))) == [True]
    valkey.start()
    until(lambda: face.ask(space.recall("d")) == [None], "it answers")


def test_a_command_that_is_refused_is_a_failure_and_told(face, valkey, space, said):
    with valkey.client() as client:
        client.hset(f"sticky:app/sessions:{'d'}", "no", "text")
    (answer,) = face.ask(space.recall("d"))
    assert isinstance(answer, StoreFailure)
    assert "WRONGTYPE" in answer.detail
    assert "WRONGTYPE" in said()[0]


def test_a_password_opens_the_store_and_is_never_told(face, valkey, store, until, caplog):
    valkey.kill()
    valkey.start("--requirepass", "hush-hush")
    stranger = store().namespace(*TABLE)
    (answer,) = face.ask(stranger.recall("d"))
    assert isinstance(answer, StoreFailure) and "Authentication" in str(answer)
    friend = store(f"{valkey.url}?password=hush-hush").namespace(*TABLE)
    assert face.ask(friend.put("d", "s1")) == [b"s1"]
    wrong = store(f"{valkey.url}?password=hush-hush!").namespace(*TABLE)
    (answer,) = face.ask(wrong.recall("d"))
    assert isinstance(answer, StoreFailure)
    assert "hush" not in f"{answer} {caplog.text} {friend.store!r} {wrong.store!r}"


def test_who_may_not_subscribe_is_told_once_and_asks_each_time(face, valkey, store, until, caplog):
    with valkey.client() as client:
        client.acl_setuser("deaf", enabled=True, passwords=["+hush-hush"], categories=["+@all"], keys=["*"])
        client.execute_command("ACL", "SETUSER", "deaf", "resetchannels")
    space = store(f"{valkey.url.replace('unix://', 'unix://deaf@')}?password=hush-hush").namespace(*TABLE)
    assert face.ask(space.reserve("d", "s1")) == [None]
    until(lambda: "no invalidations" in caplog.text, "it is told")
    assert face.ask(space.recall("d")) == [b"s1"]
    assert not listens(space)
    assert caplog.text.count("no invalidations") == 1
    space.presence.record("s1")
    until(lambda: "s1" in space.presence.marked_at, "others learn from the store that it has clients")


def test_a_user_needs_no_more_rights_than_the_documentation_says(face, valkey, store, until):
    rights = "+getex +set +get +del +eval +publish +subscribe +ping ~sticky:* &sticky:*"
    assert rights in (ROOT / "docs" / "shared_tables.md").read_text()
    with valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "shop", "on", ">hush-hush", *rights.split())
    space = store(f"{valkey.url.replace('unix://', 'unix://shop@')}?password=hush-hush").namespace(*TABLE)
    answers = face.ask(
        space.recall("d"),
        space.reserve("d", "s1"),
        space.move("d", "s1", "s2"),
        space.put("d", "s3"),
        space.touch("d", "s3"),
        space.forget("d", "s3"),
    )
    assert answers == [None, None, b"s2", b"s3", b"s3", None]
    space.presence.record("s1")
    until(lambda: listens(space) and "s1" in space.presence.marked_at, "the news are heard, and the store knows of s1")


class Relay:
    """TLS in front of a UNIX socket: the server in the wheel knows none."""

    def __init__(self, path, context):
        self._path = path
        self._context = context
        self._face = Asgi()  # for its event loop
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
            await asyncio.wait(pumps)  # what is aborted ends what it is pumped to

    def close(self):
        self._face.loop.call_soon_threadsafe(self._server.close)
        self._face.close()


def test_over_tls_the_store_is_asked_and_heard_and_a_stranger_is_not_trusted(face, valkey, store, until, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    relay = Relay(valkey.url.removeprefix("unix://"), context)
    try:
        trusting = store(f"rediss://127.0.0.1:{relay.port}/1?ssl_ca_certs={tmp_path / 'ca.pem'}")
        space = trusting.namespace(*TABLE)
        assert face.ask(space.reserve("d", "s1"), space.recall("d")) == [None, b"s1"]
        until(lambda: listens(space), "the news are heard")
        (answer,) = face.ask(store(f"rediss://127.0.0.1:{relay.port}").namespace(*TABLE).recall("d"))
        assert isinstance(answer, StoreFailure)
        assert "CERTIFICATE_VERIFY_FAILED" in answer.detail
    finally:
        face.end(trusting)
        relay.close()


@pytest.mark.parametrize("query", ["?db=one", "?socket_keepalive=perhaps&nonsense=1"])
def test_a_url_that_redis_py_can_t_read_is_a_wrong_configuration(face, valkey, store, query):
    space = store(valkey.url + query).namespace(*TABLE)
    with pytest.raises(ConfigError, match="unix://"):
        face.ask(space.recall("d"))


@pytest.mark.parametrize(
    "query", ["?decode_responses=yes", "?protocol=3", "?socket_timeout=0.000001", "?max_connections=1"]
)
def test_what_a_url_says_of_our_own_business_changes_nothing(face, valkey, store, query):
    space = store(valkey.url + query).namespace(*TABLE)
    assert face.at_once([space.put(f"{number}", "s1") for number in range(32)]) == [b"s1"] * 32


# -- the end


def clients(client):
    return {each["id"] for each in client.client_list()}


def test_at_the_end_nothing_is_left_open_and_who_asks_again_opens_it_anew(face, valkey, space, until):
    with valkey.client() as client:
        before = clients(client)
        for _ in range(2):
            face.at_once([space.recall("d")] * 32)
            until(lambda: listens(space), "the news are heard")
            assert len(clients(client)) > len(before)
            face.end(space.store)
            until(lambda: clients(client) == before, "the store has seen them go")
            assert space.store.listener is None
            assert not listens(space)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_uses_no_connection_of_its_parent_and_leaves_them_alone(valkey, until):
    store = Redis(valkey.url, timeout=PATIENCE)
    space = store.namespace(*TABLE)
    face = Wsgi()
    face.ask(space.put("d", "s1"))
    until(lambda: listens(space), "the news are heard")
    with valkey.client() as client:
        mine = clients(client)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:  # what fails here must not come back as a second run of the tests
            said = b"failed"
            try:
                fresh = listens(space)
                answer = face.ask(space.recall("d"))
                until(lambda: listens(space), "the child hears the news")
                said = b"%r %r %d" % (fresh, answer, len(clients(client) - mine))
            finally:
                os.write(writing, said)
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reading, 100) == b"False [b's1'] 3"  # the child's own client is one
        os.close(reading)
        os.close(writing)
        assert face.ask(space.recall("d")) == [b"s1"]
        assert listens(space)
    face.end(store)


def test_on_another_event_loop_than_asyncio_s_it_is_a_wrong_configuration(valkey):
    space = Redis(valkey.url, timeout=PATIENCE).namespace(*TABLE)

    async def ask():
        await sticky_asgi.stores.client.execute([space.recall("d")])

    with pytest.raises(ConfigError, match="a store needs asyncio"):
        trio.run(ask)
