"""Workers: a backend whose servers are the worker processes of one app. Its own slot is the app itself; the others are
siblings, to whom requests are handed over.

Whoever accepts a request looks at its mark. A client that belongs to a sibling is handed to it, once and no further; a
new one is served where it is. The mark carries the worker's life, so a client of a worker that has ended is told apart
from one that was never known (`Reason.OTHER_LIFE`).
"""

from __future__ import annotations

import os
import random
import re
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Literal, cast
from zlib import crc32

from sticky_core.backend.backend import Backend
from sticky_core.balance.hash import Hash
from sticky_core.balance.local import Local
from sticky_core.cache import TwoGenerationCache
from sticky_core.clock import Clock, Rng, SystemClock
from sticky_core.decision import Decision
from sticky_core.durations import Duration, seconds
from sticky_core.errors import ConfigError, collect_problems, raise_problems
from sticky_core.http.error_page import ErrorPage, error_page
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import Claim, Mark, PersistenceResult, Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.persistence import Persistence
from sticky_core.persistence.signing import VARIABLE, Secret
from sticky_core.persistence.stick import NO_ENTRY, NO_KEY
from sticky_core.samples import request as samples
from sticky_core.samples import response as res
from sticky_core.samples.request import Key, Sample
from sticky_core.server import instance as life
from sticky_core.server.counters import Total
from sticky_core.server.server import NAME, Health, Server
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.store import StoreCommand, StoreQuery
from sticky_core.target import App
from sticky_core.transaction.transaction import Message, Out, Transaction
from sticky_core.workers import frames
from sticky_core.workers.slots import MOST, Slot, Slots

OnLost = Literal["rebind", "gone"]

#: how many siblings may come at once
BACKLOG: Final = 2048
#: seconds for a connection to stand: the system does it by itself, whatever the sibling is busy with
CONNECT: Final = 5.0
#: how many idle lines to a sibling are kept
IDLE: Final = 64
#: the cookie's name, where none is given
COOKIE: Final = "STICKYWORKER"
#: what a worker is called: this and its slot
PREFIX: Final = "w"
#: how many points a worker has on the ring, in sixteens: enough to spread keys well
_WEIGHT: Final = 100
#: how many keys a worker remembers, and for how long after their last use
_KEYS: Final = "100k"
_KEYS_EXPIRE: Final = "1h"
_NEW: Final = 10_000


class HandedOverError(Exception):
    """An exception out of the app in another worker. Its text is the traceback there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersConfig:
    """What was asked of a family of workers. `StickyWorkers` explains the words. ConfigError with every problem."""

    name: str | None = None
    cookie: str | Cookie | None = COOKIE
    secret: Secret | Sequence[Secret] | None = field(default=None, repr=False)
    key: str | Sample | None = None
    slots: int | None = None
    on_lost: OnLost = "rebind"
    retry_on: str | Sequence[str] = "conn-failure"
    drain: Duration = 10

    def __post_init__(self) -> None:
        raise_problems(f"StickyWorkers: {problem}" for problem in self._problems())

    def _problems(self) -> Iterator[str]:
        problems: list[str] = []
        with collect_problems(problems):
            frames.require()
        if self.name is not None and not NAME.fullmatch(self.name):
            yield f"name {self.name!r} is made of letters, digits and - _ . :"
        if self.on_lost not in ("rebind", "gone"):
            yield f"on_lost {self.on_lost!r} is neither 'rebind' nor 'gone'"
        with collect_problems(problems):
            self.persisted("only to look whether it can be")
            self.sample()
        yield from problems
        if self.cookie is None and self.key is None:
            yield "there is neither a cookie nor a key, so nobody is known again: leave cookie out, or pass key="
        if isinstance(self.cookie, Cookie) and self.secret is not None:
            yield "secret has no effect beside a Cookie, which has its own: leave one of them out"
        yield from self._problems_of_lives()
        yield from self._problems_of_slots()
        try:
            if seconds(self.drain) <= 0:
                yield f"drain {self.drain!r} is not above 0"
        except ValueError as error:
            yield f"drain: {error}"

    def _problems_of_lives(self) -> Iterator[str]:
        cookie = self.cookie
        if isinstance(cookie, Cookie):
            if cookie.mode != "insert" or not cookie.is_signed:
                yield f"cookie {cookie.name}: workers are known by a signed cookie of ours: leave mode and signed out"
        elif self.on_lost == "gone" and not self._given:
            yield (
                "on_lost='gone' tells clients from before a restart, and a secret that the workers make does not "
                f"outlive one: pass secret=, or set {VARIABLE}"
            )
        if self.on_lost == "gone" and cookie is None:
            yield "on_lost='gone' has no effect without a cookie, which says what a client has lost"

    def _problems_of_slots(self) -> Iterator[str]:
        if self.slots is None:
            return
        if self.key is None:
            yield "slots is how many workers keys are spread over: it has no effect without key="
        if not isinstance(self.slots, int) or not 1 <= self.slots <= MOST:  # pyright: ignore[reportUnnecessaryIsInstance]
            yield f"slots {self.slots!r} is not within 1..{MOST}: write how many workers there are"

    @property
    def _given(self) -> Secret | Sequence[Secret] | None:
        return self.secret if self.secret is not None else os.environ.get(VARIABLE)

    def persisted(self, made: str) -> Cookie | None:
        """The cookie, signed by what was given, else by the environment's secret, else by what the workers have
        `made`.
        """
        if self.cookie is None or isinstance(self.cookie, Cookie):
            return self.cookie
        return Cookie(self.cookie, secret=self._given or made)

    @property
    def makes_secret(self) -> bool:
        """Whether the workers need a secret of their own making."""
        return isinstance(self.cookie, str) and not self._given

    @property
    def learns(self) -> bool:
        """Whether workers remember who has served a key, and ask each other."""
        return self.key is not None and self.slots is None

    def sample(self) -> Sample | None:
        """What of a request is its key."""
        key = self.key
        if not isinstance(key, str):
            if key is not None and not callable(key):
                raise ConfigError(f"key {key!r} is no sample: write 'hdr(Mcp-Session-Id)', or hand a function")
            return key
        return Template(key) if key.startswith("/") else samples.parse_sample(key)


class Template:
    """A sample: what stands in the place of the braces of a path, such as `/rooms/{id}`; with what follows, or
    without.
    """

    def __init__(self, text: str) -> None:
        pieces = re.split(r"\{(\w+)\}", text)
        if len(pieces) < 3 or any(not piece.isidentifier() for piece in pieces[1::2]):
            raise ConfigError(f"key {text!r} has nothing in braces: write /rooms/{{id}}, or a sample such as 'path'")
        pattern = "([^/]+)".join(re.escape(piece) for piece in pieces[::2])
        self._pattern = re.compile(f"{pattern}(?:/.*)?" if not text.endswith("/") else f"{pattern}.*", re.DOTALL)

    def __call__(self, request: Request) -> str | None:
        match = self._pattern.fullmatch(request.path)
        return None if match is None else "/".join(match.groups())


class Workers(Backend):
    """The workers of one app as one of them sees them. Servers are numbered as slots are; only those that are there are
    up.

    `own`: the server that is this very worker. `sibling`: makes the app that stands for the worker in a slot, told
    these workers and the slot's number.
    """

    def __init__(
        self,
        asked: WorkersConfig,
        slots: Slots,
        slot: Slot,
        app: App,
        sibling: Callable[[Workers, int], App],
        *,
        log: Callable[[Decision], None] | None = None,
        clock: Clock | None = None,
        rng: Rng | None = None,
    ) -> None:
        self.slots = slots
        self.slot = slot
        self.asked = asked
        self._looking = threading.Lock()
        servers = [
            Server(
                f"{PREFIX}{number}",
                app if number == slot.number else sibling(self, number),
                weight=_WEIGHT,
            )
            for number in range(1, MOST + 1)
        ]
        self.own = servers[slot.number - 1]
        self.own.instance = slot.life
        for server in servers:
            if server is not self.own:
                server.health = Health.DOWN
        cookie = asked.persisted(slots.secret() if asked.makes_secret else "")
        self.cookie = cookie
        sample = asked.sample()
        #: whether keys are spread over slots
        self.keyed = sample is not None and asked.slots is not None
        hashed = Hash(sample, hash_type="consistent", hash_key="name") if sample is not None and self.keyed else None
        #: what is known of whose a key is; None: nobody learns
        self.keys = Keys(self, sample) if sample is not None and asked.learns else None
        super().__init__(
            asked.name or "workers",
            servers,
            balance=Local(self.own.name, hashed, asked.slots or 0),
            persist=(
                *((Learning(self.keys),) if self.keys is not None else ()),
                *((Sought(cookie, self.look),) if cookie is not None else ()),
            ),
            # who has a key goes where that says, whatever the cookie
            ignore_persist=(lambda request: sample(request) is not None) if sample and hashed and cookie else None,
            retry_on=asked.retry_on,
            log=log,
            clock=clock,
            rng=rng,
        )
        self.look()

    @property
    def gone(self) -> bool:
        """Whether who has lost a session is told so."""
        return self.asked.on_lost == "gone"

    def look(self) -> None:
        """See who is there. It costs next to nothing unless somebody has come or gone."""
        with self._looking:
            seen = self.slots.news()
            if seen is None:
                return
            for server in self.servers:
                if server is self.own:
                    continue
                life = seen.get(server.id, "")
                if life == server.instance:
                    continue
                if not life:
                    server.health = Health.DOWN
                server.instance = life
                if life:
                    server.health = Health.UP

    def missed(self, server: Server, life: str) -> bool:
        """Nobody listens any more where the worker of that life did: whether its memory is lost."""
        self.slots.bury(server.id, life)
        self.look()
        return server.instance != life

    @property
    def siblings(self) -> list[Server]:
        """Those who are there, seen anew."""
        self.look()
        return [server for server in self.servers if server is not self.own and server.usable]

    def handed(self, claim: str, reason: str) -> Handed:
        """A request that a sibling has handed over to this worker: ValueError if that is not what its frame says."""
        return Handed(self, claim, reason)

    def farewell(self, secure: bool) -> str:
        """What takes the mark back from a client (the text of a Set-Cookie header)."""
        cookie = self.cookie
        assert cookie is not None
        always = cookie.is_secure
        return "; ".join(
            (
                f"{cookie.name}=",
                "Expires=Thu, 01-Jan-1970 00:00:01 GMT",
                f"path={cookie.at_path}",
                *(f"domain={domain}" for domain in cookie.domains),
                *(("Secure",) if always is True or (always == "auto" and secure) else ()),
            )
        )

    def after_fork(self) -> None:
        """The slot is the parent's, and so are the siblings."""
        self._looking = threading.Lock()
        self.slot.after_fork()
        super().after_fork()


@dataclass(frozen=True, slots=True)
class Sought:
    """A cookie of which somebody takes a look around before it is believed or not."""

    asked: Cookie
    look: Callable[[], None]

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> Seeking:
        return Seeking(self.asked.build(backend, servers, clock), self.look)


class Seeking:
    """The same at work. A mark that is settled, as nearly all are, needs no look."""

    fast_path: TwoGenerationCache[Hashable, tuple[Server, PersistenceResult, Sequence[object] | None]]

    def __init__(self, persistence: Persistence, look: Callable[[], None]) -> None:
        self._persistence = persistence
        self._look = look
        self.max_idle = persistence.max_idle
        self.fast_path = persistence.fast_path

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        if request.cookie_key is not None:
            self._look()
        return self._persistence.recognise(request, accept_down=accept_down)

    def stamp_response(
        self, presented: PersistenceResult, server: Server, direct: bool, request: Request, reply: ResponseHead
    ) -> Mark:
        return self._persistence.stamp_response(presented, server, direct, request, reply)

    def state_changed(self, server: Server) -> None:
        self._persistence.state_changed(server)
        self.fast_path = self._persistence.fast_path


class Keys:
    """What this worker knows of whose a key is: what it has served itself, and what siblings have told it.

    Who meets a key that it does not know claims it of the key's arbiter, one of the workers, the same for all. That one
    asks everybody, and if nobody knows, gives the key to whoever has claimed it first. So an arbiter that ends takes
    nothing with it.
    """

    #: siblings answer in a store's place (`sticky_core.stores.Store`); who does not, has none of its keys any more
    on_store_failure: Literal["local"] = "local"

    def __init__(self, workers: Workers, sample: Sample) -> None:
        self.workers = workers
        self.sample = sample
        #: where servers give keys out, if that can be seen
        self.given: res.Sample | None = None
        if isinstance(sample, samples.hdr):
            self.given = res.hdr(sample.name, sample.number)
        elif isinstance(sample, samples.cook):
            self.given = res.cook(sample.name)
        self.table = StickTable("string", size=_KEYS, expire=_KEYS_EXPIRE, length=256)
        # those that were given to us, for requests that have not gone on yet, and why
        self._new: dict[str, Reason] = {}

    def key(self, sample: Key | None) -> str | None:
        """A key as the table knows it."""
        key = self.table.key(sample)
        return None if key is None else str(key)

    def known(self, key: str) -> str | None:
        """Whose it is, as `name@life`; None if nobody's that we know, or nobody's who is still there."""
        self.workers.look()
        text = self.last(key)
        return text if text is not None and self.server(text) is not None else None

    @property
    def own(self) -> str:
        """What stands for this worker."""
        return life.id_with_instance(self.workers.own.name, self.workers.own.instance)

    def learn(self, key: str, text: str) -> None:
        """It is that one's."""
        if self.last(key) != text:
            self.table[key] = text

    def arbiter(self, key: str) -> Server:
        """Who gives it away."""
        there = sorted((self.workers.own, *self.workers.siblings), key=lambda server: server.id)
        return there[crc32(samples.key_bytes(key)) % len(there)]

    def last(self, key: str) -> str | None:
        """Whose it was when we heard of it last, there or not."""
        return self.table.peek(key, self.table.clock.monotonic())

    def settled(self, key: str, text: str | None, before: str | None) -> None:
        """The arbiter has given it to that one; None: it could not be asked, so it is ours. `before`: the last whose it
        was.
        """
        self.learn(key, text if text is not None else self.own)
        if text is None or text == self.own:
            if len(self._new) > _NEW:  # of requests that were never answered
                self._new.clear()
            self._new[key] = Reason.NO_ENTRY if before is None or before == self.own else Reason.OTHER_INSTANCE

    def news(self, key: str) -> Reason | None:
        """Why it was given to us, if that was just now; told once."""
        return self._new.pop(key, None)

    def server(self, text: str) -> Server | None:
        """Who is meant, if that one is still there, with the same memory."""
        name, lived = life.split_instance(text)
        number = name.removeprefix(PREFIX)
        if not number.isdecimal() or not 0 < int(number) <= MOST:
            return None
        server = self.workers.servers[int(number) - 1]
        if server.instance != lived:
            self.workers.look()
        return server if server.instance == lived and server.usable else None

    def stores_replied(self, reply: ResponseHead, server: Server) -> None:
        """`server` has answered, and may have given out a key."""
        key = self.key(self.given(reply)) if self.given is not None else None
        if key is not None:
            self.learn(key, life.id_with_instance(server.name, server.instance))


@dataclass(frozen=True, slots=True, eq=False)
class Learning:
    """Persistence by keys that workers learn."""

    keys: Keys

    def build(self, backend: str, servers: Sequence[Server], clock: Clock) -> Learned:
        return Learned(self.keys)


class Learned:
    """The same at work. `note` of what is presented: the key."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.max_idle = keys.table.expire
        self.fast_path: TwoGenerationCache[Hashable, tuple[Server, PersistenceResult, Sequence[object] | None]] = (
            TwoGenerationCache(0)
        )

    def recognise(self, request: Request, *, accept_down: bool = False) -> PersistenceResult:
        keys = self._keys
        key = keys.key(keys.sample(request))
        if key is None:
            return NO_KEY
        before = keys.last(key)
        server = keys.server(before) if before is not None else None
        if server is not None:
            if server is keys.workers.own and (reason := keys.news(key)) is not None:
                claim = Claim.NONE if reason is Reason.NO_ENTRY else Claim.INVALID
                return PersistenceResult(claim, reason, server, overrides_claim=True, persistence_state=key)
            return PersistenceResult(Claim.VALID, Reason.BOUND, server, persistence_state=key)
        if keys.workers.gone and before is not None:
            return PersistenceResult(Claim.INVALID, Reason.OTHER_INSTANCE, persistence_state=key)
        ask = StoreCommand(keys, (key,))
        if request.store_query(ask) is None:
            return replace(NO_ENTRY, queries=(StoreQuery(ask, 0),), persistence_state=key)
        return replace(NO_ENTRY, persistence_state=key)  # whose it was has ended in this moment

    def stamp_response(
        self, presented: PersistenceResult, server: Server, direct: bool, request: Request, reply: ResponseHead
    ) -> Mark:
        keys = self._keys
        if presented.persistence_state is not None:
            keys.learn(cast(str, presented.persistence_state), life.id_with_instance(server.name, server.instance))
        keys.stores_replied(reply, server)
        return Mark.NONE

    def state_changed(self, server: Server) -> None:
        """It looks when it is asked."""


class Handing(Transaction[Message, Out]):
    """A transaction that may be handed over to a sibling. Faces put it before their own."""

    __slots__ = ("_claims_anew", "_lost")

    workers: ClassVar[Workers]  #: a face sets it, in a class of its own for each family

    def missed(self, life: str) -> None:
        """The sibling that it was to be handed over to, of that life, is not there any more."""
        self._lost = self.workers.missed(self.tried[-1], life)

    def _mark_redispatched(self, reason: Reason) -> None:
        if getattr(self, "_lost", False) and self.persisted.claim is Claim.VALID:
            self._lost = False
            self._claims_anew = (
                self.persisted.persistence_state is not None
            )  # it came by a key, and others may come by the same
            self.persisted = replace(
                self.persisted, claim=Claim.INVALID, reason=Reason.OTHER_INSTANCE, needs_no_mark=False
            )
        else:
            super()._mark_redispatched(reason)

    def _chosen(self, until: float | None = None) -> Server | None:
        workers = self.workers
        if self._is_gone:
            return None
        if getattr(self, "_claims_anew", False):
            self._claims_anew = False
            return self._recognised()
        if workers.keyed:
            workers.look()
        return super()._chosen(until)

    @property
    def _is_gone(self) -> bool:
        presented = self.persisted
        return self.workers.gone and presented.reason is Reason.OTHER_INSTANCE and not presented.is_ignored

    def _page(self) -> ErrorPage:
        if not self._is_gone:
            return super()._page()
        answer = error_page(410)
        answer.headers.append(("set-cookie", self.workers.farewell(self.secure)))
        return answer


class Handed(Decision):
    """What a sibling has decided about a request that it has handed over; what the app here reads."""

    __slots__ = ("_workers",)

    def __init__(self, workers: Workers, claim: str, reason: str) -> None:
        own = workers.own
        found, why = _CLAIMS.get(claim), _REASONS.get(reason)
        if found is None or why is None:
            raise ValueError(f"claim {claim!r}, reason {reason!r}")
        self._workers = workers
        self.persisted = PersistenceResult(found, why, own if found is Claim.VALID else None)
        self.tried = own.only
        self.status = 0

    @property
    def backend(self) -> str:
        return self._workers.name

    def begin(self) -> None:
        """It is here."""
        self._workers.own.in_flight.append(None)

    def app_raised(self) -> None:
        """An exception came out of the app."""
        self._workers.own.counters.cell[Total.ERESP] += 1

    def release(self) -> None:
        """It is over."""
        own = self._workers.own
        own.counters.cell[self.status // 100] += 1
        own.in_flight.pop()


_CLAIMS: Mapping[str, Claim] = Claim.__members__
_REASONS: Mapping[str, Reason] = Reason.__members__


def alone(asked: WorkersConfig, spawned: bool, software: str) -> bool:
    """Whether this process can't have siblings: nobody has named them, it was not `spawned` by Python's
    multiprocessing, as uvicorn, hypercorn and granian make their workers, and `software` (the environment's
    SERVER_SOFTWARE) is not gunicorn, which forks its own.
    """
    return asked.name is None and not spawned and not software.startswith("gunicorn")


def begin(
    asked: WorkersConfig,
    app: App,
    number: int,
    sibling: Callable[[Workers, int], App],
    *,
    directory: str | os.PathLike[str] | None = None,
    log: Callable[[Decision], None] | None = None,
    clock: Clock | None = None,
    rng: Rng | None = None,
) -> Workers:
    """Take a slot, and look who else is there. `number`: that of the app among those of this process. To be called in
    the process that serves; then listen at `slot.draft`, and `slot.open()`. ConfigError if there can be no slot.
    """
    clock = clock if clock is not None else SystemClock()
    slots = Slots.of(asked.name, number, clock, directory)
    slot = slots.take(life.new_instance(clock, rng if rng is not None else random))
    try:
        return Workers(asked, slots, slot, app, sibling, log=log, clock=clock, rng=rng)
    except BaseException:
        slot.release()
        raise
