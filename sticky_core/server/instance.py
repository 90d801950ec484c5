"""A replica's life: its memory ends with the process, and a mark from an earlier memory must not pass for one of this.

A life is when it began, in milliseconds, and a part that tells two of the same millisecond apart. It travels inside the
signature, as `id@life`.
"""

from __future__ import annotations

from sticky_core.clock import Clock, Rng

_WHEN, _CHANCE = 11, 5  # hexadecimal digits: good until the year 2527

#: how many characters a life adds to an id
SUFFIX_LENGTH = 1 + _WHEN + _CHANCE


def new_instance(clock: Clock, rng: Rng) -> str:
    """A new life, beginning now."""
    return f"{int(clock.wall() * 1000):0{_WHEN}x}{rng.getrandbits(4 * _CHANCE):0{_CHANCE}x}"


def id_with_instance(server_id: str, life: str) -> str:
    """The id as a mark carries it."""
    return f"{server_id}@{life}" if life else server_id


def split_instance(marked_id: str) -> tuple[str, str]:
    """The id and the life in `marked_id`; an empty life if it carries none."""
    server_id, at, life = marked_id.rpartition("@")
    return (server_id, life) if at else (marked_id, "")


def began_after(life: str, than: str) -> bool:
    """Whether `life` began after `than`. We are the latest of our process, so a younger one is another process's."""
    return life[:_WHEN] > than[:_WHEN]
