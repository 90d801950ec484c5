"""The meter counts what is looked at, searched, copied and built, however it is written."""

from __future__ import annotations

import textwrap

import pytest

from tests.linear.meter import Meter, metered

LINEAR = {
    "a loop": "for item in items: pass",
    "a while": """
        at = 0
        while at < n:
            at += 1
    """,
    "a comprehension": "found = [item for item in items if item]",
    "append": """
        found = []
        for item in items:
            found.append(item)
    """,
    "a list that grows": """
        found = []
        for item in items:
            found += (item, item)
    """,
    "join": "text = ','.join(items)",
    "one search after another": """
        at = 0
        while (at := text.find(',', at)) >= 0:
            at += 1
    """,
    "dict": "found = {item: number for number, item in enumerate(items)}",
    "split": "found = text.split(',')",
    "a pattern from where the last ended": """
        at = 0
        while (match := pattern.match(text, at)) is not None and match.end() > at:
            at = match.end()
    """,
}
SQUARE = {
    "a list that is copied": """
        found = []
        for item in items:
            found = [*found, item]
    """,
    "a tuple that is copied": """
        found = ()
        for item in items:
            found += (item,)
    """,
    "a sum of lists": """
        found = []
        for item in items:
            found = found + [item]
    """,
    "a text that grows": """
        found = ''
        for item in items:
            found = f'{found},{item}'
    """,
    "a search for each": "found = [item for item in items if item in items]",
    "index for each": "found = [items.index(item) for item in items]",
    "a slice for each": "found = [text[at:] for at in range(n)]",
    "a pattern on a slice": "found = [pattern.match(text[at:]) for at in range(n)]",
    "partition of the rest": """
        rest = text
        while rest:
            _, _, rest = rest.partition(',')
    """,
    "pop at the beginning": """
        found = list(items)
        while found:
            found.pop(0)
    """,
    "a loop in a loop": """
        for item in items:
            for other in items: pass
    """,
    "a list of a dict": """
        found = {}
        for item in items:
            found = {**found, item: 1}
    """,
    "a call with all": """
        for item in items:
            sorted(items)
    """,
}


def ratio(source: str) -> float:
    """Return by how much more counts if the input is twice as long."""
    counts = []
    for n in (200, 400):
        meter = Meter()
        items = [str(number) for number in range(n)]
        names = {"__meter__": meter, "n": n, "items": items, "text": ",".join(items)}
        exec(metered(f"import re\npattern = re.compile('[0-9]*,')\n{textwrap.dedent(source)}", "example"), names)
        counts.append(meter.count)
    return counts[1] / counts[0]


@pytest.mark.parametrize("source", LINEAR.values(), ids=LINEAR)
def test_linear_code_counts_twice_as_much_for_twice_the_input(source: str) -> None:
    assert 1.8 < ratio(source) < 2.2


@pytest.mark.parametrize("source", SQUARE.values(), ids=SQUARE)
def test_quadratic_code_counts_four_times_as_much_for_twice_the_input(source: str) -> None:
    assert ratio(source) > 3
