"""The texts by which earlier configurations, or other balancers, knew a server (`Server(formerly=...)`): its names, its
ids in cookies, its addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

from sticky_core.http.cookies import is_value
from sticky_core.target import Location, has_scheme

# host and port, and perhaps the path of a URL; a host without a port may as well be a name
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]+(?:/\S*)?")


def location_of(text: str) -> Location | None:
    """Return the location that `text` names: `10.0.0.1:80`, `[::1]:80`, `http://10.0.0.1:80/`, `unix:/run/a.sock`; None
    if it is a name or an id.
    """
    try:
        return Location.parse(text if has_scheme(text) else f"http://{text}") if _is_address(text) else None
    except ValueError:
        return None


def _is_address(text: str) -> bool:
    return has_scheme(text) or _ADDRESS.fullmatch(text) is not None


def problems_of_types(formerly: object) -> Iterator[str]:
    """Yield a problem for each part of the option `formerly` that has the wrong type."""
    if isinstance(formerly, str):
        yield f"formerly={formerly!r} is no list: write formerly=[{formerly!r}]"
    elif not isinstance(formerly, list | tuple):
        yield f"formerly={formerly!r} is no list: write formerly=['s1', '10.0.0.1:80']"
    else:
        for text in cast("list[object]", formerly):
            if not isinstance(text, str):
                yield f"formerly: {text!r} is no text: write a name, an id, an address or a URL"


def problems_of_texts(formerly: tuple[str, ...]) -> Iterator[str]:
    """Yield a problem for each text of the option `formerly` that can't have named a server."""
    for number, text in enumerate(formerly):
        if text in formerly[:number]:
            yield f"formerly has {text!r} twice: write it once"
        elif not is_value(text) or not text:
            yield (
                f"formerly: {text!r} can't be what a client brings: "
                "printable ASCII without space, quotes, comma, semicolon, backslash"
            )
        elif has_scheme(text):
            try:
                Location.parse(text)
            except ValueError as error:
                yield f"formerly: {error}"
