"""Which server gets which address: decided from answers, with time as an argument."""

import pytest

from sticky_core.dns.resolution import Resolution
from sticky_core.dns.resolvers import (
    Address,
    Answer,
    Resolvers,
    Status,
    answer_with,
)

A, B, C, D = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"
FAILURES = [Status.NX, Status.REFUSED, Status.TIMEOUT, Status.OTHER]


def answer_of(*addresses):
    return answer_with(Address(address) if isinstance(address, str) else address for address in addresses)


def resolution(servers="1 2 3", **options):
    return Resolution(Resolvers(**options), servers.split(), 0.0)


def addresses_of(known):
    """Which address each server has, in order."""
    return [known.assigned[server].address if server in known.assigned else None for server in known.servers]


def fail(known, status, now, times=3):
    for _ in range(times):
        known.record_answer(Answer(status), now)


# -- which server gets which address


def test_addresses_fill_servers_in_the_order_of_addresses_whatever_the_order_of_the_answer():
    for answer in ([A, B, C], [C, A, B], [B, C, A]):
        known = resolution()
        known.record_answer(answer_of(*answer), 0.0)
        assert addresses_of(known) == [A, B, C]


def test_addresses_are_ordered_as_numbers():
    known = resolution()
    known.record_answer(answer_of("10.0.0.10", "10.0.0.9", "2001:db8::1"), 0.0)
    assert addresses_of(known) == ["10.0.0.9", "10.0.0.10", "2001:db8::1"]


def test_servers_without_an_address_are_noaddresses_of():
    known = resolution()
    known.record_answer(answer_of(A), 0.0)
    assert addresses_of(known) == [A, None, None]


def test_a_server_whose_address_stays_in_the_answer_keeps_it_when_others_come_and_go():
    known = resolution()
    known.record_answer(answer_of(A, B, C), 0.0)
    known.record_answer(answer_of(C, "10.0.0.0"), 1.0)
    assert addresses_of(known)[2] == C
    known.record_answer(answer_of(D, C), 2.0)
    assert addresses_of(known)[2] == C


def test_a_new_address_gets_the_first_free_server():
    known = resolution()
    known.record_answer(answer_of(A, B, C), 0.0)
    known.record_answer(answer_of(A, C, D), 1.0)
    assert addresses_of(known) == [A, D, C]


def test_an_address_that_comes_back_gets_its_former_server():
    known = resolution()
    known.record_answer(answer_of(A, B, C), 0.0)
    known.record_answer(answer_of(A), 1.0)
    known.record_answer(answer_of(A, C), 2.0)
    assert addresses_of(known) == [A, None, C]


def test_an_address_that_comes_back_to_a_used_server_gets_a_free_one():
    known = resolution()
    known.record_answer(answer_of(A, B), 0.0)
    known.record_answer(answer_of(A, C), 1.0)
    known.record_answer(answer_of(A, B, C), 2.0)
    assert addresses_of(known) == [A, C, B]


def test_surplus_addresses_are_counted_and_get_servers_later():
    known = resolution("1 2")
    known.record_answer(answer_of(A, B, C), 0.0)
    assert (addresses_of(known), known.surplus) == ([A, B], 1)
    known.record_answer(answer_of(B, C), 1.0)
    assert (addresses_of(known), known.surplus) == ([C, B], 0)


def test_servers_share_an_address_only_without_prevent_dup_ip():
    known = resolution()
    known.record_answer(answer_of(A, A, B), 0.0)
    assert addresses_of(known) == [A, B, None]
    shared = resolution("1 2 3 4 5", prevent_dup_ip=False)
    shared.record_answer(answer_of(A, B), 0.0)
    assert addresses_of(shared) == [A, B, A, B, A]
    shared.record_answer(answer_of(A, B, C), 1.0)
    assert addresses_of(shared)[:2] == [A, B]


def test_new_servers_get_addresses_and_removed_ones_are_forgotten():
    known = resolution("1 2")
    known.record_answer(answer_of(A, B, C), 0.0)
    known.set_servers(["2", "3"])
    assert addresses_of(known) == [B, None]
    known.record_answer(answer_of(A, B, C), 1.0)
    assert addresses_of(known) == [B, A]


def test_one_address_with_two_ports_is_two_endpoints():
    known = resolution()
    known.record_answer(answer_of(Address(A, 8080, 0, "a"), Address(A, 8081, 0, "a")), 0.0)
    assert [known.assigned[server].port for server in ("1", "2")] == [8080, 8081]


def test_a_host_that_srv_records_name_keeps_its_server_when_its_address_changes():
    known = resolution()
    known.record_answer(answer_of(Address(A, 80, 0, "a"), Address(B, 80, 0, "b"), Address(C, 80, 0, "c")), 0.0)
    known.record_answer(answer_of(Address(D, 80, 0, "c"), Address(B, 80, 0, "b"), Address("10.0.0.9", 80, 0, "a")), 1.0)
    assert addresses_of(known) == ["10.0.0.9", B, D]


def test_the_weight_of_a_record_is_followed():
    known = resolution()
    known.record_answer(answer_of(Address(A, 80, 256, "a")), 0.0)
    known.record_answer(answer_of(Address(A, 80, 512, "a")), 1.0)
    assert known.assigned["1"].weight == 512


# -- failures count late


@pytest.mark.parametrize("status", FAILURES)
def test_servers_keep_their_addresses_until_a_failure_has_lasted_for_its_hold_time(status):
    known = resolution()
    known.record_answer(answer_of(A, B), 10.0)
    fail(known, status, 39.9)
    assert addresses_of(known) == [A, B, None]
    assert known.status is status and not known.has_expired
    fail(known, status, 40.0)
    assert addresses_of(known) == [None, None, None]
    assert known.has_expired


def test_each_failure_has_a_hold_time_of_its_own():
    for status in FAILURES:
        known = resolution(**{f"hold_{status}": "5s"})
        known.record_answer(answer_of(A), 0.0)
        fail(known, status, 4.9)
        assert addresses_of(known)[0] == A
        fail(known, status, 5.0)
        assert addresses_of(known)[0] is None


def test_a_failure_counts_only_after_resolve_retries_tries():
    known = resolution(hold_nx=0)
    known.record_answer(answer_of(A), 0.0)
    for now in (1.0, 2.0):
        known.record_answer(Answer(Status.NX), now)
        assert addresses_of(known)[0] == A
        assert known.status is Status.VALID
    known.record_answer(Answer(Status.NX), 3.0)
    assert addresses_of(known)[0] is None


def test_an_answer_between_two_tries_resets_their_count():
    known = resolution(hold_nx=0)
    known.record_answer(answer_of(A), 0.0)
    fail(known, Status.NX, 1.0, times=2)
    known.record_answer(answer_of(A), 2.0)
    fail(known, Status.NX, 3.0, times=2)
    assert addresses_of(known)[0] == A


def test_servers_emptied_by_a_failure_get_their_addresses_back_with_the_next_answer():
    known = resolution()
    known.record_answer(answer_of(A, B, C), 0.0)
    known.record_answer(answer_of(B, C), 1.0)
    fail(known, Status.TIMEOUT, 100.0)
    known.record_answer(answer_of(C, B), 101.0)
    assert addresses_of(known) == [None, B, C]
    assert not known.has_expired


def test_an_address_that_is_missing_from_an_answer_is_released_at_once_or_after_hold_obsolete():
    at_once, patient = resolution(), resolution(hold_obsolete=10)
    for known in (at_once, patient):
        known.record_answer(answer_of(A, B), 0.0)
        known.record_answer(answer_of(A), 1.0)
    assert addresses_of(at_once) == [A, None, None]
    assert addresses_of(patient) == [A, B, None]
    patient.record_answer(answer_of(A, C), 9.9)
    assert addresses_of(patient) == [A, B, C]
    patient.record_answer(answer_of(A, C), 10.0)
    assert addresses_of(patient) == [A, None, C]


def test_a_host_that_is_named_but_not_resolved_keeps_its_server_for_hold_other():
    known = resolution()
    known.record_answer(answer_of(Address(A, 80, 0, "a"), Address(B, 80, 0, "b")), 0.0)
    lost = answer_of(Address(A, 80, 0, "a"), Address(None, 80, 0, "b"))
    known.record_answer(lost, 29.9)
    assert addresses_of(known) == [A, B, None]
    known.record_answer(lost, 30.0)
    assert addresses_of(known) == [A, None, None]


# -- when to query


def test_queries_are_due_at_once_then_every_second_and_again_after_a_failure():
    known = resolution(timeout_resolve=5, timeout_retry=2)
    assert known.delay(0.0) == 0
    known.record_answer(answer_of(A), 10.0)
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
