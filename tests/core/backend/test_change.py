"""Change: what it shows of itself."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest

from sticky_core.backend.config import BackendConfig
from sticky_core.balance import LeastConn
from sticky_core.server.server import Server
from tests.core.backend.backends import app, build_backend, other_app, urls, with_changed_server


def test_repr_shows_servers_and_progress():
    web = build_backend([Server("s1", app), *urls(2, 3)])
    change = web.apply(
        replace(
            with_changed_server(with_changed_server(web.config, "s1", target=other_app), "s2", weight=2),
            servers=with_changed_server(
                with_changed_server(web.config, "s1", target=other_app), "s2", weight=2
            ).servers[:2],
        )
    )
    assert repr(change) == "<Change of web: +s1 -s1 -s3 ~s2, in force>"


CHANGES: list[tuple[Callable[[BackendConfig], BackendConfig], str]] = [
    (lambda before: replace(before, retries=1), "changed options: retries"),
    (lambda before: replace(before, balance=LeastConn(), retries=0), "changed options: balance, retries"),
    (
        lambda before: replace(with_changed_server(before, "s1", weight=2), persist=()),
        "~s1, changed options: persist",
    ),
    (lambda before: replace(before, servers=before.servers[::-1]), "the same servers in another order"),
    (lambda before: before, "nothing changes"),
]


@pytest.mark.parametrize("change, summary", CHANGES, ids=[summary for _, summary in CHANGES])
def test_log_names_the_options_that_have_changed(
    change: Callable[[BackendConfig], BackendConfig], summary: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "sticky_sessions")
    web = build_backend(urls(1, 2, 3))
    web.apply(change(web.config))
    assert caplog.messages == [f"backend web: {summary}"]
