"""Name resolution (HAProxy `resolvers`, configuration manual 5.3): its configuration, its queries and its answers.
`questions` turns a query into questions for a name server, `resolution` assigns the addresses to servers.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any, Literal, cast, get_args

from sticky_core.deferred.dataclass import dataclass
from sticky_core.durations import Duration, problems_of_duration, seconds
from sticky_core.errors import raise_problems

Family = Literal["ipv4", "ipv6"]
Endpoint = tuple[str | None, int | None]

#: the default port of DNS
PORT = 53
_NAMESERVER = re.compile(r"(?:\[([^]]*)\]|([^:]*))(?::([^:]+))?")


class Status(StrEnum):
    """The result of a resolution (HAProxy `hold <status>`)."""

    VALID = "valid"
    NX = "nx"  #: the name does not exist
    REFUSED = "refused"
    TIMEOUT = "timeout"
    OTHER = "other"  #: any other failure, an answer without addresses included


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a name.

    - `address`: the IP address as text; None if an SRV record names the host, but its address can't be resolved now.
    - `port`: the port of the SRV record, int, or None without one.
    - `weight`: the weight of the SRV record, int from 0 to 65535, or None without one.
    - `name`: the host that the SRV record names, str, empty without one.
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
    """The result of a resolution. `info`: the evidence, as text for logs."""

    status: Status
    addresses: tuple[Address, ...] = ()
    info: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """A query: the addresses of a name, or with `service` its SRV records, within `timeout` seconds."""

    name: str
    service: bool
    prefer: Family
    timeout: float


#: Resolves a query: returns the addresses, as text or as `Address`; on ASGI it may be a coroutine function. It may
#: raise LookupError (no such name), ConnectionRefusedError, TimeoutError; any other exception means `other`.
Resolver = Callable[[Query], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolvers:
    """How the names of `Server.template` are resolved (HAProxy `resolvers`). One option a line: meaning, type, default:

    - `nameservers`: IP addresses of the name servers, a list of `"10.0.0.2"` or `"10.0.0.2:5353"`; by default the
      system resolves, and SRV records are queried at the system's name servers (`nameserver`).
    - `resolver`: a callable to use instead, for tests and other sources; it gets a `Query` and returns addresses. None
      by default.
    - `resolve_retries`: how many tries in a row have to fail before the failure counts, int, 3 (`resolve_retries`).
    - `timeout_resolve`: time between two resolutions, duration, 1 s (`timeout resolve`).
    - `timeout_retry`: time to wait for an answer, and between two tries, duration, 1 s (`timeout retry`).
    - `hold_nx`, `hold_refused`, `hold_timeout`, `hold_other`: how long after the last valid answer servers keep their
      addresses while resolution fails in this way, duration, 30 s each (`hold nx` ...).
    - `hold_obsolete`: how long a server keeps an address that is missing from the answers, duration, 0 s
      (`hold obsolete`). (`hold valid` does not concern servers in HAProxy, so there is none.)
    - `resolve_prefer`: the family to take where a name has both, `"ipv4"` or `"ipv6"`; `"ipv4"` by default
      (`resolve-prefer`; HAProxy's default is IPv6).
    - `prevent_dup_ip`: whether each address is given to one server only; otherwise servers without an address share
      those of others, bool, True (`resolve-opts prevent-dup-ip`).
    - `ignore_weight`: whether the weights of SRV records are ignored, bool, False (`resolve-opts ignore-weight`).

    A duration is a number of seconds, or text such as `"30s"`. Raises `ConfigError` with every problem found.
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
        # hashable, since equal names with equal resolvers are resolved once
        object.__setattr__(self, "nameservers", tuple(self.nameservers))

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
            yield f"nameservers={self.nameservers!r} is not a list: write nameservers=[{self.nameservers!r}]"
        else:
            for each in self.nameservers:
                try:
                    parse_nameserver(each)
                except ValueError as error:
                    yield f"nameserver {each!r}: {error}"
        if self.resolver is not None and self.nameservers:
            yield "nameservers have no effect with a resolver: leave one of them out"
        if self.resolver is not None and not callable(cast(object, self.resolver)):
            yield f"resolver {self.resolver!r} is not callable: pass a function that takes a Query"

    def hold(self, status: Status) -> float:
        """Return for how many seconds servers keep their addresses after a resolution with this status."""
        held: Duration = getattr(self, f"hold_{status}")
        return seconds(held)


def parse_nameserver(text: str) -> tuple[str, int]:
    """Parse `10.0.0.2`, `10.0.0.2:5353`, `::1` or `[::1]:5353` into address and port, else raise ValueError."""
    match = _NAMESERVER.fullmatch(text)
    host, port = (match[1] or match[2], match[3] or str(PORT)) if match is not None else (text, str(PORT))
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        raise ValueError("write the IP address of a name server, such as 10.0.0.2 or 10.0.0.2:5353") from None
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"port {port!r} is not within 1..65535")
    return address, int(port)


def is_service(name: str) -> bool:
    """Return whether `name` means SRV records (as in HAProxy, a name that begins with an underscore)."""
    return name.startswith("_")


def answer_from_resolver(returned: object) -> Answer:
    """Convert what a user's resolver returned."""
    if isinstance(returned, Answer):
        return returned
    if isinstance(returned, str) or not isinstance(returned, Iterable):
        return Answer(Status.OTHER, info=f"the resolver returned {returned!r}, which is not a list of addresses")
    addresses: list[Address] = []
    for each in cast("Iterable[object]", returned):
        address = Address(each) if isinstance(each, str) else each
        if not isinstance(address, Address):
            return Answer(Status.OTHER, info=f"the resolver returned {each!r} among the addresses")
        addresses.append(address)
    return answer_with(addresses)


def answer_with(addresses: Iterable[Address], info: str = "") -> Answer:
    """Return a valid answer with `addresses`, or one with status `other` if there are none or one is malformed."""
    parsed: list[Address] = []
    for each in addresses:
        try:
            address = None if each.address is None else str(ipaddress.ip_address(each.address))
        except ValueError:
            return Answer(Status.OTHER, info=f"{each.address!r} is not an IP address")
        parsed.append(Address(address, each.port, each.weight, each.name))
    return Answer(Status.VALID, tuple(parsed)) if parsed else Answer(Status.OTHER, info=info or "no address")


def answer_from_exception(error: Exception) -> Answer:
    """Convert an exception that the resolution raised."""
    status = Status.OTHER
    if isinstance(error, LookupError):
        status = Status.NX
    elif isinstance(error, TimeoutError):
        status = Status.TIMEOUT
    elif isinstance(error, ConnectionRefusedError):
        status = Status.REFUSED
    return Answer(status, info=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def answer_from_system(addresses: Iterable[str], prefer: Family) -> Answer:
    """Convert addresses that the system returned, without those that have a zone: no URL can contain them."""
    return answer_with(
        Address(each) for each in preferred_addresses((each for each in addresses if "%" not in each), prefer)
    )


def answer_from_os_error(error: OSError, unknown: Container[int], again: int) -> Answer:
    """Convert an error of the system's resolver. `unknown`: the error numbers that mean that the name does not exist;
    `again`: the one that means a temporary failure.
    """
    status = (
        Status.NX
        if error.errno is not None and error.errno in unknown
        else Status.TIMEOUT
        if error.errno == again
        else Status.OTHER
    )
    return Answer(status, info=error.strerror or str(error))


def preferred_addresses(addresses: Iterable[str], prefer: Family) -> list[str]:
    """Return the addresses of the preferred family, or else the others, each once: a host that has both families is one
    endpoint, not two.
    """
    known = list(dict.fromkeys(addresses))
    version = 4 if prefer == "ipv4" else 6
    preferred = [each for each in known if ipaddress.ip_address(each).version == version]
    return preferred or known
