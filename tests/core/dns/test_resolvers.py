"""Options of resolvers, and what their results and exceptions mean."""

import pytest

from sticky_core.dns.resolvers import (
    Address,
    Answer,
    Resolvers,
    Status,
    answer_from_exception,
    answer_from_os_error,
    answer_from_resolver,
    answer_from_system,
    parse_nameserver,
    preferred_addresses,
)
from sticky_core.errors import ConfigError

A, B = "10.0.0.1", "10.0.0.2"


# -- the results of resolvers


@pytest.mark.parametrize(
    "returned, status",
    [
        ([A], Status.VALID),
        ([Address(A, 80)], Status.VALID),
        (Answer(Status.NX), Status.NX),
        ([], Status.OTHER),
        (A, Status.OTHER),
        (None, Status.OTHER),
        (["web.example"], Status.OTHER),
        ([80], Status.OTHER),
    ],
    ids=["addresses", "found", "answer", "nothing", "text", "none", "a name", "a number"],
)
def test_what_a_resolver_returns_is_validated(returned, status):
    assert answer_from_resolver(returned).status is status


@pytest.mark.parametrize(
    "error, status",
    [
        (LookupError("no such name"), Status.NX),
        (KeyError("web"), Status.NX),
        (TimeoutError(), Status.TIMEOUT),
        (ConnectionRefusedError(), Status.REFUSED),
        (OSError("broken"), Status.OTHER),
        (ValueError(), Status.OTHER),
    ],
    ids=repr,
)
def test_the_exception_of_a_resolver_decides_the_status(error, status):
    assert answer_from_exception(error).status is status
    assert type(error).__name__ in answer_from_exception(error).info


def test_only_the_preferred_family_is_used_if_there_are_both():
    both = ["2001:db8::1", A, B, A]
    assert preferred_addresses(both, "ipv4") == [A, B]
    assert preferred_addresses(both, "ipv6") == ["2001:db8::1"]
    assert preferred_addresses([A], "ipv6") == [A]


def test_addresses_with_a_zone_are_left_out_of_the_answer_of_the_system():
    assert [each.address for each in answer_from_system(["fe80::1%eth0", "2001:db8::1"], "ipv4").addresses] == [
        "2001:db8::1"
    ]
    assert answer_from_system([], "ipv4").status is Status.OTHER


def test_the_error_number_of_the_system_decides_the_status():
    assert answer_from_os_error(OSError(-2, "Name or service not known"), (-2, -5), -3) == Answer(
        Status.NX, info="Name or service not known"
    )
    assert answer_from_os_error(OSError(-3, "again"), (-2, -5), -3).status is Status.TIMEOUT
    assert answer_from_os_error(OSError(-4, "failed"), (-2, -5), -3).status is Status.OTHER


# -- invalid options


@pytest.mark.parametrize(
    "text, expected",
    [
        ("10.0.0.2", ("10.0.0.2", 53)),
        ("10.0.0.2:5353", ("10.0.0.2", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]", ("::1", 53)),
        ("[::1]:5353", ("::1", 5353)),
    ],
)
def test_a_name_server_is_parsed(text, expected):
    assert parse_nameserver(text) == expected


@pytest.mark.parametrize("text", ["", "ns.example", "10.0.0.2:0", "10.0.0.2:dns", "10.0.0.2:65536", "[::1]:", "[::1"])
def test_an_invalid_name_server_is_refused(text):
    with pytest.raises(ConfigError, match="nameserver"):
        Resolvers(nameservers=[text])


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"timeout_resolve": 0}, "timeout_resolve 0 is not above 0"),
        ({"timeout_retry": "soon"}, "timeout_retry: 'soon' is not a duration"),
        ({"hold_nx": -1}, "hold_nx -1 is below 0"),
        ({"resolve_retries": 0}, "resolve_retries 0"),
        ({"resolve_retries": True}, "resolve_retries True"),
        ({"resolve_prefer": "ipv5"}, "resolve_prefer 'ipv5'"),
        ({"nameservers": "10.0.0.2"}, r"write nameservers=\['10.0.0.2'\]"),
        ({"nameservers": ["10.0.0.2"], "resolver": print}, "leave one of them out"),
        ({"resolver": "system"}, "is not callable"),
    ],
)
def test_invalid_options_are_refused(options, problem):
    with pytest.raises(ConfigError, match=problem):
        Resolvers(**options)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        Resolvers(timeout_resolve=0, hold_other="x", resolve_retries=-1)
    assert len(caught.value.problems) == 3
