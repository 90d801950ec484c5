"""Answers and errors of dnspython, converted to our records; built from messages, without a name server."""

from typing import Any

import pytest

pytest.importorskip("dns.asyncresolver")

import dns.exception
import dns.message
import dns.name
import dns.resolver
import dns.rrset

from sticky_core.dns import nameservers
from sticky_core.dns.questions import Question, Service
from sticky_core.dns.resolvers import Resolvers, Status

A = "10.0.0.1"


def answer(name: str, record_type: str, records: list[str], additional: dict[str, list[str]] | None = None) -> Any:
    """Build dnspython's answer to the question for `name`."""
    query = dns.message.make_query(name, record_type)
    response: dns.message.Message = dns.message.make_response(query)
    response.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", record_type, *records))
    for host, addresses in (additional or {}).items():
        response.additional.append(dns.rrset.from_text(f"{host}.", 60, "IN", "A", *addresses))
    response = dns.message.from_wire(response.to_wire())
    question = response.question[0]
    return dns.resolver.Answer(question.name, question.rdtype, question.rdclass, response)  # type: ignore[arg-type]


def test_addresses_are_converted():
    records = nameservers.records_from_answer(answer("web.example", "A", [A, "10.0.0.2"]))
    assert (records.status, set(records.addresses)) == (Status.VALID, {A, "10.0.0.2"})


def test_srv_records_are_converted_with_the_addresses_in_the_additional_section():
    records = nameservers.records_from_answer(
        answer("_http._tcp.example", "SRV", ["1 20 80 A.example.", "1 0 81 ."], {"A.example": [A]})
    )
    assert set(records.services) == {Service("a.example", 80, 20), Service(".", 81, 0)}
    assert records.additional == {"a.example": (A,)}


@pytest.mark.parametrize(
    "error, status",
    [
        (dns.resolver.NXDOMAIN(), Status.NX),
        (dns.resolver.LifetimeTimeout(timeout=1.0, errors=[]), Status.TIMEOUT),
        (dns.resolver.NoNameservers(request=dns.message.make_query("a", "A"), errors=[]), Status.OTHER),
        (dns.resolver.YXDOMAIN(), Status.OTHER),
    ],
    ids=["no such name", "timeout", "no name server", "any other"],
)
def test_errors_are_converted(error: Exception, status: Status):
    records = nameservers.records_from_exception(error)
    assert records.status is status
    assert type(error).__name__ in records.info


def test_each_name_server_gets_an_equal_part_of_the_timeout():
    resolver = nameservers.build_resolver(
        dns.resolver.Resolver, Resolvers(nameservers=[A, "10.0.0.2:5353"]), timeout=1.0
    )
    assert [(each.address, each.port) for each in resolver.nameservers] == [(A, 53), ("10.0.0.2", 5353)]  # type: ignore[union-attr]
    assert resolver.timeout == 0.5


@pytest.mark.parametrize("name", ["web.example", "web.example."])
def test_a_name_is_absolute(name: str):
    assert nameservers.absolute_name(Question(name, "A")) == "web.example."
