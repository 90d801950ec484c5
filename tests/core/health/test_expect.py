"""What the response to a check must be like: HAProxy's words, each with responses that match and that do not."""

import pytest

from sticky_core.health.expect import MAX_BODY, Expect

HEADERS = [("x-state", "up, warm"), ("x-via", "a, b"), ("content-type", "text/plain")]


@pytest.mark.parametrize(
    "text, status, body, verdict",
    [
        ("status 200", 200, b"", "L7OK"),
        ("status 200", 201, b"", "L7STS"),
        ("status 200,204,300-302", 204, b"", "L7OK"),
        ("status 200,204,300-302", 301, b"", "L7OK"),
        ("status 200,204,300-302", 303, b"", "L7STS"),
        ("! status 500-599", 200, b"", "L7OK"),
        ("! status 500-599", 503, b"", "L7STS"),
        (r"rstatus ^2\d\d$", 299, b"", "L7OK"),
        (r"rstatus ^2\d\d$", 302, b"", "L7STS"),
        ("!rstatus 5..", 500, b"", "L7STS"),
        ("string all is well", 200, b"yes, all is well.", "L7OK"),
        ("string all is well", 500, b"all is well", "L7OK"),  # whatever the status
        ("string all is well", 200, b"all is lost", "L7RSP"),
        ("string x", 200, b"", "L7RSP"),
        ("! string oops", 200, b"fine", "L7OK"),
        ("! string oops", 200, b"oops", "L7RSP"),
        ("! string oops", 200, b"", "L7RSP"),  # without a body no rule about it holds
        (r"rstring ok\s+[0-9]+", 200, b"ok  12", "L7OK"),
        (r"rstring ok\s+[0-9]+", 200, b"ok", "L7RSP"),
        ("! rstring err.r", 200, b"error", "L7RSP"),
        ("string late", 200, b"x" * MAX_BODY + b"late", "L7RSP"),
        ("string late", 200, b"x" * (MAX_BODY - 4) + b"late", "L7OK"),
        ("hdr name x-state", 200, b"", "L7OK"),
        ("hdr name X-State", 200, b"", "L7OK"),
        ("hdr name x-other", 200, b"", "L7STS"),
        ("! hdr name x-other", 200, b"", "L7OK"),
        ("hdr name x-state value warm", 200, b"", "L7OK"),
        ("hdr name x-state value cold", 200, b"", "L7STS"),
        ("hdr name -m beg x- value -m sub ar", 200, b"", "L7OK"),
        ("hdr name -m end type value -m beg text/", 200, b"", "L7OK"),
        ("hdr name -m reg ^x-v value -m reg ^b$", 200, b"", "L7OK"),
        ("fhdr name x-state value warm", 200, b"", "L7STS"),
        ('fhdr name x-state value "up, warm"', 200, b"", "L7OK"),
    ],
)
def test_a_response_is_judged(text: str, status: int, body: bytes, verdict: str):
    assert Expect.parse(text).judge(status, HEADERS, body) == verdict


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "is unknown"),
        ("code 200", "is unknown"),
        ("status", "has no pattern after status"),
        ("status 20", "neither a status nor a range"),
        ("status 300-200", "ends before it begins"),
        ("rstatus (", "not a regular expression"),
        ("rstring [", "not a regular expression"),
        ("hdr x-state", "is followed by: name"),
        ("hdr name", "needs a pattern after it"),
        ("hdr name -m like x", "-m like is none of"),
        ("hdr name x value", "needs a pattern after it"),
        ("hdr name x value y z", "unexpected 'z'"),
        ("hdr name -m reg (", "not a regular expression"),
    ],
)
def test_an_invalid_rule_is_refused(text: str, problem: str):
    with pytest.raises(ValueError, match=r".*") as refused:
        Expect.parse(text)
    assert problem in str(refused.value)
