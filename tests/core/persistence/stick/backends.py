"""Backends and tables for the tests of stick rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sticky_core.backend.backend import Backend
from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.persistence import Persist
from sticky_core.samples.request import hdr
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable

Headers = Sequence[tuple[str, str]]

A, B = hdr("a"), hdr("b")

ONE, OTHER = [("a", "x")], [("b", "y")]
BOTH = [*ONE, *OTHER]
SRV = Cookie("SRV", signed=False, nocache=False)


def make_table(**entries: str) -> StickTable:
    """Return a table of texts with these entries."""
    table = StickTable("string", expire=80)
    for key, server in entries.items():
        table.entries.put(key, server, 0.0)
    return table


def make_backend(*persist: Persist, count: int = 3, start: int = 0, **options: Any) -> Backend:
    """Return a backend with the servers s1, s2, s3 …; new clients go to s1, then s2."""
    servers = options.pop("servers", None) or [Server(f"s{n}", f"http://10.0.0.{n}") for n in range(1, count + 1)]
    configured: dict[str, Any] = {
        "balance": RoundRobin(start=start),
        "clock": ManualClock(),
        "persist": persist,
    } | options
    return Backend("web", servers, **configured)


def entries_of(table: StickTable) -> dict[str, str]:
    return {entry.key: entry.server for entry in table}


def entries_by_clock(backend: Backend, table: StickTable) -> dict[str, str]:
    """Return the entries of a table that have not expired by the backend's clock."""
    return {table.key_text(key): server for key, server, _ in table.entries.items(backend.clock.monotonic())}


def advance(backend: Backend, seconds: float) -> None:
    assert isinstance(backend.clock, ManualClock)
    backend.clock.advance(seconds)
