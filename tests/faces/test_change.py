"""Servers come, change and go while both faces serve: what is begun and ended for them, and what their clients see."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio.from_thread
import pytest

from sticky_asgi import Dispatcher as AsgiDispatcher
from sticky_core.backend.backend import Backend, BackendConfig
from sticky_core.backend.change import Change
from sticky_core.backend.events import StateChange
from sticky_core.errors import ConfigError
from sticky_core.health.check import Check
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server

if TYPE_CHECKING:
    from tests.faces.conftest import Face, RecordedResponse

DEADLINE = 300.0
PLAIN = Cookie("SERVERID", signed=False, nocache=False)
SIGNED = Cookie("SERVERID", secret="a secret of these tests")
OFTEN: dict[str, Any] = {"inter": 0.03, "fall": 1, "rise": 1}


def until(condition: Callable[[], object], what: str = "what was waited for") -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)


def having(before: BackendConfig, name: str, **changes: Any) -> BackendConfig:
    """The same, with something else asked of one server."""
    return replace(
        before, servers=tuple(replace(each, **changes) if each.name == name else each for each in before.servers)
    )


class Running:
    """A dispatcher at work: on one event loop with its lifespans, or in the threads of this process."""

    def __init__(self, face: Face, dispatcher: Any, portal: Any) -> None:
        self._face = face
        self.dispatcher = dispatcher
        self._portal = portal

    def get(self, **options: Any) -> RecordedResponse:
        client = self._face.client(self.dispatcher)
        if self._portal is None:
            return client(**options)
        run = asyncio.run
        asyncio.run = self._run  # type: ignore[assignment]
        try:
            return client(**options)
        finally:
            asyncio.run = run

    def _run(self, coroutine: Any) -> Any:
        async def await_it() -> Any:
            return await coroutine

        return self._portal.call(await_it)

    def do(self, change: Callable[[], Change]) -> Change:
        """Change something as an app of this face would, and wait until it is in force."""
        if self._portal is None:
            done = change()
            assert done.is_in_force, "there is nobody to be waited for"
            return done

        async def await_it() -> Change:
            done = change()
            await done
            return done

        done = self._portal.call(await_it)
        assert isinstance(done, Change)
        return done


@contextmanager
def running(face: Face, backend: Backend, library: str = "asyncio") -> Iterator[Running]:
    dispatcher: Any = face.dispatcher(backend)
    with ExitStack() as stack:
        portal = None
        if face.name == "asgi":
            portal = stack.enter_context(anyio.from_thread.start_blocking_portal(library))
            stack.enter_context(portal.wrap_async_context_manager(dispatcher.lifespan()))
        else:
            stack.callback(dispatcher.replicas.stop)
        run = Running(face, dispatcher, portal)
        run.get()
        yield run


def test_a_server_that_is_added_serves_and_nobody_else_moves(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=SIGNED)
    with running(face, backend) as run:
        marks = {answer.server: answer.mark for answer in (run.get(), run.get()) if answer.all("set-cookie")}
        run.do(lambda: backend.add(face.server("s3")))
        assert {run.get().server for _ in range(3)} == {"s1", "s2", "s3"}
        for server, mark in marks.items():
            answer = run.get(cookie=mark)
            assert answer.server == server and not answer.all("set-cookie")


def test_clients_of_a_server_that_is_removed_are_given_another_and_told_so(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN)
    with running(face, backend) as run:
        change = run.do(lambda: backend.remove("s2"))
        assert change.retired.wait(DEADLINE)
        answer = run.get(cookie="SERVERID=s2")
        assert (answer.server, answer.mark) == ("s1", "SERVERID=s1")
        assert (answer.decision.claim, answer.decision.reason) == (Claim.INVALID, Reason.UNKNOWN)
        assert [server.name for server in run.dispatcher.replicas.apps] == ["s1"]


def test_a_request_in_flight_at_a_server_that_is_removed_ends_in_peace(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN)
    with running(face, backend) as run:
        changes: list[Change] = []
        app = face.apps["s2"]
        took = app.record

        def removing(seen: Any) -> None:
            changes.append(backend.remove("s2"))
            assert changes[0].is_in_force and not changes[0].retired.reached
            took(seen)

        app.record = removing  # type: ignore[method-assign]
        answer = run.get(cookie="SERVERID=s2")
        assert (answer.status, answer.server) == (200, "s2")
        assert changes[0].retired.wait(DEADLINE)


def test_a_request_that_is_on_the_way_to_a_server_that_has_just_gone_goes_to_another(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN)
    with running(face, backend) as run:
        run.dispatcher.replicas.refuse(backend["s2"])
        assert run.get(cookie="SERVERID=s2", method="POST").server == "s1"


def test_what_can_not_be_begun_changes_nothing(face: Face) -> None:
    def broken() -> Any:
        raise ValueError("no database")

    backend = face.backend(face.server("s1"), persist=PLAIN)
    with running(face, backend) as run:
        before = backend.config, backend.snapshot, dict(run.dispatcher.replicas.apps)
        with pytest.raises(RuntimeError, match="backend web: replica s2 failed to start: ValueError: no database"):
            run.do(lambda: backend.add(Server("s2", factory=broken)))
        assert (backend.config, backend.snapshot, dict(run.dispatcher.replicas.apps)) == before
        assert run.get(cookie="SERVERID=s1").server == "s1"
        run.do(lambda: backend.add(face.server("s2")))
        assert run.get(cookie="SERVERID=s2").server == "s2", "another change may be made"


def test_an_app_of_the_other_face_is_told_before_anything_changes(face: Face) -> None:
    def asgi(scope: Any, receive: Any, send: Any) -> None: ...
    def wsgi(environ: Any, start_response: Any) -> None: ...

    backend = face.backend(face.server("s1"))
    with running(face, backend), pytest.raises(ConfigError, match=r"backend web: server s2: .* is no .* app"):
        backend.add(Server("s2", wsgi if face.name == "asgi" else asgi))


def test_a_server_whose_app_is_another_has_another_memory_and_its_clients_are_told(face: Face) -> None:
    backend = face.backend(face.server("s1"), persist=SIGNED)
    with running(face, backend) as run:
        mark = run.get().mark
        old = face.apps["s1"]
        new = face.app("s1")
        run.do(lambda: backend.apply(having(backend.config, "s1", target=face.validated(new))))
        answer = run.get(cookie=mark)
        assert answer.decision.reason is Reason.OTHER_INSTANCE and answer.mark != mark
        assert len(new.seen) == 1 and len(old.seen) == 2
        assert not run.get(cookie=answer.mark).all("set-cookie")


def test_a_factory_that_is_asked_for_again_is_not_called_again(face: Face) -> None:
    made: list[str] = []

    def factory() -> Any:
        made.append("s1")
        return face.validated(face.app("s1"))

    backend = face.backend(Server("s1", factory=factory), face.server("s2"))
    with running(face, backend) as run:
        run.do(lambda: backend.apply(replace(backend.config, retries=0)))
        run.do(lambda: backend.remove("s2"))
        run.get()
    assert made == ["s1"]


def test_a_change_before_anything_has_begun_begins_nothing(face: Face) -> None:
    made: list[str] = []

    def factory() -> Any:
        made.append("s2")
        return face.validated(face.app("s2"))

    backend = face.backend(face.server("s1"))
    dispatcher = face.dispatcher(backend)
    assert backend.add(Server("s2", factory=factory)).is_in_force and made == []
    get = face.client(dispatcher)
    assert {get().server, get().server} == {"s1", "s2"} and made == ["s2"]


def test_rules_that_are_changed_are_those_of_the_next_request(face: Face) -> None:
    backend = face.backend(face.server("s1", status=503), face.server("s2"), persist=PLAIN)
    with running(face, backend) as run:
        assert run.get(cookie="SERVERID=s1").status == 503
        run.do(lambda: backend.apply(replace(backend.config, retry_on=("503",))))
        answer = run.get(cookie="SERVERID=s1")
        assert (answer.status, answer.server, len(answer.tried)) == (200, "s2", 2)


def asked(face: Face, name: str) -> int:
    """How often a replica was asked for its health."""
    return sum(seen.path == "/health" for seen in face.apps[name].seen)


def test_checks_begin_and_end_with_their_servers(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), check=Check("/health", **OFTEN))
    with running(face, backend) as run:
        until(lambda: asked(face, "s1") and asked(face, "s2"))
        run.do(lambda: backend.add(face.server("s3")))
        until(lambda: asked(face, "s3") > 2)
        assert run.do(lambda: backend.remove("s2")).retired.wait(DEADLINE)
        until(lambda: not [each for each in threading.enumerate() if each.name == "check of s2"])
        before, others = asked(face, "s2"), asked(face, "s1")
        until(lambda: asked(face, "s1") > others + 5)
        assert asked(face, "s2") <= before + 1, "at most the one that was on its way"
        face.apps["s3"].status = 500
        until(lambda: backend["s3"].status == "DOWN")


def test_checks_that_nobody_had_asked_for_begin_when_they_are(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2", status=500))
    with running(face, backend) as run:
        run.do(lambda: backend.apply(replace(backend.config, check=Check("/health", **OFTEN))))
        run.get()
        until(lambda: backend["s2"].status == "DOWN")
        run.do(lambda: backend.apply(replace(backend.config, check=None)))
        assert backend["s2"].status == "UP"


def test_nothing_is_left_of_a_server_that_has_gone(face: Face) -> None:
    backend = face.backend(face.server("s1"), persist=PLAIN, check=Check("/health", **OFTEN))
    with running(face, backend) as run:
        run.do(lambda: backend.add(face.server("s2")))
        run.get(cookie="SERVERID=s2")
        gone = weakref.ref(backend["s2"])
        change = run.do(lambda: backend.remove("s2"))
        assert change.retired.wait(DEADLINE)
        del change
        face.apps["s2"].seen.clear()  # decisions know who was tried

        def collected() -> bool:
            run.get(cookie="SERVERID=s1")
            gc.collect()
            return gone() is None

        until(collected, "somebody holds on to it")


# -- ASGI alone has lifespans

asgi_only = pytest.mark.parametrize("face", ["asgi"], indirect=True)
both_libraries = pytest.mark.parametrize("library", ["asyncio", "trio"])


class Life:
    """Apps whose lifespans are noted."""

    def __init__(self, fails: str = "") -> None:
        self.told: list[str] = []
        self._fails = fails

    def app(self, name: str) -> Callable[..., Any]:
        async def app(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
            if scope["type"] == "lifespan":
                await receive()
                if name == self._fails:
                    await send({"type": "lifespan.startup.failed", "message": "no database"})
                    return
                scope["state"]["name"] = name
                self.told.append(f"{name} begins")
                await send({"type": "lifespan.startup.complete"})
                await receive()
                self.told.append(f"{name} ends")
                await send({"type": "lifespan.shutdown.complete"})
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": scope["state"]["name"].encode()})

        return app

    def server(self, name: str) -> Server:
        return Server(name, factory=lambda: self.app(name))


@asgi_only
@both_libraries
def test_lifespans_begin_before_and_end_after_anybody_is_served(face: Face, library: str) -> None:
    life = Life()
    backend = face.backend(life.server("s1"), life.server("s2"), persist=PLAIN)
    with running(face, backend, library) as run:
        run.do(lambda: backend.add(life.server("s3")))
        assert life.told == ["s1 begins", "s2 begins", "s3 begins"]
        if library == "asyncio":
            assert run.get(cookie="SERVERID=s3").body == b"s3"
        assert run.do(lambda: backend.remove("s1")).retired.wait(DEADLINE)
        assert life.told[3:] == ["s1 ends"]
        run.do(lambda: backend.apply(having(backend.config, "s2", factory=lambda: life.app("s2 again"))))
        until(lambda: life.told[4:] == ["s2 again begins", "s2 ends"])
    assert sorted(life.told[6:]) == ["s2 again ends", "s3 ends"]


@asgi_only
def test_a_lifespan_that_fails_to_begin_ends_those_that_had_begun_with_it(face: Face) -> None:
    life = Life(fails="s3")
    backend = face.backend(life.server("s1"))
    with running(face, backend) as run:
        with pytest.raises(RuntimeError, match="replica s3 failed to start: no database"):
            run.do(lambda: backend.add(life.server("s2"), life.server("s3")))
        until(lambda: life.told == ["s1 begins", "s2 begins", "s2 ends"])
        assert [server.name for server in backend.servers] == ["s1"]
    assert life.told[3:] == ["s1 ends"]


@asgi_only
def test_who_is_removed_while_others_begin_does_not_begin(face: Face) -> None:
    life = Life()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            backend.remove("s2")
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})

    backend = face.backend(Server("s1", app), life.server("s2"), life.server("s3"))
    with running(face, backend) as run:
        assert life.told == ["s3 begins"]
        assert [server.name for server in run.dispatcher.replicas.apps] == ["s1", "s3"]
    assert life.told == ["s3 begins", "s3 ends"]


@asgi_only
def test_an_app_behind_two_servers_lives_until_both_have_gone(face: Face) -> None:
    life = Life()
    shared = life.app("shared")
    backend = face.backend(life.server("s1"), Server("s2", shared))
    with running(face, backend) as run:
        run.do(lambda: backend.add(Server("s3", shared)))
        assert run.do(lambda: backend.remove("s2")).retired.wait(DEADLINE)
        assert life.told == ["s1 begins", "shared begins"]
        assert run.do(lambda: backend.remove("s3")).retired.wait(DEADLINE)
        until(lambda: life.told[2:] == ["shared ends"])


@asgi_only
def test_a_thread_may_change_what_an_event_loop_serves(face: Face) -> None:
    life = Life()
    backend = face.backend(life.server("s1"), persist=PLAIN)
    with running(face, backend) as run:
        assert backend.add(life.server("s2")).wait(DEADLINE)
        assert run.get(cookie="SERVERID=s2").body == b"s2"
        assert backend.remove("s2").retired.wait(DEADLINE)
    assert life.told == ["s1 begins", "s2 begins", "s2 ends", "s1 ends"]


@asgi_only
def test_what_is_asked_for_when_all_ends_fails_and_holds_nothing_up(
    face: Face, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "sticky_sessions")
    life = Life()
    backend = face.backend(life.server("s1"))

    async def use() -> None:
        dispatcher = AsgiDispatcher(backend)
        async with dispatcher.lifespan():
            change = backend.add(life.server("s2"))
        with pytest.raises(RuntimeError, match="the application is ending"):
            await change

    asyncio.run(use())
    assert life.told == ["s1 begins", "s1 ends"] and [server.name for server in backend.servers] == ["s1"]


def test_a_factory_may_remove_a_server_whose_turn_has_not_come(face: Face) -> None:
    made: list[str] = []

    def make(name: str) -> Any:
        made.append(name)
        if name == "s1":
            backend.remove("s2")
        return face.apps["s3"]

    servers = (Server("s1", factory=lambda: make("s1")), Server("s2", factory=lambda: make("s2")))
    backend = face.backend(*servers, face.server("s3"), persist=PLAIN)
    dispatcher: Any = face.dispatcher(backend)
    assert face.client(dispatcher)(cookie="SERVERID=s3").body == b"s3"
    assert made == ["s1"] and [server.name for server in dispatcher.replicas.apps] == ["s1", "s3"]


def test_a_backend_behind_a_route_is_held_to_its_neighbours_cookies_when_it_is_changed(face: Face) -> None:
    web = face.backend(face.server("s1"), name="web", persist=PLAIN)
    api = face.backend(face.server("s2"), name="api", persist=Cookie("API", signed=False))
    client = face.client(face.package.StickyMiddleware(face.app("rest"), routes={"/web": web, "/api": api}))
    clashing = replace(api.config, persist=(PLAIN,))
    with pytest.raises(ConfigError, match="backends api and web both insert a cookie SERVERID"):
        api.apply(clashing)
    assert client("/api").mark == "API=s2"
    web.apply(replace(web.config, persist=(Cookie("WEB", signed=False),)))
    api.apply(clashing)
    assert (client("/api").mark, client("/web").mark) == ("SERVERID=s2", "WEB=s1")


def no_database() -> Any:
    raise RuntimeError("no database")


@pytest.mark.parametrize("by_factory", [False, True], ids=["told that it failed", "made itself"])
def test_a_backend_may_be_changed_by_whom_its_first_request_makes_or_tells(face: Face, by_factory: bool) -> None:
    """Whoever is told that a replica failed to start puts another in its place; a factory brings a server along."""
    backend: Backend

    def make() -> Any:
        backend.add(face.server("s3"))
        return face.apps["s2"]

    backend = face.backend(Server("s1", factory=make if by_factory else no_database), face.server("s2"), persist=PLAIN)
    if not by_factory:
        told: list[Change] = []

        def replaces(change: StateChange) -> None:
            if change.after == "DOWN":
                told.extend((backend.remove("s1"), backend.add(face.server("s3"))))

        backend.events(replaces)
    answers: list[RecordedResponse] = []
    visit = threading.Thread(target=lambda: answers.append(face.client(backend)(cookie="SERVERID=s3")), daemon=True)
    visit.start()
    visit.join(DEADLINE)
    assert [answer.body for answer in answers] == [b"s3"]
    assert [server.name for server in backend.servers] == [*(["s1"] if by_factory else []), "s2", "s3"]
