"""Options and words that are misspelt: the nearest one that exists."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from types import FunctionType, MethodType
from typing import Any, ParamSpec, TypeVar, cast

from sticky_core.errors import ConfigError

T = TypeVar("T")
P = ParamSpec("P")


#: the least similarity of a misspelt word and the one that is meant: `intervall` is `inter`, `insert` is not `secret`
_LEAST_RATIO = 0.7


class UnknownOption(ConfigError, TypeError):
    """A keyword that a constructor does not have. It is a TypeError as well, as for other callables of Python."""


def nearest(given: object, known: Iterable[str]) -> str | None:
    """Return the word of `known` that `given` was probably meant to be, or None. Case, `-` and `_` do not count."""
    import difflib  # takes memory, and only a misspelt word needs it

    words = {_letters(word): word for word in known}
    found = difflib.get_close_matches(_letters(str(given)), words, 1, _LEAST_RATIO)
    return words[found[0]] if found else None


def _letters(word: str) -> str:
    return word.casefold().replace("-", "").replace("_", "").replace(" ", "")


def problem_of_word(option: str, given: object, known: Iterable[str], or_else: str = "") -> str:
    """Return the problem of an option with a value that is none of the words `known`, with the nearest one."""
    words = list(known)
    near = nearest(given, words)
    return f"{option} {given!r} is none of {', '.join(words)}{or_else}" + (
        "" if near is None else f": write {str(near)!r}"
    )


def name_unknown_options(kind: type[T]) -> type[T]:
    """Let the constructors of a class, which are its `__init__` and its public class methods, raise `UnknownOption` for
    a keyword that they do not have, with the nearest one. Changes the class, and returns it.
    """
    constructor: object = getattr(kind, "__init__", None)
    if isinstance(constructor, FunctionType):
        type.__setattr__(kind, "__init__", _checked(constructor, kind.__name__))
    for name, member in list(vars(kind).items()):
        if isinstance(member, classmethod) and not name.startswith("_"):
            bound: MethodType = getattr(kind, name)
            type.__setattr__(kind, name, classmethod(_checked(bound.__func__, f"{kind.__name__}.{name}")))
    return kind


def named_options(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function raise `UnknownOption` for a keyword that it does not have, with the nearest one."""
    return cast("Callable[P, T]", _checked(function, function.__name__))


def _checked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return function
    known = frozenset(each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY))

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        if not known.issuperset(options):
            error = UnknownOption(*(_problem_of_option(name, each, known) for each in options if each not in known))
            # Some middleware is made inside a running server, which reports what it raises there as an app without a
            # lifespan. It keeps the error, to report it as the reason why the start failed.
            keep: Callable[[ConfigError], bool] | None = getattr(args[0], "_keep_error", None) if args else None
            if keep is None or not keep(error):
                raise error
            options = {each: value for each, value in options.items() if each in known}
        return function(*args, **options)

    # for callers of `inspect` that do not follow `__wrapped__`
    checked.__signature__ = signature  # type: ignore[attr-defined]  # any function may have one
    return checked


def _problem_of_option(name: str, given: str, known: Iterable[str]) -> str:
    options = [each for each in known if each not in ("self", "cls")]
    near = nearest(given, options)
    if near is not None:
        return f"{name} has no option {given}: write {near}"
    return f"{name} has no option {given}: " + (
        f"its options are {', '.join(sorted(options))}" if options else "it has none"
    )
