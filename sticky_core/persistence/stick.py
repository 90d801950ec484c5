"""Stick rules: a client is known by a sample of its requests, or by what a server has told it, and a table remembers
where it belongs. HAProxy's `stick on`, `stick match`, `stick store-request`, `stick store-response`; nginx's
`sticky learn`.

Rules that stand beside each other in `persist` are worked through together, in the order written, as HAProxy does it:
the first match that names a usable server wins, and of several rules that store into one table the first that has a
key. Nobody is told anything: a client that a table knows gets no cookie.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, cast

from sticky_core.cache import TwoGenerationCache
from sticky_core.clock import Clock
from sticky_core.durations import Duration
from sticky_core.errors import ConfigError, raise_problems
from sticky_core.http.messages import Request, ResponseHead, Unread
from sticky_core.persistence.claim import Claim, Mark, PersistenceResult, Reason, unusable_reason
from sticky_core.persistence.persistence import Persist, Persistence
from sticky_core.persistence.rules import Condition
from sticky_core.samples import request as samples
from sticky_core.samples import response as res
from sticky_core.samples.request import Key, Sample
from sticky_core.server.server import Server
from sticky_core.stick_table.table import KeyType, StickTable, TableHit, table_for
from sticky_core.stores.store import StoreQuery
from sticky_core.target import host_and_port

#: a key in a table
_Key = int | str | bytes

StickAction = Literal["on", "match", "store-request", "store-response"]

#: what a table is like that was not given: HAProxy's guides
SIZE, EXPIRE = "1m", "30m"


@dataclass(frozen=True, slots=True)
class Stick:
    """One rule; made by `Stick.on`, `Stick.match`, `Stick.store_request`, `Stick.store_response`."""

    action: StickAction
    sample: Sample | res.Sample
    table: StickTable
    when: Condition | None = None

    @classmethod
    def on(cls, sample: Sample | str, table: StickTable | None = None, *, when: Condition | None = None) -> Stick:
        """A client that has the same `sample` goes to the same server: `match` and `store_request` in one (HAProxy
        `stick on`).

        `sample`: one of `sticky_core.samples.request`, a function, or HAProxy's words: `"src"`, `"hdr(X-User)"`.
        `table`: by
        default one of its own, with room for a million clients, who are forgotten after 30 minutes. `when`: told the
        request, whether the rule is for it.
        """
        asked = samples.parse_sample(sample) if isinstance(sample, str) else sample
        return cls("on", asked, table if table is not None else _table(table_for(asked)), when)

    @classmethod
    def match(cls, sample: Sample | str, table: StickTable, *, when: Condition | None = None) -> Stick:
        """A client that the table knows goes to its server (HAProxy `stick match`)."""
        return cls("match", samples.parse_sample(sample) if isinstance(sample, str) else sample, table, when)

    @classmethod
    def store_request(cls, sample: Sample | str, table: StickTable, *, when: Condition | None = None) -> Stick:
        """The table is told who answered a request with this `sample` (HAProxy `stick store-request`)."""
        return cls("store-request", samples.parse_sample(sample) if isinstance(sample, str) else sample, table, when)

    @classmethod
    def store_response(cls, sample: res.Sample | str, table: StickTable, *, when: Condition | None = None) -> Stick:
        """The table is told who has given out this `sample` of an answer: one of `sticky_core.samples.response`, a
        function of the `ResponseHead`, or HAProxy's words: `"res.cook(JSESSIONID)"` (HAProxy `stick store-response`).
        """
        return cls("store-response", res.parse_sample(sample) if isinstance(sample, str) else sample, table, when)

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        problem = problem_of(self.sample)
        if problem is not None:
            yield f"stick {self.action}: {problem}"
        if not isinstance(cast("object", self.table), StickTable):
            yield f"stick {self.action}: {self.table!r} is no table: write StickTable('string', expire='30m')"
        if self.when is not None and not callable(self.when):
            yield f"stick {self.action}: {self.when!r} is no condition: hand a callable that is told the request"

    def rules(self) -> Iterator[StickRule]:
        if self.action == "store-response":
            yield StickRule(self.table, response_samples=(cast("res.Sample", self.sample),), when=self.when)
        else:
            yield StickRule(
                self.table,
                (cast("Sample", self.sample),),
                matches=self.action != "store-request",
                stores=self.action != "match",
                when=self.when,
            )

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> Persistence:
        return StickRules(tuple(self.rules()), backend, servers, clock)


@dataclass(frozen=True, slots=True)
class Learn:
    """A client is known by a session identifier that a server has given out (nginx `sticky learn`).

    `create`: where servers give them out, samples of answers, the first that is there counts: `res.cook("JSESSIONID")`,
    `res.hdr("Mcp-Session-Id")`, `res.url_param("sid")` of the Location. `lookup`: where clients bring them, samples of
    requests: `cook("JSESSIONID")`, `hdr("Mcp-Session-Id")`, `url_param("sid")`. An identifier that no server has given
    out is never remembered; one whose cookie a server deletes is forgotten.
    `timeout`: for how long it is remembered after its last use (10 minutes), unless a `table` is given.

    Raises `ConfigError` if something is missing.
    """

    create: res.Sample | Sequence[res.Sample]
    lookup: Sample | Sequence[Sample]
    timeout: Duration = field(default="10m", kw_only=True)
    table: StickTable = field(default=cast("StickTable", None), kw_only=True)

    def __post_init__(self) -> None:
        if not _each(self.create) or not _each(self.lookup):
            raise ConfigError("learn: name at least one sample of answers to create by, and one of requests to look up")
        problems = map(problem_of, (*_each(self.create), *_each(self.lookup)))
        raise_problems(f"learn: {problem}" for problem in problems if problem is not None)
        if self.table is None:  # pyright: ignore[reportUnnecessaryComparison] - it was not given
            table = StickTable("string", size=SIZE, expire=self.timeout, length=256)
            object.__setattr__(self, "table", table)

    @classmethod
    def cookie(cls, name: str, *, timeout: Duration = "10m", table: StickTable | None = None) -> Learn:
        """Sessions that servers name in a cookie, such as `JSESSIONID` or `PHPSESSID`."""
        return cls(res.cook(name), samples.cook(name), timeout=timeout, table=cast("StickTable", table))

    @classmethod
    def header(cls, name: str, *, timeout: Duration = "10m", table: StickTable | None = None) -> Learn:
        """Sessions that servers name in a header of their answers, and clients in the same one: `Mcp-Session-Id`."""
        return cls(res.hdr(name), samples.hdr(name), timeout=timeout, table=cast("StickTable", table))

    def rules(self) -> Iterator[StickRule]:
        yield StickRule(self.table, _each(self.lookup), matches=True, updates_only=True)
        yield StickRule(self.table, response_samples=_each(self.create))

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> Persistence:
        return StickRules(tuple(self.rules()), backend, servers, clock)


@dataclass(frozen=True, slots=True)
class StickRule:
    """What is looked at, and what becomes of it."""

    table: StickTable
    request_samples: tuple[Sample, ...] = ()  #: in the request, the first that is there
    response_samples: tuple[res.Sample, ...] = ()  #: in the answer, the first that is there
    matches: bool = False
    stores: bool = False
    updates_only: bool = False  #: an entry that is there follows its client; there is none made
    when: Condition | None = None

    def request_key(self, request: Request) -> _Key | None:
        for sample in self.request_samples:
            key = self.table.key(sample(request))
            if key is not None:
                return key
        return None

    def response_key(self, reply: ResponseHead) -> _Key | None:
        for sample in self.response_samples:
            key = self.table.key(sample(reply))
            if key is not None:
                return key
        return None

    def is_ended_by(self, reply: ResponseHead, now: float) -> bool:
        """Whether the server takes back what it has given; `now` in seconds since the epoch."""
        return any(sample.ends(reply, now) for sample in self.response_samples if isinstance(sample, res.cook))


class StoredKey:
    """A key of one request that is to be its server's."""

    __slots__ = ("bound_text", "is_certain", "is_learned", "key", "reserved", "rules", "table")

    def __init__(
        self, rules: StickRules, table: StickTable, key: _Key, was: str | None, *, learned: bool, sure: bool
    ) -> None:
        self.rules = rules
        self.table = table
        self.key = key
        self.bound_text = was  # whose it is, as far as is known
        self.is_learned = learned
        self.is_certain = sure  # else the store has lost it
        self.reserved = False  # by this request

    def query(self, server: Server) -> StoreQuery | None:
        if server.config.non_stick:
            return None
        return self.table.reserve(self.key, self.bound_text, self.rules.server_text(server, self.table))

    def confirm(self, server: Server, question: StoreQuery | None) -> Server | None:
        if server.config.non_stick:
            return None
        text = self.rules.server_text(server, self.table)
        before = self.table.peek(self.key, self.rules.now)
        self.bound_text = self.table.confirm(self.key, self.bound_text, text, question, self.rules.now)
        self.is_certain = self.bound_text == text
        self.reserved = self.is_certain and before != text  # else another request of the same client has done so
        winner = self.rules.server_of(self.bound_text)
        return winner if winner is not None and winner.usable else None

    def cancel(self, request: Request) -> None:
        if self.reserved and self.bound_text is not None:
            self.table.forget_entry(self.key, self.bound_text, request)


class StickRules:
    """Rules at work over the servers of one backend."""

    def __init__(self, rules: Sequence[StickRule], backend: str, servers: Sequence[Server], clock: Clock) -> None:
        self._requests = [rule for rule in rules if rule.request_samples]
        self._responses = [rule for rule in rules if rule.response_samples]
        self._clock = clock
        # tables change with each request
        self.fast_path: TwoGenerationCache[Hashable, tuple[Server, PersistenceResult, Sequence[object] | None]] = (
            TwoGenerationCache(0)
        )
        self.tables: tuple[StickTable, ...] = tuple(dict.fromkeys(rule.table for rule in rules))
        for number, table in enumerate(self.tables):
            table.attach(f"{backend}.{number}" if number else backend)
        self.max_idle = max((table.expire for table in self.tables), default=0.0)
        self._servers = servers
        self._bound = {server: PersistenceResult(Claim.VALID, Reason.BOUND, server) for server in servers}
        self._names: dict[str, Server] = {}
        self._texts: dict[tuple[Server, bool], str] = {}
        raise_problems(self._problems())
        for server in servers:
            self._enrol(server)

    def _problems(self) -> Iterator[str]:
        shared = [table for table in self.tables if table.store is not None]
        for server in self._servers:
            if shared and server.is_in_process:
                yield (
                    f"server {server.name}: an app in this process can't be told from others' by a table that they "
                    "share: put StickyWorkers around the app, or hand URLs, or stateless=True"
                )
            target = server.config.target
            located = server.config.is_url and (not isinstance(target, str) or host_and_port(target) is not None)
            if not located and any(table.srvkey == "addr" for table in self.tables):
                yield f"server {server.name}: srvkey='addr' needs an address: use srvkey='name'"

    @property
    def now(self) -> float:
        return self._clock.monotonic()

    def server_of(self, text: str) -> Server | None:
        """Whom a table means."""
        return self._names.get(text)

    def server_text(self, server: Server, table: StickTable) -> str:
        """What a table says of a server: a replica's memory ends with its life, and so does what is known of it."""
        return self._texts[server, table.srvkey == "addr"]

    def state_changed(self, server: Server) -> None:
        self._enrol(server)

    def _enrol(self, server: Server) -> None:
        name = f"{server.name}@{server.instance}" if server.instance else server.name
        where = host_and_port(server.config.target) if isinstance(server.config.target, str) else None
        texts = {False: name, True: f"{where[0]}:{where[1]}" if where is not None else name}
        for by_address, text in texts.items():
            before = self._texts.get((server, by_address))
            if before != text:
                if before is not None and self._names.get(before) is server:
                    del self._names[before]
                self._texts[server, by_address] = text
                self._names[text] = server

    # -- whom do you belong to

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        now = self.now
        claimed: PersistenceResult | None = None
        questions: list[StoreQuery] = []
        stored: dict[StickTable, StoredKey] = {}
        for rule in self._requests:
            table = rule.table
            if rule.stores and table in stored:
                continue  # neither is it matched then, as in HAProxy
            if rule.when is not None and not rule.when(request):
                continue
            key = rule.request_key(request)
            if key is None:
                continue
            found = table.look_up(key, request, now) if rule.matches else TableHit(table.peek(key, now), True)
            if isinstance(found, StoreQuery):
                questions.append(found)
                if rule.stores:  # should nobody ask, because a cookie has spoken, the store is told all the same
                    stored[table] = StoredKey(self, table, key, None, learned=False, sure=False)
                continue
            was = found.server
            if rule.matches and was is not None:
                claimed = self._better(claimed, self._claimed(was, accept_down))
            if table not in stored and (rule.stores or (rule.updates_only and was is not None)):
                stored[table] = StoredKey(self, table, key, was, learned=rule.updates_only, sure=found.is_confirmed)
        if claimed is None:
            claimed = NO_ENTRY if stored else NO_KEY
        return self._with(claimed, tuple(stored.values()), tuple(questions))

    def _claimed(self, text: str, accept_down: bool) -> PersistenceResult:
        server = self._names.get(text)
        if server is None:
            known = self._names.get(text.partition("@")[0]) or self._named(text.partition("@")[0])
            reason = Reason.UNKNOWN if known is None else Reason.OTHER_INSTANCE
            return PersistenceResult(Claim.INVALID, reason, known)
        if server.usable:
            return self._bound[server]
        return PersistenceResult(Claim.DOWN, unusable_reason(server), server, overrides_claim=accept_down)

    def _named(self, name: str) -> Server | None:
        return next((server for server in self._servers if server.name == name), None)

    @staticmethod
    def _better(before: PersistenceResult | None, found: PersistenceResult) -> PersistenceResult:
        """The first match counts whose server is usable; if none is, what tells most."""
        if before is None or (not before.is_bound and (found.is_bound or before.claim is Claim.INVALID)):
            return found
        return before

    def _with(
        self, claimed: PersistenceResult, stored: tuple[StoredKey, ...], questions: tuple[StoreQuery, ...]
    ) -> PersistenceResult:
        server = claimed.server if claimed.is_bound else None
        agreed = server is not None and not any(
            not each.is_certain or each.bound_text != self.server_text(server, each.table) for each in stored
        )
        reserves: tuple[StoredKey, ...] = ()
        if not agreed:
            reserves = tuple(
                each
                for each in stored
                if not each.is_learned
                and (
                    not each.is_certain
                    or (server is None and (each.bound_text is None or claimed.claim is Claim.INVALID))
                )
            )
        return PersistenceResult(  # `replace` takes three times as long
            claimed.claim,
            claimed.reason,
            claimed.server,
            needs_no_mark=agreed and not self._responses,
            overrides_claim=claimed.overrides_claim,
            queries=questions,
            reservations=reserves,
            persistence_state=stored,
        )

    # -- here is your mark

    def stamp_response(
        self, presented: PersistenceResult, server: Server, direct: bool, request: Request, reply: ResponseHead
    ) -> Mark:
        now, wall = self._clock.monotonic(), self._clock.wall()
        stored = list(cast("tuple[StoredKey, ...]", presented.persistence_state or ()))
        given: dict[StickTable, _Key] = {}
        for rule in self._responses:
            table = rule.table
            if table in given or not _holds(rule.when, request):
                continue
            if rule.is_ended_by(reply, wall):
                for each in stored:
                    if each.table is table and each.bound_text is not None:
                        table.forget_entry(each.key, each.bound_text, request)
                stored = [each for each in stored if each.table is not table]
            elif (key := rule.response_key(reply)) is not None:
                given[table] = key
        if server.config.non_stick:
            return Mark.NONE
        for each in stored:
            text = self.server_text(server, each.table)
            if each.bound_text != text or not each.is_certain:
                each.table.store_entry(each.key, each.bound_text, text, request, now)
        for table, key in given.items():
            table.store_entry(key, None, self.server_text(server, table), request, now)
        return Mark.NONE


def _holds(when: Condition | None, request: Request) -> bool:
    """Whether a rule is for an answer to `request`; not, if its condition asks for a body that nobody has kept."""
    try:
        return when is None or bool(when(request))
    except Unread:
        return False


NO_KEY = PersistenceResult(Claim.NONE, Reason.NO_KEY)
NO_ENTRY = PersistenceResult(Claim.NONE, Reason.NO_ENTRY)


def grouped(persist: Sequence[Persist]) -> Iterator[Persist]:
    """The same with rules that stand beside each other taken together."""
    for sticks, each in groupby(persist, lambda asked: isinstance(asked, Stick | Learn)):
        if sticks:
            yield StickGroup(tuple(cast("Iterator[Stick | Learn]", each)))
        else:
            yield from each


@dataclass(frozen=True, slots=True)
class StickGroup:
    asked: tuple[Stick | Learn, ...]

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> StickRules:
        return StickRules([rule for asked in self.asked for rule in asked.rules()], backend, servers, clock)


def problem_of(sample: object) -> str | None:
    """Why this can't be a sample, if it can't."""
    if isinstance(sample, type):
        return f"{sample.__name__} does not say which: write {sample.__name__}('name')"
    if not callable(sample):
        return f"{sample!r} is no sample: hand one, such as cook('JSESSIONID') or res.cook('JSESSIONID'), or a function"
    return None


def _table(kind: KeyType) -> StickTable:
    return StickTable(kind, size=SIZE, expire=EXPIRE)


def _each(
    given: Callable[..., Key | None] | Sequence[Callable[..., Key | None]],
) -> tuple[Callable[..., Key | None], ...]:
    if not isinstance(given, Sequence):
        return (given,)
    return tuple(given)  # pyright: ignore[reportUnknownArgumentType] - it thinks of a callable that is a sequence, too
