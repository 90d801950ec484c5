"""All persistences of one backend, built from its configuration, and what the backend needs to know of their tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sticky_core.clock import Clock
from sticky_core.errors import collect_problems, raise_problems
from sticky_core.persistence.chain import PersistenceChain
from sticky_core.persistence.persistence import Persist, Persistence, ReusablePersistence
from sticky_core.persistence.rules import IgnorablePersistence, RuleOptions, with_rules
from sticky_core.persistence.stick.config import group_stick_rules
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.shared_store import SharedStore

if TYPE_CHECKING:
    from sticky_core.persistence.accepted import AcceptedCookies


class PersistenceOptions(RuleOptions, Protocol):
    """The options of a backend that configure persistence."""

    @property
    def name(self) -> str: ...
    @property
    def persist(self) -> Sequence[Persist]: ...


@runtime_checkable
class AcceptingPersistence(Protocol):
    """A persistence by a cookie that may accept others beside its own."""

    @property
    def accepted(self) -> AcceptedCookies | None:
        """What it accepts; None: nothing."""
        ...


class PersistenceSet:
    """The persistences of one backend.

    - `engines`: the persistences, in the order of the configuration, with consecutive stick rules as one.
    - `members`: the same with the rule `ignore_persist`.
    - `persistence`: all members as one, with the backend's rules; None if there is neither a persistence nor a rule.
    - `max_idle`: how many seconds after its last request a client is still recognised.
    - `tables`: the stick tables in use, each once.

    Raises `ConfigError` with every problem found.
    """

    def __init__(self, options: PersistenceOptions, servers: Sequence[Server], clock: Clock) -> None:
        problems: list[str] = []
        self.engines: list[Persistence] = []
        for persist in group_stick_rules(options.persist):
            with collect_problems(problems):
                self.engines.append(persist.build(options.name, servers, clock))
        self.tables: tuple[StickTable, ...] = tuple(
            dict.fromkeys(used.table for each in self.engines for used in each.tables)
        )
        problems += self._problems_of_shared_tables()
        raise_problems(problems)
        self.max_idle = max((each.max_idle for each in self.engines), default=0.0)
        self._combine(options, servers)

    def _combine(self, options: PersistenceOptions, servers: Sequence[Server]) -> None:
        self.members: Sequence[Persistence] = [
            IgnorablePersistence(options, each) if options.ignore_persist is not None and not each.tables else each
            for each in self.engines
        ]
        combined = PersistenceChain(self.members) if len(self.members) > 1 else next(iter(self.members), None)
        self.persistence = with_rules(options, servers, combined)

    @property
    def is_reusable(self) -> bool:
        """Whether `with_servers` can be called."""
        return all(isinstance(each, ReusablePersistence) for each in self.engines)

    def with_servers(
        self,
        options: PersistenceOptions,
        servers: Sequence[Server],
        added: Sequence[Server],
        removed: Sequence[Server],
    ) -> PersistenceSet:
        """Return a copy for `servers`: without `removed`, and with `added`. A server with another id is in both. The
        options are the same but for the servers.
        """
        changed = copy(self)
        changed.engines = [
            each.with_servers(servers, added, removed) for each in self.engines if isinstance(each, ReusablePersistence)
        ]
        changed._combine(options, servers)
        return changed

    @property
    def accepted(self) -> list[AcceptedCookies]:
        """What the cookies accept beside themselves, for each that accepts something."""
        found = [each.accepted for each in self.engines if isinstance(each, AcceptingPersistence)]
        return [each for each in found if each is not None]

    def take_over_counts(self, before: PersistenceSet) -> None:
        """Go on counting accepted marks where `before`, the set of an earlier configuration, stops."""
        for former in before.accepted:
            for each in self.accepted:
                each.take_over(former)

    def _problems_of_shared_tables(self) -> Iterator[str]:
        names = Counter(table.name for table in self.tables if table.store is not None)
        for name, count in sorted(names.items()):
            if count > 1:
                yield f"{count} shared tables are called {name}: give each a name= of its own"

    @property
    def stores(self) -> tuple[SharedStore, ...]:
        """The stores through which the tables are shared, each once."""
        return tuple(dict.fromkeys(table.store for table in self.tables if table.store is not None))

    def sessions(self) -> Counter[Server]:
        """Return how many entries of the stick tables belong to each server. Every entry is read for that."""
        sessions: Counter[Server] = Counter()
        seen: set[StickTable] = set()
        for used in (used for each in self.members for used in each.tables):
            if used.table in seen:
                continue
            seen.add(used.table)
            for text, count in used.table.per_server().items():
                server = used.server_of(text)
                if server is not None:
                    sessions[server] += count
        return sessions

    def has_clients_elsewhere(self, server: Server) -> bool:
        """Return whether another process may still serve clients of `server`, as far as the stores of shared tables
        know.
        """
        return any(
            used.table.namespace.presence.has_clients(text)
            for each in self.members
            for used in each.tables
            if used.table.namespace is not None
            for text in (used.text_of(server), *used.former_texts_of(server))
        )
