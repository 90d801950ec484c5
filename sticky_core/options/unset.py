"""The value of an option that was not given, for options where None means something else."""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal, TypeVar

T = TypeVar("T")


class _Unset(Enum):
    UNSET = "not given"

    def __repr__(self) -> str:
        return self.value


UNSET: Final = _Unset.UNSET
#: the type of `UNSET`, as in `str | NotGiven`
NotGiven = Literal[_Unset.UNSET]


def value_or(option: T | NotGiven, default: T) -> T:
    """Return the value of an option, or `default` if the option was not given."""
    return default if option is UNSET else option
