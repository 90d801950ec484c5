"""Servers are added, changed and removed while both faces serve: apps, checks and lifespans start and end with them."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from sticky_asgi import Dispatcher as AsgiDispatcher
from sticky_core.backend.backend import Backend, BackendConfig
from sticky_core.backend.change import Change
from sticky_core.backend.events import StateChange
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError
from sticky_core.health.check import Check
from sticky_core.persistence.claim import Claim, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.route import Route
from sticky_core.samples.request import cook
from sticky_core.server.server import Server
from sticky_core.server.state import Health
from tests.counting import count_calls
from tests.faces.running import DEADLINE, running, until

if TYPE_CHECKING:
    from tests.faces.conftest import Face, RecordedResponse

PLAIN = Cookie("SERVERID", signed=False, nocache=False)
SIGNED = Cookie("SERVERID", secret="a secret of these tests")
OFTEN: dict[str, Any] = {"inter": 0.03, "fall": 1, "rise": 1}


def with_server(config: BackendConfig, name: str, **changes: Any) -> BackendConfig:
    """Return `config` with other options of one server."""
    servers = tuple(replace(each, **changes) if each.name == name else each for each in config.servers)
    return replace(config, servers=servers)


def test_added_server_serves_and_clients_of_the_others_stay(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=SIGNED)
    with running(face, backend) as run:
        marks = {response.server: response.mark for response in (run.get(), run.get()) if response.all("set-cookie")}
        run.apply(lambda: backend.add(face.server("s3")))
        assert {run.get().server for _ in range(3)} == {"s1", "s2", "s3"}
        for server, mark in marks.items():
            response = run.get(cookie=mark)
            assert response.server == server and not response.all("set-cookie")


@pytest.mark.parametrize(
    "cookie",
    [
        PLAIN,
        SIGNED,
        Cookie("SERVERID", secret="a secret of these tests", opaque=True),
        Cookie("SERVERID", secret="a secret of these tests", maxidle="1h"),
    ],
    ids=["plain", "signed", "opaque", "dated"],
)
def test_clients_of_a_server_that_becomes_a_backup_stay_and_new_ones_get_no_mark_there(
    face: Face, cookie: Cookie
) -> None:
    clock = ManualClock()
    backend = face.backend(face.server("s1"), face.server("s2"), persist=cookie, clock=clock)
    with running(face, backend) as run:
        mark = next(response.mark for response in (run.get(), run.get()) if response.server == "s2")
        assert backend.plan(with_server(backend.config, "s2", backup=True)).marks == {}
        run.apply(lambda: backend.apply(with_server(backend.config, "s2", backup=True)))
        run.apply(lambda: backend.apply(with_server(backend.config, "s1", weight=7)))
        assert {run.get().server for _ in range(4)} == {"s1"}
        clock.advance(1800)  # half of the time after which a dated mark would expire
        response = run.get(cookie=mark)
        assert (response.server, response.decision.claim) == ("s2", Claim.VALID)
        mark = response.mark if response.all("set-cookie") else mark
        clock.advance(2000)
        assert run.get(cookie=mark).server == "s2", "and a dated mark was renewed"
        backend["s1"].health = Health.DOWN
        new = run.get()
        assert (new.server, new.all("set-cookie")) == ("s2", [])
        run.apply(lambda: backend.apply(with_server(backend.config, "s2", backup=False)))
        assert run.get().mark.startswith("SERVERID=")


def test_clients_of_a_server_that_becomes_a_backup_stay_by_their_route(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=Route(cook("JSESSIONID")))
    backend.apply(with_server(backend.config, "s2", backup=True))
    assert face.client(backend)(cookie="JSESSIONID=abc.s2").server == "s2"


@pytest.mark.parametrize("persist", [PLAIN, Route(cook("SERVERID"))], ids=["cookie", "route"])
def test_clients_of_a_server_that_became_a_backup_leave_it_once_its_cookie_is_empty(
    face: Face, persist: Cookie | Route
) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), face.server("s3"), persist=persist)
    backend.apply(with_server(backend.config, "s2", backup=True))
    with_empty = with_server(backend.config, "s2", cookie="")
    assert backend.plan(with_empty).marks == {"s2": None}
    backend.apply(with_empty)
    assert face.client(backend)(cookie="SERVERID=s2").server != "s2"


def test_clients_of_a_removed_server_are_balanced_and_get_a_new_cookie(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN)
    with running(face, backend) as run:
        change = run.apply(lambda: backend.remove("s2"))
        assert change.retired.wait(DEADLINE)
        response = run.get(cookie="SERVERID=s2")
        assert (response.server, response.mark) == ("s1", "SERVERID=s1")
        assert (response.decision.claim, response.decision.reason) == (Claim.INVALID, Reason.UNKNOWN)
        assert [server.name for server in run.dispatcher.replicas.apps] == ["s1"]


def test_request_in_flight_at_a_removed_server_is_completed(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN)
    with running(face, backend) as run:
        changes: list[Change] = []
        app = face.apps["s2"]
        record = app.record

        def remove_and_record(seen: Any) -> None:
            changes.append(backend.remove("s2"))
            assert changes[0].is_in_force and not changes[0].retired.reached
            record(seen)

        app.record = remove_and_record  # type: ignore[method-assign]
        response = run.get(cookie="SERVERID=s2")
        assert (response.status, response.server) == (200, "s2")
        assert changes[0].retired.wait(DEADLINE)


def test_request_for_a_server_that_was_just_removed_is_sent_to_another(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN)
    with running(face, backend) as run:
        run.dispatcher.replicas.refuse(backend["s2"])
        assert run.get(cookie="SERVERID=s2", method="POST").server == "s1"


def test_server_that_fails_to_start_changes_nothing(face: Face) -> None:
    def broken() -> Any:
        raise ValueError("no database")

    backend = face.backend(face.server("s1"), persist=PLAIN)
    with running(face, backend) as run:
        before = backend.config, backend.snapshot, dict(run.dispatcher.replicas.apps)
        with pytest.raises(RuntimeError, match="backend web: replica s2 failed to start: ValueError: no database"):
            run.apply(lambda: backend.add(Server("s2", factory=broken)))
        assert (backend.config, backend.snapshot, dict(run.dispatcher.replicas.apps)) == before
        assert run.get(cookie="SERVERID=s1").server == "s1"
        run.apply(lambda: backend.add(face.server("s2")))
        assert run.get(cookie="SERVERID=s2").server == "s2", "a later change works"


def test_app_of_the_other_face_is_refused_before_anything_changes(face: Face) -> None:
    def asgi(scope: Any, receive: Any, send: Any) -> None: ...
    def wsgi(environ: Any, start_response: Any) -> None: ...

    backend = face.backend(face.server("s1"))
    with running(face, backend), pytest.raises(ConfigError, match=r"backend web: server s2: .* is no .* app"):
        backend.add(Server("s2", wsgi if face.name == "asgi" else asgi))


def test_server_with_another_app_is_another_instance_and_its_clients_get_a_new_cookie(face: Face) -> None:
    backend = face.backend(face.server("s1"), persist=SIGNED)
    with running(face, backend) as run:
        mark = run.get().mark
        old = face.apps["s1"]
        new = face.app("s1")
        run.apply(lambda: backend.apply(with_server(backend.config, "s1", target=face.validated(new))))
        response = run.get(cookie=mark)
        assert response.decision.reason is Reason.OTHER_INSTANCE and response.mark != mark
        assert len(new.seen) == 1 and len(old.seen) == 2
        assert not run.get(cookie=response.mark).all("set-cookie")


def test_factory_of_an_unchanged_server_is_not_called_again(face: Face) -> None:
    made: list[str] = []

    def factory() -> Any:
        made.append("s1")
        return face.validated(face.app("s1"))

    backend = face.backend(Server("s1", factory=factory), face.server("s2"))
    with running(face, backend) as run:
        run.apply(lambda: backend.apply(replace(backend.config, retries=0)))
        run.apply(lambda: backend.remove("s2"))
        run.get()
    assert made == ["s1"]


def test_change_before_the_first_request_makes_no_apps(face: Face) -> None:
    made: list[str] = []

    def factory() -> Any:
        made.append("s2")
        return face.validated(face.app("s2"))

    backend = face.backend(face.server("s1"))
    dispatcher = face.dispatcher(backend)
    assert backend.add(Server("s2", factory=factory)).is_in_force and made == []
    get = face.client(dispatcher)
    assert {get().server, get().server} == {"s1", "s2"} and made == ["s2"]


def test_changed_options_apply_to_the_next_request(face: Face) -> None:
    backend = face.backend(face.server("s1", status=503), face.server("s2"), persist=PLAIN)
    with running(face, backend) as run:
        assert run.get(cookie="SERVERID=s1").status == 503
        run.apply(lambda: backend.apply(replace(backend.config, retry_on=("503",))))
        response = run.get(cookie="SERVERID=s1")
        assert (response.status, response.server, len(response.tried)) == (200, "s2", 2)


def check_count(face: Face, name: str) -> int:
    """Return how many check requests a replica has received."""
    return sum(request.path == "/health" for request in face.apps[name].seen)


def test_checks_start_and_end_with_their_servers(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), check=Check("/health", **OFTEN))
    with running(face, backend) as run:
        until(lambda: check_count(face, "s1") and check_count(face, "s2"))
        run.apply(lambda: backend.add(face.server("s3")))
        until(lambda: check_count(face, "s3") > 2)
        assert run.apply(lambda: backend.remove("s2")).retired.wait(DEADLINE)
        before, others = check_count(face, "s2"), check_count(face, "s1")
        until(lambda: check_count(face, "s1") > others + 5)
        assert check_count(face, "s2") <= before + 1, "at most the one that was in flight"
        face.apps["s3"].status = 500
        until(lambda: backend["s3"].status == "DOWN")


def test_checks_can_be_switched_on_and_off(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2", status=500))
    with running(face, backend) as run:
        run.apply(lambda: backend.apply(replace(backend.config, check=Check("/health", **OFTEN))))
        run.get()
        until(lambda: backend["s2"].status == "DOWN")
        run.apply(lambda: backend.apply(replace(backend.config, check=None)))
        assert backend["s2"].status == "UP"


def test_change_of_one_server_costs_the_same_however_many_there_are(face: Face) -> None:
    """In calls; copies of lists and dictionaries of all servers are one call each."""

    def costs(count: int) -> tuple[int, int]:
        servers = [face.package.Server(f"s{number}", f"http://10.0.0.{number}") for number in range(1, count + 1)]
        backend = face.backend(*servers, persist=PLAIN, check=Check("/health", inter=DEADLINE))
        dispatcher: Any = face.dispatcher(backend)
        dispatcher.replicas.build_apps()
        for number in (201, 202):  # caches are filled, and indexes renewed
            backend.add(face.package.Server(f"s{number}", f"http://10.0.0.{number}"))
        new = face.package.Server("new", "http://10.0.0.250")
        return count_calls(lambda: backend.add(new)), count_calls(lambda: backend.remove("s7"))

    costs(30)
    for cost, cost_among_more in zip(costs(60), costs(120), strict=True):
        assert cost_among_more < 1.05 * cost + 30


def test_removed_server_is_freed(face: Face) -> None:
    backend = face.backend(face.server("s1"), persist=PLAIN, check=Check("/health", **OFTEN))
    with running(face, backend) as run:
        run.apply(lambda: backend.add(face.server("s2")))
        run.get(cookie="SERVERID=s2")
        removed = weakref.ref(backend["s2"])
        change = run.apply(lambda: backend.remove("s2"))
        assert change.retired.wait(DEADLINE)
        del change
        face.apps["s2"].seen.clear()  # their decisions hold the servers that were tried

        def collected() -> bool:
            run.get(cookie="SERVERID=s1")
            gc.collect()
            return removed() is None

        until(collected, "the removed server is freed")


# -- lifespans (ASGI)

asgi_only = pytest.mark.parametrize("face", ["asgi"], indirect=True)
both_libraries = pytest.mark.parametrize("library", ["asyncio", "trio"])


class LifespanRecorder:
    """Makes apps, and records their lifespans."""

    def __init__(self, fails: str = "") -> None:
        self.events: list[str] = []
        self._fails = fails

    def app(self, name: str) -> Callable[..., Any]:
        async def app(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
            if scope["type"] == "lifespan":
                await receive()
                if name == self._fails:
                    await send({"type": "lifespan.startup.failed", "message": "no database"})
                    return
                scope["state"]["name"] = name
                self.events.append(f"{name} starts")
                await send({"type": "lifespan.startup.complete"})
                await receive()
                self.events.append(f"{name} ends")
                await send({"type": "lifespan.shutdown.complete"})
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": scope["state"]["name"].encode()})

        return app

    def server(self, name: str) -> Server:
        return Server(name, factory=lambda: self.app(name))


@asgi_only
@both_libraries
def test_lifespans_start_before_the_first_request_and_end_after_the_last(face: Face, library: str) -> None:
    lifespans = LifespanRecorder()
    backend = face.backend(lifespans.server("s1"), lifespans.server("s2"), persist=PLAIN)
    with running(face, backend, library) as run:
        run.apply(lambda: backend.add(lifespans.server("s3")))
        assert lifespans.events == ["s1 starts", "s2 starts", "s3 starts"]
        if library == "asyncio":
            assert run.get(cookie="SERVERID=s3").body == b"s3"
        assert run.apply(lambda: backend.remove("s1")).retired.wait(DEADLINE)
        assert lifespans.events[3:] == ["s1 ends"]
        run.apply(lambda: backend.apply(with_server(backend.config, "s2", factory=lambda: lifespans.app("s2 again"))))
        until(lambda: lifespans.events[4:] == ["s2 again starts", "s2 ends"])
    assert sorted(lifespans.events[6:]) == ["s2 again ends", "s3 ends"]


@asgi_only
def test_lifespan_that_fails_to_start_ends_those_that_started_with_it(face: Face) -> None:
    lifespans = LifespanRecorder(fails="s3")
    backend = face.backend(lifespans.server("s1"))
    with running(face, backend) as run:
        with pytest.raises(RuntimeError, match="replica s3 failed to start: no database"):
            run.apply(lambda: backend.add(lifespans.server("s2"), lifespans.server("s3")))
        until(lambda: lifespans.events == ["s1 starts", "s2 starts", "s2 ends"])
        assert [server.name for server in backend.servers] == ["s1"]
    assert lifespans.events[3:] == ["s1 ends"]


@asgi_only
def test_server_that_is_removed_while_others_start_does_not_start(face: Face) -> None:
    lifespans = LifespanRecorder()

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

    backend = face.backend(Server("s1", app), lifespans.server("s2"), lifespans.server("s3"))
    with running(face, backend) as run:
        assert lifespans.events == ["s3 starts"]
        assert [server.name for server in run.dispatcher.replicas.apps] == ["s1", "s3"]
    assert lifespans.events == ["s3 starts", "s3 ends"]


@asgi_only
def test_lifespan_of_an_app_behind_two_servers_ends_when_both_are_removed(face: Face) -> None:
    lifespans = LifespanRecorder()
    shared = lifespans.app("shared")
    backend = face.backend(lifespans.server("s1"), Server("s2", shared))
    with running(face, backend) as run:
        run.apply(lambda: backend.add(Server("s3", shared)))
        assert run.apply(lambda: backend.remove("s2")).retired.wait(DEADLINE)
        assert lifespans.events == ["s1 starts", "shared starts"]
        assert run.apply(lambda: backend.remove("s3")).retired.wait(DEADLINE)
        until(lambda: lifespans.events[2:] == ["shared ends"])


@asgi_only
def test_thread_can_change_a_backend_that_an_event_loop_serves(face: Face) -> None:
    lifespans = LifespanRecorder()
    backend = face.backend(lifespans.server("s1"), persist=PLAIN)
    with running(face, backend) as run:
        assert backend.add(lifespans.server("s2")).wait(DEADLINE)
        assert run.get(cookie="SERVERID=s2").body == b"s2"
        assert backend.remove("s2").retired.wait(DEADLINE)
    assert lifespans.events == ["s1 starts", "s2 starts", "s2 ends", "s1 ends"]


@asgi_only
def test_change_during_shutdown_fails_and_does_not_delay_it(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "sticky_sessions")
    lifespans = LifespanRecorder()
    backend = face.backend(lifespans.server("s1"))

    async def change_during_shutdown() -> None:
        dispatcher = AsgiDispatcher(backend)
        async with dispatcher.lifespan():
            change = backend.add(lifespans.server("s2"))
        with pytest.raises(RuntimeError, match="the application is ending"):
            await change

    asyncio.run(change_during_shutdown())
    assert lifespans.events == ["s1 starts", "s1 ends"] and [server.name for server in backend.servers] == ["s1"]


def test_factory_can_remove_a_server_that_is_not_made_yet(face: Face) -> None:
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


def test_changed_backend_behind_a_route_must_not_clash_with_cookies_of_other_backends(face: Face) -> None:
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


@pytest.mark.parametrize("by_factory", [False, True], ids=["in a callback for the failure", "in a factory"])
def test_backend_can_be_changed_by_code_that_its_first_request_calls(face: Face, by_factory: bool) -> None:
    """A callback replaces a replica that failed to start; a factory adds a server."""
    backend: Backend

    def make() -> Any:
        backend.add(face.server("s3"))
        return face.apps["s2"]

    backend = face.backend(Server("s1", factory=make if by_factory else no_database), face.server("s2"), persist=PLAIN)
    if not by_factory:
        made: list[Change] = []

        def replace_server(change: StateChange) -> None:
            if change.after == "DOWN":
                made.extend((backend.remove("s1"), backend.add(face.server("s3"))))

        backend.events(replace_server)
    responses: list[RecordedResponse] = []
    request = threading.Thread(target=lambda: responses.append(face.client(backend)(cookie="SERVERID=s3")), daemon=True)
    request.start()
    request.join(DEADLINE)
    assert [response.body for response in responses] == [b"s3"]
    assert [server.name for server in backend.servers] == [*(["s1"] if by_factory else []), "s2", "s3"]
