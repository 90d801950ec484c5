"""Instance: the id of one start of a replica or worker. Its memory ends with the process, and a mark from an earlier
instance must not be taken for one of this.

An instance is the time of the start, in milliseconds, and a random part that tells two starts in the same millisecond
apart. It is part of what a mark signs, as `id@instance`.
"""

from __future__ import annotations

from sticky_core.clock import Clock, Rng

_TIME_DIGITS, _RANDOM_DIGITS = 11, 5  # hexadecimal digits: good until the year 2527

#: how many characters an instance adds to an id
SUFFIX_LENGTH = 1 + _TIME_DIGITS + _RANDOM_DIGITS


def new_instance(clock: Clock, rng: Rng) -> str:
    """Return a new instance that starts now."""
    return f"{int(clock.wall() * 1000):0{_TIME_DIGITS}x}{rng.getrandbits(4 * _RANDOM_DIGITS):0{_RANDOM_DIGITS}x}"


def id_with_instance(server_id: str, instance: str) -> str:
    """Return the id as marks contain it."""
    return f"{server_id}@{instance}" if instance else server_id


def split_instance(marked_id: str) -> tuple[str, str]:
    """Return the id and the instance in `marked_id`; an empty instance if there is none."""
    server_id, at, instance = marked_id.rpartition("@")
    return (server_id, instance) if at else (marked_id, "")


def began_after(instance: str, than: str) -> bool:
    """Return whether `instance` started after `than`. A process has one instance at a time, so a later one belongs to
    another process.
    """
    return instance[:_TIME_DIGITS] > than[:_TIME_DIGITS]
