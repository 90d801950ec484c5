"""Plan: what another configuration would change about a backend, and how many clients it would move, from which server
to which.
"""

from __future__ import annotations

import random
import sys
import threading
from array import array
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import field, fields, replace
from typing import TYPE_CHECKING

from sticky_core.backend.change import Change
from sticky_core.backend.config import BackendConfig
from sticky_core.backend.reconfigure import trial_copies
from sticky_core.backend.snapshot import Snapshot
from sticky_core.backend.trial_marks import TrialPersistences, moved_marks, servers_with_marks
from sticky_core.balance.algorithm import Algorithm, Balance, HashAware
from sticky_core.balance.hashing import HashAlgorithm, Hashing, HashType
from sticky_core.balance.moved_hashes import HASHES
from sticky_core.clock import Rng
from sticky_core.deferred.dataclass import dataclass
from sticky_core.http.dates import http_date
from sticky_core.persistence.persistence_set import PersistenceSet
from sticky_core.server.server import Server

if TYPE_CHECKING:
    from sticky_core.backend.trial_accepts import SuggestedAccepts

#: From one server to another, by name; None: the server that balance chooses.
FromTo = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration would change (`Backend.plan`).

    - `added`, `removed`: servers by name.
    - `renamed`: servers that get another name, each with that name (`Server(formerly=...)`). Their clients stay, unless
      they are apps in this process, which start anew.
    - `restarted`: servers with another app, so that their memory is empty.
    - `changed`: servers that are changed in place.
    - `options`: options of the backend that change, by name.
    - `is_reordered`: whether the servers are in another order.
    - `marks`: the servers from which clients that are bound by a cookie or a route would move, each with the server to
      which they would; None: the server that balance chooses. They are in no table, so they can't be counted.
    - `requests`: how many requests the servers in `marks` have served in this process, since they can be counted.
    - `accepts`: which `Cookie(accepts=...)` would keep such clients, if it is other cookies that would lose them: as
      few accepted cookies as keep as many clients as can be kept. Each was tried.
    - `notes`: what else the change means to clients, as sentences.
    - `sessions`: how many of the sessions in stick tables would move, by `(from, to)` servers.
    - `keys`: which share of all hash keys would move, 0 to 1, by `(from, to)` servers; None if balance does not hash
      keys. It is exact where few servers of a consistent hash change, and else estimated with random keys.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    is_reordered: bool = False
    marks: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    requests: Mapping[str, int] = field(default_factory=dict[str, int])
    accepts: tuple[SuggestedAccepts, ...] = ()
    sessions: Mapping[FromTo, int] = field(default_factory=dict[FromTo, int])
    keys: Mapping[FromTo, float] | None = None
    notes: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])

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
        if self.renamed:
            lines.append(f"renamed: {', '.join(map(_arrow, self.renamed.items()))}")
        if self.is_reordered:
            lines.append("the same servers in another order")
        for from_to in self.marks.items():
            served = self.requests.get(from_to[0], 0)
            lines.append(f"cookies {_arrow(from_to)}{f' (requests served: {served})' if served else ''}")
        lines += map(str, self.accepts)
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


def plan_of(
    before: Snapshot, change: Change, servers: Mapping[str, Server], keys: Mapping[FromTo, float] | None
) -> Plan:
    """Return the plan of a change that is drafted. `before`: the snapshot that it would replace. `servers`: the servers
    of the backend, by name. `keys`: as `moved_keys` returns them.
    """
    assert change.trial_persistences is not None
    removed = {server.name: replacement for server, replacement in change.removed.items()}
    renamed = {server.name: successor.name for server, successor in change.difference.renamed.items()}
    marks, accepts = _moved_marks(before, change, set(removed))
    requests = {name: server.counters.stot for name in marks if (server := servers.get(name)) is not None}
    return Plan(
        added=tuple(server.name for server in change.added if server not in change.removed.values()),
        removed=tuple(name for name, replacement in removed.items() if replacement is None),
        renamed=renamed,
        restarted=tuple(
            name for name, replacement in removed.items() if replacement is not None and name not in renamed
        ),
        changed=tuple(server.name for server in change.changed),
        options=change.options,
        is_reordered=change.is_reordered,
        marks=marks,
        requests=requests,
        accepts=tuple(replace(each, requests=sum(requests.get(name, 0) for name in each.servers)) for each in accepts),
        sessions=moved_sessions(before.persistences, change.trial_persistences, removed, kept_names(change)),
        keys=keys,
        notes=(
            *notes_on_cookies(before.config, change.config),
            *_notes_on_renamed(change),
            *_notes_on_accepted(before, change.config),
        ),
    )


def kept_names(change: Change) -> dict[str, str]:
    """Return the servers that keep their clients under another name, each with that name. An app in this process does
    not: it starts anew.
    """
    return {
        server.name: successor.name
        for server, successor in change.difference.renamed.items()
        if not server.is_in_process and not successor.is_in_process
    }


def _notes_on_renamed(change: Change) -> Iterator[str]:
    kept = kept_names(change)
    for server, successor in change.difference.renamed.items():
        if server.name not in kept:
            yield f"{successor.name}, formerly {server.name}, is an app in this process: it starts with empty memory"


def _moved_marks(
    before: Snapshot, change: Change, gone: set[str]
) -> tuple[dict[str, str | None], Sequence[SuggestedAccepts]]:
    """Return where clients would move from that are bound by a cookie, and to which servers; and which `accepts` would
    keep them. If the snapshot is derived, only servers with the marks of a server that is added, removed or changed are
    looked at. `gone`: servers that are removed or start anew.
    """
    kept = kept_names(change)
    if change.is_derived and change.trial_persistences is not None:
        now = TrialPersistences.of(before.config, before.persistences)
        after = TrialPersistences.of(change.config, change.trial_persistences)
        sharing = servers_with_marks(now, after, change.trial_servers)
        sharing_servers = (server for server in before.servers if server.name in sharing)
        looked_at = [*dict.fromkeys((*change.removed, *change.changed, *sharing_servers))]
        return moved_marks(now, after, looked_at, gone, kept), ()
    servers = [server.trial_copy(server.requested) for server in before.servers]
    copies = trial_copies(change)
    now = TrialPersistences(before.config, servers, before.clock)
    marks = moved_marks(now, TrialPersistences(change.config, copies, before.clock), servers, gone, kept)
    lost = {each: kept.get(each.name, each.name) for each in servers if each.name in marks}
    lost = {server: name for server, name in lost.items() if server.name in kept or server.name not in gone}
    if not lost or before.config.persist == change.config.persist:  # no cookie is read otherwise than before
        return marks, ()
    from sticky_core.backend.trial_accepts import suggested_accepts

    return marks, suggested_accepts(now, lost, change.config, copies, before.clock)


def _notes_on_accepted(before: Snapshot, after: BackendConfig) -> Iterator[str]:
    """Yield a sentence for each mark that would be accepted no more, with how many requests came with it."""
    if before.config.persist == after.persist:
        return
    from sticky_core.backend.trial_accepts import accepted_by

    remaining = [each for persist in after.persist for each in (persist, *accepted_by(persist))]
    for accepted in before.persistences.accepted:
        for persist, counted in accepted.counts_by_persist():
            if persist not in remaining and not accepted.has_ended:
                came = counted.honoured + counted.unknown
                last = "" if counted.last is None else f", the last on {http_date(counted.last)}"
                yield (
                    f"cookie {counted.cookie} would accept {counted.accepted} no more "
                    f"(requests with it in this process: {came}{last})"
                )


def moved_sessions(
    before: PersistenceSet, after: PersistenceSet, gone: Container[str], renamed: Mapping[str, str]
) -> dict[FromTo, int]:
    """Return how many entries of the stick tables of `before` lead to another server under `after`, or to none: then
    balance chooses one. `gone`: servers that are removed or start anew. `renamed`: those of them that keep their
    clients under another name, with that name. Every entry is read.
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
            if name != renamed.get(server.name, server.name):
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
        self._count = count
        self._numbers = self._draw()

    def _draw(self) -> Sequence[int]:
        return array("I", self._rng.getrandbits(32 * self._count).to_bytes(4 * self._count, sys.byteorder))

    def servers_before(self, algorithm: HashAware) -> list[Server | None]:
        """Return the server of each hash. Under the lock of the backend, if the algorithm is in use."""
        return _servers_for_hashes(algorithm, self._numbers)

    def moved(
        self,
        servers_before: Sequence[Server | None],
        before: BackendConfig,
        after: BackendConfig,
        new: Algorithm,
        renamed: Mapping[str, str],
    ) -> dict[FromTo, float]:
        """Return which hashes move from one server to another, as shares of all. `new`: the algorithm of `after`.
        `renamed`: as for `moved_sessions`.
        """
        numbers = self._numbers
        if _hash_input(before.balance) != _hash_input(after.balance):
            numbers = self._draw()  # another thing is hashed, or in another way: hashes before and after are unrelated
        now: Sequence[Server | None] = [None] * self._count
        if isinstance(new, HashAware):
            now = _servers_for_hashes(new, numbers)
        return _shares(Counter(zip(_names(servers_before), _names(now), strict=True)), self._count, renamed)


def _servers_for_hashes(algorithm: HashAware, numbers: Sequence[int]) -> list[Server | None]:
    if isinstance(algorithm, HashAlgorithm):  # for all at once it takes a tenth of the time
        return algorithm.servers_for_hashes(numbers)
    return list(map(algorithm.server_for_hash, numbers))


def _names(servers: Sequence[Server | None]) -> list[str | None]:
    return [None if server is None else server.name for server in servers]


def _shares(counts: Mapping[FromTo, int], total: int, renamed: Mapping[str, str]) -> dict[FromTo, float]:
    """Return the shares of a total of what has another server after than before."""
    kept = set(renamed.items())
    return {(was, now): count / total for (was, now), count in counts.items() if was != now and (was, now) not in kept}


def moved_keys(
    before: Snapshot, change: Change, count: int, lock: threading.Lock, rng: Rng
) -> dict[FromTo, float] | None:
    """Return which hash keys would move, as shares of all, estimated with `count` random ones unless it takes less to
    compute it; None if balance does not hash. Under the change lock: `before` is in force. `lock`: of the backend.
    """
    algorithm = before.balancing.algorithm
    if not isinstance(algorithm, HashAware):
        return None
    with lock:
        # a ring is copied, since to build it anew takes long; anything else is built anew
        current = algorithm.copy() if change.is_derived and isinstance(algorithm, HashAlgorithm) else None
    changed = {server: server.trial_copy(requested) for server, requested in change.changed.items()}
    keys, renamed = HashKeys(count), kept_names(change)
    new = current.copy() if current is not None else None
    if current is not None and new is not None:
        gone = [server for server in (*change.removed, *changed) if not server.config.backup]
        come = [server for server in (*change.added, *changed.values()) if not server.config.backup]
        for server in gone:
            new.removed(server)
        for server in come:
            new.added(server)
        moved = current.moved_hashes(new, {*gone, *come}, max(count // _LOOKUPS_PER_POINT, _FEW_POINTS))
        if moved is not None:
            counts: Counter[FromTo] = Counter()
            for (was, server), hashes in moved.items():  # a server and its trial copy have one name
                counts[was.name, server.name] += hashes
            return _shares(counts, HASHES, renamed)
        return keys.moved(keys.servers_before(current), before.config, change.config, new, renamed)
    with lock:
        servers = keys.servers_before(algorithm)
    after = [changed.get(server, server) for server in change.servers]
    active = [server for server in after if not server.config.backup]
    return keys.moved(servers, before.config, change.config, change.config.balance.build(active, rng), renamed)


#: how many hashes can be looked up in the time that it takes to compare a point of two rings
_LOOKUPS_PER_POINT = 4
#: so many points of rings are compared in any case: that takes a few milliseconds, and the result is exact
_FEW_POINTS = 2_500
#: the options of a hashing balance that decide which server gets a hash, not what is hashed
_PLACEMENT_OPTIONS = {field.name for field in fields(Hashing)}


def _hash_input(balance: Balance) -> object:
    """Return what is hashed, and how, as a value that can be compared. Which server gets a hash is left out."""
    if not isinstance(balance, Hashing):
        return balance
    kind = HashType.parse(balance.hash_type)
    options = tuple(getattr(balance, each.name) for each in fields(balance) if each.name not in _PLACEMENT_OPTIONS)
    return type(balance), options, kind.function, kind.avalanche
