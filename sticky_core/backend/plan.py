"""Plan: what another configuration would change about a backend, and how many clients it would move, from which server
to which.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, fields

from sticky_core.backend.config import BackendConfig
from sticky_core.balance.algorithm import Balance, HashAware
from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.server.server import Server

#: From one server to another, by name; None: the server that balance chooses.
FromTo = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration would change (`Backend.plan`).

    - `added`, `removed`: servers by name.
    - `restarted`: servers with another app, so that their memory is empty.
    - `changed`: servers that are changed in place.
    - `sessions`: how many of the sessions in stick tables would move, by `(from, to)` servers.
    - `keys`: which share of all hash keys would move, 0 to 1, by `(from, to)` servers, estimated with random keys; None
      if balance does not hash keys.

    Clients bound by a cookie are in no table: those of the servers in `removed` and `restarted` move, and no others.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    sessions: Mapping[FromTo, int] = field(default_factory=dict[FromTo, int])
    keys: Mapping[FromTo, float] | None = None

    @property
    def moved_sessions(self) -> int:
        """How many sessions in stick tables would move, in all."""
        return sum(self.sessions.values())

    @property
    def moved_keys(self) -> float:
        """Which share of hash keys would move, in all, from 0 to 1."""
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
        lines += (
            f"sessions {_arrow(from_to)}: {count}"
            for from_to, count in sorted(self.sessions.items(), key=_largest_first)
        )
        lines += (
            f"keys {_arrow(from_to)}: {share:.2%}"
            for from_to, share in sorted((self.keys or {}).items(), key=_largest_first)
        )
        return "\n".join(lines) or "nothing changes"


def _arrow(from_to: FromTo) -> str:
    before, after = from_to
    return f"{before or 'by balance'} -> {after or 'by balance'}"


def _largest_first(item: tuple[FromTo, float]) -> float:
    return -item[1]


def moved_sessions(sessions: Mapping[Server, int], removed: Container[Server]) -> dict[FromTo, int]:
    """Return those of `sessions`, counted by server, that lose their server: balance chooses another one for them."""
    return {(server.name, None): count for server, count in sessions.items() if server in removed}


def moved_keys(
    before: BackendConfig,
    servers: Sequence[Server],
    after: BackendConfig,
    servers_after: Sequence[Server],
    count: int,
) -> dict[FromTo, float] | None:
    """Draw `count` hash keys and return which of them move from one server to another, as shares of all. None if
    `before` does not hash keys. The servers are trial copies, so that those in use are not touched.
    """
    rng = random.Random(0)
    old = before.balance.build([server for server in servers if not server.config.backup], rng)
    new = after.balance.build([server for server in servers_after if not server.config.backup], rng)
    if not isinstance(old, HashAware):
        return None
    # if the change hashes another thing, or in another way, hashes before and after it are unrelated
    has_same_hash = _hash_input(before.balance) == _hash_input(after.balance)
    moved: Counter[FromTo] = Counter()
    for _ in range(count):
        number = rng.getrandbits(32)
        server_before = old.server_for_hash(number)
        server_after: Server | None = None
        if isinstance(new, HashAware):
            server_after = new.server_for_hash(number if has_same_hash else rng.getrandbits(32))
        from_to = (
            server_before.name if server_before is not None else None,
            server_after.name if server_after is not None else None,
        )
        if from_to[0] != from_to[1]:
            moved[from_to] += 1
    return {from_to: times / count for from_to, times in moved.items()}


#: the options of a hashing balance that decide which server gets a hash, not what is hashed
_PLACEMENT_OPTIONS = {field.name for field in fields(Hashing)}


def _hash_input(balance: Balance) -> object:
    """Return what is hashed, and how, as a value that can be compared. Which server gets a hash is left out."""
    if not isinstance(balance, Hashing):
        return balance
    kind = HashType.parse(balance.hash_type)
    options = tuple(getattr(balance, each.name) for each in fields(balance) if each.name not in _PLACEMENT_OPTIONS)
    return type(balance), options, kind.function, kind.avalanche
