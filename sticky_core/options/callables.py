"""What a callable of the user can be called with, and whether its result has to be awaited."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from types import FunctionType


def argument_counts(callee: object, counts: Iterable[int]) -> frozenset[int]:
    """Return with how many of `counts` positional arguments `callee` can be called: none if it is not callable, all of
    them if it does not say.
    """
    if not callable(callee):
        return frozenset()
    call: object = type(callee).__call__
    if isinstance(call, FunctionType) and not isinstance(callee, type) and not hasattr(callee, "__signature__"):
        # an instance of a class of Python code: many are alike, such as the apps behind the worker slots
        return frozenset(count - 1 for count in _function_counts(call, tuple(count + 1 for count in counts)))
    return _argument_counts(callee, counts)


@functools.lru_cache(maxsize=64)
def _function_counts(function: FunctionType, counts: tuple[int, ...]) -> frozenset[int]:
    return _argument_counts(function, counts)


def _argument_counts(callee: Callable[..., object], counts: Iterable[int]) -> frozenset[int]:
    try:
        # Not the signature of `__wrapped__`, which `functools.wraps` sets: a decorator may call the function that it
        # wraps with other arguments than it takes itself. Werkzeug's `Request.application` does.
        signature = inspect.signature(callee, follow_wrapped=False)
    except (TypeError, ValueError):
        wrapped: object = getattr(callee, "__wrapped__", None)
        if isinstance(callee, type) or wrapped is None:
            return frozenset(counts)  # some builtins have none
        return argument_counts(wrapped, counts)  # `functools.cache` is a builtin that passes its arguments on
    fits: set[int] = set()
    for count in counts:
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        fits.add(count)
    return frozenset(fits)


def is_async(callee: object) -> bool:
    """Return whether `callee` is a coroutine function, or an object with an `async def __call__`."""
    while isinstance(callee, functools.partial):
        callee = callee.func
    return inspect.iscoroutinefunction(callee) or inspect.iscoroutinefunction(type(callee).__call__)
