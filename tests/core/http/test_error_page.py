"""The answers that we give ourselves."""

import pytest

from sticky_core.http.error_page import RETRY_AFTER, error_page


@pytest.mark.parametrize(
    "status, reason", [(408, "Request Timeout"), (502, "Bad Gateway"), (503, "Service Unavailable")]
)
def test_a_page_is_complete_and_explains_the_error(status: int, reason: str):
    answer = error_page(status)
    headers = dict(answer.headers)
    assert (answer.status, answer.reason) == (status, reason)
    assert headers["content-length"] == str(len(answer.body))
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert f"<h1>{status} {reason}</h1>" in answer.body.decode()


@pytest.mark.parametrize("status", [502, 503])
def test_a_page_is_not_cached_and_contains_no_mark(status: int):
    names = [name for name, _ in error_page(status).headers]
    assert dict(error_page(status).headers)["cache-control"] == "no-store"
    assert "set-cookie" not in names
    assert all(name == name.lower() for name in names)
    assert len(names) == len(set(names))


def test_only_503_has_retry_after():
    assert dict(error_page(503).headers)["retry-after"] == str(RETRY_AFTER)
    assert "retry-after" not in dict(error_page(502).headers), "the request may have been executed"


def test_two_pages_share_no_headers():
    error_page(503).headers.append(("x-mine", "1"))
    assert "x-mine" not in dict(error_page(503).headers)
