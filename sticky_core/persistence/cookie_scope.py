"""Where browsers send a cookie, and whether they would send two cookies of one name together (RFC 6265, 5.1.3 and
5.1.4).
"""

from __future__ import annotations

from typing import NamedTuple


class CookieScope(NamedTuple):
    """A cookie that a persistence inserts or edits, and the path and domains to which browsers send it."""

    name: str
    path: str = "/"
    domains: tuple[str, ...] = ()  #: empty: browsers send it only to the host that has set it
    is_inserted: bool = True  #: True: the persistence sets the cookie; False: the application does, and we edit it

    def overlaps(self, other: CookieScope) -> bool:
        """Return whether both cookies are inserted, have the same name, and may be sent with the same request."""
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
    5.2.3). A cookie without a domain may be one of any host.
    """
    if not one or not other:
        return True
    hosts, others = ([f".{domain.lower().lstrip('.')}" for domain in domains] for domains in (one, other))
    return any(host.endswith(other_host) or other_host.endswith(host) for host in hosts for other_host in others)
