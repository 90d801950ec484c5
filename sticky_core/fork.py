"""Reset objects in a forked child. Objects registered last are reset first: when an object is reset, those that it has
made for itself have been reset already, and hold no lock of the parent.
"""

from __future__ import annotations

import os
from itertools import count
from typing import Protocol
from weakref import WeakValueDictionary


class ForkAware(Protocol):
    """An object with state (locks, connections, threads) that is not valid in a forked child."""

    def after_fork(self) -> None:
        """Reset the state that belongs to the parent process. Called in the child."""
        ...


_numbers = count()
_registered: WeakValueDictionary[int, ForkAware] = WeakValueDictionary()


def register(obj: ForkAware) -> None:
    """Call `obj.after_fork()` in every child that is forked from now on, as long as `obj` is alive."""
    _registered[next(_numbers)] = obj


def _after_fork_in_child() -> None:
    for obj in reversed(list(_registered.values())):
        obj.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
