"""A function of the configuration that raises fails no request: the request goes on without it, the exception is
counted, and the first one of each place is logged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from sticky_core.balance import Hash, IpHash, NginxHash, RoundRobin, Source
from sticky_core.persistence.claim import NO_COOKIE
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.persistence import Persist, no_fast_path
from sticky_core.persistence.route import Route
from sticky_core.persistence.stick.config import Learn, Stick
from sticky_core.samples.converters import lower
from sticky_core.samples.request import cook, hdr
from sticky_core.stick_table.table import StickTable

if TYPE_CHECKING:
    from tests.faces.conftest import Face


class Broken(Exception):
    pass


def raises(*arguments: object) -> Any:
    raise Broken("of the user")


def returns_no_key(*arguments: object) -> Any:
    return ["no", "key"]


def table() -> StickTable:
    return StickTable("string", expire="10m")


PLAIN = Cookie("SRV", signed=False)

Options = Callable[[], dict[str, Any]]

#: the options, and the place that is counted
PLACES: list[tuple[str, Options, str]] = [
    ("the sample of a stick rule", lambda: {"persist": Stick.on(raises, table())}, "the key of a stick rule: raises"),
    (
        "a sample within a converter",
        lambda: {"persist": Stick.on(lower(raises), table())},
        "the key of a stick rule: lower(",
    ),
    (
        "a function that returns no key",
        lambda: {"balance": Hash(returns_no_key)},
        "the key of balance hash: returns_no_key",
    ),
    (
        "the condition of a stick rule",
        lambda: {"persist": Stick.on(hdr("x"), table(), when=raises)},
        "the condition of a stick rule: raises",
    ),
    (
        "the sample of a response",
        lambda: {"persist": Stick.store_response(raises, table())},
        "the key of a stick rule, from a response: raises",
    ),
    ("the sample of learn", lambda: {"persist": Learn(raises, raises)}, "the key of a stick rule: raises"),
    ("the sample of a route", lambda: {"persist": Route(raises, cook("x"))}, "the route: raises"),
    ("use_server", lambda: {"use_server": {"s2": raises}}, "use_server s2: raises"),
    ("force_persist", lambda: {"persist": PLAIN, "force_persist": raises}, "force_persist: raises"),
    ("ignore_persist", lambda: {"persist": PLAIN, "ignore_persist": raises}, "ignore_persist: raises"),
    ("the key of hash", lambda: {"balance": Hash(raises, start=0)}, "the key of balance hash: raises"),
    (
        "the key of a consistent hash",
        lambda: {"balance": Hash(raises, hash_type="consistent")},
        "the key of balance hash: raises",
    ),
    ("the key of source", lambda: {"balance": Source(key=raises)}, "the key of balance source: raises"),
    ("the key of nginx's hash", lambda: {"balance": NginxHash(raises)}, "the key of balance hash: raises"),
    ("the key of ip_hash", lambda: {"balance": IpHash(raises)}, "the key of balance ip_hash: raises"),
    ("log", lambda: {"log": raises}, "log: raises"),
]


@pytest.mark.parametrize("maxconn", [0, 9], ids=["", "counted"])
@pytest.mark.parametrize("options, place", [each[1:] for each in PLACES], ids=[each[0] for each in PLACES])
def test_request_goes_on_without_a_function_that_raises(
    face: Face, options: Options, place: str, maxconn: int, caplog: pytest.LogCaptureFixture
) -> None:
    backend = face.backend(*(face.server(name, maxconn=maxconn) for name in ("s1", "s2")), **options())
    get = face.client(backend)
    responses = [get(headers=[("x", "a")]) for _ in range(3)]
    assert [response.status for response in responses] == [200] * 3
    assert all(not server.in_flight for server in backend.servers)
    ((where, count),) = [each for each in backend.function_failures.counts.items() if each[0].startswith(place)]
    assert count >= 3
    (record,) = [each for each in caplog.records if where in each.getMessage()]
    assert record.levelname == "ERROR" and record.exc_info is not None
    assert record.getMessage().startswith(f"backend web: {where} has raised ")
    assert "the request goes on without it" in record.getMessage()


def test_other_functions_count_as_if_the_one_that_raises_were_not_there(face: Face) -> None:
    keys = table()
    backend = face.backend(
        *(face.server(name) for name in ("s1", "s2", "s3")),
        persist=[Stick.on(raises, table()), Stick.on(hdr("x"), keys)],
        use_server=[("s3", raises), ("s3", lambda request: request.path == "/admin")],
    )
    get = face.client(backend)
    assert [get(headers=[("x", "a")]).server for _ in range(3)] == ["s1"] * 3
    assert get("/admin").server == "s3"
    assert len(keys) == 1


def test_cookie_still_counts_if_a_rule_raises(face: Face) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN, ignore_persist=raises)
    assert [face.client(backend)(cookie="SRV=s2").server for _ in range(3)] == ["s2"] * 3


class BrokenEngine:
    """A persistence of the user's that raises."""

    max_idle = 0.0
    tables = ()

    def __init__(self, where: str) -> None:
        self.fast_path = no_fast_path()
        self._where = where

    def recognise(self, request: Any, *, accept_down: bool = False) -> Any:
        if self._where == "recognise":
            raise Broken("of the user")
        return NO_COOKIE

    def stamp_response(self, *arguments: object) -> Any:
        raise Broken("of the user")

    def state_changed(self, server: object) -> None: ...


class BrokenPersist:
    def __init__(self, where: str) -> None:
        self._where = where

    def cookie_scopes(self) -> tuple[()]:
        return ()

    def build(self, *arguments: object) -> Any:
        return BrokenEngine(self._where)


@pytest.mark.parametrize("beside", [[], [PLAIN]], ids=["alone", "with a cookie"])
@pytest.mark.parametrize("where", ["recognise", "stamp_response"])
def test_request_goes_on_without_a_persistence_that_raises(
    face: Face, where: str, beside: list[Persist], caplog: pytest.LogCaptureFixture
) -> None:
    persist: list[Any] = [BrokenPersist(where), *beside]
    backend = face.backend(face.server("s1"), face.server("s2"), persist=persist)
    face.apps["s1"].headers = [("Set-Cookie", "own=1")]  # the response is edited
    get = face.client(backend)
    responses = [get() for _ in range(3)]
    assert [response.status for response in responses] == [200] * 3
    assert [response.server for response in responses] == ["s1", "s2", "s1"]
    ((place, count),) = backend.function_failures.counts.items()
    assert (place.startswith("persist: "), count) == (True, 3)
    assert len([each for each in caplog.records if each.exc_info]) == 1
    if where == "recognise":
        assert responses[0].decision.reason.value == "persistence has raised an exception"


class BrokenBalance:
    def build(self, servers: Any, rng: Any) -> Any:
        algorithm = RoundRobin().build(servers, rng)
        vars(algorithm)["choose"] = raises
        return algorithm


@pytest.mark.parametrize("maxconn", [0, 9], ids=["", "counted"])
@pytest.mark.parametrize("backups", [False, True], ids=["servers", "backups"])
def test_request_goes_on_without_a_balance_that_raises(face: Face, maxconn: int, backups: bool) -> None:
    servers = [face.server(name, maxconn=maxconn, backup=backups) for name in ("s1", "s2")]
    options: dict[str, Any] = {"allbackups": True} if backups else {}
    backend = face.backend(*servers, balance=BrokenBalance(), **options)
    assert [face.client(backend)().status for _ in range(3)] == [200] * 3
    assert [count for place, count in backend.function_failures.counts.items()] == [6 if backups else 3]


def test_log_that_raises_is_called_for_error_pages_as_well(face: Face) -> None:
    backend = face.backend(face.server("s1"), log=raises)
    backend["s1"].state = "maint"
    assert face.client(backend)().status == 503
    assert backend.function_failures.counts == {"log: raises": 1}
