"""Plan: what a configuration would change about a backend, and how many clients it would move, from where to where."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, fields

from sticky_core.backend.config import BackendConfig
from sticky_core.balance.algorithm import Balance, HashAware
from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.server.server import Server

#: From one server to another, by name; None: wherever balance sends it.
FromTo = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration would change. Nothing is changed by asking.

    `added`, `removed`: servers by name. `restarted`: those whose app is another, so that its memory begins anew.
    `changed`: those that are changed in place. `sessions`: how many of the sessions that stick tables know of would
    lose their server, and from where to where they would move. `keys`: the same of hash keys, as a share of all (0 to
    1), by a sample; None where balance does not go by keys. Clients that are bound by a cookie are known to nobody but
    themselves: those of the servers in `removed` and `restarted` move, and those of no others.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    sessions: Mapping[FromTo, int] = field(default_factory=dict[FromTo, int])
    keys: Mapping[FromTo, float] | None = None

    @property
    def moved_sessions(self) -> int:
        """How many sessions that stick tables know of would move, in all."""
        return sum(self.sessions.values())

    @property
    def moved_keys(self) -> float:
        """What share of hash keys would move, in all, from 0 to 1."""
        return sum(self.keys.values()) if self.keys else 0.0

    def __str__(self) -> str:
        lines = [
            f"{word}: {', '.join(names)}"
            for word, names in (
                ("added", self.added),
                ("removed", self.removed),
                ("restarted", self.restarted),
                ("changed", self.changed),
            )
            if names
        ]
        lines += (f"sessions {_way(way)}: {count}" for way, count in sorted(self.sessions.items(), key=_most))
        lines += (f"keys {_way(way)}: {share:.2%}" for way, share in sorted((self.keys or {}).items(), key=_most))
        return "\n".join(lines) or "nothing changes"


def _way(way: FromTo) -> str:
    before, after = way
    return f"{before or 'by balance'} -> {after or 'by balance'}"


def _most(item: tuple[FromTo, float]) -> float:
    return -item[1]


def moved_sessions(sessions: Mapping[Server, int], gone: Container[Server]) -> dict[FromTo, int]:
    """Of so many sessions of each server, those whose server goes: balance has them."""
    return {(server.name, None): count for server, count in sessions.items() if server in gone}


def moved_keys(
    before: BackendConfig,
    servers: Sequence[Server],
    after: BackendConfig,
    servers_after: Sequence[Server],
    count: int,
) -> dict[FromTo, float] | None:
    """Of `count` keys that are drawn, as shares of all, those that move from one server to another. None if there are
    no keys. The servers are shadows, so that nobody else's are looked up.
    """
    rng = random.Random(0)
    one = before.balance.build([server for server in servers if not server.config.backup], rng)
    other = after.balance.build([server for server in servers_after if not server.config.backup], rng)
    if not isinstance(one, HashAware):
        return None
    # Where something else is hashed, or in another way, a key tells nothing of where it will fall.
    same = _hashed(before.balance) == _hashed(after.balance)
    moved: Counter[FromTo] = Counter()
    for _ in range(count):
        number = rng.getrandbits(32)
        was = one.server_for_hash(number)
        then = other.server_for_hash(number if same else rng.getrandbits(32)) if isinstance(other, HashAware) else None
        way = (None if was is None else was.name, None if then is None else then.name)
        if way[0] != way[1]:
            moved[way] += 1
    return {way: times / count for way, times in moved.items()}


_PLACES = {field.name for field in fields(Hashing)}


def _hashed(balance: Balance) -> object:
    """What of a request is hashed, and how; not where that leads."""
    if not isinstance(balance, Hashing):
        return balance
    kind = HashType.of(balance.hash_type)
    what = tuple(getattr(balance, each.name) for each in fields(balance) if each.name not in _PLACES)
    return type(balance), what, kind.function, kind.avalanche
