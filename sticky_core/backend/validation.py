"""Checks of what a backend is given, before anything is built of it: arguments of the wrong type are reported in words
rather than as a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

from sticky_core.health.check import Check
from sticky_core.options.types import callable_problem
from sticky_core.server.server import Server


def type_problems(servers: object, persist: object, check: object) -> Iterator[str]:
    """Yield a problem for each argument of `Backend` that has the wrong type."""
    if isinstance(servers, str):
        yield f"servers={servers!r} is no list of servers: write servers=[Server(name, {servers!r})]"
    elif isinstance(servers, Server) or not isinstance(servers, Sequence):
        yield f"servers={servers!r} is no list of servers: write servers=[Server(name, app), ...]"
    else:
        for server in cast("Sequence[object]", servers):
            if isinstance(server, list | tuple):
                yield f"{server!r} is a list inside the list of servers: write servers=[*servers, ...]"
            elif not isinstance(server, Server):
                yield f"{server!r} is no Server: write Server(name, {server!r})"
    if check is not None and not isinstance(check, Check):
        yield f"check={check!r} is no check: write check=Check('/health')"
    if isinstance(persist, str):
        yield (
            f"persist={persist!r} does not say how to persist: write persist=Cookie({persist!r}) for a cookie of ours, "
            f"Learn.cookie({persist!r}) for the application's, or Stick.on({persist!r}) for a sample"
        )
    else:
        for each in cast("Sequence[object]", persist) if isinstance(persist, Sequence) else (persist,):
            if isinstance(each, type):
                yield f"persist={each.__name__} does not say by what: call it, as Cookie('SERVERID') or Stick.on(src)"
            elif not hasattr(each, "build"):
                remedy = ", or leave persist out" if each is None else ""
                yield f"persist={each!r} is no way to persist: pass a Cookie, Stick, Learn, Token, or several{remedy}"


def retry_and_rule_problems(retry_on: object, use_server: object) -> Iterator[str]:
    """Yield a problem for each of these options of `Backend` that can't be taken apart."""
    if not isinstance(retry_on, str | Iterable):
        yield f"retry_on={retry_on!r} has the wrong type: write retry_on='conn-failure 503'"
    rules = cast("Iterable[object]", use_server) if isinstance(use_server, Iterable) else None
    if not isinstance(use_server, Mapping) and (
        rules is None
        or isinstance(rules, str)
        or not all(isinstance(each, tuple) and len(cast("tuple[object, ...]", each)) == 2 for each in rules)
    ):
        yield f"use_server={use_server!r} has the wrong type: write use_server={{'s1': condition}}"


def runtime_problems(log: object, clock: object, rng: object) -> Iterator[str]:
    """Yield a problem for each of these arguments of `Backend` that has the wrong type."""
    if (problem := callable_problem("log", log, "a Decision")) is not None:
        yield problem
    if clock is not None and not hasattr(clock, "monotonic"):
        yield f"clock={clock!r} has the wrong type: pass a Clock, or leave it out"
    if rng is not None and not hasattr(rng, "random"):
        yield f"rng={rng!r} has the wrong type: write rng=random.Random({rng if isinstance(rng, int) else ''})"


def attach_problems(servers: Iterable[Server]) -> Iterator[str]:
    """Yield a problem for each server that can't be attached to a backend."""
    for server in servers:
        if not isinstance(cast(object, server), Server):
            yield f"{server!r} is no Server: write Server(name, {server!r})"
        elif server.is_attached or server.removed:
            yield (
                f"server {server.name}: belongs to another backend already: make another Server for this one"
                if server.is_attached
                else f"server {server.name}: was removed, and can't be added again: add Server.of(its config)"
            )
