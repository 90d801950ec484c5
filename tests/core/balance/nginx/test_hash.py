"""hash, with the choices of nginx."""

from zlib import crc32

import pytest

from sticky_core.balance import NginxHash
from sticky_core.balance.nginx.hash import nginx_name
from sticky_core.samples.request import path
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState

# What nginx 1.22 answered over 127.0.0.1:1 … 127.0.0.4:4 of weights 1 2 3 4 for /key/0 … /key/39.
HASH = "3443223443132231443333411233432313414234"
CONSISTENT = "2432234344211422444334413434324432342344"


def loopback(number: int) -> str:
    return f"http://127.0.0.{number}:{number}"


@pytest.mark.parametrize("consistent, chosen", [(False, HASH), (True, CONSISTENT)])
def test_hash_chooses_as_nginx_does(bench, client, consistent, chosen):
    on = bench(NginxHash(path, consistent), (1, 2, 3, 4), targets=loopback)
    assert on.chosen(*(client(path=f"/key/{number}") for number in range(40))) == chosen


@pytest.mark.parametrize("consistent", [False, True])
def test_when_one_of_ten_is_down_only_its_own_keys_move(bench, client, consistent):
    on = bench(NginxHash(path, consistent), [1] * 10, targets=loopback)
    clients = [client(path=f"/{number}") for number in range(2000)]
    before = [on.choose((), each) for each in clients]
    gone = on.servers[3]
    gone.state = AdminState.MAINT
    after = [on.choose((), each) for each in clients]
    moved = [one for one, other in zip(before, after, strict=True) if one is not other]
    assert set(moved) == {gone}
    assert len(moved) == pytest.approx(200, rel=0.3)
    gone.state = AdminState.READY
    assert [on.choose((), each) for each in clients] == before


@pytest.mark.parametrize("consistent, share", [(False, 10 / 11), (True, 1 / 11)])
def test_an_added_server_moves_its_share_of_keys(bench, client, consistent, share):
    clients = [client(path=f"/{number}") for number in range(2000)]
    ten, eleven = (bench(NginxHash(path, consistent), [1] * count, targets=loopback) for count in (10, 11))
    moved = sum(ten.number(ten.choose((), each)) != eleven.number(eleven.choose((), each)) for each in clients)
    assert moved == pytest.approx(2000 * share, rel=0.3)


@pytest.mark.parametrize("key", [None, ""])
def test_requests_without_a_key_or_with_an_empty_one_take_turns(bench, client, key):
    for consistent in (False, True):
        on = bench(NginxHash(lambda request: key, consistent, start=0), (1, 1, 1))
        assert on.chosen(*[client()] * 6) == "123123"


@pytest.mark.parametrize(
    "target, called",
    [
        ("http://10.0.0.1:8080", b"10.0.0.1\x008080"),
        ("http://10.0.0.1:8080/base", b"10.0.0.1\x008080"),
        ("http://10.0.0.1", b"10.0.0.1\x00"),
        ("https://[::1]:443/", b"[::1]\x00443"),
        ("http://[::1]", b"[::1]\x00"),
        ("unix:/run/app.sock", b"/run/app.sock\x00"),
        ("unix:/run/app.sock:/base", b"/run/app.sock\x00"),
        ("http://unix:/run/app.sock:/base", b"/run/app.sock\x00"),
        pytest.param(lambda environ, start_response: [], b"s1\x00", id="an app"),
    ],
)
def test_the_points_of_a_server_are_computed_from_its_name_in_nginx(target, called):
    assert nginx_name(Server("s1", target)) == called


def test_each_point_of_a_server_is_the_hash_of_the_one_before(bench, client):
    """Ketama as the facts tell it, over all points of one server against another's."""
    points = []
    for number in (1, 2):
        before = b"\0\0\0\0"
        for _ in range(160):
            where = crc32(f"127.0.0.{number}".encode() + b"\0" + str(number).encode() + before)
            points.append((where, number))
            before = where.to_bytes(4, "little")
    on = bench(NginxHash(path, True), (1, 1), targets=loopback)
    for number in range(300):
        key = crc32(f"/{number}".encode())
        expected = min(points, key=lambda point: (point[0] - key) % 2**32)[1]
        assert on.number(on.choose((), client(path=f"/{number}"))) == expected
