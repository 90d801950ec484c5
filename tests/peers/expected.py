"""The tests of the frameworks that fail once their apps are wrapped, and why that cannot be otherwise."""

from __future__ import annotations

from dataclasses import dataclass

#: The response has our mark. That nothing else is the reason is proved: without a cookie these tests pass.
COOKIE = "compares all cookies or headers of a response, and ours are among them: Set-Cookie, Cache-Control: private"


@dataclass(frozen=True)
class Expected:
    """A test that fails: its id without parameters, the reason, and with which wrappings it fails."""

    test: str
    reason: str
    wrappings: tuple[str, ...]

    def covers(self, test: str, wrapping: str) -> bool:
        """Whether this is the reason why `test` fails with `wrapping`."""
        return wrapping in self.wrappings and self.test == test.partition("[")[0]


#: the wrappings that set a cookie; `StickyWorkers` without a name has no peers in a test, and sets none
MARKED = ("Dispatcher", "StickyMiddleware", "StickyWorkers with a name")
ALL = (*MARKED, "StickyWorkers")

EXPECTED = {
    "starlette": [
        Expected("tests/middleware/test_session.py::test_partitioned_session", COOKIE, MARKED),
        Expected("tests/test_responses.py::test_set_cookie", COOKIE, MARKED),
        Expected("tests/test_responses.py::test_set_cookie_path_none", COOKIE, MARKED),
        Expected("tests/test_responses.py::test_set_cookie_raises_for_invalid_python_version", COOKIE, MARKED),
        Expected("tests/test_responses.py::test_set_cookie_samesite_none", COOKIE, MARKED),
        Expected("tests/test_routing.py::test_websocket_route_middleware", COOKIE, MARKED),
        Expected("tests/test_testclient.py::test_domain_restricted_cookies", COOKIE, MARKED),
        Expected("tests/test_websockets.py::test_additional_headers", COOKIE, MARKED),
        Expected("tests/test_websockets.py::test_no_additional_headers", COOKIE, MARKED),
    ],
    "fastapi": [
        Expected("tests/test_repeated_cookie_headers.py::test_cookie_is_set_once", COOKIE, MARKED),
        Expected("tests/test_sse.py::test_async_generator_with_model", COOKIE, MARKED),
        *(
            Expected(
                f"tests/test_router_events.py::{test}",
                "reads the state of the server's lifespan; each replica of a dispatcher has a state of its own, "
                "which its requests get",
                ("Dispatcher",),
            )
            for test in (
                "test_merged_mixed_state_lifespans",
                "test_router_nested_lifespan_state_overriding_by_parent",
            )
        ),
    ],
    "werkzeug": [
        Expected("tests/test_test.py::test_lazy_start_response_empty_response_app", COOKIE, MARKED),
        Expected("tests/test_test.py::test_no_content_type_header_addition", COOKIE, MARKED),
        Expected("tests/test_test.py::test_run_wsgi_app_closing_iterator", COOKIE, MARKED),
        Expected("tests/test_test.py::test_run_wsgi_apps", COOKIE, MARKED),
    ],
    "flask": [
        Expected(
            "tests/test_basic.py::test_app_freed_on_zero_refcount",
            "app.wsgi_app = middleware(app.wsgi_app), as in the documentation of Flask, is a cycle with any middleware",
            ALL,
        ),
    ],
}
