"""Stick rules: a stick table stores the server of each client, under a sample of the client's requests or of a server's
responses. HAProxy's `stick on`, `stick match`, `stick store-request`, `stick store-response`; nginx's `sticky learn`.

Consecutive rules in `persist` form one group with one engine. Stick rules write no mark, and a client that a rule
matches does not get a new cookie from the other persistences either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from itertools import groupby
from typing import Literal, cast

from sticky_core.clock import Clock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.durations import Duration
from sticky_core.errors import ConfigError, raise_problems
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.persistence import Persist, Persistence
from sticky_core.persistence.rules import Condition
from sticky_core.persistence.stick.engine import StickEngine
from sticky_core.persistence.stick.rule import StickRule
from sticky_core.samples import request as samples
from sticky_core.samples import response as res
from sticky_core.samples.parser import parse_response_sample, parse_sample
from sticky_core.samples.request import Sample
from sticky_core.samples.values import Key
from sticky_core.server.server import Server
from sticky_core.stick_table.keys import type_for
from sticky_core.stick_table.table import StickTable

StickAction = Literal["on", "match", "store-request", "store-response"]

#: size and expiry of a table that the user does not give, as HAProxy's guides have them
SIZE, EXPIRE = "1m", "30m"


@dataclass(frozen=True, slots=True)
class Stick:
    """One stick rule. Use `Stick.on`, `Stick.match`, `Stick.store_request` or `Stick.store_response` to make one.

    - `action`: what the rule does. The constructors named above set it.
    - `sample`: the part of the request (of the response for `store_response`) that is the key: a sample such as `src`
      or `hdr("X-User")`, a function `Request -> key | None`, or HAProxy's words: `"src"`, `"hdr(X-User)"`.
    - `table`: the stick table. If `Stick.on` gets none, it makes one for a million clients that keeps each for 30
      minutes.
    - `when`: a function of the request: the rule applies if the function returns true. Default: the rule always applies
      (HAProxy `if`).

    Raises `ConfigError` with every problem found.
    """

    action: StickAction
    sample: Sample | res.Sample
    table: StickTable
    when: Condition | None = None

    @classmethod
    def on(cls, sample: Sample | str, table: StickTable | None = None, *, when: Condition | None = None) -> Stick:
        """Send requests with the same `sample` to the same server: `match` and `store_request` in one rule (HAProxy
        `stick on`).
        """
        parsed = parse_sample(sample) if isinstance(sample, str) else sample
        if table is None:
            table = StickTable(type_for(parsed), size=SIZE, expire=EXPIRE)
        return cls("on", parsed, table, when)

    @classmethod
    def match(cls, sample: Sample | str, table: StickTable, *, when: Condition | None = None) -> Stick:
        """Send a request to the server that the table has for its `sample` (HAProxy `stick match`)."""
        return cls("match", parse_sample(sample) if isinstance(sample, str) else sample, table, when)

    @classmethod
    def store_request(cls, sample: Sample | str, table: StickTable, *, when: Condition | None = None) -> Stick:
        """Store the server that responds, with the `sample` of the request as the key (HAProxy `stick
        store-request`).
        """
        return cls("store-request", parse_sample(sample) if isinstance(sample, str) else sample, table, when)

    @classmethod
    def store_response(cls, sample: res.Sample | str, table: StickTable, *, when: Condition | None = None) -> Stick:
        """Store the server that responds, with the `sample` of its response as the key (HAProxy
        `stick store-response`).

        `sample`: one of `sticky_core.samples.response`, a function of the `ResponseHead`, or HAProxy's words:
        `"res.cook(JSESSIONID)"`.
        """
        return cls("store-response", parse_response_sample(sample) if isinstance(sample, str) else sample, table, when)

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        problem = _problem_of_sample(self.sample)
        if problem is not None:
            yield f"stick {self.action}: {problem}"
        if not isinstance(cast("object", self.table), StickTable):
            yield f"stick {self.action}: {self.table!r} is no table: write StickTable('string', expire='30m')"
        if self.when is not None and not callable(self.when):
            yield f"stick {self.action}: {self.when!r} is no condition: pass a callable that takes the request"

    def rules(self) -> Iterator[StickRule]:
        """Return the rules that the engine applies."""
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

    def cookie_scopes(self) -> Sequence[CookieScope]:
        return ()

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> StickEngine:
        return StickEngine(tuple(self.rules()), backend, servers, clock)


@dataclass(frozen=True, slots=True)
class Learn:
    """Recognise a client by a session id that a server has made (nginx `sticky learn`).

    - `create`: one or several samples of responses, where servers send new ids: `res.cook("JSESSIONID")`,
      `res.hdr("Mcp-Session-Id")`, `res.url_param("sid")` of the Location. The first that gives a key counts.
    - `lookup`: one or several samples of requests, where clients send the id: `cook("JSESSIONID")`,
      `hdr("Mcp-Session-Id")`, `url_param("sid")`. The first that gives a key counts.
    - `timeout`: how long an id is stored after its last use, in seconds or as text. Default: 10 minutes. It has no
      effect with a `table`.
    - `table`: the stick table. Default: one for a million ids of up to 256 characters.

    Only ids that a server has sent are stored. When a server deletes the cookie with an id, the id is removed.

    Raises `ConfigError` with every problem found.
    """

    create: res.Sample | Sequence[res.Sample]
    lookup: Sample | Sequence[Sample]
    timeout: Duration = field(default="10m", kw_only=True)
    table: StickTable = field(default=cast("StickTable", None), kw_only=True)

    def __post_init__(self) -> None:
        create, lookup = _as_tuple(self.create), _as_tuple(self.lookup)
        if not create or not lookup:
            raise ConfigError("learn: name at least one sample of responses as create, and one of requests as lookup")
        problems = map(_problem_of_sample, (*create, *lookup))
        raise_problems(f"learn: {problem}" for problem in problems if problem is not None)
        if self.table is None:  # pyright: ignore[reportUnnecessaryComparison] - it was not given
            table = StickTable("string", size=SIZE, expire=self.timeout, length=256)
            object.__setattr__(self, "table", table)

    @classmethod
    def cookie(cls, name: str, *, timeout: Duration = "10m", table: StickTable | None = None) -> Learn:
        """Learn the session ids that servers set in a cookie, such as `JSESSIONID` or `PHPSESSID`."""
        return cls(res.cook(name), samples.cook(name), timeout=timeout, table=cast("StickTable", table))

    @classmethod
    def header(cls, name: str, *, timeout: Duration = "10m", table: StickTable | None = None) -> Learn:
        """Learn the session ids that servers send in a header, and clients send back in the same one, such as
        `Mcp-Session-Id`.
        """
        return cls(res.hdr(name), samples.hdr(name), timeout=timeout, table=cast("StickTable", table))

    def rules(self) -> Iterator[StickRule]:
        """Return the rules that the engine applies."""
        yield StickRule(self.table, _as_tuple(self.lookup), matches=True, updates_only=True)
        yield StickRule(self.table, response_samples=_as_tuple(self.create))

    def cookie_scopes(self) -> Sequence[CookieScope]:
        return ()

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> StickEngine:
        return StickEngine(tuple(self.rules()), backend, servers, clock)


@dataclass(frozen=True, slots=True)
class StickGroup:
    """Consecutive stick rules, for which one engine is built."""

    members: tuple[Stick | Learn, ...]

    def cookie_scopes(self) -> Sequence[CookieScope]:
        return ()

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> Persistence:
        return StickEngine([rule for member in self.members for rule in member.rules()], backend, servers, clock)


def group_stick_rules(persist: Sequence[Persist]) -> Iterator[Persist]:
    """Return the persistences in order, with consecutive stick rules in one group."""
    for is_stick, members in groupby(persist, lambda each: isinstance(each, Stick | Learn)):
        if is_stick:
            yield StickGroup(tuple(cast("Iterator[Stick | Learn]", members)))
        else:
            yield from members


def _problem_of_sample(sample: object) -> str | None:
    """Return why `sample` is not a sample, or None if it is one."""
    if isinstance(sample, type):
        return f"{sample.__name__} is a class and no sample: write {sample.__name__}('name')"
    if isinstance(sample, res.BodySample):
        return (
            f"{sample!r} reads the body of a response, which only StickyWorkers(learn=...) does: pass one of its head"
        )
    if not callable(sample):
        return f"{sample!r} is no sample: pass one, such as cook('JSESSIONID') or res.cook('JSESSIONID'), or a function"
    return None


def _as_tuple(
    given: Callable[..., Key | None] | Sequence[Callable[..., Key | None]],
) -> tuple[Callable[..., Key | None], ...]:
    if not isinstance(given, Sequence):
        return (given,)
    return tuple(given)  # pyright: ignore[reportUnknownArgumentType] - a callable could be a sequence as well
