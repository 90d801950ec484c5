"""What callables can be called with: their own signature decides, not that of a function that they wrap."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from werkzeug.wrappers import Request, Response

from sticky_core.options.callables import argument_counts, is_async

COUNTS = range(5)


def of_none() -> None: ...


def of_one(request: object) -> None: ...


async def async_of_two(a: object, b: object) -> None: ...


class AsyncCall:
    async def __call__(self, a: object) -> None: ...


class PlainCall:
    def __call__(self, a: object) -> None: ...


application: Any = Request.application  # for methods as well, which its annotations do not foresee


@application
def werkzeug_app(request: Request) -> Response:
    return Response()


class WerkzeugApp:
    @application
    def __call__(self, request: Request) -> Response:
        return Response()

    @application
    def handle(self, request: Request) -> Response:
        return Response()


@pytest.mark.parametrize(
    "callee, expected",
    [
        pytest.param(of_none, {0}, id="function of none"),
        pytest.param(async_of_two, {2}, id="coroutine function of two"),
        pytest.param(lambda a, b=1, *, c=2: None, {1, 2}, id="function with options"),
        pytest.param(functools.wraps(of_none)(lambda a, b: None), {2}, id="wrapper of two around a function of none"),
        pytest.param(functools.wraps(of_one)(lambda a, b, c: None), {3}, id="wrapper of three around one"),
        pytest.param(functools.wraps(of_one)(lambda *args: None), set(COUNTS), id="wrapper of any number"),
        pytest.param(werkzeug_app, set(COUNTS), id="app by Werkzeug's decorator"),
        pytest.param(WerkzeugApp(), set(COUNTS), id="object with a call by Werkzeug's decorator"),
        pytest.param(WerkzeugApp().handle, set(COUNTS), id="method by Werkzeug's decorator"),
        pytest.param(functools.partial(werkzeug_app), set(COUNTS), id="partial of an app by Werkzeug's decorator"),
        pytest.param(functools.cache(of_none), {0}, id="cached function of none"),
        pytest.param(functools.lru_cache(maxsize=1)(of_one), {1}, id="cached function of one"),
        pytest.param(functools.cache(functools.wraps(of_none)(of_one)), {1}, id="cached wrapper"),
        pytest.param(dict, set(COUNTS), id="builtin class without a signature"),
        pytest.param(None, set(), id="nothing"),
    ],
)
def test_the_signature_of_a_callable_itself_decides(callee: object, expected: set[int]):
    assert argument_counts(callee, COUNTS) == expected


def decorated() -> Callable[[object], Awaitable[None]]:
    return functools.wraps(AsyncCall())(lambda a: AsyncCall()(a))


@pytest.mark.parametrize(
    "callee, expected",
    [
        pytest.param(async_of_two, True, id="coroutine function"),
        pytest.param(AsyncCall(), True, id="object with an async call"),
        pytest.param(AsyncCall().__call__, True, id="bound method"),
        pytest.param(functools.partial(async_of_two, 1), True, id="partial of a coroutine function"),
        pytest.param(functools.partial(AsyncCall(), 1), True, id="partial of an object with an async call"),
        pytest.param(AsyncCall, False, id="class of objects with an async call"),
        pytest.param(PlainCall(), False, id="object with a call"),
        pytest.param(decorated(), False, id="plain decorator of an async call, which shows only once called"),
        pytest.param(len, False, id="builtin"),
        pytest.param(None, False, id="nothing"),
    ],
)
def test_coroutine_functions_are_recognised(callee: object, expected: bool):
    assert is_async(callee) is expected
