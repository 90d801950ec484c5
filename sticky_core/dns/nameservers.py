"""Name servers, as dnspython asks them: who is asked, and what it says in our words. The faces let it ask."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

from sticky_core.dns.questions import Question, Records, Service
from sticky_core.dns.resolvers import Resolvers, Status, parse_nameserver
from sticky_core.errors import ConfigError

R = TypeVar("R")

_REFUSED = 5  # the response code (RFC 1035, 4.1.1)


def require() -> None:
    """ConfigError if dnspython is not installed."""
    if find_spec("dns") is None or find_spec("dns.asyncresolver") is None:
        raise ConfigError(
            "SRV records and nameservers need dnspython: pip install 'sticky-sessions[dns]', or hand a resolver"
        )


def build_resolver(kind: type[R], resolvers: Resolvers, timeout: float) -> R:
    """A resolver of dnspython's, of this kind, that asks whom it is to ask; each so long that all have their turn."""
    given = [parse_nameserver(each) for each in resolvers.nameservers]
    made: Any = kind(configure=not given)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    if given:
        server = import_module("dns.nameserver").Do53Nameserver
        made.nameservers = [server(address, port) for address, port in given]
    made.timeout = timeout / max(1, len(made.nameservers))
    resolver: R = made
    return resolver


def absolute_name(question: Question) -> str:
    """The name, to be asked for as it stands, without the domains that a system may add."""
    return f"{question.name.rstrip('.')}."


def records_from_answer(answer: Any) -> Records:
    """What an answer of dnspython's says."""
    wanted: str = answer.rdtype.name
    rrset: Iterable[Any] = answer.rrset or ()
    if wanted != "SRV":
        return Records(Status.VALID, tuple(each.address for each in rrset))
    services = tuple(Service(_text(each.target), each.port, each.weight) for each in rrset)
    beside: dict[str, tuple[str, ...]] = {}
    for additional in answer.response.additional:
        if additional.rdtype.name in ("A", "AAAA"):
            name = _text(additional.name)
            beside[name] = (*beside.get(name, ()), *(each.address for each in additional))
    return Records(Status.VALID, services=services, additional=beside)


def records_from_error(error: Exception) -> Records:
    """What it means that dnspython has raised."""
    return Records(_status(error), info=f"{type(error).__name__}: {error}")


def _status(error: Any) -> Literal[Status.NX, Status.REFUSED, Status.TIMEOUT, Status.OTHER]:
    resolver = import_module("dns.resolver")
    if isinstance(error, resolver.NXDOMAIN):
        return Status.NX
    if isinstance(error, resolver.LifetimeTimeout):
        return Status.TIMEOUT
    if isinstance(error, resolver.NoNameservers):
        said: Iterable[Any] = error.kwargs.get("errors") or ()
        codes = [each[4].rcode() for each in said if each[4] is not None]
        if codes and codes[-1] == _REFUSED:  # of several errors the last one counts, as with HAProxy
            return Status.REFUSED
    return Status.OTHER


def _text(name: Any) -> str:
    """A name as text: in small letters, without the dot at its end; the root is a dot."""
    text: str = name.to_text(omit_final_dot=True)
    return text.lower()
