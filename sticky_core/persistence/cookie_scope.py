"""Where browsers send a cookie back to, and whether two cookies of one name meet there (RFC 6265, 5.1.3 and 5.1.4)."""

from __future__ import annotations

from typing import NamedTuple


class CookieScope(NamedTuple):
    """A cookie that a persistence inserts or edits, and the requests that carry it."""

    name: str
    path: str = "/"
    domains: tuple[str, ...] = ()  #: none: only the host that has set it
    is_inserted: bool = True  #: the persistence makes the cookie; else the application does, and we edit it

    def overlaps(self, other: CookieScope) -> bool:
        """Return whether both insert a cookie of the same name that some request would carry."""
        return (
            self.is_inserted
            and other.is_inserted
            and self.name == other.name
            and _paths_overlap(self.path, other.path)
            and _hosts_overlap(self.domains, other.domains)
        )


def _paths_overlap(one: str, other: str) -> bool:
    """Return whether some request path matches both paths (RFC 6265, 5.1.4)."""
    short, long = sorted((one.rstrip("/"), other.rstrip("/")), key=len)
    return long == short or long.startswith(f"{short}/")


def _hosts_overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Return whether some host matches both lists of domains. Case and a leading dot do not count (RFC 6265, 5.1.3 and
    5.2.3). A cookie without a domain may belong to any host.
    """
    if not one or not other:
        return True
    hosts, others = ([f".{domain.lower().lstrip('.')}" for domain in domains] for domains in (one, other))
    return any(host.endswith(other_host) or other_host.endswith(host) for host in hosts for other_host in others)
