"""Our own responses, for requests that no server responds to."""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

#: the value of Retry-After: how many seconds a client should wait before it retries
RETRY_AFTER = 5

_MESSAGES = {
    410: "Your session is lost: the process that held it has ended. Please start again.",
    400: "Your request can't be forwarded as it is.",
    408: "The rest of your request did not arrive in time.",
    500: "This server is set up in a way that can't work. Its log says what to change.",
    502: "The server closed the connection before it sent a response.",
    504: "The server took too long to respond.",
    503: "No server can take your request at the moment. Please try again soon.",
}


class ErrorPage(NamedTuple):
    """A complete response. It never contains a mark, since no server has handled the request."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


def error_page(status: int) -> ErrorPage:
    """Return the response for a request without a server's response: 503 if no server could get the request, 502 if one
    failed, 504 if one took too long, 408 if the client did, 400 if the request is invalid, 410 if the client's session
    is lost, 500 if the configuration can't work.
    """
    reason = HTTPStatus(status).phrase
    body = f"<!doctype html><title>{reason}</title><h1>{status} {reason}</h1><p>{_MESSAGES[status]}</p>\n".encode()
    headers = [
        ("content-type", "text/html; charset=utf-8"),
        ("content-length", str(len(body))),
        ("cache-control", "no-store"),
    ]
    if status == 503:
        headers.append(("retry-after", str(RETRY_AFTER)))
    return ErrorPage(status, reason, headers, body)
