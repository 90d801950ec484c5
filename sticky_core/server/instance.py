"""Instance: the id of one start of a replica or a worker. Sessions in memory end with the process, so a mark that names
an earlier instance must not count for a later one.

An instance is the time of its start in milliseconds, and a random part to distinguish two of the same millisecond. It
travels inside the signature of a mark, as `id@instance`.
"""

from __future__ import annotations

from sticky_core.clock import Clock, Rng
from sticky_core.http.cookies import is_value

_TIME_DIGITS, _RANDOM_DIGITS = 11, 5  # hexadecimal: good until the year 2527

#: how many characters an instance adds to an id
SUFFIX_LENGTH = 1 + _TIME_DIGITS + _RANDOM_DIGITS


def new_instance(clock: Clock, rng: Rng) -> str:
    """Return the id of an instance that starts now."""
    return f"{int(clock.wall() * 1000):0{_TIME_DIGITS}x}{rng.getrandbits(4 * _RANDOM_DIGITS):0{_RANDOM_DIGITS}x}"


def is_instance(instance: object) -> bool:
    """Return whether `instance` can be an instance: a text that a cookie can carry behind an id, or empty."""
    return isinstance(instance, str) and (not instance or (is_value(instance) and "@" not in instance))


def id_with_instance(server_id: str, instance: str) -> str:
    """Return an id as a mark carries it. An empty instance adds nothing."""
    return f"{server_id}@{instance}" if instance else server_id


def split_instance(text: str) -> tuple[str, str]:
    """Return the id and the instance that a mark carries; the instance is empty if there is none."""
    server_id, at, instance = text.rpartition("@")
    return (server_id, instance) if at else (text, "")


def began_after(instance: str, other: str) -> bool:
    """Return whether `instance` began after `other`. If `other` is the latest instance of this process, `instance` then
    belongs to another process.
    """
    return instance[:_TIME_DIGITS] > other[:_TIME_DIGITS]
