"""Resolvers: how a name's addresses are asked for, what an answer is, and which server gets which address (HAProxy
`resolvers`, `server-template`, configuration manual 5.3 and 4.2).

Without I/O: `Resolution` says when to ask next (`delay`) and draws from an answer who is where (`observe`); `questions`
says what to ask of a name server. Two rules: a server whose address is still in the answer keeps it, so that nobody
moves who need not; and what fails is not believed at once.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, cast, get_args

from sticky_core.durations import Duration, problems_of_duration, seconds
from sticky_core.errors import raise_problems

Family = Literal["ipv4", "ipv6"]
Endpoint = tuple[str | None, int | None]

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
class Address:
    """One address of a name. `port`, `weight` (0..65535) and `name`, the host that was named, are those of an SRV
    record; None, None and empty where there is none. No address: the host is named, but where it is could not be learnt
    now.
    """

    address: str | None
    port: int | None = None
    weight: int | None = None
    name: str = ""

    @property
    def endpoint(self) -> Endpoint:
        return self.address, self.port


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a resolution. `info`: the evidence, for people."""

    status: Status
    addresses: tuple[Address, ...] = ()
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
        raise_problems(f"resolvers: {problem}" for problem in self._problems())
        object.__setattr__(self, "nameservers", tuple(self.nameservers))  # names are resolved once per value: hashed

    def _problems(self) -> Iterator[str]:
        for name in ("timeout_resolve", "timeout_retry"):
            yield from problems_of_duration(name, getattr(self, name))
        for name in ("hold_nx", "hold_refused", "hold_timeout", "hold_other", "hold_obsolete"):
            yield from problems_of_duration(name, getattr(self, name), allows_zero=True)
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
                    parse_nameserver(each)
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


def parse_nameserver(text: str) -> tuple[str, int]:
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


def answer_from_resolver(answer: object) -> Answer:
    """What a resolver that was handed in means by what it returned."""
    if isinstance(answer, Answer):
        return answer
    if isinstance(answer, str) or not isinstance(answer, Iterable):
        return Answer(Status.OTHER, info=f"the resolver returned {answer!r}, which is no list of addresses")
    found: list[Address] = []
    for each in cast("Iterable[object]", answer):
        one = Address(each) if isinstance(each, str) else each
        if not isinstance(one, Address):
            return Answer(Status.OTHER, info=f"the resolver returned {each!r} among the addresses")
        found.append(one)
    return answer_with(found)


def answer_with(found: Iterable[Address], info: str = "") -> Answer:
    """An answer with these addresses; without any it is none that is valid."""
    kept: list[Address] = []
    for each in found:
        try:
            address = None if each.address is None else str(ipaddress.ip_address(each.address))
        except ValueError:
            return Answer(Status.OTHER, info=f"{each.address!r} is no address")
        kept.append(Address(address, each.port, each.weight, each.name))
    return Answer(Status.VALID, tuple(kept)) if kept else Answer(Status.OTHER, info=info or "no address")


def answer_from_exception(error: Exception) -> Answer:
    """What it means that resolving has raised."""
    status = Status.OTHER
    if isinstance(error, LookupError):
        status = Status.NX
    elif isinstance(error, TimeoutError):
        status = Status.TIMEOUT
    elif isinstance(error, ConnectionRefusedError):
        status = Status.REFUSED
    return Answer(status, info=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def answer_from_system(addresses: Iterable[str], prefer: Family) -> Answer:
    """What the system said. Addresses that hold on one link only are none that a URL could name."""
    return answer_with(
        Address(each) for each in preferred_addresses((each for each in addresses if "%" not in each), prefer)
    )


def answer_from_os_error(error: OSError, unknown: Container[int], again: int) -> Answer:
    """How the system failed, by the numbers that say that there is no such name, and that it may be known later."""
    status = (
        Status.NX
        if error.errno is not None and error.errno in unknown
        else Status.TIMEOUT
        if error.errno == again
        else Status.OTHER
    )
    return Answer(status, info=error.strerror or str(error))


def preferred_addresses(addresses: Iterable[str], prefer: Family) -> list[str]:
    """Those of the preferred family, or else the others, each once: a host that has both is one place and not two."""
    known = list(dict.fromkeys(addresses))
    version = 4 if prefer == "ipv4" else 6
    preferred = [each for each in known if ipaddress.ip_address(each).version == version]
    return preferred or known
