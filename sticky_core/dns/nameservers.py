"""Name servers, queried with dnspython: how its resolver is built, and how its answers and exceptions become
`Records`. The faces do the I/O.
"""

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
    """Raise ConfigError if dnspython is not installed."""
    if find_spec("dns") is None or find_spec("dns.asyncresolver") is None:
        raise ConfigError(
            "SRV records and nameservers need dnspython: pip install 'sticky-sessions[dns]', or pass a resolver"
        )


def build_resolver(kind: type[R], resolvers: Resolvers, timeout: float) -> R:
    """Build a dnspython resolver of class `kind` for the name servers of `resolvers`, or else those of the system. Each
    gets an equal part of `timeout`, so that all can be tried.
    """
    given = [parse_nameserver(each) for each in resolvers.nameservers]
    resolver: Any = kind(configure=not given)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    if given:
        server = import_module("dns.nameserver").Do53Nameserver
        resolver.nameservers = [server(address, port) for address, port in given]
    resolver.timeout = timeout / max(1, len(resolver.nameservers))
    built: R = resolver
    return built


def absolute_name(question: Question) -> str:
    """Return the name of `question` as an absolute name, so that no search domain of the system is added."""
    return f"{question.name.rstrip('.')}."


def records_from_answer(answer: Any) -> Records:
    """Convert an answer of dnspython."""
    record_type: str = answer.rdtype.name
    rrset: Iterable[Any] = answer.rrset or ()
    if record_type != "SRV":
        return Records(Status.VALID, tuple(each.address for each in rrset))
    services = tuple(Service(_text(each.target), each.port, each.weight) for each in rrset)
    additional: dict[str, tuple[str, ...]] = {}
    for hosts in answer.response.additional:
        if hosts.rdtype.name in ("A", "AAAA"):
            name = _text(hosts.name)
            additional[name] = (*additional.get(name, ()), *(each.address for each in hosts))
    return Records(Status.VALID, services=services, additional=additional)


def records_from_exception(error: Exception) -> Records:
    """Convert an exception that dnspython raised."""
    return Records(_status(error), info=f"{type(error).__name__}: {error}")


def _status(error: Any) -> Literal[Status.NX, Status.REFUSED, Status.TIMEOUT, Status.OTHER]:
    resolver = import_module("dns.resolver")
    if isinstance(error, resolver.NXDOMAIN):
        return Status.NX
    if isinstance(error, resolver.LifetimeTimeout):
        return Status.TIMEOUT
    if isinstance(error, resolver.NoNameservers):
        errors: Iterable[Any] = error.kwargs.get("errors") or ()
        codes = [each[4].rcode() for each in errors if each[4] is not None]
        if codes and codes[-1] == _REFUSED:  # of several errors the last one counts, as in HAProxy
            return Status.REFUSED
    return Status.OTHER


def _text(name: Any) -> str:
    """Return a name as text in lower case without the final dot; the root is a dot."""
    text: str = name.to_text(omit_final_dot=True)
    return text.lower()
