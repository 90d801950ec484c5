"""Slow start: weight and maxconn grow after a recovery."""

from dataclasses import replace
from typing import Any

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.clock import ManualClock
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health
from tests.core.backend.backends import app, choose_names, make_backend


def recovered(**options: Any) -> tuple[Backend, ManualClock]:
    backend, clock = make_backend(Server("s1", app, slowstart=32, **options), Server("s2", app))
    assert backend["s1"].throttle == 100, "never at the start of the process"
    backend["s1"].health = Health.DOWN
    clock.advance(100)
    backend["s1"].health = Health.UP
    return backend, clock


@pytest.mark.parametrize(
    "after, eweight", [(0, 1), (1.9, 1), (2, 2), (16, 9), (30, 16), (32, 16)], ids=lambda value: f"{value}"
)
def test_weight_grows_from_a_sixteenth(after: float, eweight: int):
    backend, clock = recovered()
    clock.advance(after)
    backend["s1"].refresh_state(clock.monotonic())
    assert backend["s1"].eweight == eweight


def test_weight_grows_step_by_step_as_servers_are_chosen():
    backend, clock = recovered()
    seen = []
    for _ in range(40):
        choose_names(backend, 1)
        seen.append(backend["s1"].eweight)
        clock.advance(1)
    assert seen[0] == 1 and seen == sorted(seen) and seen[-1] == 16
    assert not backend.monitor.has_timers


def test_maxconn_grows_as_well():
    backend, clock = recovered(maxconn=100)
    seen: dict[int, int] = {}
    for second in (0, 8, 16, 32):
        clock.advance(second - max(seen, default=0))
        backend.monitor.run_due_timers()
        seen[second] = backend["s1"].limit
    assert seen == {0: 1, 8: 25, 16: 50, 32: 100}


def test_new_clients_come_slowly_and_bound_ones_at_once():
    backend, _ = recovered()
    assert choose_names(backend, 17).count("s1") == 1
    assert backend["s1"].usable


def test_slow_start_follows_maintenance_and_not_a_drain():
    backend, _ = make_backend(Server("s1", app, slowstart=32))
    backend["s1"].state = AdminState.DRAIN
    backend["s1"].state = AdminState.READY
    assert backend["s1"].throttle == 100
    backend["s1"].state = AdminState.MAINT
    backend["s1"].state = AdminState.READY
    assert backend["s1"].throttle == 6


def test_it_ends_at_once_when_the_duration_is_removed():
    backend, clock = recovered()
    clock.advance(8)
    backend.apply(
        replace(backend.config, servers=tuple(replace(server, slowstart=None) for server in backend.config.servers))
    )
    assert backend["s1"].throttle == 100
    assert not backend.monitor.has_timers
