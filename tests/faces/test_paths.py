"""The path of a request is what follows the part that the app is mounted under. Samples, balance, conditions, routes
and path templates have the same one, whatever the server provides and however the client has written it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import sticky_wsgi
from sticky_core.balance.uri import Uri
from sticky_core.http.messages import Request
from sticky_core.samples.path_template import PathTemplate
from sticky_core.samples.request import path as path_sample
from sticky_core.samples.request import path_param

if TYPE_CHECKING:
    from tests.faces.conftest import Face

KEYS: dict[str, Callable[[Request], object]] = {
    "sample": path_sample,
    "condition": lambda request: str(request.path.startswith("/rooms")),
    "balance": Uri().key,
    "template": PathTemplate("/rooms/{id}"),
    "parameter": path_param("v"),
}


def keys_of(face: Face, target: str, **how: Any) -> dict[str, object]:
    """Return what each reader of the path makes of a request with this target, and whether its route matches."""
    read: dict[str, object] = {}

    def recorded(request: Request) -> None:
        read.update({name: key(request) for name, key in KEYS.items()})

    backend = face.backend(face.server("s1"), persist=face.package.Stick.on(recorded))
    assert face.client(backend).get(target, **how).server == "s1"
    routed = face.middleware(face.validated(face.app("app")), {"/rooms": face.backend(face.server("s2"))})
    read["routed"] = face.client(routed).get(target, **how).server == "s2"
    return read


@pytest.mark.parametrize(
    "target, mount",
    [
        ("/rooms/7;v=1", ""),
        ("/app/rooms/7;v=1", "/app"),
        ("/a%70p/rooms/7;v=1", "/app"),
        ("/caf%C3%A9/rooms/7;v=1?x=1", "/caf\xe9"),
        ("http://shop.example/rooms/7;v=1", ""),
        ("http://shop.example:8080/app/rooms/7;v=1?u=/app/x", "/app"),
    ],
)
def test_path_is_what_follows_the_mount_for_all_that_read_it(face: Face, target: str, mount: str):
    assert keys_of(face, target, mount=mount) == {
        "sample": "/rooms/7;v=1",
        "condition": "True",
        "balance": "/rooms/7;v=1",
        "template": "7;v=1",
        "parameter": "1",
        "routed": True,
    }


@pytest.mark.parametrize("target, mount", [("/rooms/7", ""), ("/app/rooms/7", "/app"), ("/rooms/7", "/app")])
def test_path_is_the_same_where_the_server_provides_no_raw_target(face: Face, target: str, mount: str):
    read = keys_of(face, target, mount=mount, has_raw_target=False)
    assert (read["sample"], read["template"], read["routed"]) == ("/rooms/7", "7", True)


def test_samples_have_the_path_as_it_was_sent_and_routes_and_templates_as_apps_see_it(face: Face):
    read = keys_of(face, "/r%6foms/caf%C3%A9%20%7e")
    assert read["sample"] == read["balance"] == "/r%6foms/caf%C3%A9%20%7e"
    assert (read["condition"], read["template"], read["routed"]) == ("False", "caf\xc3\xa9 ~", True)


def test_route_that_is_not_ascii_matches(face: Face):
    middleware = face.middleware(face.validated(face.app("app")), {"/caf\xe9": face.backend(face.server("s1"))})
    assert face.client(middleware).get("/caf%C3%A9/7").server == "s1"
    assert face.client(middleware).get("/caf%C3%A8/7").server == "app"
    assert face.client(middleware).get("/caf%E9/7").server == "app", "no UTF-8"


def test_environ_that_a_test_has_made_may_have_characters_that_are_no_bytes():
    def app(environ: object, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"routed"]

    def other(environ: object, start_response: Any) -> list[bytes]:
        raise AssertionError("not routed")

    web = sticky_wsgi.Backend("web", [sticky_wsgi.Server("s1", app)], persist=())
    middleware = sticky_wsgi.StickyMiddleware(other, routes={"/\u20ac": web})
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/\u20ac/7"}
    assert middleware(environ, lambda *head: lambda data: None) == [b"routed"]


@pytest.mark.parametrize(
    "target, path",
    [("http://shop.example", "/"), ("http://shop.example?x=/rooms/7", "/"), ("/app", "/"), ("/app?x", "/")],
)
def test_target_without_a_path_below_the_mount_has_the_path_of_a_slash(face: Face, target: str, path: str):
    mount = "/app" if target.startswith("/") else ""
    read = keys_of(face, target, mount=mount)
    assert (read["sample"], read["routed"]) == (path, False)
