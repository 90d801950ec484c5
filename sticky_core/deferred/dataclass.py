"""`dataclass`: that of the standard library, for frozen classes, at a tenth of its time.

The standard library compiles up to eight methods of a class when the class is defined. That was half of the time that
it took to import this package. Here the standard library compiles the same methods when one of them is used first, and
a process never instantiates most of the classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

__all__ = ["dataclass"]

T = TypeVar("T")

if not TYPE_CHECKING:

    def dataclass(
        *,
        frozen: bool,
        init: bool = True,
        repr: bool = True,
        eq: bool = True,
        slots: bool = False,
        kw_only: bool = False,
    ) -> Callable[[type[T]], type[T]]:
        """As `dataclasses.dataclass`, with `frozen=True`, for fields that are neither InitVar nor ClassVar. What the
        class defines itself is kept.
        """
        assert frozen
        compiled = (("__init__", init), ("__repr__", repr), ("__eq__", eq), ("__hash__", eq))

        def define(cls: type[T]) -> type[T]:
            cls = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots, kw_only=kw_only)(cls)
            for name, is_wanted in compiled:
                if is_wanted and name not in vars(cls):
                    setattr(cls, name, _Uncompiled(cls, name, repr, eq))
            for name, method in (_FROZEN | _PICKLED if slots else _FROZEN).items():
                setattr(cls, name, method)
            return cls

        return define

else:  # type checkers, and the reference, see the standard library's
    from dataclasses import dataclass


class _Uncompiled:
    """Stands for a method. The first use of one compiles all that the class `cls` has."""

    def __init__(self, cls: type[Any], name: str, repr: bool, eq: bool) -> None:
        self._cls = cls
        self._name = name
        self._options: dict[str, Any] = {"repr": repr, "eq": eq}

    def __get__(self, instance: object, owner: type[Any] | None = None) -> Any:
        cls = self._cls
        fields = [(each.name, each.type, _copy(each)) for each in dataclasses.fields(cls)]
        namespace: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        if hasattr(cls, "__post_init__"):
            namespace["__post_init__"] = cls.__post_init__
        compiled = dataclasses.make_dataclass(cls.__name__, fields, namespace=namespace, frozen=True, **self._options)
        for name, member in list(vars(cls).items()):
            if isinstance(member, _Uncompiled):
                setattr(cls, name, vars(compiled)[name])
        return vars(compiled)[self._name].__get__(instance, owner)


def _copy(field: dataclasses.Field[Any]) -> Any:
    """Return a field like this one, which belongs to its class already."""
    default: dict[str, Any] = {"default": field.default, "default_factory": field.default_factory}
    return dataclasses.field(
        **default, init=field.init, repr=field.repr, hash=field.hash, compare=field.compare, kw_only=field.kw_only
    )


def _setattr(self: object, name: str, value: object) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: object, name: str) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _getstate(self: Any) -> list[object]:
    return [getattr(self, each.name) for each in dataclasses.fields(self)]


def _setstate(self: Any, state: list[object]) -> None:
    for each, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, each.name, value)


_FROZEN: Final = {"__setattr__": _setattr, "__delattr__": _delattr}
#: what lets instances with slots be pickled and copied, although they are frozen
_PICKLED: Final = {"__getstate__": _getstate, "__setstate__": _setstate}
