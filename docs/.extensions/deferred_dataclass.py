"""Lets the reference show the options of our dataclasses, which are those of the standard library."""

from __future__ import annotations

from typing import Any

import griffe


class DeferredDataclass(griffe.Extension):
    """Names the decorator `dataclasses.dataclass`, which griffe knows."""

    def on_class_instance(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        for decorator in cls.decorators:
            if decorator.callable_path == "sticky_core.deferred.dataclass.dataclass":
                assert isinstance(decorator.value, griffe.ExprCall)
                decorator.value.function = griffe.ExprName("dataclasses.dataclass")
                cls.labels.add("dataclass")
