"""Claims, reasons and marks, and what a result says about where its request goes."""

import pytest

from sticky_core.persistence.claim import (
    NO_COOKIE,
    NO_ENTRY,
    NO_KEY,
    NO_PERSISTENCE,
    Claim,
    Mark,
    PersistenceResult,
    Reason,
    unusable_reason,
)
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def test_letters_are_those_of_haproxy():
    assert "".join(claim.value for claim in Claim) == "NIDVEOU"
    assert "".join(mark.value for mark in Mark) == "NIUPRD"


@pytest.mark.parametrize(
    "claim, overrides_claim, is_bound",
    [
        (Claim.VALID, False, True),
        (Claim.DOWN, False, False),
        (Claim.DOWN, True, True),
        (Claim.NONE, True, True),
        *((claim, False, False) for claim in Claim if claim is not Claim.VALID),
    ],
)
def test_request_is_bound_by_a_valid_claim_or_by_what_overrides_it(claim: Claim, overrides_claim: bool, is_bound: bool):
    assert PersistenceResult(claim, Reason.BOUND, overrides_claim=overrides_claim).is_bound is is_bound


@pytest.mark.parametrize("result", [NO_COOKIE, NO_KEY, NO_ENTRY, NO_PERSISTENCE])
def test_result_without_a_claim_binds_to_no_server(result: PersistenceResult):
    assert (result.claim, result.server, result.is_bound) == (Claim.NONE, None, False)


@pytest.mark.parametrize(
    "state, health, reason",
    [
        pytest.param(AdminState.MAINT, Health.UP, Reason.MAINT, id="in maintenance"),
        pytest.param(AdminState.MAINT, Health.DOWN, Reason.MAINT, id="in maintenance, and down"),
        pytest.param(AdminState.READY, Health.DOWN, Reason.DOWN, id="down"),
        pytest.param(AdminState.DRAIN, Health.DOWN, Reason.DOWN, id="draining, and down"),
    ],
)
def test_reason_why_a_server_is_not_usable(state: AdminState, health: Health, reason: Reason):
    server = Server("s1", app)
    server.state, server.health = state, health
    assert unusable_reason(server) is reason
