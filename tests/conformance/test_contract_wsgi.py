"""What PEP 3333 requires of middleware between a server and an app, in process, with the validator of the standard
library on both sides.
"""

import io
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from wsgiref.types import WSGIEnvironment
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest

import sticky_wsgi
from sticky_asgi import Failure, Server, ServerFailure
from tests.conformance.contract import Referent, backend

pytestmark = pytest.mark.usefixtures("no_open_resources")

PLAIN = [("Content-Type", "text/plain")]
ITEMS = [b"one, ", b"two, ", b"three"]
WHOLE = b"".join(ITEMS)


@dataclass
class WsgiResponse:
    """What a server has received from an app; the head is the last one."""

    status: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    heads: int = 0
    environ: WSGIEnvironment = field(default_factory=dict)

    @property
    def marks(self) -> list[str]:
        return [value for name, value in self.headers if name.lower() == "set-cookie"]


def serve(app, method: str = "GET", *, take: int | None = None, response: WsgiResponse | None = None) -> WsgiResponse:
    """Call an app as a WSGI server does (PEP 3333). After `take` items the client disconnects."""
    response = response if response is not None else WsgiResponse()
    environ = response.environ
    setup_testing_defaults(environ)
    environ |= {"REQUEST_METHOD": method, "QUERY_STRING": "", "wsgi.file_wrapper": FileWrapper}

    def write(data: bytes) -> None:
        response.body += data

    def start_response(status: str, headers: list[tuple[str, str]], exc_info=None):
        if exc_info and response.body:
            raise exc_info[1].with_traceback(exc_info[2])
        assert exc_info or not response.heads, "a second head needs exc_info"
        response.status, response.headers, response.heads = status, list(headers), response.heads + 1
        return write

    items = app(environ, start_response)
    try:
        for item in islice(items, take):
            assert response.heads, "a body before its head"
            write(item)
    finally:
        if hasattr(items, "close"):
            items.close()
    return response


def as_list(environ, start_response):
    start_response("200 OK", PLAIN)
    return list(ITEMS)


def as_generator(environ, start_response):
    start_response("200 OK", PLAIN)
    return (item for item in ITEMS)


def as_file(environ, start_response):
    start_response("200 OK", PLAIN)
    wrapper: type[FileWrapper] = environ["wsgi.file_wrapper"]
    return wrapper(io.BytesIO(WHOLE), 5)


def by_write(environ, start_response):
    write = start_response("200 OK", PLAIN)
    write(ITEMS[0])
    write(ITEMS[1])
    return [ITEMS[2]]


def by_generator_function(environ, start_response):
    start_response("200 OK", PLAIN)
    yield from ITEMS


def replacing_its_head(environ, start_response):
    start_response("202 Accepted", PLAIN)
    try:
        raise ValueError("second thoughts")
    except ValueError:
        start_response("200 OK", PLAIN, sys.exc_info())
    return list(ITEMS)


def replacing_its_head_late(environ, start_response):
    yield from replacing_its_head(environ, start_response)


SHAPES = (
    as_list,
    as_generator,
    as_file,
    by_write,
    by_generator_function,
    replacing_its_head,
    replacing_its_head_late,
)


def name_of(app) -> str:
    return str(app.__name__).replace("_", " ")


@pytest.mark.parametrize("app", SHAPES, ids=name_of)
def test_dispatcher_is_valid_wsgi_on_both_sides(app):
    server = Server("s1", validator(app))
    response = serve(validator(sticky_wsgi.Dispatcher(backend(server))))
    assert (response.status, response.body) == ("200 OK", WHOLE)
    assert len(response.marks) == 1
    assert len(server.in_flight) == 0


@pytest.mark.parametrize("app", SHAPES, ids=name_of)
def test_app_beside_the_routes_is_valid_wsgi(app):
    middleware = sticky_wsgi.StickyMiddleware(validator(app), routes={"/sticky": backend(Server("s1", as_list))})
    response = serve(validator(middleware))
    assert (response.status, response.body, response.marks) == ("200 OK", WHOLE, [])


def test_response_to_head_keeps_its_content_length():
    def app(environ, start_response):
        start_response("200 OK", [*PLAIN, ("Content-Length", "1234")])
        return []

    response = serve(validator(sticky_wsgi.Dispatcher(backend(Server("s1", validator(app))))), "HEAD")
    assert (response.body, dict(response.headers)["Content-Length"], len(response.marks)) == (b"", "1234", 1)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_page_without_a_usable_server_is_valid_wsgi(method):
    server = Server("s1", as_list)
    server.state = "maint"
    response = serve(validator(sticky_wsgi.Dispatcher(backend(server))), method)
    assert (response.status, response.marks) == ("503 Service Unavailable", [])
    assert bool(response.body) is (method == "GET")


def raising_before_its_head(environ, start_response):
    raise ValueError("broken")


def raising_after_its_head(environ, start_response):
    start_response("200 OK", PLAIN)
    raise ValueError("broken")


def raising_at_its_first_item(environ, start_response):
    if start_response is not None:
        raise ValueError("broken")
    yield b""


def raising_half_way(environ, start_response):
    start_response("200 OK", PLAIN)
    yield ITEMS[0]
    raise ValueError("broken")


def raising_half_way_with_exc_info(environ, start_response):
    start_response("200 OK", PLAIN)
    yield ITEMS[0]
    try:
        raise ValueError("broken")
    except ValueError:
        start_response("500 Oh", PLAIN, sys.exc_info())  # the head is sent: the server raises the exception again
    yield ITEMS[1]


RAISING = (
    raising_before_its_head,
    raising_after_its_head,
    raising_at_its_first_item,
    raising_half_way,
    raising_half_way_with_exc_info,
)


@pytest.mark.parametrize("app", RAISING, ids=name_of)
def test_exception_of_an_app_is_raised_unchanged(app):
    server = Server("s1", validator(app))
    response = WsgiResponse()
    with pytest.raises(ValueError, match=r"^broken$"):
        serve(validator(sticky_wsgi.Dispatcher(backend(server))), response=response)
    assert response.body == (ITEMS[0] if "half_way" in app.__name__ else b"")
    assert len(server.in_flight) == 0


class CountingBody:
    """An iterable that counts how often it is iterated and closed. It may raise at an item; -1 is `iter`."""

    def __init__(self, start: Callable[[], object], raises_at: int | None) -> None:
        self.start = start
        self.raises_at = raises_at
        self.iterations = 0
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        self.iterations += 1
        if self.raises_at == -1:
            raise ValueError("broken")
        return self.items()

    def items(self) -> Iterator[bytes]:
        self.start()
        for number, item in enumerate(ITEMS):
            if number == self.raises_at:
                raise ValueError("broken")
            yield item

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("late", [False, True], ids=["head at once", "head with the first item"])
@pytest.mark.parametrize(
    "take, raises_at",
    [
        pytest.param(None, None, id="read to the end"),
        pytest.param(1, None, id="client disconnects half way"),
        pytest.param(0, None, id="client disconnects before the first item"),
        pytest.param(None, 2, id="app raises half way"),
        pytest.param(None, 0, id="app raises at the first item"),
        pytest.param(None, -1, id="app raises in iter"),
    ],
)
def test_body_is_closed_exactly_once_and_never_iterated_twice(take, raises_at, late):
    bodies: list[CountingBody] = []

    def app(environ, start_response):
        def start() -> object:
            return start_response("200 OK", PLAIN)

        if not late:
            start()
        bodies.append(CountingBody(start if late else lambda: None, raises_at))
        return bodies[0]

    server = Server("s1", app)
    try:
        serve(sticky_wsgi.Dispatcher(backend(server)), take=take)
    except ValueError:
        assert raises_at is not None
    else:
        assert raises_at is None
    (body,) = bodies
    assert (body.iterations > 1, body.closed) == (False, 1)
    assert len(server.in_flight) == 0


def test_body_that_fails_to_close_still_releases_its_slot():
    class FailingBody(CountingBody):
        def close(self) -> None:
            super().close()
            raise OSError("stuck")

    def app(environ, start_response):
        start_response("200 OK", PLAIN)
        return FailingBody(lambda: None, None)

    server = Server("s1", app)
    with pytest.raises(OSError, match="stuck"):
        serve(sticky_wsgi.Dispatcher(backend(server)))
    assert len(server.in_flight) == 0


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(list(ITEMS), id="list"),
        pytest.param([WHOLE], id="list of one"),
        pytest.param(tuple(ITEMS), id="tuple"),
        pytest.param(FileWrapper(io.BytesIO(WHOLE)), id="file_wrapper"),
    ],
)
def test_body_that_servers_treat_specially_is_the_same_object(body):
    def app(environ, start_response):
        start_response("200 OK", PLAIN)
        return body

    server = Server("s1", app)
    dispatcher = sticky_wsgi.Dispatcher(backend(server))
    environ: WSGIEnvironment = {"wsgi.file_wrapper": FileWrapper}
    setup_testing_defaults(environ)
    assert dispatcher(environ, lambda *_: lambda data: None) is body
    assert len(server.in_flight) == 0  # with these the request ends when the app returns


def test_generator_is_in_flight_until_it_is_closed():
    server = Server("s1", as_generator)
    environ: WSGIEnvironment = {}
    setup_testing_defaults(environ)
    body = sticky_wsgi.Dispatcher(backend(server))(environ, lambda *_: lambda data: None)
    assert len(server.in_flight) == 1
    assert b"".join(body) == WHOLE
    assert len(server.in_flight) == 1
    body.close()  # type: ignore[attr-defined]
    assert len(server.in_flight) == 0


def test_each_attempt_has_its_own_environ():
    seen: list[WSGIEnvironment] = []

    def app(environ, start_response):
        seen.append(dict(environ))
        environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["mine"] = "/cart", "", True
        del environ["QUERY_STRING"]
        if len(seen) == 1:
            raise ServerFailure(Failure.REFUSED)
        return as_list(environ, start_response)

    response = serve(sticky_wsgi.Dispatcher(backend(Server("s1", app), Server("s2", app))))
    first, second = seen
    assert first == second
    assert (response.environ["PATH_INFO"], response.environ["QUERY_STRING"]) == ("/", "")
    assert "mine" not in response.environ
    assert sticky_wsgi.decision(response.environ).attempts in [("s1", "s2"), ("s2", "s1")]


def test_body_of_a_server_that_fails_at_its_first_item_is_closed_before_the_next_is_tried():
    bodies: list[CountingBody] = []

    def app(environ, start_response):
        def start() -> object:
            if len(bodies) == 1:
                raise ServerFailure(Failure.REFUSED)
            assert bodies[0].closed == 1
            return start_response("200 OK", PLAIN)

        bodies.append(CountingBody(start, None))
        return bodies[-1]

    servers = Server("s1", app), Server("s2", app)
    response = serve(validator(sticky_wsgi.Dispatcher(backend(*servers))))
    assert (response.body, len(response.marks)) == (WHOLE, 1)
    assert [body.closed for body in bodies] == [1, 1]
    assert [len(server.in_flight) for server in servers] == [0, 0]


@pytest.mark.usefixtures("without_garbage_collector")
@pytest.mark.parametrize("app", [as_list, as_generator, as_file], ids=name_of)
def test_environ_is_released_with_its_request(app):
    dispatcher = sticky_wsgi.Dispatcher(backend(Server("s1", app)))
    response = WsgiResponse(environ={"referent": Referent()})
    referent = weakref.ref(response.environ["referent"])
    assert serve(dispatcher, response=response).body == WHOLE
    decision = sticky_wsgi.decision(response.environ)
    del response
    assert referent() is None
    assert decision.server == "s1"  # a decision may be kept
