"""After a fork: what the parent has made is the child's to renew, and whatever was made last is renewed first, so that
nobody meets a lock of the parent's in something that was made for it.
"""

from __future__ import annotations

import os
from itertools import count
from typing import Protocol
from weakref import WeakValueDictionary


class ForkAware(Protocol):
    """What does not survive a fork as it is."""

    def after_fork(self) -> None:
        """We are a forked child: what was made in the parent is not ours."""
        ...


_numbers = count()
_alive: WeakValueDictionary[int, ForkAware] = WeakValueDictionary()


def register(each: ForkAware) -> None:
    """Have `each`, as long as it lives, told in every child that is forked from here on."""
    _alive[next(_numbers)] = each


def _in_the_child() -> None:
    for each in reversed(list(_alive.values())):
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_the_child)
