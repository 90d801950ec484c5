"""New clients stay at the server of their worker; requests with a key are hashed."""

import pytest

from sticky_core.balance import Hash
from sticky_core.balance.local import Local
from sticky_core.samples.request import hdr
from sticky_core.server.state import AdminState

BY_USER = Hash(hdr("x-user"))


def test_requests_stay_at_the_local_server(bench):
    assert bench(Local("s2"), (1, 1, 1)).sequence(6) == "222222"


def test_no_server_is_chosen_if_the_local_one_is_avoided_or_in_maintenance(bench):
    on = bench(Local("s2"), (1, 1, 1))
    assert on.choose(avoid=[on.servers[1]]) is None
    on.servers[1].state = AdminState.MAINT
    assert on.choose() is None
    on.servers[1].state = AdminState.READY
    assert on.choose() is on.servers[1]


def test_requests_with_a_key_go_to_the_server_of_its_hash_from_every_worker(bench, client):
    clients = [client(number) for number in range(30)]
    workers = [bench(Local(f"s{number}", BY_USER, among=3), (1, 1, 1)) for number in (1, 2, 3)]
    choices = {on.chosen(*clients) for on in workers}
    assert len(choices) == 1
    assert set(choices.pop()) == {"1", "2", "3"}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_requests_without_a_key_stay_at_the_local_server(bench, client, number):
    on = bench(Local(f"s{number}", BY_USER, among=3), (1, 1, 1))
    assert on.chosen(*(client(each, headers=()) for each in range(5))) == str(number) * 5


def test_keys_are_hashed_to_the_first_servers_only(bench, client):
    on = bench(Local("s1", BY_USER, among=2), (1, 1, 1))
    assert set(on.chosen(*(client(number) for number in range(30)))) == {"1", "2"}


def test_a_key_goes_to_another_server_while_its_own_is_in_maintenance(bench, client):
    on = bench(Local("s1", BY_USER, among=3), (1, 1, 1))
    on.servers[2].state = AdminState.MAINT
    assert set(on.chosen(*(client(number) for number in range(30)))) == {"1", "2"}
