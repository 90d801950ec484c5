"""Balance in HAProxy's words."""

import pytest

from sticky_core.balance import (
    Ewma,
    First,
    Hash,
    Hdr,
    IpHash,
    LeastConn,
    NginxLeastConn,
    Random,
    RoundRobin,
    Smooth,
    Source,
    StaticRR,
    Uri,
    UrlParam,
    parse_balance,
)
from sticky_core.errors import ConfigError
from sticky_core.samples.request import hdr, src


@pytest.mark.parametrize(
    "text, balance",
    [
        ("roundrobin", RoundRobin()),
        ("static-rr", StaticRR()),
        ("leastconn", LeastConn()),
        ("first", First()),
        ("random", Random(2)),
        ("random(1)", Random(1)),
        ("random(12)", Random(12)),
        ("source", Source()),
        ("uri", Uri()),
        ("uri whole", Uri(whole=True)),
        ("uri len 12 depth 2 path-only", Uri(len=12, depth=2, path_only=True)),
        ("uri  depth   3", Uri(depth=3)),
        ("url_param userid", UrlParam("userid")),
        ("url_param userid check_post", UrlParam("userid", check_post=True)),
        ("hdr(X-User)", Hdr("X-User")),
        ("hdr(host) use_domain_only", Hdr("host", use_domain_only=True)),
        ("hash src", Hash(src)),
        ("hash req.hdr(X-User)", Hash(hdr("X-User"))),
        ("smooth", Smooth()),
        ("ip_hash", IpHash()),
        ("least_conn", NginxLeastConn()),
        ("ewma", Ewma()),
    ],
)
def test_a_balance_is_parsed_from_its_words(text, balance):
    assert parse_balance(text) == balance


@pytest.mark.parametrize("text", ["", "round-robin", "RoundRobin", " random", "random\n", "random(2", "rdp-cookie"])
def test_an_unknown_word_is_refused_with_the_list_of_known_ones(text):
    with pytest.raises(ConfigError) as refused:
        parse_balance(text)
    assert repr(text) in str(refused.value)
    for word in ("roundrobin", "static-rr", "leastconn", "random", "url_param", "hash"):
        assert word in str(refused.value)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("roundrobin(2)", "roundrobin takes nothing in parentheses"),
        ("leastconn()", "leastconn takes nothing in parentheses"),
        ("static-rr 2", "'2' is unexpected"),
        ("random()", "random takes a number of draws"),
        ("random(-1)", "random takes a number of draws"),
        ("random 2", "'2' is unexpected"),
        ("source consistent", "'consistent' is unexpected"),
        ("uri deep 2", "'deep' is not one of whole, len <number>, depth <number>, path-only"),
        ("uri depth", "depth needs a number above 0"),
        ("uri len 0", "len needs a number above 0"),
        ("uri depth two", "depth needs a number above 0"),
        ("url_param", "url_param needs the name of a parameter"),
        ("url_param user id", "'id' is unexpected"),
        ("hdr", "hdr needs the name of a header in parentheses"),
        ("hdr()", "hdr needs the name of a header in parentheses"),
        ("hdr X-User", "hdr needs the name of a header in parentheses"),
        ("hdr(X-User) only", "'only' is not use_domain_only"),
        ("hash", "hash needs a sample"),
        ("hash src dst", "'dst' is unexpected"),
    ],
)
def test_invalid_arguments_are_refused_by_name(text, problem):
    with pytest.raises(ConfigError) as refused:
        parse_balance(text)
    assert repr(text) in str(refused.value)
    assert problem in str(refused.value)


def test_an_unknown_sample_is_refused():
    with pytest.raises(ConfigError, match="sample 'dst' is not known"):
        parse_balance("hash dst")
