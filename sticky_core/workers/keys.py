"""Keys: which worker owns a key, and how the workers agree on the owner of a new one. Without I/O.

Each worker remembers the keys that it has served, and those that it has learned from peers (`KeyTable`). Wherever a
worker meets a key it renews it: in a request that it accepts or that a peer forwards to it, a query, a claim.

A worker that receives a request with a key that it does not know *claims* the key at its *arbiter*: one of the live
workers, computed from the key, so that all workers choose the same one. The arbiter queries all peers. If one of them
knows the owner, the owner stays; otherwise the worker with the first claim owns the key, and later claims get its name
as the reply. The arbiter knows nothing that its peers do not know, so nothing is lost when it ends: a claim to which it
does not reply goes to the next arbiter, which is computed from the same workers without it.

`KeyArbitration` has these rules as generators: they yield what has to be sent or waited for (`QueryPeers`, `WaitFor`),
receive the replies, and return the owner. The faces only send and receive.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Generator, Sequence
from math import inf
from typing import Final, Generic, Literal, Protocol, TypeAlias, TypeVar
from zlib import crc32

from sticky_core.backend.function_failures import FunctionFailures
from sticky_core.deferred.dataclass import dataclass
from sticky_core.http.messages import Request, ResponseHead
from sticky_core.persistence.claim import Reason
from sticky_core.samples import request as samples
from sticky_core.samples import response as res
from sticky_core.samples.request import Sample
from sticky_core.samples.response_body import BodyReader, BodySample
from sticky_core.samples.values import Key, key_bytes
from sticky_core.server import instance
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from sticky_core.workers.frames import Kind
from sticky_core.workers.refused_keys import RefusedKeys
from sticky_core.workers.slots import MAX_WORKERS

_log = logging.getLogger("sticky_sessions")

#: the name of a worker is this prefix and the number of its worker slot
PREFIX: Final = "w"
#: how many keys a worker remembers, and for how long after their last use
_TABLE_SIZE: Final = "100k"
_EXPIRE: Final = "1h"
#: the longest key, in characters; longer ones are cut
_KEY_LENGTH: Final = 256
#: how many keys are remembered that were claimed, until the request that claimed them continues
_MAX_CLAIMED: Final = 10_000
#: how many content-encodings are reported because no key can be read through them; apps use two or three
_MAX_ENCODINGS: Final = 8


class Membership(Protocol):
    """The workers of a group, as one of them sees the others."""

    @property
    def servers(self) -> Sequence[Server]:
        """One server for each worker slot, in the order of their numbers."""
        ...

    @property
    def own_server(self) -> Server:
        """The server that stands for this worker."""
        ...

    @property
    def function_failures(self) -> FunctionFailures:
        """Where functions of the user's that raise are counted."""
        ...

    def refresh_peers(self) -> None:
        """Read which workers run now."""
        ...

    def live_peers(self) -> list[Server]:
        """Read which workers run now, and return the servers of all but this one."""
        ...


@dataclass(frozen=True, slots=True)
class FirstKey:
    """A sample of requests: the key of the first of several samples that finds one."""

    samples: tuple[Sample, ...]

    def __call__(self, request: Request) -> Key | None:
        for sample in self.samples:
            key = sample(request)
            if key is not None:
                return key
        return None


class KeyTable:
    """The keys that this worker knows, and their owners. An owner is written `name@instance`.

    It takes the place of a store (`sticky_core.stores.store.Store`): a key lookup is a query, and peers reply to it.

    - `sample`: finds the key of a request.
    - `learn`: samples that find keys which the app issues in responses. For a key in a header or cookie of requests,
      the header or cookie of the same name in responses is one of them, given or not.
    """

    #: a peer that does not reply has ended, and its keys with it
    on_store_failure: Literal["local"] = "local"

    def __init__(self, membership: Membership, sample: Sample, learn: Sequence[res.Sample | BodySample] = ()) -> None:
        self._membership = membership
        self.own_server = membership.own_server
        self.sample = sample
        parts = sample.samples if isinstance(sample, FirstKey) else (sample,)
        issued: list[res.Sample] = []
        for part in parts:
            if isinstance(part, samples.hdr):
                issued.append(res.hdr(part.name, part.number))
            elif isinstance(part, samples.cook):
                issued.append(res.cook(part.name))
        #: the samples that find keys issued by the app in the head of a response
        self.head_samples = (*issued, *(each for each in learn if not isinstance(each, BodySample)))
        #: the same of the body
        self.body_samples = tuple(each for each in learn if isinstance(each, BodySample))
        self.refused_keys = RefusedKeys(parts, bool(learn))
        self._reported_encodings: set[str] = set()
        self.table = StickTable("string", size=_TABLE_SIZE, expire=_EXPIRE, length=_KEY_LENGTH)
        # keys that this worker has claimed and owns, until the request that claimed them continues
        self._claimed: dict[str, Reason] = {}
        # The key of each request in flight, the owner that serves it, and until when the use at its beginning counts.
        self._in_use: dict[object, tuple[str, str, float]] = {}
        self._renew_at = -inf  # when the keys in `_in_use` are to be renewed

    def read_reply(self, reply: object) -> None:
        """A reply says only that the table has the owner now."""

    @property
    def own_id(self) -> str:
        """This worker, written as an owner."""
        return instance.id_with_instance(self.own_server.name, self.own_server.instance)

    def table_key(self, sample: Key | None) -> str | None:
        """Return a key in the form in which the table stores it."""
        key = self.table.key(sample)
        return None if key is None else str(key)

    def last_owner(self, key: str) -> str | None:
        """Return the last known owner, which may have ended, and renew the key: it is forgotten only when it was not
        looked up for `table.expire`.
        """
        now = self.table.clock.monotonic()
        if now >= self._renew_at:
            self._renew_keys_in_use(now)
        return self.table.entries.get(key, now)

    def live_owner(self, key: str) -> str | None:
        """Return the owner; None if it is unknown, or does not run any more."""
        self._membership.refresh_peers()
        owner = self.last_owner(key)
        return owner if owner is not None and self.live_server(owner) is not None else None

    def live_server(self, owner: str) -> Server | None:
        """Return the server of `owner`; None if that instance of the worker does not run any more."""
        name, owner_instance = instance.split_instance(owner)
        number = name.removeprefix(PREFIX)
        if not number.isdecimal() or not 0 < int(number) <= MAX_WORKERS:
            return None
        server = self._membership.servers[int(number) - 1]
        if server.instance != owner_instance:
            self._membership.refresh_peers()
        return server if server.instance == owner_instance and server.usable else None

    def live_peers(self) -> list[Server]:
        """Return the servers of the other workers that run."""
        return self._membership.live_peers()

    def arbiter(self, key: str, silent: Container[int] = ()) -> Server:
        """Return the arbiter of `key`. All workers compute the same one while no worker starts or ends. `silent`: the
        worker slots of those that have not replied to a claim of the key.
        """
        live = [server for server in (self.own_server, *self.live_peers()) if server.id not in silent]
        live.sort(key=lambda server: server.id)
        return live[crc32(key_bytes(key)) % len(live)]

    def learn(self, key: str, owner: str) -> None:
        """Record that `owner` owns the key."""
        if self.last_owner(key) != owner:
            self.table[key] = owner

    def begin_use(self, request: object, key: str, owner: str) -> None:
        """Record that `owner` serves `request`, which has the key: the key is in use until `end_use`, however long the
        request takes. The owner was recorded before (`learn`, `renew`).
        """
        self._in_use[request] = key, owner, self._renew_at

    def end_use(self, request: object) -> None:
        """Record that `request` has ended; it need not have a key."""
        used = self._in_use.get(request)
        if used is not None:
            key, owner, renew_at = used
            if self.table.clock.monotonic() >= renew_at:  # else the table has the use from its beginning
                self.renew(key, owner)
            self._in_use.pop(request, None)

    def renew(self, key: str, owner: str) -> None:
        """Record that `owner` owns the key, unless another live worker does."""
        if self.last_owner(key) != owner and self.live_owner(key) is None:
            self.table[key] = owner

    def _renew_keys_in_use(self, now: float) -> None:
        """Renew the keys of requests in flight. This is done before a look-up, so nothing finds that they have expired,
        and no timer is needed.
        """
        for key, owner, _ in list(self._in_use.values()):
            self.table.entries.reserve(key, owner, now)
        self._renew_at = now + self.table.entries.step

    def learn_from_response(self, response: ResponseHead, server: Server) -> None:
        """Record the keys that the head of a response of `server` issues."""
        for sample in self.head_samples:
            try:
                key = self.table_key(sample(response))
            except Exception as error:
                self._membership.function_failures.record("learn of StickyWorkers", sample, error)
                continue
            if key is not None:
                self.refused_keys.key_issued()
                self.learn(key, instance.id_with_instance(server.name, server.instance))

    def body_reader(self, response: ResponseHead) -> BodyReader | None:
        """Return what reads the keys in the body of a response with this head; None if the body has none."""
        content_type = next(iter(response.header("content-type")), "").partition(";")[0].strip().lower()
        accepting = [sample for sample in self.body_samples if sample.accepts(content_type)]
        if not accepting:
            return None
        encoding = ", ".join(response.header("content-encoding")).strip().lower()
        if encoding not in ("", "identity"):
            if encoding not in self._reported_encodings and len(self._reported_encodings) < _MAX_ENCODINGS:
                self._reported_encodings.add(encoding)
                _log.warning(
                    "StickyWorkers: no key is learned from the body of a response with content-encoding %s: leave "
                    "responses uncompressed in which the app issues keys (%s)",
                    encoding,
                    ", ".join(map(repr, accepting)),
                )
            return None
        length = next(iter(response.header("content-length")), "")
        return BodyReader(accepting, int(length) if length.isascii() and length.isdecimal() else None)

    def learn_issued(self, request: object, found: str) -> None:
        """Record the key that this worker issues in the body of its response to `request`, which uses it until it has
        ended. It stays with another live worker that owns it: then this response has only repeated it.
        """
        key = self.table_key(found)
        if key is not None:
            self.refused_keys.key_issued()
            self.renew(key, self.own_id)
            if self.last_owner(key) == self.own_id:
                self.begin_use(request, key, self.own_id)

    def record_claim(self, key: str, owner: str, previous: str | None) -> None:
        """Record the arbiter's reply to a claim. `previous`: the last known owner before."""
        self.learn(key, owner)
        if owner == self.own_id:
            if len(self._claimed) > _MAX_CLAIMED:  # requests that ended before they continued
                self._claimed.clear()
            self._claimed[key] = (
                Reason.NO_ENTRY if previous is None or previous == self.own_id else Reason.OTHER_INSTANCE
            )

    def pop_claim_reason(self, key: str) -> Reason | None:
        """Return why this worker claimed the key, and forget it; None if it has not claimed the key."""
        return self._claimed.pop(key, None)


class Event(Protocol):
    """What a face waits on: `threading.Event`, `asyncio.Event`."""

    def set(self) -> object: ...


E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True)
class QueryPeers:
    """Tells the face to send the frame `request` to these peers, and their replies into the generator: each is an
    owner, or None if the peer knows none or can't be reached. Replies after the first owner may be left out.
    """

    peers: Sequence[Server]
    request: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class WaitFor(Generic[E]):
    """Tells the face to wait for `event`, because another request works on the same key, and to send `()` into the
    generator.
    """

    event: E


Replies: TypeAlias = Sequence[str | None]

T = TypeVar("T")

#: a generator that yields what a face has to do, receives the replies, and returns the result
Procedure: TypeAlias = Generator[QueryPeers | WaitFor[E], Replies, T]


class KeyArbitration(Generic[E]):
    """The rules by which workers agree on the owner of a key, for one worker (see the head of this file).

    `new_event`: makes the event on which a request waits while another one works on the same key.
    """

    def __init__(self, keys: KeyTable, new_event: Callable[[], E]) -> None:
        self._keys = keys
        self._claims = InProgress(new_event)
        self._decisions = InProgress(new_event)

    def claim(self, key: str) -> Procedure[E, None]:
        """Find the owner of `key`, which this worker does not know, and record it in the table."""
        running = self._claims.begin(key)
        if running is not None:
            yield WaitFor(running)
            return
        try:
            keys = self._keys
            previous = keys.last_owner(key)
            silent: list[int] = []
            owner: str | None = None
            while owner is None:
                arbiter = keys.arbiter(key, silent)
                if arbiter is keys.own_server:
                    owner = yield from self.decide(key, keys.own_id, silent)
                else:
                    replies = yield QueryPeers((arbiter,), (Kind.KEY_CLAIM, key, keys.own_id, *silent))
                    owner = first_owner(replies)
                    silent.append(arbiter.id)
            keys.record_claim(key, owner, previous)
        finally:
            self._claims.end(key)

    def decide(self, key: str, claimant: str, silent: Container[object] = ()) -> Procedure[E, str]:
        """As the arbiter, return the owner of `key`: the worker that owns it already, else `claimant`. `silent`: the
        worker slots of peers that have not replied to the claimant, and are not queried.
        """
        keys = self._keys
        while (owner := keys.live_owner(key)) is None:
            running = self._decisions.begin(key)
            if running is not None:
                yield WaitFor(running)
                continue
            try:
                # the claimant is not queried: it would not claim a key that it knows
                peers = [
                    peer
                    for peer in keys.live_peers()
                    if not claimant.startswith(f"{peer.name}@") and peer.id not in silent
                ]
                replies = yield QueryPeers(peers, (Kind.KEY_QUERY, key))
                keys.learn(key, first_owner(replies) or claimant)
            finally:
                self._decisions.end(key)
            if keys.live_owner(key) is None:
                return claimant  # the owner that a peer has named has just ended
        return owner


def first_owner(replies: Replies) -> str | None:
    """Return the first owner among replies."""
    return next((owner for owner in replies if owner is not None), None)


class InProgress(Generic[E]):
    """The keys that a request works on now, each with the event on which others wait for its end."""

    def __init__(self, new_event: Callable[[], E]) -> None:
        self._new_event = new_event
        self._lock = threading.Lock()
        self._events: dict[str, E] = {}

    def begin(self, key: str) -> E | None:
        """Begin to work on `key`, and return None; or return the event of the request that already does."""
        with self._lock:
            running = self._events.get(key)
            if running is None:
                self._events[key] = self._new_event()
            return running

    def end(self, key: str) -> None:
        """End the work on `key`, and wake the requests that wait for it."""
        with self._lock:
            event = self._events.pop(key)
        event.set()
