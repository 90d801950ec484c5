"""Servers drawn in proportion to their weights."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sticky_core.balance import Random

# A number drawn is a share of all weights: 0.5 is the middle.


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=6).filter(any),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=10),
)
def test_each_random_number_selects_a_server_by_weight_after_any_changes(bench, scripted, weights, changes):
    rng = scripted()
    on = bench(Random(1), weights, rng)
    for which, weight in changes:
        on.servers[which % len(weights)].weight = weight
    weights = [server.weight for server in on.servers]
    # the middle of each sixteenth of a weight, so that no rounding decides
    total = 16 * sum(weights)
    rng.numbers = [(share + 0.5) / total for share in range(total)]
    shares = Counter(on.serve() for _ in range(total))
    assert shares == {number: 16 * weight for number, weight in enumerate(weights, 1) if weight}
