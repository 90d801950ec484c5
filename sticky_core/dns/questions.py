"""The questions that a name server has to be sent for a query, as a generator without I/O: the faces send each question
and pass the records back.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Literal, NamedTuple

from sticky_core.deferred.dataclass import dataclass
from sticky_core.dns.resolvers import Address, Answer, Family, Query, Status, answer_with, preferred_addresses


class Question(NamedTuple):
    """A question for a name server: the records of one type of one name."""

    name: str
    type: Literal["A", "AAAA", "SRV"]


@dataclass(frozen=True, slots=True)
class Service:
    """An SRV record (RFC 2782). Its priority is ignored, as in HAProxy."""

    host: str
    port: int
    weight: int


@dataclass(frozen=True, slots=True)
class Records:
    """The result of a question. `additional`: addresses in the additional section of the answer, by name."""

    status: Status
    addresses: tuple[str, ...] = ()
    services: tuple[Service, ...] = ()
    additional: Mapping[str, tuple[str, ...]] | None = None
    info: str = ""


def questions(query: Query) -> Generator[Question, Records, Answer]:
    """Yield each question, expect its records to be sent in, and return the answer to `query`."""
    if not query.service:
        records = yield from _addresses(query.name, query.prefer)
        if records.status is not Status.VALID:
            return Answer(records.status, info=records.info)
        return answer_with(Address(address) for address in records.addresses)
    records = yield Question(query.name, "SRV")
    if records.status is not Status.VALID:
        return Answer(records.status, info=records.info)
    found: list[Address] = []
    info = ""
    for service in records.services:
        if service.host == ".":  # the service is declared not to exist (RFC 2782)
            continue
        addresses: Sequence[str] = preferred_addresses((records.additional or {}).get(service.host, ()), query.prefer)
        if not addresses:
            hosts = yield from _addresses(service.host, query.prefer)
            addresses = hosts.addresses
            if not addresses:
                info = f"{service.host}: {hosts.info}"
                # a host without a DNS name is gone; of any other host only the address is unknown for now
                if hosts.status is not Status.NX:
                    found.append(Address(None, service.port, service.weight, service.host))
        found += (Address(address, service.port, service.weight, service.host) for address in addresses)
    if not any(each.address for each in found):
        return Answer(Status.OTHER, info=info or "no address")
    return answer_with(found)


def _addresses(name: str, prefer: Family) -> Generator[Question, Records, Records]:
    """Yield the questions for the addresses of `name`: the preferred family first, then the other. If both fail, return
    the result of the preferred one.
    """
    first: Literal["A", "AAAA"]
    second: Literal["A", "AAAA"]
    first, second = ("A", "AAAA") if prefer == "ipv4" else ("AAAA", "A")
    records = yield Question(name, first)
    if records.addresses or records.status in (Status.NX, Status.TIMEOUT):
        return records
    other = yield Question(name, second)
    return other if other.addresses else records
