"""Configurations as users write them, for messages that say what to write."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from inspect import Parameter, signature
from typing import cast


def as_written(value: object) -> str:
    """Return a configuration as a user would write it: the class, and the options that differ from their defaults. An
    option that is not shown, such as a secret, is written as `...`. Any other value is its `repr`.
    """
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    is_shown = {each.name: each.repr for each in fields(value)}
    options: list[str] = []
    for name, parameter in signature(type(value)).parameters.items():
        option: object = getattr(value, name)
        if parameter.kind is Parameter.VAR_POSITIONAL:
            options += map(as_written, cast("tuple[object, ...]", option))
        elif option is not parameter.default and option != parameter.default:
            text = as_written(option) if is_shown.get(name, True) else "..."
            options.append(f"{name}={text}" if parameter.kind is Parameter.KEYWORD_ONLY else text)
    return f"{type(value).__name__}({', '.join(options)})"
