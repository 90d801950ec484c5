"""The line that an agent replies with, parsed."""

import pytest

from sticky_core.health.agent import parse_reply
from sticky_core.health.check import CheckResult, CheckStatus


@pytest.mark.parametrize(
    "line, expected",
    [
        (b"up\n", {"up": True}),
        (b"down #out of memory\n", {"up": False}),
        (b"FAIL", {"up": False}),
        (b"stopped", {"up": False}),
        (b"ready, up 75%\r\n", {"admin": "ready", "up": True, "percent": 75}),
        (b"drain", {"admin": "drain"}),
        (b"maint", {"admin": "maint"}),
        (b"weight:5 maxconn:30", {"weight": 5, "maxconn": 30}),
        (b"weight:50%", {"percent": 50}),
        (b"splendid", {}),
        (b"up splendid", {}),
    ],
)
def test_a_line_of_an_agent_is_parsed(line: bytes, expected: dict[str, object]):
    reply = parse_reply(line)
    given = {name: getattr(reply, name) for name in ("up", "admin", "weight", "percent", "maxconn")}
    assert {name: value for name, value in given.items() if value is not None} == expected
    assert (reply.result.status is CheckStatus.L7RSP) is (b"splendid" in line)


def test_the_reason_after_the_hash_is_the_info_of_the_result():
    assert parse_reply(b"down #out of memory\n").result == CheckResult(CheckStatus.L7STS, info="out of memory")
