"""Count the operations of every reader, for several sizes, and print them as JSON: `python -m tests.linear.count`."""

from __future__ import annotations

import json
import sys

from tests.linear.meter import install

#: The sizes to compare, in pairs. In the first pair, as many Cookie headers come as are read.
SIZES = (24, 48, 200, 400)


def count(only: str = "") -> dict[str, list[int]]:
    """Return the count of each reader with `only` in its name, for each size."""
    meter = install()
    from tests.linear.readers import READERS  # the package has to be imported with the meter in it

    counts: dict[str, list[int]] = {}
    for name, reader in READERS.items():
        if only in name:
            counts[name] = []
            for size in SIZES:
                run = reader(size)
                meter.count = 0
                run()
                counts[name].append(meter.count)
    return counts


if __name__ == "__main__":
    json.dump(count(*sys.argv[1:]), sys.stdout)
