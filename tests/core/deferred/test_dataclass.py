"""`sticky_core.deferred.dataclass.dataclass` makes what the standard library's makes, and compiles it later."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field
from typing import Any

import pytest

from sticky_core.deferred import dataclass as deferred


def point(dataclass: Callable[..., Any], **options: bool) -> type[Any]:
    @dataclass(frozen=True, slots=True, **options)
    class Point:
        """A point."""

        __qualname__ = "Point"

        x: int
        y: int = 2
        tags: list[str] = field(default_factory=list, compare=False, kw_only=True)
        name: str = field(default="p", repr=False)

        def __post_init__(self) -> None:
            if self.x < 0:
                raise ValueError("x is below 0")

    return Point


OPTIONS: list[dict[str, bool]] = [{}, {"eq": False}, {"repr": False}, {"kw_only": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "look",
    [
        lambda cls: str(inspect.signature(cls)),
        lambda cls: [(each.name, each.default, each.kw_only) for each in dataclasses.fields(cls)],
        lambda cls: cls.__match_args__,
        lambda cls: cls.__slots__,
        lambda cls: cls.__doc__,
        lambda cls: cls.__init__.__annotations__,
        lambda cls: cls(x=1) == cls(x=1),
        lambda cls: cls(x=1, tags=["a"]) == cls(x=1, tags=[]),
        lambda cls: cls(x=1) == cls(x=1, y=3),
        lambda cls: cls(x=1) == (1, 2),
        lambda cls: len({cls(x=1), cls(x=1), cls(x=1, y=3)}),
        lambda cls: dataclasses.replace(cls(x=1), y=5).y,
        lambda cls: dataclasses.astuple(cls(x=1)),
        lambda cls: copy.copy(cls(x=1)).x,
        lambda cls: copy.deepcopy(cls(x=1, tags=["a"])).tags,
        lambda cls: hasattr(cls(x=1), "__dict__"),
        lambda cls: type(cls).__name__,
    ],
)
def test_class_is_as_that_of_the_standard_library(options: dict[str, bool], look: Callable[[Any], object]) -> None:
    assert look(point(deferred.dataclass, **options)) == look(point(dataclasses.dataclass, **options))


@pytest.mark.parametrize(
    "fail",
    [
        lambda cls: cls(),
        lambda cls: cls(1, z=1),
        lambda cls: cls(-1),
        lambda cls: setattr(cls(1), "x", 2),
        lambda cls: delattr(cls(1), "x"),
    ],
)
def test_class_fails_as_that_of_the_standard_library(fail: Callable[[Any], object]) -> None:
    messages = []
    for dataclass in (deferred.dataclass, dataclasses.dataclass):
        with pytest.raises((TypeError, ValueError, FrozenInstanceError)) as caught:
            fail(point(dataclass))
        messages.append((caught.type, str(caught.value)))
    assert messages[0] == messages[1]


def test_repr_is_that_of_the_standard_library() -> None:
    assert repr(point(deferred.dataclass)(1)) == "Point(x=1, y=2, tags=[])"
    assert repr(point(deferred.dataclass, repr=False)(1)).startswith("<")


def test_methods_are_compiled_by_the_first_use_of_one() -> None:
    cls = point(deferred.dataclass)
    methods = ("__init__", "__repr__", "__eq__", "__hash__")
    assert not any(inspect.isfunction(vars(cls)[name]) for name in methods)
    cls(1)
    assert all(inspect.isfunction(vars(cls)[name]) for name in methods)


def test_methods_of_the_class_are_kept() -> None:
    @deferred.dataclass(frozen=True, slots=True)
    class Named:
        """A class with methods of its own."""

        name: str

        def __init__(self) -> None:
            object.__setattr__(self, "name", "own")

        def __repr__(self) -> str:
            return "own"

    assert Named().name == repr(Named()) == "own"
    assert Named() == Named()


def test_classes_inherit_fields_and_methods() -> None:
    @deferred.dataclass(frozen=True, slots=True)
    class Base:
        """A base."""

        x: int

    @deferred.dataclass(frozen=True, slots=True)
    class Derived(Base):
        """A class with a further field."""

        y: int = 2

    class Plain(Base):
        pass

    assert repr(Derived(1)).endswith("Derived(x=1, y=2)")
    assert Derived(1) != Base(1)
    assert Plain(1).x == 1
    assert Plain(1) == Plain(1) != Base(1)


@deferred.dataclass(frozen=True, slots=True)
class Pickled:
    """At module level, where pickle finds it."""

    x: int
    y: tuple[int, ...] = ()


def test_instances_are_pickled() -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(Pickled(1, (2, 3)), protocol)) == Pickled(1, (2, 3))
