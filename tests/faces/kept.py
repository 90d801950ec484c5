"""What a kept decision may refer to."""

from __future__ import annotations

import enum
import gc
from types import ModuleType

from sticky_core.decision import Decision

VALUES = (str, int, float, bool, type(None), enum.Enum, tuple, Decision)


def reachable(decision: Decision) -> list[object]:
    """Return all objects that the decision refers to, and those that they refer to."""
    found: dict[int, object] = {}
    rest: list[object] = [decision]
    while rest:
        each = rest.pop()
        if id(each) in found or isinstance(each, type | ModuleType):
            continue
        found[id(each)] = each
        if not isinstance(each, enum.Enum):
            rest += gc.get_referents(each)
    return list(found.values())


def assert_holds_no_request(decision: Decision) -> None:
    objects = reachable(decision)
    assert [each for each in objects if not isinstance(each, VALUES)] == []
    texts = [each for each in objects if isinstance(each, str)]
    assert [text for text in texts if "ef7a93c1" in text or "SRV=" in text or "SERVERID" in text] == []
