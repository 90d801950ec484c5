"""Errors: all problems of a configuration in one exception, and what each way of failing means for a retry."""

import pytest

from sticky_core.errors import ConfigError, Failure, ServerFailure, StoreFailure, collect_problems, raise_problems


def test_one_problem_is_the_whole_message():
    assert str(ConfigError("weight 300 is above 256")) == "weight 300 is above 256"


def test_several_problems_are_listed():
    error = ConfigError("first", "second")
    assert error.problems == ("first", "second")
    assert str(error) == "2 problems:\n  - first\n  - second"


def test_all_problems_are_raised_as_one_error():
    with pytest.raises(ConfigError) as refused:
        raise_problems(f"problem {number}" for number in range(3))
    assert refused.value.problems == ("problem 0", "problem 1", "problem 2")


def test_no_problems_raise_nothing():
    raise_problems(())


def test_collected_problems_are_prefixed_and_do_not_end_the_caller():
    problems = ["earlier"]
    with collect_problems(problems, "server s1: "):
        raise ConfigError("weight 300 is above 256", "maxconn -1 is below 0")
    assert problems == ["earlier", "server s1: weight 300 is above 256", "server s1: maxconn -1 is below 0"]


def test_other_exceptions_are_not_collected():
    problems: list[str] = []
    with pytest.raises(LookupError), collect_problems(problems):
        raise LookupError
    assert problems == []


@pytest.mark.parametrize("failure", list(Failure))
def test_a_failure_without_a_word_for_retry_on_is_one_that_the_server_may_have_executed(failure: Failure):
    assert failure.retry_word or failure.maybe_executed


@pytest.mark.parametrize("failure", list(Failure))
def test_a_request_that_was_not_executed_gets_503(failure: Failure):
    assert failure.maybe_executed == (failure.status != 503)


def test_failures_of_the_client_or_of_an_operator_do_not_count_against_the_server():
    assert {failure for failure in Failure if not failure.is_server_fault} == {
        Failure.NOT_FORWARDABLE,
        Failure.NO_WEBSOCKET,
        Failure.CLIENT_TIMEOUT,
        Failure.CLIENT_SLOW,
        Failure.LOCAL_LIMIT,
        Failure.SHUT,
        Failure.TOTAL_TIMEOUT,
    }


@pytest.mark.parametrize(
    "server, detail, message",
    [
        ("s1", "10.0.0.1:80", "server s1: connection refused: 10.0.0.1:80"),
        ("s1", "", "server s1: connection refused"),
        ("", "10.0.0.1:80", "connection refused: 10.0.0.1:80"),
        ("", "", "connection refused"),
    ],
    ids=["server and detail", "server", "detail", "neither"],
)
def test_a_server_failure_names_the_server_and_the_evidence(server: str, detail: str, message: str):
    error = ServerFailure(Failure.REFUSED, server, detail)
    assert str(error) == message
    assert (error.failure, error.server, error.detail) == (Failure.REFUSED, server, detail)


def test_a_store_failure_names_the_store_and_the_evidence():
    assert str(StoreFailure("redis://localhost", "timed out")) == "store redis://localhost: timed out"
