"""Idle connections: which is used again, which are too many, and which have waited too long."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.upstream.pool import MAX_IDLE_UNREPEATABLE, PURGE_DELAY, Pool


def test_the_connection_released_last_is_acquired_first():
    pool: Pool[str] = Pool()
    for now, connection in enumerate("abc"):
        assert pool.release(connection, now)
    assert [pool.acquire(3, True) for _ in range(4)] == ["c", "b", "a", None]


@pytest.mark.parametrize(
    "idle, repeatable, taken",
    [
        pytest.param(0.0, False, True, id="at once"),
        pytest.param(MAX_IDLE_UNREPEATABLE, False, True, id="for as long as is fresh"),
        pytest.param(MAX_IDLE_UNREPEATABLE + 0.1, False, False, id="for longer than that"),
        pytest.param(MAX_IDLE_UNREPEATABLE + 0.1, True, True, id="for longer, but the request may be sent again"),
        pytest.param(PURGE_DELAY, True, True, id="for as long as any is kept"),
    ],
)
def test_a_request_that_must_not_be_sent_twice_gets_no_connection_that_was_idle_for_long(
    idle: float, repeatable: bool, taken: bool
):
    pool: Pool[str] = Pool()
    pool.release("a", 100.0)
    assert pool.acquire(100.0 + idle, repeatable) == ("a" if taken else None)
    assert len(pool) == (0 if taken else 1), "a connection that is not used stays, for a request that may be repeated"


@pytest.mark.parametrize("most", [0, 1, 3])
def test_max_conn_limits_the_idle_connections(most: int):
    pool: Pool[int] = Pool(most)
    assert [pool.release(number, 0.0) for number in range(5)] == [True] * most + [False] * (5 - most)
    assert len(pool) == most
    assert sorted(pool.clear()) == list(range(most))


def test_any_number_is_kept_for_five_seconds_by_default():
    pool: Pool[int] = Pool()
    assert all(pool.release(number, 0.0) for number in range(1000))
    assert pool.purge(5.0) == []
    assert pool.purge(5.1) == [*range(1000)]


def test_connections_that_were_idle_too_long_are_purged_oldest_first():
    pool: Pool[str] = Pool(purge_delay=10.0)
    for now, connection in enumerate("abcd"):
        pool.release(connection, now)
    assert pool.purge(10.0) == []
    assert pool.purge(11.5) == ["a", "b"]
    assert pool.purge(11.5) == []
    assert pool.clear() == ["c", "d"]
    assert (len(pool), pool.acquire(12.0, True)) == (0, None)


def test_a_closed_connection_is_removed_and_an_unknown_one_ignored():
    pool: Pool[str] = Pool()
    for connection in "abc":
        pool.release(connection, 0.0)
    pool.remove("b")
    pool.remove("b")
    assert pool.clear() == ["a", "c"]
    pool.remove("a")
    assert len(pool) == 0


STEPS = st.one_of(
    st.tuples(st.just("put")),
    st.tuples(st.just("take"), st.booleans()),
    st.tuples(st.just("remove"), st.integers(0, 20)),
    st.tuples(st.just("purge")),
    st.tuples(st.just("wait"), st.sampled_from([0.4, 1.0, 3.0])),
)


@given(st.lists(STEPS, max_size=40))
def test_it_behaves_as_a_stack_of_dated_connections(steps: Sequence[tuple]):  # type: ignore[type-arg]
    pool: Pool[int] = Pool(3, 5.0)
    stack: list[tuple[int, float]] = []
    now, number = 0.0, 0
    for step in steps:
        match step:
            case ("put",):
                number += 1
                assert pool.release(number, now) is (len(stack) < 3)
                if len(stack) < 3:
                    stack.append((number, now))
            case "take", repeatable:
                fits = stack and (repeatable or now - stack[-1][1] <= MAX_IDLE_UNREPEATABLE)
                assert pool.acquire(now, repeatable) == (stack.pop()[0] if fits else None)
            case "remove", which:
                pool.remove(which)
                stack = [each for each in stack if each[0] != which]
            case ("purge",):
                assert pool.purge(now) == [each for each, since in stack if now - since > 5.0]
                stack = [(each, since) for each, since in stack if now - since <= 5.0]
            case _:
                now += step[1]
        assert len(pool) == len(stack)
