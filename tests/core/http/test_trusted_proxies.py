"""Networks and the peers in them; the client behind a chain of proxies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.http.trusted_proxies import Networks, network_problems


@pytest.mark.parametrize(
    "networks, peer, inside",
    [
        pytest.param(["10.0.0.0/8"], "10.1.2.3", True, id="an address in a network"),
        pytest.param(["10.0.0.0/8"], "11.1.2.3", False, id="an address beside it"),
        pytest.param(["10.0.0.0/8", "192.0.2.0/24"], "192.0.2.7", True, id="an address in the second of two"),
        pytest.param(["192.0.2.7"], "192.0.2.7", True, id="an address"),
        pytest.param(["192.0.2.7"], "192.0.2.8", False, id="another address"),
        pytest.param(["0.0.0.0/0"], "192.0.2.7", True, id="all of IPv4"),
        pytest.param(["0.0.0.0/0"], "2001:db8::1", False, id="IPv6 in all of IPv4"),
        pytest.param(["2001:db8::/32"], "2001:db8::1", True, id="an IPv6 address in a network"),
        pytest.param(["2001:db8::/32"], "2001:0DB8:0::1", True, id="the same written otherwise"),
        pytest.param(["2001:db8::/32"], "2001:db9::1", False, id="an IPv6 address beside it"),
        pytest.param(["::/0"], "192.0.2.7", False, id="IPv4 in all of IPv6"),
        pytest.param(["10.0.0.0/8"], "::ffff:10.1.2.3", True, id="IPv4 written as IPv6"),
        pytest.param(["10.0.0.0/8"], "::ffff:11.1.2.3", False, id="IPv4 written as IPv6 beside it"),
        pytest.param(["fe80::/10"], "fe80::1%eth0", True, id="IPv6 with a zone"),
        pytest.param(["::1"], "::1", True, id="ourselves"),
        pytest.param(["10.0.0.0/8"], None, False, id="a UNIX socket in a network"),
        pytest.param(["10.0.0.0/8"], "", False, id="a UNIX socket as WSGI tells it, in a network"),
        pytest.param(["unix"], None, True, id="a UNIX socket"),
        pytest.param(["unix"], "", True, id="a UNIX socket as WSGI tells it"),
        pytest.param(["unix"], "192.0.2.7", False, id="an address that is no UNIX socket"),
        pytest.param(["unix", "10.0.0.0/8"], "10.1.2.3", True, id="an address beside a UNIX socket"),
        pytest.param(["*"], "192.0.2.7", True, id="all peers"),
        pytest.param(["*"], None, True, id="all peers, behind a UNIX socket"),
        pytest.param(["*"], "whoever", True, id="every peer, whatever its name"),
        pytest.param([], "192.0.2.7", False, id="no networks"),
        pytest.param([], None, False, id="no networks, a UNIX socket"),
        pytest.param(["10.0.0.0/8"], "unix", False, id="a word that is no address"),
        pytest.param(["unix"], "unix", False, id="a peer with the name unix"),
        pytest.param(["*", "10.0.0.0/8"], "11.0.0.1", True, id="all peers, and a network as well"),
        pytest.param(["10.0.0.0/8"], "10.1.2.3:80", False, id="an address with a port"),
        pytest.param(["10.0.0.0/8"], " 10.1.2.3", False, id="an address with a space"),
        pytest.param(["10.0.0.0/8"], "10.1.2.03", False, id="an address with a zero"),
        pytest.param(["10.0.0.0/8"], "167837955", False, id="an address as a number"),
        pytest.param(["10.0.0.0/8"], "10.1.2.3\n", False, id="an address and a line break"),
    ],
)
def test_which_peers_are_in_a_network(networks: list[str], peer: str | None, inside: bool):
    trusted = Networks(networks)
    for _ in range(2):  # and so it is remembered
        assert (peer in trusted) is inside


@pytest.mark.parametrize("networks, some", [([], False), (["unix"], True), (["*"], True), (["10.0.0.0/8"], True)])
def test_networks_are_true_unless_empty(networks: list[str], some: bool):
    assert bool(Networks(networks)) is some


OURS = ["10.0.0.0/8", "unix"]


@pytest.mark.parametrize(
    "networks, peer, said, client",
    [
        pytest.param(OURS, "192.0.2.7", ["198.51.100.1"], "192.0.2.7", id="an untrusted peer with the header"),
        pytest.param(OURS, "192.0.2.7", [], "192.0.2.7", id="an untrusted peer without the header"),
        pytest.param(OURS, "10.0.0.1", [], "10.0.0.1", id="a proxy speaks for itself"),
        pytest.param(OURS, "10.0.0.1", ["198.51.100.1"], "198.51.100.1", id="a proxy speaks for its client"),
        pytest.param(OURS, "10.0.0.1", ["198.51.100.1, 10.0.0.2"], "198.51.100.1", id="through another proxy"),
        pytest.param(
            OURS,
            "10.0.0.1",
            ["203.0.113.9, 198.51.100.1, 10.0.0.2"],
            "198.51.100.1",
            id="what a client says is nothing",
        ),
        pytest.param(OURS, "10.0.0.1", ["10.0.0.9, 198.51.100.1"], "198.51.100.1", id="even if it names a proxy"),
        pytest.param(OURS, "10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3", id="the outermost if all are ours"),
        pytest.param(OURS, "10.0.0.1", ["198.51.100.1", "10.0.0.2"], "198.51.100.1", id="in two lines"),
        pytest.param(OURS, "10.0.0.1", ["198.51.100.1,,\t10.0.0.2 ,"], "198.51.100.1", id="with gaps"),
        pytest.param(OURS, "10.0.0.1", ["", " , "], "10.0.0.1", id="nothing but gaps"),
        pytest.param(OURS, "10.0.0.1", ["198.51.100.1, unknown"], "unknown", id="an unknown address"),
        pytest.param(OURS, "10.0.0.1", ["198.51.100.1, unix"], "unix", id="a forged unix is not trusted"),
        pytest.param(OURS, "10.0.0.1", ["2001:db8::1, ::ffff:10.0.0.2"], "2001:db8::1", id="IPv6"),
        pytest.param(OURS, None, ["198.51.100.1"], "198.51.100.1", id="a proxy behind a UNIX socket"),
        pytest.param(OURS, None, [], None, id="a UNIX socket that says nothing"),
        pytest.param(["10.0.0.0/8"], None, ["198.51.100.1"], None, id="an untrusted peer behind a UNIX socket"),
        pytest.param(
            ["*"], "192.0.2.7", ["203.0.113.9, 198.51.100.1"], "203.0.113.9", id="the outermost if all are trusted"
        ),
        pytest.param([], "192.0.2.7", ["198.51.100.1"], "192.0.2.7", id="no trusted proxies"),
    ],
)
def test_the_client_is_the_first_address_that_is_not_a_trusted_proxy(
    networks: list[str], peer: str | None, said: list[str], client: str | None
):
    assert Networks(networks).find_client(peer, said) == client


@pytest.mark.parametrize(
    "peer, scheme, reported, result",
    [
        pytest.param("10.0.0.1", "http", ["https"], "https", id="a proxy reports TLS"),
        pytest.param("10.0.0.1", "https", ["http"], "http", id="or that there is none"),
        pytest.param("10.0.0.1", "http", ["\tHTTPS "], "https", id="in capitals, with spaces"),
        pytest.param("10.0.0.1", "ws", ["https"], "wss", id="of a WebSocket"),
        pytest.param("10.0.0.1", "ws", ["wss"], "wss", id="of a WebSocket, in its own word"),
        pytest.param("10.0.0.1", "wss", ["http"], "ws", id="of a WebSocket without it"),
        pytest.param("10.0.0.1", "http", ["wss"], "https", id="of a request, in the word of a WebSocket"),
        pytest.param(None, "http", ["https"], "https", id="a proxy behind a UNIX socket"),
        pytest.param("", "http", ["https"], "https", id="a proxy behind a UNIX socket, as WSGI reports it"),
        pytest.param("10.0.0.1", "http", ["http, https"], "https", id="the last of a list is the proxy's own"),
        pytest.param("10.0.0.1", "http", ["https", "http"], "http", id="in two lines too"),
        pytest.param("10.0.0.1", "https", ["gopher"], "https", id="another scheme is no report"),
        pytest.param("10.0.0.1", "https", ["http,"], "https", id="nothing is no report"),
        pytest.param("10.0.0.1", "https", [], "https", id="no header"),
        pytest.param("192.0.2.7", "http", ["https"], "http", id="an untrusted peer"),
    ],
)
def test_the_scheme_of_the_client_is_reported_by_a_trusted_proxy(
    peer: str | None, scheme: str, reported: list[str], result: str
):
    assert Networks(OURS).find_scheme(peer, scheme, reported) == result


@given(st.lists(st.ip_addresses(v=4).map(str), max_size=6), st.ip_addresses(v=4).map(str))
def test_a_forged_header_never_hides_the_client(written: list[str], client: str):
    ours = Networks(["10.0.0.0/8"])
    if client in ours:
        return
    through = ", ".join([*written, client, "10.0.0.2", "10.0.0.3"])
    assert ours.find_client("10.0.0.1", [through]) == client


@pytest.mark.parametrize(
    "network",
    ["10.0.0.0/8", "10.0.0.1", "0.0.0.0/0", "::1", "2001:db8::/32", "::/0", "10.0.0.0/255.0.0.0", "unix", "*"],
)
def test_a_valid_network_is_accepted(network: str):
    assert network_problems([network]) == []
    assert Networks([network])


@pytest.mark.parametrize(
    "network", ["", "everyone", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "10.0.0.0/8 ", "UNIX", "unix:", "shop.example"]
)
def test_an_invalid_network_is_refused_with_examples(network: str):
    (problem,) = network_problems(["10.0.0.0/8", network])
    assert problem.startswith(f"{network!r} is not a network: write '10.0.0.0/8', '::1', 'unix' or '*'")


def test_memory_for_peers_is_bounded():
    trusted = Networks(["10.0.0.0/8"])
    for number in range(5000):
        assert f"192.0.{number // 256}.{number % 256}" not in trusted
    assert len(trusted._known) <= 2048
    before = len(trusted._known)
    assert "1" * 60000 not in trusted
    assert trusted.find_client("10.0.0.1", ["x" * 60000]) == "x" * 60000
    assert len(trusted._known) <= before + 1
