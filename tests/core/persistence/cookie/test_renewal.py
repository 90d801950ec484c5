"""When a client that stays at its server gets a new mark (`refresh`)."""

import pytest

from sticky_core.clock import ManualClock
from sticky_core.persistence.claim import Claim, Mark
from sticky_core.persistence.cookie import dates
from tests.core.fakes import FakeRequest, RecordedResponse
from tests.core.persistence.cookie.marks import (
    IDLE,
    LIFE,
    NAME,
    NEW,
    NOW,
    build,
    cookie,
    marked_value,
    recognise,
    renew,
    three_servers,
)


@pytest.mark.parametrize(
    "options, last, first, value",
    [
        pytest.param({}, None, None, "", id="no dates anywhere"),
        pytest.param({}, NOW - 4, None, "r1", id="a date without maxidle is removed"),
        pytest.param({}, NOW, None, "", id="but not in the same four seconds"),
        pytest.param({}, NOW, NOW - 400, "r1", id="a first date without maxlife is removed at once"),
        pytest.param({"maxidle": IDLE}, None, None, "r1|L", id="a last date is missing"),
        pytest.param({"maxidle": IDLE}, NOW, None, "", id="a last date of now"),
        pytest.param({"maxidle": IDLE}, NOW + 100, None, "", id="a last date of the future"),
        pytest.param({"maxidle": IDLE}, NOW - 4, None, "r1|L", id="a last date of four seconds ago"),
        pytest.param({"maxidle": IDLE}, NOW, NOW - 400, "r1|L", id="maxidle, and a first date without maxlife"),
        pytest.param({"maxlife": LIFE}, None, None, "r1|L|L", id="both dates are missing"),
        pytest.param({"maxlife": LIFE}, NOW - 400, None, "r1|L|L", id="a first date is missing"),
        pytest.param(
            {"maxlife": LIFE}, NOW + 100, None, "r1|L|L", id="a first date is missing, the last is of the future"
        ),
        pytest.param({"maxlife": LIFE}, NOW, NOW - 400, "", id="both dates, the last of now"),
        pytest.param({"maxlife": LIFE}, NOW - 4, NOW - 400, "r1|L|F", id="the first date is kept"),
        pytest.param({"maxidle": IDLE, "maxlife": LIFE}, NOW - 4, NOW - 400, "r1|L|F", id="both, the first is kept"),
        pytest.param({"maxlife": LIFE, "refresh": "never"}, NOW - 400, NOW - 400, "", id="never"),
        pytest.param({"refresh": "never"}, NOW - 400, None, "", id="never, and a date without maxidle"),
        pytest.param({"refresh": "always"}, None, None, "r1", id="always"),
        pytest.param({"refresh": "always", "maxlife": LIFE}, NOW, NOW - 400, "r1|L|F", id="always, the first is kept"),
        pytest.param({"max_age": 100}, None, None, "", id="plain max_age alone is never renewed"),
    ],
)
def test_plain_dates_are_renewed_as_haproxy_does(
    options: dict[str, object], last: int | None, first: int | None, value: str
):
    configured = cookie(signed=False, **options)
    _, written = renew(configured, dates.add_dates("r1", last, first))
    assert written == value.replace("L", dates.encode(NOW)).replace("F", dates.encode(first or NOW))


@pytest.mark.parametrize(
    "options, after",
    [
        pytest.param({"maxidle": "8h"}, 3600, id="an eighth"),
        pytest.param({"maxidle": 400}, 60, id="a minute at least"),
        pytest.param({"maxidle": 100}, 50, id="half of it at most"),
        pytest.param({"max_age": "8h"}, 3600, id="of max_age as well"),
        pytest.param({"max_age": "8h", "maxidle": "1d"}, 3600, id="of the shorter"),
        pytest.param({"maxidle": "8h", "maxlife": "7d"}, 3600, id="whatever maxlife"),
        pytest.param({"maxidle": "8h", "refresh": "due"}, 3600, id="written out"),
        pytest.param({"maxlife": "8h"}, None, id="maxlife alone: never"),
        pytest.param({"max_age": "8h", "refresh": "never"}, None, id="never"),
        pytest.param({}, None, id="nothing that ends: never"),
        pytest.param({"maxlife": "8h", "refresh": "always"}, 0, id="always"),
        pytest.param({"refresh": "always"}, 0, id="always, without dates"),
    ],
)
def test_signed_dates_are_renewed_when_an_eighth_has_passed(options: dict[str, object], after: int | None):
    servers, clock = three_servers(), ManualClock(NOW)
    persistence = build(cookie(secret=NEW, **options), servers, clock)
    first_value = value = marked_value(persistence, servers[0])

    def ScriptedTransaction() -> bool:
        nonlocal value
        result = recognise(persistence, f"{NAME}={value}")
        assert result.claim is Claim.VALID
        response = RecordedResponse()
        written = persistence.stamp_response(result, servers[0], True, FakeRequest(), response) is Mark.UPDATED
        if written:
            value = response.values("set-cookie")[0].partition("=")[2].partition(";")[0]
        return written

    if after == 0:
        assert ScriptedTransaction() and ScriptedTransaction()
        return
    if after is None:
        for _ in range(7):
            clock.advance(3600)
            assert not ScriptedTransaction()
        return
    for _ in range(3):
        clock.advance(after - 4)
        assert not ScriptedTransaction()
        clock.advance(8)
        assert ScriptedTransaction()
        assert not ScriptedTransaction()
    if "maxlife" in options:
        assert value.rpartition(".")[0].split("|")[2] == first_value.rpartition(".")[0].split("|")[2], (
            "the first date stays"
        )
