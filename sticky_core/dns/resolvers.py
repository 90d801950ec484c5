"""Resolvers: how a name's addresses are asked for, what an answer is, and which server gets which address (HAProxy
`resolvers`, `server-template`, configuration manual 5.3 and 4.2).

Without I/O: `Resolution` says when to ask next (`delay`) and draws from an answer who is where (`observe`); `questions`
says what to ask of a name server. Two rules: a server whose address is still in the answer keeps it, so that nobody
moves who need not; and what fails is not believed at once.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Container, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast, get_args

from sticky_core.durations import Duration, seconds
from sticky_core.errors import check

Family = Literal["ipv4", "ipv6"]
Slot = TypeVar("Slot", bound=Hashable)
Place = tuple[str | None, int | None]

#: where DNS is served
PORT = 53
_NAMESERVER = re.compile(r"(?:\[([^]]*)\]|([^:]*))(?::([^:]+))?")


class Status(StrEnum):
    """How a resolution turned out (HAProxy `hold <status>`)."""

    VALID = "valid"
    NX = "nx"  #: there is no such name
    REFUSED = "refused"
    TIMEOUT = "timeout"
    OTHER = "other"  #: whatever else is no answer, one without an address included


@dataclass(frozen=True, slots=True)
class Found:
    """One address of a name. `port`, `weight` (0..65535) and `name`, the host that was named, are those of an SRV
    record; None, None and empty where there is none. No address: the host is named, but where it is could not be learnt
    now.
    """

    address: str | None
    port: int | None = None
    weight: int | None = None
    name: str = ""

    @property
    def place(self) -> Place:
        return self.address, self.port


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a resolution. `info`: the evidence, for people."""

    status: Status
    found: tuple[Found, ...] = ()
    info: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """What is to be resolved: a name, or with `service` the SRV records of one, within `timeout` seconds."""

    name: str
    service: bool
    prefer: Family
    timeout: float


#: Resolves a query: the addresses, as text or as `Found`; on ASGI it may be a coroutine function. It may raise
#: LookupError (there is no such name), ConnectionRefusedError, TimeoutError, or anything else, which is `other`.
Resolver = Callable[[Query], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolvers:
    """How the names of `Server.template` are resolved.

    `nameservers`: whom to ask, as addresses, `"10.0.0.2"` or `"10.0.0.2:5353"`; by default the system is asked, and for
    SRV those that it asks. `resolver`: asked instead, for tests and other sources: a callable that is handed a `Query`
    and returns addresses.
    `resolve_retries`: after how many tries without an answer that counts for one. `timeout_resolve`: seconds between
    two resolutions; `timeout_retry`: seconds within which an answer is expected, and between two tries.
    `hold_nx`, `hold_refused`, `hold_timeout`, `hold_other`: for how long after the last answer servers stay where they
    are although names fail to resolve, by how they do; `hold_obsolete`: for how long one stays whose address is not in
    the answers any more. (`hold valid` concerns no servers in HAProxy, so there is none.)
    `resolve_prefer`: which family is taken where a name has both (`"ipv4"`; HAProxy's default is IPv6).
    `prevent_dup_ip`: no two servers get the same address; else those that would have none share.
    `ignore_weight`: the weights of SRV records do not count.

    Durations are seconds, or text such as `"30s"`. Raises `ConfigError` with every problem found.
    """

    nameservers: Sequence[str] = ()
    resolver: Resolver | None = None
    resolve_retries: int = 3
    timeout_resolve: Duration = 1
    timeout_retry: Duration = 1
    hold_nx: Duration = 30
    hold_refused: Duration = 30
    hold_timeout: Duration = 30
    hold_other: Duration = 30
    hold_obsolete: Duration = 0
    resolve_prefer: Family = "ipv4"
    prevent_dup_ip: bool = True
    ignore_weight: bool = False

    def __post_init__(self) -> None:
        check(f"resolvers: {problem}" for problem in self._problems())
        object.__setattr__(self, "nameservers", tuple(self.nameservers))  # names are resolved once per value: hashed

    def _problems(self) -> Iterator[str]:
        for name in ("timeout_resolve", "timeout_retry"):
            yield from _problems_of_duration(name, getattr(self, name), least_is_0=False)
        for name in ("hold_nx", "hold_refused", "hold_timeout", "hold_other", "hold_obsolete"):
            yield from _problems_of_duration(name, getattr(self, name), least_is_0=True)
        retries = cast(object, self.resolve_retries)
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 1:
            yield f"resolve_retries {retries!r} is not a whole number from 1 on"
        if self.resolve_prefer not in get_args(Family):
            yield f"resolve_prefer {self.resolve_prefer!r} is neither 'ipv4' nor 'ipv6'"
        if isinstance(self.nameservers, str):
            yield f"nameservers={self.nameservers!r} is no list: write nameservers=[{self.nameservers!r}]"
        else:
            for each in self.nameservers:
                try:
                    nameserver(each)
                except ValueError as error:
                    yield f"nameserver {each!r}: {error}"
        if self.resolver is not None and self.nameservers:
            yield "nameservers have no effect with a resolver, which asks whom it likes: leave one of them out"
        if self.resolver is not None and not callable(cast(object, self.resolver)):
            yield f"resolver {self.resolver!r} is not callable: hand a function that is handed a Query"

    def hold(self, status: Status) -> float:
        """For how many seconds servers stay although a resolution turned out so."""
        held: Duration = getattr(self, f"hold_{status}")
        return seconds(held)


def _problems_of_duration(name: str, asked: Duration, *, least_is_0: bool) -> Iterator[str]:
    try:
        duration = seconds(asked)
    except ValueError as error:
        yield f"{name}: {error}"
        return
    if duration < 0 or (duration == 0 and not least_is_0):
        yield f"{name} {asked!r} is {'below' if least_is_0 else 'not above'} 0"


def nameserver(text: str) -> tuple[str, int]:
    """Address and port of a name server: `10.0.0.2`, `10.0.0.2:5353`, `::1`, `[::1]:5353`. ValueError if it is none."""
    read = _NAMESERVER.fullmatch(text)
    host, port = (read[1] or read[2], read[3] or str(PORT)) if read is not None else (text, str(PORT))
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        raise ValueError("a name server is given as an address, such as 10.0.0.2 or 10.0.0.2:5353") from None
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"port {port!r} is not within 1..65535")
    return address, int(port)


def is_service(name: str) -> bool:
    """Whether SRV records are meant (HAProxy: whatever begins with an underscore)."""
    return name.startswith("_")


def said(answer: object) -> Answer:
    """What a resolver that was handed in means by what it returned."""
    if isinstance(answer, Answer):
        return answer
    if isinstance(answer, str) or not isinstance(answer, Iterable):
        return Answer(Status.OTHER, info=f"the resolver returned {answer!r}, which is no list of addresses")
    found: list[Found] = []
    for each in cast("Iterable[object]", answer):
        one = Found(each) if isinstance(each, str) else each
        if not isinstance(one, Found):
            return Answer(Status.OTHER, info=f"the resolver returned {each!r} among the addresses")
        found.append(one)
    return stores_replied(found)


def stores_replied(found: Iterable[Found], info: str = "") -> Answer:
    """An answer with these addresses; without any it is none that is valid."""
    kept: list[Found] = []
    for each in found:
        try:
            address = None if each.address is None else str(ipaddress.ip_address(each.address))
        except ValueError:
            return Answer(Status.OTHER, info=f"{each.address!r} is no address")
        kept.append(Found(address, each.port, each.weight, each.name))
    return Answer(Status.VALID, tuple(kept)) if kept else Answer(Status.OTHER, info=info or "no address")


def raised(error: Exception) -> Answer:
    """What it means that resolving has raised."""
    status = Status.OTHER
    if isinstance(error, LookupError):
        status = Status.NX
    elif isinstance(error, TimeoutError):
        status = Status.TIMEOUT
    elif isinstance(error, ConnectionRefusedError):
        status = Status.REFUSED
    return Answer(status, info=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def system(addresses: Iterable[str], prefer: Family) -> Answer:
    """What the system said. Addresses that hold on one link only are none that a URL could name."""
    return stores_replied(Found(each) for each in of_family((each for each in addresses if "%" not in each), prefer))


def by_errno(error: OSError, unknown: Container[int], again: int) -> Answer:
    """How the system failed, by the numbers that say that there is no such name, and that it may be known later."""
    status = (
        Status.NX
        if error.errno is not None and error.errno in unknown
        else Status.TIMEOUT
        if error.errno == again
        else Status.OTHER
    )
    return Answer(status, info=error.strerror or str(error))


def of_family(addresses: Iterable[str], prefer: Family) -> list[str]:
    """Those of the preferred family, or else the others, each once: a host that has both is one place and not two."""
    known = list(dict.fromkeys(addresses))
    version = 4 if prefer == "ipv4" else 6
    preferred = [each for each in known if ipaddress.ip_address(each).version == version]
    return preferred or known


# What to ask of a name server


class Question(NamedTuple):
    """What a name server is asked: for records of this type."""

    name: str
    type: Literal["A", "AAAA", "SRV"]


@dataclass(frozen=True, slots=True)
class Service:
    """An SRV record (RFC 2782). Its priority does not count, as with HAProxy."""

    host: str
    port: int
    weight: int


@dataclass(frozen=True, slots=True)
class Records:
    """What a name server said to a question. `beside`: addresses that it told without being asked, by name."""

    status: Status
    addresses: tuple[str, ...] = ()
    services: tuple[Service, ...] = ()
    beside: Mapping[str, tuple[str, ...]] | None = None
    info: str = ""


def questions(query: Query) -> Generator[Question, Records, Answer]:
    """Ask what it yields, and send what came of it, until it returns the answer."""
    if not query.service:
        records = yield from _addresses(query.name, query.prefer)
        if records.status is not Status.VALID:
            return Answer(records.status, info=records.info)
        return stores_replied(Found(address) for address in records.addresses)
    records = yield Question(query.name, "SRV")
    if records.status is not Status.VALID:
        return Answer(records.status, info=records.info)
    found: list[Found] = []
    info = ""
    for service in records.services:
        if service.host == ".":  # there is decidedly no such service (RFC 2782)
            continue
        addresses: Sequence[str] = of_family((records.beside or {}).get(service.host, ()), query.prefer)
        if not addresses:
            hosts = yield from _addresses(service.host, query.prefer)
            addresses = hosts.addresses
            if not addresses:
                info = f"{service.host}: {hosts.info}"
                # a host that nobody knows has gone; of any other it is only not known where it is
                if hosts.status is not Status.NX:
                    found.append(Found(None, service.port, service.weight, service.host))
        found += (Found(address, service.port, service.weight, service.host) for address in addresses)
    if not any(each.address for each in found):
        return Answer(Status.OTHER, info=info or "no address")
    return stores_replied(found)


def _addresses(name: str, prefer: Family) -> Generator[Question, Records, Records]:
    """The preferred family's, or else the other's. How it failed is what the preferred one's said."""
    first: Literal["A", "AAAA"]
    second: Literal["A", "AAAA"]
    first, second = ("A", "AAAA") if prefer == "ipv4" else ("AAAA", "A")
    records = yield Question(name, first)
    if records.addresses or records.status in (Status.NX, Status.TIMEOUT):
        return records
    other = yield Question(name, second)
    return other if other.addresses else records


# Who is where


def _order(found: Found) -> tuple[int, bytes, int]:
    """Name servers rotate what they tell. In this order, processes that begin with the same answer agree."""
    address = ipaddress.ip_address(found.address or "")
    return address.version, address.packed, found.port or 0


class Resolution(Generic[Slot]):
    """One name, and the servers that are filled from it. Not to be used by two threads at once."""

    def __init__(self, resolvers: Resolvers, slots: Iterable[Slot], now: float) -> None:
        self.resolvers = resolvers
        #: the servers, in order
        self.slots = tuple(slots)
        #: who is where; who is missing is nowhere
        self.places: dict[Slot, Found] = {}
        #: addresses that the last answer had and no server has
        self.surplus = 0
        #: how the last resolution turned out that counted
        self.status: Status | None = None
        self.info = ""
        #: whether names have failed for so long that servers do not stay where they are
        self.lapsed = False
        self._due = now
        self._tries = 0
        self._valid = now  # when there was an answer last
        self._seen: dict[Slot, float] = {}  # when the address of each was in one
        self._former: dict[Slot, Found] = {}  # where those were last that are nowhere

    def delay(self, now: float) -> float:
        """For how many seconds there is nothing to ask."""
        return max(0.0, self._due - now)

    @property
    def patience(self) -> float:
        """For how many seconds an answer is waited for."""
        return seconds(self.resolvers.timeout_retry)

    def serve(self, slots: Iterable[Slot]) -> None:
        """These are the servers now. Who stays keeps its place; who is new gets one with the next answer."""
        self.slots = tuple(slots)
        for known in (self.places, self._seen, self._former):
            for slot in [each for each in known if each not in self.slots]:
                del known[slot]

    def observe(self, answer: Answer, now: float) -> None:
        """What came of asking: changes `places`."""
        resolvers = self.resolvers
        if answer.status is Status.VALID:
            self._tries = 0
            self.lapsed = False
            self._valid = now
            self._due = now + seconds(resolvers.timeout_resolve)
            self.status, self.info = answer.status, answer.info
            self._assign(answer.found, now)
            return
        self._tries += 1
        if self._tries < resolvers.resolve_retries:
            self._due = now + seconds(resolvers.timeout_retry)
            return
        self._tries = 0
        self._due = now + seconds(resolvers.timeout_resolve)
        self.status, self.info = answer.status, answer.info
        self.lapsed = now - self._valid >= resolvers.hold(answer.status)
        if self.lapsed:
            for slot in list(self.places):
                self._empty(slot)

    def _assign(self, found: Sequence[Found], now: float) -> None:
        listed: dict[Place, Found] = {}
        for each in sorted((each for each in found if each.address is not None), key=_order):
            listed.setdefault(each.place, each)
        left = dict(listed)  # those that no server has yet
        for slot, held in list(self.places.items()):
            again = listed.get(held.place)
            if again is not None:
                self._fill(slot, again, now)
                left.pop(held.place, None)
        self._follow(left, now)
        self._let_go({(each.name, each.port) for each in found if each.address is None}, now)
        for slot, held in list(self._former.items()):  # who is back is back where it was
            if held.place in left:
                self._fill(slot, left.pop(held.place), now)
        free = [slot for slot in self.slots if slot not in self.places]
        for slot, each in zip(free, left.values(), strict=False):
            self._fill(slot, each, now)
        self.surplus = max(0, len(left) - len(free))
        if not self.resolvers.prevent_dup_ip and listed:
            for slot, each in zip(free[len(left) :], cycle(listed.values()), strict=False):
                self._fill(slot, each, now)

    def _follow(self, left: dict[Place, Found], now: float) -> None:
        """A host that SRV records name keeps its server when it has moved."""
        for slot, held in list(self.places.items()):
            if held.name and self._seen[slot] != now:
                there = [place for place, each in left.items() if (each.name, each.port) == (held.name, held.port)]
                if there:
                    self._fill(slot, left.pop(there[0]), now)

    def _let_go(self, unlearnt: Container[tuple[str, int | None]], now: float) -> None:
        """Who is not in the answer any more loses its place, in time; `unlearnt`: hosts of which it only does not say
        where they are.
        """
        for slot, held in list(self.places.items()):
            missing = now - self._seen[slot]
            known = (held.name, held.port) in unlearnt
            hold = self.resolvers.hold(Status.OTHER) if known else seconds(self.resolvers.hold_obsolete)
            if missing > 0 and missing >= hold:
                self._empty(slot)

    def _fill(self, slot: Slot, found: Found, now: float) -> None:
        self.places[slot] = found
        self._seen[slot] = now
        self._former.pop(slot, None)

    def _empty(self, slot: Slot) -> None:
        self._former[slot] = self.places.pop(slot)
        del self._seen[slot]
