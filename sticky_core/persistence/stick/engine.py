"""The run-time object of stick rules: matches requests in stick tables and stores the server that responds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import cast

from sticky_core.clock import Clock
from sticky_core.errors import raise_problems
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import (
    NO_ENTRY,
    NO_KEY,
    Claim,
    InvalidMark,
    Mark,
    PersistenceResult,
    Reason,
    unusable_reason,
)
from sticky_core.persistence.groups import renew_results, valid_results
from sticky_core.persistence.persistence import no_fast_path
from sticky_core.persistence.stick.rule import StickRule, TableKey
from sticky_core.persistence.stick.servers import BackendTable, ServerTexts
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable, TableHit
from sticky_core.stores.store import StoreQuery
from sticky_core.target import host_and_port

_KEEP_SERVERS = (
    "If it was renamed, give it formerly= with this name; processes that share a table need the same servers."
)


class StoredKey:
    """A key of one request, to be stored in its table with the server that responds. It is a `Reservation`.

    - `bound_text`: the text of the server that the table has for the key; None: it has none, or that is not known.
    - `is_learned`: a server has made the key, so the key is never reserved.
    - `is_confirmed`: False: the store has lost the entry, and `bound_text` is the copy from before.
    """

    __slots__ = ("_clock", "_is_reserved", "_texts", "bound_text", "is_confirmed", "is_learned", "key", "table")

    def __init__(
        self,
        table: StickTable,
        key: TableKey,
        bound_text: str | None,
        texts: ServerTexts,
        clock: Clock,
        *,
        is_learned: bool,
        is_confirmed: bool,
    ) -> None:
        self.table = table
        self.key = key
        self.bound_text = bound_text
        self.is_learned = is_learned
        self.is_confirmed = is_confirmed
        self._texts = texts
        self._clock = clock
        self._is_reserved = False  # by this request

    def query(self, server: Server) -> StoreQuery | None:
        if server.config.non_stick:
            return None
        return self.table.reserve(self.key, self.bound_text, self._texts.text_of(server, self.table))

    def confirm(self, server: Server, query: StoreQuery | None) -> Server | None:
        if server.config.non_stick:
            return None
        now = self._clock.monotonic()
        text = self._texts.text_of(server, self.table)
        before = self.table.peek(self.key, now)
        self.bound_text = self.table.confirm(self.key, self.bound_text, text, query, now)
        self.is_confirmed = self.bound_text == text
        self._is_reserved = self.is_confirmed and before != text  # else another request of the client has reserved it
        winner = self._texts.server_of(self.bound_text)
        return winner if winner is not None and winner.usable else None

    def cancel(self, request: Request) -> None:
        if self._is_reserved and self.bound_text is not None:
            self.table.forget_entry(self.key, self.bound_text, request)


class StickEngine:
    """Stick rules for the servers of one backend.

    The rules are applied in the order written, as in HAProxy. The first rule that matches a usable server decides. Of
    several rules that store into the same table, only the first with a key stores.
    """

    def __init__(self, rules: Sequence[StickRule], backend: str, servers: Sequence[Server], clock: Clock) -> None:
        self._request_rules = [rule for rule in rules if rule.request_samples]
        self._response_rules = [rule for rule in rules if rule.response_samples]
        self._clock = clock
        self.fast_path = no_fast_path()  # the tables may change with each request
        tables = tuple(dict.fromkeys(rule.table for rule in rules))
        for number, table in enumerate(tables):
            table.attach(f"{backend}.{number}" if number else backend)
        self.max_idle = max((table.expire for table in tables), default=0.0)
        raise_problems(_problems_of_servers(servers, tables))
        self._texts = ServerTexts(servers)
        self.tables = [BackendTable(table, self._texts) for table in tables]
        self._valid = valid_results(servers)

    def with_servers(
        self, servers: Sequence[Server], added: Sequence[Server], removed: Sequence[Server]
    ) -> StickEngine:
        raise_problems(_problems_of_servers(added, [each.table for each in self.tables]))
        engine = copy(self)
        engine._texts = self._texts.with_servers(servers, added, removed)
        engine.tables = [BackendTable(each.table, engine._texts) for each in self.tables]
        engine._valid = renew_results(self._valid, added, removed)
        return engine

    def state_changed(self, server: Server) -> None:
        self._texts.update(server)

    # The request

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        clock = self._clock
        now = clock.monotonic()
        match: PersistenceResult | None = None
        queries: list[StoreQuery] = []
        stored: dict[StickTable, StoredKey] = {}
        has_key = False
        for rule in self._request_rules:
            table = rule.table
            if rule.stores and table in stored:
                continue  # HAProxy does not match such a rule either
            if not rule.applies_to(request):
                continue
            key = rule.request_key(request)
            if key is None:
                continue
            has_key = True
            hit = table.look_up(key, request, now) if rule.matches else TableHit(table.peek(key, now), True)
            if isinstance(hit, StoreQuery):
                queries.append(hit)
                if rule.stores:  # if a cookie matches first, the query is not sent, but the key is stored
                    stored[table] = StoredKey(
                        table, key, None, self._texts, clock, is_learned=False, is_confirmed=False
                    )
                continue
            text = hit.server
            if rule.matches and text is not None:
                match = _prefer(match, self._result(table, text, accept_down))
            if table not in stored and (rule.stores or (rule.updates_only and text is not None)):
                stored[table] = StoredKey(
                    table,
                    key,
                    text,
                    self._texts,
                    clock,
                    is_learned=rule.updates_only,
                    is_confirmed=hit.is_confirmed,
                )
        if match is None:
            match = NO_ENTRY if has_key else NO_KEY
        return self._with_stored_keys(match, tuple(stored.values()), tuple(queries))

    def _result(self, table: StickTable, text: str, accept_down: bool) -> PersistenceResult:
        """Return the result for the server that `table` has for a key."""
        server = self._texts.server_of(text)
        if server is None:
            server = self._texts.server_of_other_instance(text)
            if server is not None:
                return PersistenceResult(Claim.INVALID, Reason.OTHER_INSTANCE, server)
            place = f"the entry of a client in {f'stick table {table.name}' if table.name else 'a stick table'}"
            return InvalidMark(Claim.INVALID, Reason.UNKNOWN, place=place, name=text, remedy=_KEEP_SERVERS)
        if server.usable:
            return self._valid[server]
        return PersistenceResult(Claim.DOWN, unusable_reason(server), server, overrides_claim=accept_down)

    def _with_stored_keys(
        self, match: PersistenceResult, stored: tuple[StoredKey, ...], queries: tuple[StoreQuery, ...]
    ) -> PersistenceResult:
        server = match.server if match.is_bound else None
        # whether the tables have this server for each key already
        is_stored = server is not None and all(
            each.is_confirmed and each.bound_text == self._texts.text_of(server, each.table) for each in stored
        )
        reservations: tuple[StoredKey, ...] = ()
        if not is_stored:
            reservations = tuple(
                each
                for each in stored
                if not each.is_learned
                and (
                    not each.is_confirmed
                    or (server is None and (each.bound_text is None or match.claim is Claim.INVALID))
                )
            )
        if isinstance(match, InvalidMark):
            return replace(match, queries=queries, reservations=reservations, persistence_state=stored)
        return PersistenceResult(  # `replace` takes three times as long
            match.claim,
            match.reason,
            match.server,
            needs_no_mark=is_stored and not self._response_rules,
            overrides_claim=match.overrides_claim,
            queries=queries,
            reservations=reservations,
            persistence_state=stored,
        )

    # The response

    def stamp_response(
        self, result: PersistenceResult, server: Server, is_bound: bool, request: Request, response: ResponseHead
    ) -> Mark:
        now, wall = self._clock.monotonic(), self._clock.wall()
        stored = list(cast("tuple[StoredKey, ...]", result.persistence_state or ()))
        learned: dict[StickTable, TableKey] = {}
        for rule in self._response_rules:
            table = rule.table
            if table in learned or not rule.applies_to_response_of(request):
                continue
            if rule.is_ended_by(response, wall):
                for each in stored:
                    if each.table is table and each.bound_text is not None:
                        table.forget_entry(each.key, each.bound_text, request)
                stored = [each for each in stored if each.table is not table]
            elif (key := rule.response_key(response, request)) is not None:
                learned[table] = key
        if server.config.non_stick:
            return Mark.NONE
        for each in stored:
            text = self._texts.text_of(server, each.table)
            if each.bound_text != text or not each.is_confirmed:
                each.table.store_entry(each.key, each.bound_text, text, request, now)
        for table, key in learned.items():
            table.store_entry(key, None, self._texts.text_of(server, table), request, now)
        return Mark.NONE

    def store_key(self, table: StickTable, key: TableKey, server: Server, request: Request) -> None:
        """Store a new key with `server`."""
        table.store_entry(key, None, self._texts.text_of(server, table), request, self._clock.monotonic())


def _prefer(before: PersistenceResult | None, match: PersistenceResult) -> PersistenceResult:
    """Return the preferred one of two matches: the first that binds the request, else the first that is not invalid."""
    if before is None or (not before.is_bound and (match.is_bound or before.claim is Claim.INVALID)):
        return match
    return before


def _problems_of_servers(servers: Sequence[Server], tables: Sequence[StickTable]) -> Iterator[str]:
    is_shared = any(table.store is not None for table in tables)
    needs_address = any(table.srvkey == "addr" for table in tables)
    for server in servers:
        if is_shared and server.is_in_process:
            yield (
                f"server {server.name}: a shared table can't tell an app of this process from those of other "
                "processes: put StickyWorkers around the app, or use URLs, or set stateless=True"
            )
        target = server.config.target
        has_address = server.config.is_url and (not isinstance(target, str) or host_and_port(target) is not None)
        if needs_address and not has_address:
            yield f"server {server.name}: srvkey='addr' needs an address: use srvkey='name'"
