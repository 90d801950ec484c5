"""The sites of the forwarding tests as a WSGI app. The Host `look` responds with the counters of all of them."""

import json
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from sites import A, backends, counts  # type: ignore[import-not-found]
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.wrappers import Response

import sticky_wsgi
from sticky_wsgi import Dispatcher, Upstream

site_backends = backends(sticky_wsgi, Response("the app itself"))
dispatchers = {name: Dispatcher(backend) for name, backend in site_backends.items()}


def look(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    response = Response(json.dumps({name: counts(backend) for name, backend in site_backends.items()}))
    return response(environ, start_response)


def mounted(path: str, app: WSGIApplication) -> WSGIApplication:
    return DispatcherMiddleware(NotFound(), {path: app})


sites: dict[str, WSGIApplication] = {
    **dispatchers,
    "look": look,
    "alone": Upstream(A),
    "mounted": mounted("/mounted", dispatchers["mounted"]),
    "mounted-based": mounted("/mounted", dispatchers["mounted-based"]),
    "nested": mounted("/outer", mounted("/inner", dispatchers["nested"])),
}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    host = environ.get("HTTP_HOST", "plain").partition(":")[0]
    return sites.get(host, sites["plain"])(environ, start_response)
