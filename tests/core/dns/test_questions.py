"""Which questions a query needs at a name server, and the answer that their records make."""

import pytest

from sticky_core.dns.questions import Question, Records, Service, questions
from sticky_core.dns.resolvers import (
    Address,
    Query,
    Status,
    answer_with,
)

A, B = "10.0.0.1", "10.0.0.2"


def answer_of(*addresses):
    return answer_with(Address(address) if isinstance(address, str) else address for address in addresses)


def questions_and_answer(query, zone):
    """Return the questions of `query` when `zone` replies, and the answer."""
    steps = questions(query)
    question = next(steps)
    seen = []
    while True:
        seen.append(question)
        try:
            question = steps.send(zone.get(question, Records(Status.NX)))
        except StopIteration as end:
            return seen, end.value


def name(prefer="ipv4"):
    return Query("web.example", False, prefer, 1.0)


SERVICE = Query("_http._tcp.example", True, "ipv4", 1.0)
SRV = Question(SERVICE.name, "SRV")
EMPTY = Records(Status.OTHER)


def test_the_other_family_is_queried_only_if_there_is_no_preferred_address():
    a, aaaa = Question("web.example", "A"), Question("web.example", "AAAA")
    zone = {a: Records(Status.VALID, (A,)), aaaa: Records(Status.VALID, ("2001:db8::1",))}
    assert questions_and_answer(name(), zone) == ([a], answer_of(A))
    assert questions_and_answer(name("ipv6"), zone) == ([aaaa], answer_of("2001:db8::1"))
    assert questions_and_answer(name("ipv6"), {**zone, aaaa: EMPTY}) == ([aaaa, a], answer_of(A))


@pytest.mark.parametrize("status", [Status.NX, Status.TIMEOUT])
def test_the_other_family_is_not_queried_after_nxdomain_or_a_timeout(status):
    seen, answer = questions_and_answer(name(), {Question("web.example", "A"): Records(status)})
    assert len(seen) == 1
    assert answer.status is status


def test_the_addresses_of_hosts_in_srv_records_are_queried():
    zone = {
        SRV: Records(Status.VALID, services=(Service("a.example", 8080, 10), Service("b.example", 8081, 600))),
        Question("a.example", "A"): Records(Status.VALID, (A,)),
        Question("b.example", "A"): Records(Status.VALID, (B,)),
    }
    seen, answer = questions_and_answer(SERVICE, zone)
    assert [question.name for question in seen] == [SERVICE.name, "a.example", "b.example"]
    assert answer == answer_of(Address(A, 8080, 10, "a.example"), Address(B, 8081, 600, "b.example"))


def test_addresses_in_the_additional_section_are_not_queried():
    records = Records(
        Status.VALID, services=(Service("a.example", 80, 0),), additional={"a.example": (A, "2001:db8::1")}
    )
    assert questions_and_answer(SERVICE, {SRV: records}) == ([SRV], answer_of(Address(A, 80, 0, "a.example")))


def test_a_host_that_does_not_exist_is_left_out_and_one_that_fails_to_resolve_is_named():
    zone = {
        SRV: Records(Status.VALID, services=tuple(Service(f"{each}.example", 80, 0) for each in "abc")),
        Question("a.example", "A"): Records(Status.VALID, (A,)),
        Question("b.example", "A"): Records(Status.TIMEOUT),
    }
    _, answer = questions_and_answer(SERVICE, zone)
    assert answer == answer_of(Address(A, 80, 0, "a.example"), Address(None, 80, 0, "b.example"))


def test_srv_records_without_a_resolvable_host_are_no_valid_answer():
    _, answer = questions_and_answer(SERVICE, {SRV: Records(Status.VALID, services=(Service("a.example", 80, 0),))})
    assert answer.status is Status.OTHER
    assert "a.example" in answer.info


def test_a_service_that_is_declared_not_to_exist_has_no_address():
    assert (
        questions_and_answer(SERVICE, {SRV: Records(Status.VALID, services=(Service(".", 0, 0),))})[1].status
        is Status.OTHER
    )
