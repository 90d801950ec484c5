"""Backend: its servers by name, its repr, and that nothing keeps it when it is not used any more."""

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.counters import Total
from sticky_core.server.state import AdminState, Health
from tests.core.backend.backends import servers


def test_repr_shows_name_and_servers():
    backend = Backend("app", servers("s1", "s2", "s3"))
    backend["s1"].in_flight.extend([None] * 3)
    for server in backend.servers[:2]:
        server.counters.cell[Total.HRSP_2XX] += 100 - len(server.in_flight)
    backend["s2"].state = AdminState.DRAIN
    backend["s3"].health = Health.DOWN
    assert repr(backend) == "<Backend app: s1 UP 3/100, s2 DRAIN 0/100, s3 DOWN 0/0>"


def test_server_is_found_by_its_name():
    web = servers("s1", "s2")
    backend = Backend("web", web)
    assert [backend["s1"], backend["s2"]] == web
    assert backend.servers == tuple(web)


@pytest.mark.parametrize("name", ["s3", "S1", "", "s1 "])
def test_unknown_name_is_a_key_error_that_names_it(name: str):
    with pytest.raises(KeyError, match=f"backend web has no server {name}"):
        Backend("web", servers("s1", "s2"))[name]


def test_unreferenced_backend_is_freed():
    import gc
    import weakref

    backend = Backend("web", servers("s1"), persist=Cookie("SRV", signed=False), balance="leastconn")
    gone = weakref.ref(backend)
    del backend
    gc.collect()
    assert gone() is None
