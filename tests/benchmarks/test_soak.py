"""The soak finds each kind of fault in what clients, servers and dispatchers have recorded. `benchmarks/soak.py` itself
runs for a minute in CI.
"""

from collections.abc import Sequence

import pytest


@pytest.fixture
def record(soak):
    """A record of a run in which s1 was killed, from second 10 to second 20."""
    return soak.Record(disturbances=[soak.Disturbance("kill", "s1", 10, 20)])


@pytest.fixture
def find_faults(soak, record):
    def find_faults(executed=(), went_down=(), logs=()):
        lists: dict[str, Sequence[str]] = {"s1": [], "s2": [], "workers.asgi": [], **dict(executed)}
        return soak.Verdict(record, lists, went_down, dict(logs)).find_faults()

    return find_faults


@pytest.fixture
def outcome(soak, record):
    def outcome(request_id, *, post=False, at=5.0, **got):
        record.outcomes.append(soak.Outcome(request_id, not post, at, at + 0.1, **({"status": 200} | got)))

    return outcome


def test_a_run_as_it_should_be_has_no_fault(find_faults, outcome):
    outcome("v.1", server="s1", tried=("s1",))
    outcome("v.2", at=15, status=502, tried=("s1",))
    outcome("v.3", at=15, server="s2", tried=("s1", "s2"))
    executed = {"s1": ["v.1", "v.2", "v.3"], "s2": ["v.3"]}
    assert find_faults(executed, [("asgi", "s1", 12, "L4CON")], {"asgi": "server s1 is DOWN"}) == []


def test_a_request_that_may_not_be_repeated_is_executed_once(find_faults, outcome):
    outcome("v.1", post=True, server="s1", tried=("s1",))
    assert find_faults({"s1": ["v.1"], "s2": ["v.1"]}) == ["v.1 was executed 2 times"]


def test_an_idempotent_request_is_executed_twice_per_attempt_at_most(find_faults, outcome):
    outcome("v.1", server="s1", tried=("s1",))
    assert find_faults({"s1": ["v.1"] * 2}) == []
    assert find_faults({"s1": ["v.1"] * 3}) == ["v.1 was executed 3 times"]


def test_an_upload_that_its_client_has_left_is_executed_once_and_a_download_as_often_as_it_is_tried(find_faults):
    assert find_faults({"s1": ["i.1.upload"] * 2}) == ["i.1.upload was executed 2 times"]
    assert find_faults({"s1": ["i.1.download"] * 8}) == []


def test_a_server_that_responds_has_executed_the_request(find_faults, outcome):
    outcome("v.1", server="s1", tried=("s1",))
    assert find_faults({"s2": ["v.1"]}) == ["v.1: s1 has not executed it, and responded"]


@pytest.mark.parametrize(
    ("at", "tried", "is_fault"),
    [
        pytest.param(15, ("s1",), False, id="while the server that was tried is disturbed"),
        pytest.param(15, ("s2", "s1"), False, id="while one of those that were tried is disturbed"),
        pytest.param(15, (), False, id="while a server is disturbed, and it is not known which was tried"),
        pytest.param(15, ("s2",), True, id="while another server is disturbed"),
        pytest.param(5, ("s1",), True, id="before"),
        pytest.param(25, ("s1",), True, id="after"),
    ],
)
def test_a_request_fails_only_while_a_server_that_was_tried_is_disturbed(find_faults, outcome, at, tried, is_fault):
    outcome("v.1", at=at, status=502, tried=tried)
    assert bool(find_faults()) == is_fault


def test_a_request_of_a_worker_fails_only_while_a_worker_is_killed(soak, record, find_faults, outcome):
    outcome("workerclient1.1", at=15, status=0)
    assert len(find_faults()) == 1
    record.disturbances.append(soak.Disturbance("kill", "workers.asgi", 14, 16))
    assert find_faults() == []


@pytest.mark.parametrize(
    ("victims", "since", "seen", "is_fault"),
    [
        pytest.param(("s1",), 9, 12, False, id="its server was disturbed since its last request"),
        pytest.param(("s1",), 5, 9, True, id="its server was disturbed later"),
        pytest.param(("s1",), 21, 22, True, id="its server had settled"),
        pytest.param(("s2",), 9, 12, True, id="another server was disturbed"),
        pytest.param(("s2", "s1"), 9, 12, False, id="one of several things was disturbed"),
    ],
)
def test_a_session_moves_only_if_its_server_was_disturbed(soak, record, find_faults, victims, since, seen, is_fault):
    record.moves.append(soak.Move("v", victims, since, seen, "from s1 to s2"))
    assert bool(find_faults()) == is_fault


def test_a_server_is_reported_down_only_while_it_is_disturbed(find_faults):
    assert find_faults(went_down=[("asgi", "s1", 15, "L4CON")]) == []
    assert find_faults(went_down=[("asgi", "s2", 15, "L4CON")]) == [
        "asgi: s2 was reported DOWN without a reason: L4CON"
    ]
    assert len(find_faults(went_down=[("asgi", "s1", 21, "L4CON")])) == 1


def test_memory_and_descriptors_stay_as_they_were_after_the_first_minute(soak, record, find_faults):
    record.measures["asgi"] = [(50.0, 17), (80.0, 40), (50.0 + soak.MORE_MEGABYTES, 17 + soak.MORE_DESCRIPTORS)]
    assert find_faults() == []
    record.measures["asgi"].append((51.0 + soak.MORE_MEGABYTES, 18 + soak.MORE_DESCRIPTORS))
    assert find_faults() == [
        "asgi: memory grew from 50 to 67 MB",
        "asgi: descriptors grew from 17 to 26",
    ]


def test_a_traceback_in_a_log_is_a_fault(find_faults):
    assert find_faults(logs={"asgi": "INFO: started\nTraceback (most recent call last): x"}) == [
        "the log of asgi has a traceback (most recent call last): x"
    ]


def test_what_clients_have_found_is_reported(record, find_faults):
    record.faults.append("v.1 got the response of v.2")
    assert find_faults() == ["v.1 got the response of v.2"]
