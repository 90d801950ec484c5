"""Names of a module that are imported when they are used first (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def deferred_names(
    module: str, places: Mapping[str, str], finish: Callable[[object], object] = lambda value: value
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for `module`, which has names of other modules.

    - `places`: for each name where it is: `package.module:name`, or `package.module` for a module itself.
    - `finish`: called with each value when it is imported; returns what the name stands for.
    """
    namespace = vars(sys.modules[module])

    def __getattr__(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}", name=name, obj=sys.modules[module])
        origin, _, attribute = places[name].partition(":")
        found: object = import_module(origin)
        value = finish(getattr(found, attribute) if attribute else found)
        namespace[name] = value  # the next use finds it there
        return value

    def __dir__() -> list[str]:
        return sorted({*namespace, *places})

    return __getattr__, __dir__
