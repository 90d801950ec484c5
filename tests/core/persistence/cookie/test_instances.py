"""A mark names the instance of a replica, and is valid for that one only."""

import logging
from collections.abc import Callable, Sequence
from typing import cast

import pytest

from sticky_core.http.cookies import CookieKey
from sticky_core.http.messages import Request
from sticky_core.persistence.claim import Claim, PersistenceResult, Reason
from sticky_core.persistence.cookie import values as values_module
from sticky_core.persistence.signing import Signing
from tests.core.persistence.cookie.marks import (
    NAME,
    NEW,
    build,
    cookie,
    marked_value,
    recognise,
    three_servers,
)

INSTANCE_1, INSTANCE_2 = "018bcfe568000000a", "018bcfe568100000a"


@pytest.mark.parametrize(
    "options", [{}, {"maxidle": "8h"}, {"opaque": True}, {"mode": "prefix"}, {"mode": "rewrite"}], ids=str
)
def test_mark_is_valid_only_for_the_instance_that_it_names(options: dict[str, object]):
    servers = three_servers()
    persistence = build(cookie(secret=NEW, **options), servers)
    for server in servers:
        server.instance = INSTANCE_1
    values = [marked_value(persistence, server) for server in servers]
    assert recognise(persistence, f"{NAME}={values[0]}").claim is Claim.VALID
    servers[0].instance = INSTANCE_2
    result = recognise(persistence, f"{NAME}={values[0]}")
    assert (result.claim, result.reason) == (Claim.INVALID, Reason.OTHER_INSTANCE)
    assert [recognise(persistence, f"{NAME}={value}").server for value in values[1:]] == servers[1:]
    assert recognise(persistence, f"{NAME}={marked_value(persistence, servers[0])}").server is servers[0]


def test_plain_marks_name_no_instance():
    servers = three_servers()
    persistence = build(cookie(signed=False), servers)
    servers[0].instance = INSTANCE_1
    assert marked_value(persistence, servers[0]) == "r1"
    servers[0].instance = INSTANCE_2
    assert recognise(persistence, f"{NAME}=r1").claim is Claim.VALID


@pytest.mark.parametrize(
    "named, ours, warnings",
    [
        pytest.param(INSTANCE_2, INSTANCE_1, 1, id="a later instance is of another process"),
        pytest.param(INSTANCE_1, INSTANCE_2, 0, id="an earlier one may be one that ours has replaced"),
        pytest.param(INSTANCE_2, "", 0, id="without an instance of ours none is later"),
    ],
)
def test_only_a_later_instance_is_logged_as_another_process_and_once(
    caplog: pytest.LogCaptureFixture, named: str, ours: str, warnings: int
):
    servers = three_servers()
    persistence = build(cookie(secret=NEW), servers)
    for server in servers:
        server.instance = ours
    signing = Signing([NEW], "web", NAME)
    with caplog.at_level(logging.WARNING, logger="sticky_sessions"):
        for server_id in ("r1", "r2", "r1"):
            assert (
                recognise(persistence, f"{NAME}={signing.sign(f'{server_id}@{named}')}").reason is Reason.OTHER_INSTANCE
            )
    assert len(caplog.records) == warnings
    assert all("StickyWorkers" in record.getMessage() for record in caplog.records)


def test_forged_instance_is_not_logged(caplog: pytest.LogCaptureFixture):
    servers = three_servers()
    persistence = build(cookie(secret=NEW), servers)
    servers[0].instance = INSTANCE_1
    assert recognise(persistence, f"{NAME}=r1@{INSTANCE_2}.{'A' * 43}").reason is Reason.FORGED
    assert caplog.records == []


class InterruptedRequest:
    """A request that calls `action` when it is accessed for the nth time, as if another thread ran at that moment."""

    method = "GET"
    secure = False

    def __init__(self, text: str, accesses: int, action: Callable[[], None]) -> None:
        self._text = text
        self._accesses = accesses
        self._action = action
        self._kept: Sequence[object] | None = None

    def _access(self) -> None:
        self._accesses -= 1
        if self._accesses == 0:
            self._action()

    @property
    def cookie_key(self) -> CookieKey:
        self._access()
        return (self._text,)

    @property
    def forwarded_cookies(self) -> Sequence[object] | None:
        self._access()
        return self._kept

    @forwarded_cookies.setter
    def forwarded_cookies(self, kept: Sequence[object] | None) -> None:
        self._access()
        self._kept = kept

    @property
    def cookies(self) -> tuple[str, ...]:
        self._access()
        return (self._text,)

    def set_forwarded_cookies(self, texts: Sequence[str]) -> None:
        self._access()


@pytest.mark.parametrize("access", range(1, 8))
@pytest.mark.parametrize("options", [{}, {"maxidle": "8h"}, {"mode": "prefix"}], ids=["undated", "dated", "prefix"])
def test_mark_that_is_read_while_its_server_restarts_is_not_valid_afterwards(options: dict[str, object], access: int):
    """Requests take no lock, so a server may restart while a mark of its last instance is read."""
    servers = three_servers()
    persistence = build(cookie(secret=NEW, **options), servers)
    servers[0].instance = INSTANCE_1
    text = f"{NAME}={marked_value(persistence, servers[0])}"

    def restart() -> None:
        servers[0].instance = INSTANCE_2

    persistence.recognise(
        cast(Request, InterruptedRequest(text, access, restart))
    )  # before the restart or after it: both results are right
    restart()
    for _ in range(2):
        assert recognise(persistence, text).reason is Reason.OTHER_INSTANCE


def test_mark_that_is_verified_while_its_server_restarts_is_not_valid_afterwards(
    monkeypatch: pytest.MonkeyPatch,
):
    """The same, between the check of the instance and the moment when the value is remembered."""
    servers = three_servers()
    persistence = build(cookie(secret=NEW, maxidle="8h"), servers)
    servers[0].instance = INSTANCE_1
    text = f"{NAME}={marked_value(persistence, servers[0])}"

    def restarting(*args: object) -> PersistenceResult:
        monkeypatch.setattr(values_module, "PersistenceResult", PersistenceResult)
        servers[0].instance = INSTANCE_2
        return PersistenceResult(*args)  # type: ignore[arg-type] # as they came

    monkeypatch.setattr(values_module, "PersistenceResult", restarting)
    recognise(persistence, text)
    assert servers[0].instance == INSTANCE_2
    assert recognise(persistence, text).reason is Reason.OTHER_INSTANCE
