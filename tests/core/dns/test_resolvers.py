"""Who is where: drawn from answers by a handed-in time, without asking anybody."""

import pytest

from sticky_core.dns.questions import Question, Records, Service, questions
from sticky_core.dns.resolution import Resolution
from sticky_core.dns.resolvers import (
    Address,
    Answer,
    Query,
    Resolvers,
    Status,
    answer_from_exception,
    answer_from_os_error,
    answer_from_resolver,
    answer_from_system,
    answer_with,
    parse_nameserver,
    preferred_addresses,
)
from sticky_core.errors import ConfigError

A, B, C, D = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"
FAILURES = [Status.NX, Status.REFUSED, Status.TIMEOUT, Status.OTHER]


def told(*addresses):
    return answer_with(Address(address) if isinstance(address, str) else address for address in addresses)


def resolution(slots="1 2 3", **options):
    return Resolution(Resolvers(**options), slots.split(), 0.0)


def where(known):
    """Which address each server has, in order."""
    return [known.assigned[slot].address if slot in known.assigned else None for slot in known.servers]


def fail(known, status, now, times=3):
    for _ in range(times):
        known.record_answer(Answer(status), now)


# -- who gets which address


def test_addresses_fill_servers_in_the_order_of_addresses_whatever_that_of_the_answer():
    for answer in ([A, B, C], [C, A, B], [B, C, A]):
        known = resolution()
        known.record_answer(told(*answer), 0.0)
        assert where(known) == [A, B, C]


def test_addresses_are_ordered_as_numbers():
    known = resolution()
    known.record_answer(told("10.0.0.10", "10.0.0.9", "2001:db8::1"), 0.0)
    assert where(known) == ["10.0.0.9", "10.0.0.10", "2001:db8::1"]


def test_servers_without_an_address_are_nowhere():
    known = resolution()
    known.record_answer(told(A), 0.0)
    assert where(known) == [A, None, None]


def test_a_server_whose_address_stays_in_the_answer_keeps_it_whoever_comes_and_goes():
    known = resolution()
    known.record_answer(told(A, B, C), 0.0)
    known.record_answer(told(C, "10.0.0.0"), 1.0)
    assert where(known)[2] == C
    known.record_answer(told(D, C), 2.0)
    assert where(known)[2] == C


def test_who_comes_takes_the_first_server_that_is_free():
    known = resolution()
    known.record_answer(told(A, B, C), 0.0)
    known.record_answer(told(A, C, D), 1.0)
    assert where(known) == [A, D, C]


def test_who_comes_back_is_back_at_the_server_where_it_was():
    known = resolution()
    known.record_answer(told(A, B, C), 0.0)
    known.record_answer(told(A), 1.0)
    known.record_answer(told(A, C), 2.0)
    assert where(known) == [A, None, C]


def test_who_comes_back_and_finds_another_there_takes_a_free_one():
    known = resolution()
    known.record_answer(told(A, B), 0.0)
    known.record_answer(told(A, C), 1.0)
    known.record_answer(told(A, B, C), 2.0)
    assert where(known) == [A, C, B]


def test_addresses_for_which_no_server_is_left_are_counted_and_wait():
    known = resolution("1 2")
    known.record_answer(told(A, B, C), 0.0)
    assert (where(known), known.surplus) == ([A, B], 1)
    known.record_answer(told(B, C), 1.0)
    assert (where(known), known.surplus) == ([C, B], 0)


def test_no_two_servers_get_one_address_unless_that_is_allowed():
    known = resolution()
    known.record_answer(told(A, A, B), 0.0)
    assert where(known) == [A, B, None]
    shared = resolution("1 2 3 4 5", prevent_dup_ip=False)
    shared.record_answer(told(A, B), 0.0)
    assert where(shared) == [A, B, A, B, A]
    shared.record_answer(told(A, B, C), 1.0)
    assert where(shared)[:2] == [A, B]


def test_servers_that_come_are_filled_and_those_that_go_forgotten():
    known = resolution("1 2")
    known.record_answer(told(A, B, C), 0.0)
    known.set_servers(["2", "3"])
    assert where(known) == [B, None]
    known.record_answer(told(A, B, C), 1.0)
    assert where(known) == [B, A]


def test_one_address_at_two_ports_is_two_places():
    known = resolution()
    known.record_answer(told(Address(A, 8080, 0, "a"), Address(A, 8081, 0, "a")), 0.0)
    assert [known.assigned[slot].port for slot in ("1", "2")] == [8080, 8081]


def test_a_host_that_srv_records_name_keeps_its_server_when_it_moves():
    known = resolution()
    known.record_answer(told(Address(A, 80, 0, "a"), Address(B, 80, 0, "b"), Address(C, 80, 0, "c")), 0.0)
    known.record_answer(told(Address(D, 80, 0, "c"), Address(B, 80, 0, "b"), Address("10.0.0.9", 80, 0, "a")), 1.0)
    assert where(known) == ["10.0.0.9", B, D]


def test_the_weight_of_a_record_is_followed():
    known = resolution()
    known.record_answer(told(Address(A, 80, 256, "a")), 0.0)
    known.record_answer(told(Address(A, 80, 512, "a")), 1.0)
    assert known.assigned["1"].weight == 512


# -- what fails is not believed at once


@pytest.mark.parametrize("status", FAILURES)
def test_servers_stay_where_they_are_until_a_failure_has_lasted(status):
    known = resolution()
    known.record_answer(told(A, B), 10.0)
    fail(known, status, 39.9)
    assert where(known) == [A, B, None]
    assert known.status is status and not known.has_expired
    fail(known, status, 40.0)
    assert where(known) == [None, None, None]
    assert known.has_expired


def test_each_failure_has_a_time_of_its_own():
    for status in FAILURES:
        known = resolution(**{f"hold_{status}": "5s"})
        known.record_answer(told(A), 0.0)
        fail(known, status, 4.9)
        assert where(known)[0] == A
        fail(known, status, 5.0)
        assert where(known)[0] is None


def test_a_failure_counts_only_after_so_many_tries():
    known = resolution(hold_nx=0)
    known.record_answer(told(A), 0.0)
    for now in (1.0, 2.0):
        known.record_answer(Answer(Status.NX), now)
        assert where(known)[0] == A
        assert known.status is Status.VALID
    known.record_answer(Answer(Status.NX), 3.0)
    assert where(known)[0] is None


def test_an_answer_between_two_tries_begins_them_anew():
    known = resolution(hold_nx=0)
    known.record_answer(told(A), 0.0)
    fail(known, Status.NX, 1.0, times=2)
    known.record_answer(told(A), 2.0)
    fail(known, Status.NX, 3.0, times=2)
    assert where(known)[0] == A


def test_who_was_emptied_by_a_failure_is_back_where_it_was_with_the_next_answer():
    known = resolution()
    known.record_answer(told(A, B, C), 0.0)
    known.record_answer(told(B, C), 1.0)
    fail(known, Status.TIMEOUT, 100.0)
    known.record_answer(told(C, B), 101.0)
    assert where(known) == [None, B, C]
    assert not known.has_expired


def test_an_address_that_is_missing_from_an_answer_is_let_go_at_once_or_after_hold_obsolete():
    at_once, patient = resolution(), resolution(hold_obsolete=10)
    for known in (at_once, patient):
        known.record_answer(told(A, B), 0.0)
        known.record_answer(told(A), 1.0)
    assert where(at_once) == [A, None, None]
    assert where(patient) == [A, B, None]
    patient.record_answer(told(A, C), 9.9)
    assert where(patient) == [A, B, C]
    patient.record_answer(told(A, C), 10.0)
    assert where(patient) == [A, None, C]


def test_a_host_that_is_named_and_not_found_keeps_its_server_for_a_while():
    known = resolution()
    known.record_answer(told(Address(A, 80, 0, "a"), Address(B, 80, 0, "b")), 0.0)
    lost = told(Address(A, 80, 0, "a"), Address(None, 80, 0, "b"))
    known.record_answer(lost, 29.9)
    assert where(known) == [A, B, None]
    known.record_answer(lost, 30.0)
    assert where(known) == [A, None, None]


# -- when to ask


def test_asks_at_once_then_every_second_and_again_after_a_failure():
    known = resolution(timeout_resolve=5, timeout_retry=2)
    assert known.delay(0.0) == 0
    known.record_answer(told(A), 10.0)
    assert known.delay(10.0) == 5
    assert known.delay(14.0) == 1
    known.record_answer(Answer(Status.TIMEOUT), 15.0)
    assert known.delay(15.0) == 2
    known.record_answer(Answer(Status.TIMEOUT), 17.0)
    known.record_answer(Answer(Status.TIMEOUT), 19.0)
    assert known.delay(19.0) == 5, "it has given up until the next resolution"


def test_the_defaults_are_those_of_haproxy():
    known = Resolvers()
    assert (known.resolve_retries, known.timeout_resolve, known.timeout_retry) == (3, 1, 1)
    assert [known.hold(status) for status in FAILURES] == [30] * 4
    assert (known.hold_obsolete, known.prevent_dup_ip) == (0, True)


# -- what a resolver means


@pytest.mark.parametrize(
    "returned, status",
    [
        ([A], Status.VALID),
        ([Address(A, 80)], Status.VALID),
        (Answer(Status.NX), Status.NX),
        ([], Status.OTHER),
        (A, Status.OTHER),
        (None, Status.OTHER),
        (["web.example"], Status.OTHER),
        ([80], Status.OTHER),
    ],
    ids=["addresses", "found", "answer", "nothing", "text", "none", "a name", "a number"],
)
def test_what_a_resolver_returns_is_read_with_care(returned, status):
    assert answer_from_resolver(returned).status is status


@pytest.mark.parametrize(
    "error, status",
    [
        (LookupError("no such name"), Status.NX),
        (KeyError("web"), Status.NX),
        (TimeoutError(), Status.TIMEOUT),
        (ConnectionRefusedError(), Status.REFUSED),
        (OSError("broken"), Status.OTHER),
        (ValueError(), Status.OTHER),
    ],
    ids=repr,
)
def test_what_a_resolver_raises_says_how_it_failed(error, status):
    assert answer_from_exception(error).status is status
    assert type(error).__name__ in answer_from_exception(error).info


def test_of_two_families_one_is_taken():
    both = ["2001:db8::1", A, B, A]
    assert preferred_addresses(both, "ipv4") == [A, B]
    assert preferred_addresses(both, "ipv6") == ["2001:db8::1"]
    assert preferred_addresses([A], "ipv6") == [A]


def test_what_the_system_says_is_an_answer_without_addresses_of_one_link():
    assert [each.address for each in answer_from_system(["fe80::1%eth0", "2001:db8::1"], "ipv4").addresses] == [
        "2001:db8::1"
    ]
    assert answer_from_system([], "ipv4").status is Status.OTHER


def test_how_the_system_fails_is_read_from_its_number():
    assert answer_from_os_error(OSError(-2, "Name or service not known"), (-2, -5), -3) == Answer(
        Status.NX, info="Name or service not known"
    )
    assert answer_from_os_error(OSError(-3, "again"), (-2, -5), -3).status is Status.TIMEOUT
    assert answer_from_os_error(OSError(-4, "failed"), (-2, -5), -3).status is Status.OTHER


# -- what to ask of a name server


def asked(query, zone):
    """What is asked of a zone, and the answer."""
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


def test_the_preferred_family_is_asked_for_and_the_other_only_if_there_is_none():
    a, aaaa = Question("web.example", "A"), Question("web.example", "AAAA")
    zone = {a: Records(Status.VALID, (A,)), aaaa: Records(Status.VALID, ("2001:db8::1",))}
    assert asked(name(), zone) == ([a], told(A))
    assert asked(name("ipv6"), zone) == ([aaaa], told("2001:db8::1"))
    assert asked(name("ipv6"), {**zone, aaaa: EMPTY}) == ([aaaa, a], told(A))


@pytest.mark.parametrize("status", [Status.NX, Status.TIMEOUT])
def test_a_name_that_is_not_there_or_nobody_who_answers_is_not_asked_for_twice(status):
    seen, answer = asked(name(), {Question("web.example", "A"): Records(status)})
    assert len(seen) == 1
    assert answer.status is status


def test_srv_records_tell_ports_weights_and_hosts_whose_addresses_are_asked_for():
    zone = {
        SRV: Records(Status.VALID, services=(Service("a.example", 8080, 10), Service("b.example", 8081, 600))),
        Question("a.example", "A"): Records(Status.VALID, (A,)),
        Question("b.example", "A"): Records(Status.VALID, (B,)),
    }
    seen, answer = asked(SERVICE, zone)
    assert [question.name for question in seen] == [SERVICE.name, "a.example", "b.example"]
    assert answer == told(Address(A, 8080, 10, "a.example"), Address(B, 8081, 600, "b.example"))


def test_addresses_that_are_told_beside_are_not_asked_for():
    records = Records(
        Status.VALID, services=(Service("a.example", 80, 0),), additional={"a.example": (A, "2001:db8::1")}
    )
    assert asked(SERVICE, {SRV: records}) == ([SRV], told(Address(A, 80, 0, "a.example")))


def test_a_host_that_nobody_knows_is_left_out_and_one_that_is_not_found_is_named():
    zone = {
        SRV: Records(Status.VALID, services=tuple(Service(f"{each}.example", 80, 0) for each in "abc")),
        Question("a.example", "A"): Records(Status.VALID, (A,)),
        Question("b.example", "A"): Records(Status.TIMEOUT),
    }
    _, answer = asked(SERVICE, zone)
    assert answer == told(Address(A, 80, 0, "a.example"), Address(None, 80, 0, "b.example"))


def test_srv_records_of_which_no_host_is_found_are_no_answer():
    _, answer = asked(SERVICE, {SRV: Records(Status.VALID, services=(Service("a.example", 80, 0),))})
    assert answer.status is Status.OTHER
    assert "a.example" in answer.info


def test_a_service_that_is_decidedly_not_there_is_no_address():
    assert asked(SERVICE, {SRV: Records(Status.VALID, services=(Service(".", 0, 0),))})[1].status is Status.OTHER


# -- what is refused


@pytest.mark.parametrize(
    "text, expected",
    [
        ("10.0.0.2", ("10.0.0.2", 53)),
        ("10.0.0.2:5353", ("10.0.0.2", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]", ("::1", 53)),
        ("[::1]:5353", ("::1", 5353)),
    ],
)
def test_a_name_server_is_read(text, expected):
    assert parse_nameserver(text) == expected


@pytest.mark.parametrize("text", ["", "ns.example", "10.0.0.2:0", "10.0.0.2:dns", "10.0.0.2:65536", "[::1]:", "[::1"])
def test_what_is_no_name_server_is_refused(text):
    if text in ("[::1]:", "[::1"):
        pass
    with pytest.raises(ConfigError, match="nameserver"):
        Resolvers(nameservers=[text])


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"timeout_resolve": 0}, "timeout_resolve 0 is not above 0"),
        ({"timeout_retry": "soon"}, "timeout_retry: 'soon' is not a duration"),
        ({"hold_nx": -1}, "hold_nx -1 is below 0"),
        ({"resolve_retries": 0}, "resolve_retries 0"),
        ({"resolve_retries": True}, "resolve_retries True"),
        ({"resolve_prefer": "ipv5"}, "resolve_prefer 'ipv5'"),
        ({"nameservers": "10.0.0.2"}, r"write nameservers=\['10.0.0.2'\]"),
        ({"nameservers": ["10.0.0.2"], "resolver": print}, "leave one of them out"),
        ({"resolver": "system"}, "is not callable"),
    ],
)
def test_what_can_not_be_is_refused(options, problem):
    with pytest.raises(ConfigError, match=problem):
        Resolvers(**options)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        Resolvers(timeout_resolve=0, hold_other="x", resolve_retries=-1)
    assert len(caught.value.problems) == 3
