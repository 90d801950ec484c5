"""Claims end with the dates in the value (`maxidle`, `maxlife`)."""

import pytest

from sticky_core.clock import ManualClock
from sticky_core.persistence.claim import Claim
from sticky_core.persistence.cookie import dates
from sticky_core.persistence.signing import Signing
from sticky_core.server.state import Health
from tests.core.persistence.cookie.marks import (
    DAY,
    IDLE,
    LIFE,
    NAME,
    NEW,
    NOW,
    build,
    cookie,
    marked_value,
    recognise,
    three_servers,
)


@pytest.mark.parametrize("signed", [False, True], ids=["plain", "signed"])
@pytest.mark.parametrize(
    "last, first, maxidle, maxlife, expected",
    [
        pytest.param(None, None, IDLE, LIFE, Claim.VALID, id="no dates are always accepted"),
        pytest.param(NOW, NOW, IDLE, LIFE, Claim.VALID, id="just now"),
        pytest.param(NOW - 1000, NOW - 1000, IDLE, LIFE, Claim.VALID, id="idle just long enough"),
        pytest.param(NOW - 1004, NOW - 1004, IDLE, LIFE, Claim.EXPIRED, id="idle for too long"),
        pytest.param(NOW, NOW - 5000, IDLE, LIFE, Claim.VALID, id="just old enough"),
        pytest.param(NOW, NOW - 5004, IDLE, LIFE, Claim.OLD, id="too old"),
        pytest.param(NOW - 6000, NOW - 6000, IDLE, LIFE, Claim.OLD, id="too old comes before idle"),
        pytest.param(NOW - 6000, NOW - 6000, IDLE, None, Claim.EXPIRED, id="without maxlife the first is not read"),
        pytest.param(NOW - 2000, NOW - 2000, None, LIFE, Claim.VALID, id="without maxidle the last is not read"),
        pytest.param(NOW - 9000, NOW - 9000, None, None, Claim.VALID, id="without either none is read"),
        pytest.param(NOW + 300, None, IDLE, None, Claim.VALID, id="last, five minutes ahead"),
        pytest.param(NOW + 2 * DAY, None, IDLE, None, Claim.EXPIRED, id="last, two days ahead"),
        pytest.param(NOW, NOW + 300, None, LIFE, Claim.VALID, id="first, five minutes ahead"),
        pytest.param(NOW, NOW + 2 * DAY, None, LIFE, Claim.OLD, id="first, two days ahead"),
        pytest.param(NOW - 5004, None, None, LIFE, Claim.VALID, id="no first date"),
    ],
)
def test_claim_ends_with_its_dates(
    signed: bool,
    last: int | None,
    first: int | None,
    maxidle: int | None,
    maxlife: int | None,
    expected: Claim,
):
    options = {option: value for option, value in (("maxidle", maxidle), ("maxlife", maxlife)) if value}
    configured = cookie(secret=NEW, **options) if signed else cookie(signed=False, **options)
    text = dates.add_dates("r1", last, first)
    value = Signing([NEW], "web", NAME).sign(text) if signed else text
    persistence = build(configured, three_servers())
    for _ in range(2):
        result = recognise(persistence, f"{NAME}={value}")
        assert result.claim is expected
        if expected is not Claim.VALID:
            assert (result.last_seen, result.first_seen) == (None, None), "its dates are forgotten"


@pytest.mark.parametrize(
    "ahead, signed, expected",
    [(304, True, Claim.EXPIRED), (304, False, Claim.VALID), (DAY, False, Claim.VALID), (DAY + 4, False, Claim.EXPIRED)],
)
def test_signed_dates_may_be_minutes_ahead_and_plain_dates_a_day(ahead: int, signed: bool, expected: Claim):
    configured = cookie(secret=NEW, maxidle=IDLE) if signed else cookie(signed=False, maxidle=IDLE)
    text = dates.add_dates("r1", NOW + ahead, None)
    value = Signing([NEW], "web", NAME).sign(text) if signed else text
    assert recognise(build(configured, three_servers()), f"{NAME}={value}").claim is expected


@pytest.mark.parametrize(
    "value, expected",
    [
        pytest.param("r1|", Claim.VALID, id="a bar and nothing"),
        pytest.param("r1|????|????", Claim.VALID, id="no dates that can be read"),
        pytest.param(f"r1|{dates.encode(NOW - 6000)}", Claim.EXPIRED, id="last"),
        pytest.param(f"r1|????|{dates.encode(NOW - 6000)}", Claim.OLD, id="an unreadable last and a first"),
        pytest.param(f"r1||{dates.encode(NOW - 6000)}", Claim.OLD, id="no last and a first"),
        pytest.param(f"r1|{dates.encode(NOW)}trailing", Claim.VALID, id="more behind a date"),
        pytest.param(f"r9|{dates.encode(NOW)}", Claim.INVALID, id="an unknown server"),
        pytest.param(f"|{dates.encode(NOW)}", Claim.INVALID, id="no server"),
    ],
)
def test_plain_dates_are_read_as_haproxy_reads_them(value: str, expected: Claim):
    persistence = build(cookie(signed=False, maxidle=IDLE, maxlife=LIFE), three_servers())
    assert recognise(persistence, f"{NAME}={value}").claim is expected


def test_first_date_survives_a_move_to_another_server():
    servers, clock = three_servers(), ManualClock(NOW)
    persistence = build(cookie(secret=NEW, maxlife="8h"), servers, clock)
    value = marked_value(persistence, servers[0])
    clock.advance(4000)
    servers[0].health = Health.DOWN
    result = recognise(persistence, f"{NAME}={value}")
    moved = marked_value(persistence, servers[1], result)
    assert dates.split_dates(moved.rpartition(".")[0]) == ("r2", NOW + 4000, NOW)
