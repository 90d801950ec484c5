"""Plan: what another configuration would change about a backend, and how many clients it would move, from which server
to which.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

from sticky_core.backend.config import BackendConfig
from sticky_core.balance.algorithm import Algorithm, Balance, HashAware
from sticky_core.balance.hashing import Hashing, HashType
from sticky_core.persistence.persistence_set import PersistenceSet
from sticky_core.server.server import Server

#: From one server to another, by name; None: the server that balance chooses.
FromTo = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration would change (`Backend.plan`).

    - `added`, `removed`: servers by name.
    - `restarted`: servers with another app, so that their memory is empty.
    - `changed`: servers that are changed in place.
    - `options`: options of the backend that change, by name.
    - `is_reordered`: whether the servers are in another order.
    - `marks`: the servers from which clients that are bound by a cookie or a route would move, each with the server to
      which they would; None: the server that balance chooses. They are in no table, so they can't be counted.
    - `notes`: what else the change means to clients, as sentences.
    - `sessions`: how many of the sessions in stick tables would move, by `(from, to)` servers.
    - `keys`: which share of all hash keys would move, 0 to 1, by `(from, to)` servers, estimated with random keys; None
      if balance does not hash keys.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    is_reordered: bool = False
    marks: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    sessions: Mapping[FromTo, int] = field(default_factory=dict[FromTo, int])
    keys: Mapping[FromTo, float] | None = None
    notes: tuple[str, ...] = ()

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
                ("options", self.options),
            )
            if names
        ]
        if self.is_reordered:
            lines.append("the same servers in another order")
        lines += (f"cookies {_arrow(from_to)}" for from_to in self.marks.items())
        lines += (
            f"sessions {_arrow(from_to)}: {count}"
            for from_to, count in sorted(self.sessions.items(), key=_largest_first)
        )
        lines += (
            f"keys {_arrow(from_to)}: {share:.2%}"
            for from_to, share in sorted((self.keys or {}).items(), key=_largest_first)
        )
        lines += self.notes
        return "\n".join(lines) or "nothing changes"


def _arrow(from_to: FromTo) -> str:
    before, after = from_to
    return f"{before or 'by balance'} -> {after or 'by balance'}"


def _largest_first(item: tuple[FromTo, float]) -> float:
    return -item[1]


def moved_sessions(before: PersistenceSet, after: PersistenceSet, gone: Container[str]) -> dict[FromTo, int]:
    """Return how many entries of the stick tables of `before` lead to another server under `after`, or to none: then
    balance chooses one. `gone`: servers that are removed or start anew. Every entry is read.
    """
    moved: Counter[FromTo] = Counter()
    used_after = {used.table: used for each in after.members for used in each.tables}
    for table, used in {used.table: used for each in before.members for used in each.tables}.items():
        new = used_after.get(table)
        for text, count in table.per_server().items():
            server = used.server_of(text)
            if server is None:
                continue
            now = new.server_of(text) if new is not None else None
            name = now.name if now is not None and now.name not in gone else None
            if name != server.name:
                moved[server.name, name] += count
    return dict(moved)


def notes_on_cookies(before: BackendConfig, after: BackendConfig) -> Iterator[str]:
    """Yield a sentence for each cookie that browsers would keep beside its successor of the same name."""
    scopes = {scope.name: scope for scope in before.cookie_scopes if scope.is_inserted}
    for scope in after.cookie_scopes:
        was = scopes.get(scope.name)
        if was is not None and (was.path, was.domains) != (scope.path, scope.domains):
            yield (
                f"cookie {scope.name} has another path or domain, so browsers keep the one that they have beside a new "
                "one: a client that has moved to another server returns once its former server is back"
            )


class HashKeys:
    """Random hashes of keys, to find out which of them another configuration would move. `count`: how many."""

    def __init__(self, count: int) -> None:
        self._rng = random.Random(0)
        self._numbers = [self._rng.getrandbits(32) for _ in range(count)]

    def servers_before(self, algorithm: HashAware) -> list[Server | None]:
        """Return the server of each hash. Under the lock of the backend, if the algorithm is in use."""
        return list(map(algorithm.server_for_hash, self._numbers))

    def moved(
        self,
        servers_before: Sequence[Server | None],
        before: BackendConfig,
        after: BackendConfig,
        new: Algorithm,
    ) -> dict[FromTo, float]:
        """Return which hashes move from one server to another, as shares of all. `new`: the algorithm of `after`."""
        numbers = self._numbers
        if _hash_input(before.balance) != _hash_input(after.balance):
            # it hashes another thing, or in another way: hashes before and after it are unrelated
            numbers = [self._rng.getrandbits(32) for _ in numbers]
        now: Iterable[Server | None] = [None] * len(numbers)
        if isinstance(new, HashAware):
            now = map(new.server_for_hash, numbers)
        moved: Counter[FromTo] = Counter()
        for (was, server), times in Counter(zip(servers_before, now, strict=True)).items():
            from_to = (None if was is None else was.name, None if server is None else server.name)
            if from_to[0] != from_to[1]:
                moved[from_to] += times
        return {from_to: times / len(numbers) for from_to, times in moved.items()}


#: the options of a hashing balance that decide which server gets a hash, not what is hashed
_PLACEMENT_OPTIONS = {field.name for field in fields(Hashing)}


def _hash_input(balance: Balance) -> object:
    """Return what is hashed, and how, as a value that can be compared. Which server gets a hash is left out."""
    if not isinstance(balance, Hashing):
        return balance
    kind = HashType.parse(balance.hash_type)
    options = tuple(getattr(balance, each.name) for each in fields(balance) if each.name not in _PLACEMENT_OPTIONS)
    return type(balance), options, kind.function, kind.avalanche
