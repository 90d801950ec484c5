"""The checked site over WSGI."""

from typing import Any

import checked  # type: ignore[import-not-found]

import sticky_wsgi

site = checked.backend(sticky_wsgi)


def look(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = checked.look(site)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


app = sticky_wsgi.StickyMiddleware(look, routes={"/site": site})
