"""Options of the wrong type: what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import UnionType

from sticky_core.options.unset import UNSET

#: what `isinstance` compares with
Kind = type | UnionType | tuple[type, ...]


def type_problem(name: str, given: object, kind: Kind, write: str) -> str | None:
    """Return the problem of the option `name` if its value is neither of the type `kind` nor `UNSET`; None if it is."""
    if given is UNSET or isinstance(given, kind):
        return None
    return f"{name}={given!r} has the wrong type: write {write}"


def type_problems(config: object, options: Iterable[tuple[str, Kind, str]]) -> Iterator[str]:
    """Yield a problem for each of `options`, with its type and what to write, that has another type in `config`."""
    for name, kind, write in options:
        problem = type_problem(name, getattr(config, name), kind, write)
        if problem is not None:
            yield problem


def callable_problem(name: str, given: object, takes: str) -> str | None:
    """Return the problem of the option `name` if its value is neither None nor can be called; else None."""
    if given is None or callable(given):
        return None
    return f"{name}={given!r} can't be called: pass a function of {takes}"
