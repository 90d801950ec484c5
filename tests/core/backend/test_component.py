"""Components: one of each kind per backend; they prepare a change, undo it, or refuse it."""

import threading
from collections.abc import Callable, Iterable, Iterator

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.backend.change import Change
from sticky_core.errors import ConfigError
from sticky_core.server.config import ServerConfig
from tests.core.backend.backends import CountedComponent, SlowComponent, build_backend, names, servers, urls


def test_one_component_of_each_kind_is_made_at_the_first_call():
    class Apps(CountedComponent): ...

    class Checks(CountedComponent): ...

    one, other = Backend("web", servers("s1")), Backend("web", servers("s1"))
    assert Apps.made == 0
    apps = one.component(Apps)
    assert one.component(Apps) is apps
    assert apps.backend is one
    assert other.component(Apps) is not apps
    assert isinstance(one.component(Checks), Checks)
    assert (Apps.made, Checks.made) == (2, 1)


def test_concurrent_threads_get_the_same_component():
    class Apps(CountedComponent): ...

    backend = Backend("web", servers("s1"))
    together = threading.Barrier(16)
    got: list[Apps] = []

    def run() -> None:
        together.wait()
        got.append(backend.component(Apps))

    threads = [threading.Thread(target=run) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 16
    assert len(set(got)) == Apps.made == 1


class ReadyComponent(SlowComponent):
    """Does not."""

    def prepare(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        on_ready(None)


def test_change_is_not_in_force_before_all_components_are_ready():
    web = build_backend(urls(1))
    slow, quick = web.component(SlowComponent), web.component(ReadyComponent)
    change = web.add(*urls(2))
    assert not change.is_in_force and names(web) == ["s1"] and change.wait(0) is False
    with pytest.raises(ConfigError, match="another change is being prepared: await it first"):
        web.add(*urls(3))
    assert slow.ready is not None
    slow.ready(None)
    assert change.is_in_force and change.wait(0) and names(web) == ["s1", "s2"]
    assert slow.swaps == quick.swaps == [web.snapshot]


def test_all_components_undo_a_change_that_one_cannot_prepare():
    web = build_backend(urls(1))
    slow, quick = web.component(SlowComponent), web.component(ReadyComponent)
    before = web.config, web.snapshot
    change = web.add(*urls(2))
    assert slow.ready is not None
    slow.ready(RuntimeError("no luck"))
    assert (web.config, web.snapshot) == before and slow.undone == quick.undone == [change]
    with pytest.raises(RuntimeError, match="no luck"):
        change.wait()
    assert "failed" in repr(change)
    assert web.component(SlowComponent).ready is not None and not web.add(*urls(2)).is_in_force, "another may be tried"


class RefusingComponent(ReadyComponent):
    def server_problems(self, servers: Iterable[ServerConfig]) -> Iterator[str]:
        yield from (f"server {server.name} is not to my taste" for server in servers)


def test_component_refuses_servers():
    web = build_backend(urls(1))
    web.component(RefusingComponent)
    with pytest.raises(ConfigError, match="backend web: server s2 is not to my taste"):
        web.add(*urls(2))
    assert names(web) == ["s1"]
