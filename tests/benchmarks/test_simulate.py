"""The simulation tells what is true of sessions, in a size that takes seconds."""

from dataclasses import replace

import pytest


@pytest.fixture(scope="module")
def model(simulate):
    return replace(simulate.QUICK, servers=24, sessions=2400)


@pytest.fixture(scope="module")
def outcome(simulate, model):
    """What has become of the sessions, by an algorithm and a persistence; each is simulated once."""
    known = {}

    def simulated(algorithm, persistence="none", **other):
        key = algorithm, persistence, *other.items()
        if key not in known:
            name = f"{algorithm} / {persistence}"
            chosen = [contender for contender in simulate.CONTENDERS if contender.name == name]
            [(_, known[key])] = simulate.simulated(replace(model, **other), chosen)
        return known[key]

    return simulated


@pytest.mark.parametrize("algorithm", ["roundrobin", "leastconn", "random", "ewma", "source", "uri, consistent"])
@pytest.mark.parametrize("persistence", ["cookie", "table"])
def test_persistence_moves_only_the_clients_of_servers_that_are_restarted(outcome, algorithm, persistence):
    moves = outcome(algorithm, persistence)
    assert moves.driven > 0
    assert (moves.back, moves.for_nothing) == (0, 0)


@pytest.mark.parametrize(
    "algorithm", ["source, consistent", "uri, consistent", "hdr, consistent crc32", "nginx: hash consistent"]
)
def test_a_ring_moves_only_the_keys_of_servers_that_go_and_come_back(outcome, algorithm):
    moves = outcome(algorithm)
    assert moves.driven > 0 and moves.back > 0
    assert moves.for_nothing == 0


@pytest.mark.parametrize("algorithm", ["source", "uri", "url_param", "hdr", "hash hdr"])
def test_a_map_moves_more_clients_of_others_than_of_servers_that_are_restarted(outcome, algorithm):
    moves = outcome(algorithm)
    assert moves.for_nothing > moves.driven > 0


@pytest.mark.parametrize("algorithm", ["roundrobin", "static-rr", "leastconn", "random", "nginx: smooth turns"])
def test_without_persistence_nearly_every_session_moves(outcome, algorithm):
    assert outcome(algorithm).of_100(outcome(algorithm).moved) > 85


def test_turns_are_taken_evenly_until_restarts_bind_clients_to_those_that_are_left(outcome):
    assert outcome("roundrobin").worst < 1.1
    bound = outcome("roundrobin", "cookie")
    assert bound.rest < 1.1 < bound.worst


def test_a_hot_spot_burdens_who_has_its_keys_and_a_bound_spreads_them(outcome):
    cool, hot = (outcome("uri, consistent", hot=share).rest for share in (0.0, 0.5))
    bounded = outcome("uri, consistent, bounded", hot=0.5).rest
    assert hot > 1.5 * cool
    assert bounded < hot


def test_every_row_is_simulated_and_every_request_answered(simulate, model):
    small = replace(model, servers=6, sessions=60)
    rows = list(simulate.simulated(small, simulate.CONTENDERS))
    assert len(rows) == len(simulate.ALGORITHMS) * len(simulate.PERSISTENCES)
    assert [contender.name for contender, outcome in rows if outcome.unavailable] == []


def test_the_same_seed_tells_the_same(simulate, model):
    chosen = [contender for contender in simulate.CONTENDERS if contender.algorithm in ("random", "ewma")]
    small = replace(model, servers=12, sessions=300)
    once, again = (
        [(contender.name, outcome.moved, outcome.imbalance) for contender, outcome in simulate.simulated(small, chosen)]
        for _ in range(2)
    )
    assert once == again


def test_prints_a_table_and_draws_it(simulate, monkeypatch, capsys, tmp_path):
    drawn = tmp_path / "simulate.svg"
    words = ["simulate.py", "--sessions", "1000", "--quick", "--only", "first", "--plot", str(drawn)]
    monkeypatch.setattr("sys.argv", words)
    simulate.main()
    printed = capsys.readouterr().out
    assert "40 servers, 1000 sessions" in printed
    assert [line.split()[:2] for line in printed.splitlines() if line.startswith("first")] == [
        ["first", "none"],
        ["first", "cookie"],
        ["first", "table"],
    ]
    assert "first / cookie" in drawn.read_text()
