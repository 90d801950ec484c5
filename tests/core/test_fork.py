"""Objects registered for forks: reset in the child, the last registered first, and only while they are alive."""

import gc
import os

import pytest

from sticky_core import fork

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


class Resettable:
    def __init__(self, name: str, resets: list[str]) -> None:
        self.name = name
        self.resets = resets
        fork.register(self)

    def after_fork(self) -> None:
        self.resets.append(self.name)


def resets_in_child(resets: list[str]) -> list[str]:
    """Fork, and return the names that the child has reset, in order."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, " ".join(resets).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        names = pipe.read().split()
    assert os.waitpid(child, 0)[1] == 0
    return names


def test_objects_registered_last_are_reset_first():
    resets: list[str] = []
    objects = [Resettable(name, resets) for name in ("lock", "pool", "client")]
    assert resets_in_child(resets) == ["client", "pool", "lock"]
    assert [each.name for each in objects] == ["lock", "pool", "client"]


def test_the_parent_resets_nothing():
    resets: list[str] = []
    kept = Resettable("lock", resets)
    resets_in_child(resets)
    assert resets == []
    assert kept.name == "lock"


def test_an_object_that_is_gone_is_not_reset():
    resets: list[str] = []
    kept = Resettable("kept", resets)
    Resettable("gone", resets)
    gc.collect()
    assert resets_in_child(resets) == ["kept"]
    assert kept.name == "kept"
