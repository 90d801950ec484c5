"""The two halves of a server's state: what the operator wants (`AdminState`), and how it is (`Health`)."""

from __future__ import annotations

from enum import StrEnum


class AdminState(StrEnum):
    """What the operator wants of a server (HAProxy `set server <b>/<s> state`)."""

    READY = "ready"
    DRAIN = "drain"  #: it keeps its clients, and gets no new ones
    MAINT = "maint"  #: it gets no requests


class Health(StrEnum):
    """Whether a server works, as checks, agents and requests show."""

    UP = "UP"
    DOWN = "DOWN"
    NOLB = "NOLB"  #: it wants no new clients (`disable_on_404`)
