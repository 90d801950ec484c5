"""Retries: after which failures a request is retried, and whether at another server."""

import pytest

from sticky_core.backend.retries import Retries
from sticky_core.errors import Failure

STATUSES = (401, 403, 404, 408, 421, 425, 429, 500, 501, 502, 503, 504)


WORDS = {
    "conn-failure": {
        Failure.REFUSED,
        Failure.CONNECT_TIMEOUT,
        Failure.TLS,
        Failure.NOT_STARTED,
        Failure.LOCAL_LIMIT,
    },
    "empty-response": {Failure.CLOSED, Failure.SHUT},
    "junk-response": {Failure.BAD_RESPONSE, Failure.NO_WEBSOCKET},
    "response-timeout": {Failure.TIMEOUT},
    "0rtt-rejected": set(),
    "none": set(),
    "503": set(),
}


ALL = set().union(*WORDS.values())


@pytest.mark.parametrize(
    "asked, problem",
    [
        pytest.param(Retries(retries=-1), "retries -1 is below 0", id="retries below 0"),
        pytest.param(Retries(retries=1.5), "retries 1.5 is no whole number", id="half a retry"),  # type: ignore[arg-type]
        pytest.param(Retries(retry_on=("5xx",)), "retry_on '5xx' is not known", id="another word"),
        pytest.param(Retries(retry_on=("Conn-Failure",)), "retry_on 'Conn-Failure' is not known", id="in capitals"),
        pytest.param(Retries(retry_on=("200",)), "retry_on '200' is not known", id="a status that is no failure"),
        pytest.param(
            Retries(retry_on=("none", "503")), "retry_on: 'none' excludes other words", id="none and something"
        ),
        pytest.param(
            Retries(redispatch="yes"),  # type: ignore[arg-type]
            "redispatch 'yes' is neither True nor False nor a whole number",
            id="a word for redispatch",
        ),
        pytest.param(
            Retries(redispatch=None),  # type: ignore[arg-type]
            "redispatch None is neither True nor False nor a whole number",
            id="no redispatch",
        ),
    ],
)
def test_invalid_retries_are_reported(asked: Retries, problem: str):
    (only,) = asked.problems()
    assert problem in only


def test_unknown_word_is_reported_with_those_that_are_known():
    (problem,) = Retries(retry_on=("sometimes",)).problems()
    for word in ("none", "conn-failure", "empty-response", "junk-response", "response-timeout", "0rtt-rejected"):
        assert word in problem
    assert "all-retryable-errors" in problem
    assert all(str(status) in problem for status in STATUSES)


@pytest.mark.parametrize(
    "word",
    [
        "none",
        "conn-failure",
        "empty-response",
        "junk-response",
        "response-timeout",
        "0rtt-rejected",
        "all-retryable-errors",
        *map(str, STATUSES),
    ],
)
def test_each_word_of_haproxy_is_known(word: str):
    assert list(Retries(retry_on=(word,)).problems()) == []


@pytest.mark.parametrize(
    "words, failures",
    [
        *(pytest.param((word,), failures, id=word) for word, failures in WORDS.items()),
        pytest.param((), set(), id="no word at all"),
        pytest.param(("all-retryable-errors",), ALL, id="all-retryable-errors"),
        pytest.param(("conn-failure", "response-timeout"), WORDS["conn-failure"] | {Failure.TIMEOUT}, id="two words"),
    ],
)
def test_word_stands_for_failures(words: tuple[str, ...], failures: set[Failure]):
    assert {failure for failure in Failure if Retries(retry_on=words).covers(failure)} == failures


@pytest.mark.parametrize(
    "failure",
    [Failure.NOT_FORWARDABLE, Failure.TRUNCATED, Failure.RETRIED_STATUS, Failure.TOTAL_TIMEOUT],
    ids=lambda each: each.name,
)
def test_some_failures_are_never_retried(failure: Failure):
    assert not Retries(retry_on=("all-retryable-errors", *map(str, STATUSES))).covers(failure)


@pytest.mark.parametrize(
    "words, statuses, needs_replay",
    [
        pytest.param((), set(), False, id="no word"),
        pytest.param(("none",), set(), False, id="none"),
        pytest.param(("conn-failure",), set(), False, id="no server has read it"),
        pytest.param(("0rtt-rejected",), set(), False, id="never happens"),
        pytest.param(("empty-response",), set(), True, id="a server may have read it"),
        pytest.param(("junk-response",), set(), True, id="junk"),
        pytest.param(("response-timeout",), set(), True, id="silence"),
        pytest.param(("404", "503"), {404, 503}, True, id="statuses"),
        pytest.param(("all-retryable-errors",), {500, 502, 503, 504}, True, id="all of HAProxy's"),
    ],
)
def test_requests_need_replay_after_a_server_has_read_them(
    words: tuple[str, ...], statuses: set[int], needs_replay: bool
):
    asked = Retries(retry_on=words)
    assert set(asked.statuses) == statuses
    assert asked.needs_replay is needs_replay


@pytest.mark.parametrize(
    "redispatch, retries, elsewhere",
    [
        (True, 3, [1, 2, 3]),
        (False, 3, []),
        (0, 3, []),
        (1, 3, [1, 2, 3]),
        (2, 5, [2, 4]),
        (3, 3, [3]),
        (4, 3, []),
        (-1, 3, [3]),  # HAProxy's bare `option redispatch`: the last
        (-1, 1, [1]),
        (-1, 5, [5]),
        (-2, 3, [2]),
        (-3, 3, [1, 2, 3]),
        (-2, 5, [4]),
        (-4, 5, [2, 4]),
        (-9, 3, [1, 2, 3]),
    ],
)
def test_redispatch_says_which_retries_go_to_another_server(redispatch: bool | int, retries: int, elsewhere: list[int]):
    asked = Retries(retries=retries, redispatch=redispatch)
    assert list(asked.problems()) == []
    assert [retry for retry in range(1, retries + 1) if asked.is_elsewhere(retry)] == elsewhere
