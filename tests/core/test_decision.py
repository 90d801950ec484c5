"""A decision tells people and programs which server has a request, and why."""

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.decision import ClosedBy, Decision
from sticky_core.errors import Failure
from sticky_core.persistence.claim import NO_COOKIE, NO_PERSISTENCE, Claim, Mark, PersistenceResult, Reason
from sticky_core.server.server import Server


def app(environ: object, start_response: object) -> list[bytes]:
    return []


R1, R2, R3 = Backend("web", [Server(name, app) for name in ("r1", "r2", "r3")]).servers
REFUSED = Failure.REFUSED


def decision(
    result: PersistenceResult = NO_PERSISTENCE,
    tried: tuple[Server, ...] = (),
    failures: tuple[Failure, ...] = (),
    mark: Mark = Mark.NONE,
    has_no_response: bool = False,
) -> Decision:
    """Return a decision as a transaction would have filled it."""
    made = Decision()
    made.backend = "web"
    made.attempts = tuple(server.name for server in tried)
    claimed = result.server.name if result.server is not None else None
    made.claim_outcome = result.claim, result.reason, claimed
    made.failures, made.written_mark, made.status, made.has_no_response = failures, mark, 0, has_no_response
    return made


def test_before_anything_is_tried_no_server_has_it_and_nothing_was_told():
    made = decision()
    assert (made.server, made.attempts, made.failures, made.claimed) == (None, (), (), None)
    assert (made.claim, made.reason, made.mark) == (Claim.NONE, Reason.NO_PERSISTENCE, Mark.NONE)
    assert made.outer is None


def test_attributes_that_are_not_set_are_those_of_a_bound_request_that_went_well():
    made = Decision()
    made.backend, made.attempts, made.status = "web", ("r1",), 200
    assert (made.claim, made.reason, made.claimed, made.server) == (Claim.VALID, Reason.BOUND, "r1", "r1")
    assert (made.failures, made.mark, made.outer, made.has_no_response) == ((), Mark.NONE, None, False)


def test_without_an_attempt_and_a_claim_nothing_was_recognised():
    made = Decision()
    made.backend, made.attempts, made.status = "web", (), 0
    assert (made.claim, made.reason, made.claimed, made.server) == (Claim.NONE, Reason.NO_PERSISTENCE, None, None)


@pytest.mark.parametrize(
    "made, server, attempts",
    [
        pytest.param(decision(has_no_response=True), None, (), id="no response"),
        pytest.param(decision(tried=(R1,)), "r1", ("r1",), id="the first has it"),
        pytest.param(
            decision(tried=(R1,), failures=(REFUSED,), has_no_response=True), None, ("r1",), id="the only one refused"
        ),
        pytest.param(decision(tried=(R1, R2), failures=(REFUSED,)), "r2", ("r1", "r2"), id="the second has it"),
        pytest.param(
            decision(tried=(R1, R2, R3), failures=(REFUSED,) * 3, has_no_response=True),
            None,
            ("r1", "r2", "r3"),
            id="all refused",
        ),
    ],
)
def test_the_server_is_the_last_that_was_tried_unless_none_responded(
    made: Decision, server: str | None, attempts: tuple[str, ...]
):
    assert (made.server, made.attempts) == (server, attempts)


@pytest.mark.parametrize(
    "made, why, text",
    [
        pytest.param(
            decision(PersistenceResult(Claim.VALID, Reason.BOUND, R1), (R1,)),
            "r1: server is usable",
            'server=r1; claim=VALID; attempts=r1; mark=NONE; why="r1: server is usable"',
            id="bound",
        ),
        pytest.param(
            decision(NO_COOKIE, (R2,), mark=Mark.INSERTED),
            "no cookie; balance chose r2",
            'server=r2; claim=NONE; attempts=r2; mark=INSERTED; why="no cookie; balance chose r2"',
            id="first visit",
        ),
        pytest.param(
            decision(PersistenceResult(Claim.DOWN, Reason.MAINT, R1), (R2,), mark=Mark.INSERTED),
            "r1: server is in maintenance; balance chose r2",
            'server=r2; claim=DOWN; attempts=r2; mark=INSERTED; why="r1: server is in maintenance; balance chose r2"',
            id="in maintenance",
        ),
        pytest.param(
            decision(PersistenceResult(Claim.DOWN, Reason.FAILED, R1), (R1, R2), (REFUSED,)),
            "r1: server did not respond; balance chose r2",
            'server=r2; claim=DOWN; attempts=r1,r2; mark=NONE; why="r1: server did not respond; balance chose r2"',
            id="redispatched",
        ),
        pytest.param(
            decision(PersistenceResult(Claim.INVALID, Reason.FORGED), has_no_response=True),
            "not signed by us; no server could take the request",
            'server=-; claim=INVALID; attempts=-; mark=NONE; why="not signed by us; no server could take the request"',
            id="no response",
        ),
    ],
)
def test_it_says_so_to_people_and_in_the_debug_header(made: Decision, why: str, text: str):
    assert made.why == why
    assert str(made) == text
    assert repr(made) == f"<Decision web: {text}>"


def websocket(status: int = 101) -> Decision:
    made = decision(NO_COOKIE, (R2,))
    made.status = status
    return made


def test_a_websocket_has_no_end_while_it_is_open():
    assert (websocket().closed_by, websocket().close_code) == (None, None)


def test_the_first_that_ends_a_websocket_counts():
    made = websocket()
    made.record_close(ClosedBy.SERVER, 4001)
    made.record_close(ClosedBy.CLIENT, 1000)  # the reply to the close frame
    assert (made.closed_by, made.close_code) == (ClosedBy.SERVER, 4001)


@pytest.mark.parametrize("status", [0, 200, 403, 502])
def test_what_was_not_accepted_as_a_websocket_has_no_end(status: int):
    made = websocket(status)
    made.record_close(ClosedBy.CLIENT, 1006)
    assert (made.closed_by, made.close_code) == (None, None)


@pytest.mark.parametrize("closed_by", ClosedBy, ids=lambda closed_by: closed_by.name)
@pytest.mark.parametrize("code, shown", [(1001, "1001"), (None, "-")])
def test_its_text_says_which_side_has_ended_a_websocket(closed_by: ClosedBy, code: int | None, shown: str):
    made = websocket()
    made.record_close(closed_by, code)
    assert str(made) == (
        f"server=r2; claim=NONE; attempts=r2; mark=NONE; closed_by={closed_by.name}; close_code={shown}; "
        'why="no cookie; balance chose r2"'
    )


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.name)
def test_the_debug_header_is_one_line_of_ascii(reason: Reason):
    text = str(decision(PersistenceResult(Claim.INVALID, reason, R1), (R2,)))
    assert text.isascii()
    assert text.isprintable()
    assert text.count('"') == 2


def test_the_letters_are_haproxy_s():
    assert {claim.name: claim.value for claim in Claim} == {
        "NONE": "N",
        "INVALID": "I",
        "DOWN": "D",
        "VALID": "V",
        "EXPIRED": "E",
        "OLD": "O",
        "UNUSED": "U",
    }
    assert {mark.name: mark.value for mark in Mark} == {
        "NONE": "N",
        "INSERTED": "I",
        "UPDATED": "U",
        "PASSED": "P",
        "REWRITTEN": "R",
        "DELETED": "D",
    }
