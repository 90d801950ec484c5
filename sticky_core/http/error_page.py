"""The answers that we give ourselves, where no server does."""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

#: how long a client is asked to wait before it tries again, in seconds
RETRY_AFTER = 5

_TOLD = {
    410: "Your session is lost: the process that held it has ended. Please begin anew.",
    400: "Your request can't be passed on as it is.",
    502: "The server that had your request went away before it answered.",
    504: "The server took too long to answer.",
    503: "No server can take your request at the moment. Please try again soon.",
}


class ErrorPage(NamedTuple):
    """A whole answer. It never carries a mark: nobody's client has been served."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


def error_page(status: int) -> ErrorPage:
    """What a client sees when no server answers: 503 where none could take the request, 502 where one has lost it, 504
    where it took too long; 400 where the request is at fault, 410 where the client's session is lost.
    """
    reason = HTTPStatus(status).phrase
    body = f"<!doctype html><title>{reason}</title><h1>{status} {reason}</h1><p>{_TOLD[status]}</p>\n".encode()
    headers = [
        ("content-type", "text/html; charset=utf-8"),
        ("content-length", str(len(body))),
        ("cache-control", "no-store"),
    ]
    if status == 503:
        headers.append(("retry-after", str(RETRY_AFTER)))
    return ErrorPage(status, reason, headers, body)
