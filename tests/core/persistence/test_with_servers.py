"""A persistence that was copied for other servers is like one that is built for them."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError
from sticky_core.persistence import foreign
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import Persist, ReusablePersistence
from sticky_core.persistence.route import Route
from sticky_core.persistence.stick.config import Learn, Stick
from sticky_core.persistence.token import Token
from sticky_core.samples.request import cook, src
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from tests.counting import count_calls

SECRETS = ["a secret of the past, long enough", "a secret of today, long enough"]
PERSISTS = [
    pytest.param(lambda: Cookie("SRV", secret=SECRETS), id="signed"),
    pytest.param(lambda: Cookie("SRV", signed=False), id="plain"),
    pytest.param(lambda: Cookie("SRV", secret=SECRETS, opaque=True), id="opaque"),
    pytest.param(lambda: Cookie("SRV", signed=False, dynamic="a key"), id="dynamic"),
    pytest.param(lambda: Follow("SID", Cookie("SRV", secret=SECRETS)), id="following"),
    pytest.param(lambda: Stick.on(src), id="stick"),
    pytest.param(lambda: Stick.on(src, table=StickTable("ip", srvkey="addr")), id="stick by address"),
    pytest.param(lambda: Learn.cookie("SID"), id="learn"),
    pytest.param(lambda: Token(header="x-token"), id="token"),
    pytest.param(lambda: Route(cook("SID")), id="route"),
    pytest.param(lambda: NginxCookie("SRV"), id="nginx"),
    pytest.param(lambda: foreign.caddy(), id="caddy"),
    pytest.param(lambda: foreign.traefik("SRV"), id="traefik"),
    pytest.param(lambda: foreign.envoy("SRV"), id="envoy"),
]


def known(engine: Any) -> dict[str, object]:
    """Return what an engine knows of its servers, for comparison."""
    found: dict[str, object] = {}
    for part in (
        engine,
        getattr(engine, "_ids", None),
        getattr(engine, "_values", None),
        getattr(engine, "_texts", None),
        getattr(engine, "_former", None),
        getattr(getattr(engine, "_ids", None), "_former_ids", None),
        getattr(getattr(engine, "_texts", None), "_former", None),
    ):
        for name, value in vars(part).items() if hasattr(part, "__dict__") else ():
            if isinstance(value, dict):
                found[f"{type(part).__name__}.{name}"] = value
    assert found
    return found


def make_server(number: int, rng: random.Random) -> Server:
    """Return a server; some share their id or their address with others."""
    cookie = rng.choice([None, None, "shared", "other", ""])
    address = number if rng.random() < 0.7 else 1
    formerly = rng.sample(["shared", "other", "old", "s1", "10.0.0.1:80", "10.0.0.2:80"], rng.choice([0, 0, 2]))
    server = Server(f"s{number}", f"http://10.0.0.{address}:80", cookie=cookie, formerly=formerly)
    if rng.random() < 0.3:
        server.instance = f"i{number}"
    return server


@pytest.mark.parametrize("persist", PERSISTS)
@pytest.mark.parametrize("seed", range(6))
def test_copy_for_other_servers_is_like_a_persistence_built_for_them(persist: Callable[[], Persist], seed: int):
    rng, clock = random.Random(seed), ManualClock()
    servers = [make_server(number, rng) for number in range(1, 9)]
    engine = persist().build("web", servers, clock)
    for number in range(10, 16):
        added = [make_server(number, rng)]
        removed = rng.sample(servers, rng.randrange(3))
        servers = [server for server in servers if server not in removed]
        servers.insert(rng.choice([0, len(servers), len(servers)]), added[0])
        before = {name: dict(value) for name, value in known(engine).items()}  # type: ignore[call-overload]
        assert isinstance(engine, ReusablePersistence)
        copied = engine.with_servers(servers, added, removed)
        assert known(engine) == before, "it serves the requests that began with it"
        fresh = persist().build("web", servers, clock)
        copied_state, fresh_state = known(copied), known(fresh)
        # where several servers have one address, either of them may have it
        copied_texts, fresh_texts = (each.pop("ServerTexts._server_of", {}) for each in (copied_state, fresh_state))
        assert copied_state == fresh_state
        assert set(copied_texts) == set(fresh_texts)  # type: ignore[call-overload]
        engine = copied


@pytest.mark.parametrize("persist", PERSISTS)
def test_server_with_another_id_is_removed_and_added(persist: Callable[[], Persist]):
    servers = [Server(f"s{number}", f"http://10.0.0.{number}", cookie=f"c{number}") for number in range(1, 4)]
    engine = persist().build("web", servers, ManualClock())
    changed = servers[1]
    changed.update(Server("s2", "http://10.0.0.2", cookie="c3").requested)
    assert isinstance(engine, ReusablePersistence)
    copied = engine.with_servers(servers, [changed], [changed])
    fresh = persist().build("web", servers, ManualClock())
    for state in (known(copied), known(fresh)):
        for name, value in state.items():
            assert known(copied)[name] == known(fresh)[name] == value


def test_server_that_persistence_cannot_work_with_is_refused():
    engine = Cookie("SRV", signed=False).build("web", [Server("s1", "http://10.0.0.1")], ManualClock())
    new = Server("s2", "http://10.0.0.2", cookie="a|b")
    assert isinstance(engine, ReusablePersistence)
    with pytest.raises(ConfigError, match="would begin the dates"):
        engine.with_servers([new], [new], [])


@pytest.mark.parametrize("persist", PERSISTS)
def test_copy_costs_the_same_however_many_servers_there_are(persist: Callable[[], Persist]):
    costs: list[int] = []
    for size in (50, 50, 100):  # the first time, caches of addresses are filled
        servers = [Server(f"s{number}", f"http://10.0.0.{number}") for number in range(1, size + 1)]
        engine = persist().build("web", servers, ManualClock())
        new = Server("new", "http://10.0.1.1")
        assert isinstance(engine, ReusablePersistence)
        costs.append(count_calls(partial(engine.with_servers, [*servers[1:], new], [new], servers[:1])))
    assert costs[1] == costs[2]
