"""The identity of an app is the same in every process that runs it, and different for different apps."""

import functools
import sys
from types import ModuleType, SimpleNamespace

import pytest

from sticky_core.workers import identity
from sticky_core.workers.identity import app_identity

HERE = __name__


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A process that has named no app before."""
    monkeypatch.setattr(identity, "_made", type(identity._made)())


async def app(scope, receive, send): ...


class AppClass:
    def __call__(self, environ, start_response): ...

    def wsgi_app(self, environ, start_response): ...


def create_app():
    async def inner(scope, receive, send): ...

    return inner


@functools.wraps(app)
async def decorated(*arguments): ...


ROWS = {
    "a function": (app, f"{HERE}:app"),
    "a class": (AppClass, f"{HERE}:AppClass"),
    "a decorated function": (decorated, f"{HERE}:app"),
    "an object": (AppClass(), f"{HERE}:AppClass"),
    "a method of an object": (AppClass().wsgi_app, f"{HERE}:AppClass"),
    "a function that a function returns": (create_app(), f"{HERE}:create_app"),
    "a partial": (functools.partial(app), f"{HERE}:partial"),
    "an object of a library": (SimpleNamespace(), f"{HERE}:SimpleNamespace"),
}


@pytest.mark.parametrize("found, expected", ROWS.values(), ids=ROWS)
def test_identity_is_a_module_and_a_name(found, expected):
    assert app_identity(found) == expected


def test_objects_of_one_module_and_type_are_numbered_and_functions_are_not():
    assert [app_identity(AppClass()) for _ in range(3)] == [f"{HERE}:AppClass{tail}" for tail in ("", "#2", "#3")]
    assert app_identity(SimpleNamespace()) == f"{HERE}:SimpleNamespace"
    assert [app_identity(app) for _ in range(2)] == [f"{HERE}:app"] * 2


def construct(module, name):
    """Run code of a module of that name that asks for the identity of an object."""
    code = "found = app_identity(AppClass())"
    module.__dict__.update(app_identity=app_identity, AppClass=AppClass, __name__=name)
    exec(code, module.__dict__)
    return module.found


@pytest.mark.parametrize("name", ["__main__", "__mp_main__"])
@pytest.mark.parametrize(
    "spec, file, expected",
    [
        pytest.param(None, "/srv/releases/42/shop.py", "shop:AppClass", id="python shop.py"),
        pytest.param(SimpleNamespace(name="web.shop"), "x", "web.shop:AppClass", id="python -m web.shop"),
        pytest.param(SimpleNamespace(name="web.__main__"), "x", "web:AppClass", id="python -m web"),
        pytest.param(None, None, "__main__:AppClass", id="an interactive session"),
    ],
)
def test_program_has_the_name_that_others_import_it_by(monkeypatch, name, spec, file, expected):
    module = ModuleType(name)
    module.__spec__ = spec
    if file is not None:
        module.__file__ = file
    monkeypatch.setitem(sys.modules, name, module)
    assert construct(module, name) == expected


def test_program_that_is_imported_by_its_name_too_has_one_identity(monkeypatch):
    """`python shop.py` that calls `uvicorn.run("shop:app")` runs its code twice, and `uvicorn shop:app` once."""
    program = ModuleType("__main__")
    program.__file__ = "/srv/shop.py"
    monkeypatch.setitem(sys.modules, "__main__", program)
    assert construct(program, "__main__") == construct(ModuleType("shop"), "shop") == "shop:AppClass"


def test_frames_of_this_package_do_not_count(monkeypatch):
    module = ModuleType("sticky_asgi.example")
    assert construct(module, "sticky_asgi.example") == f"{HERE}:AppClass"
