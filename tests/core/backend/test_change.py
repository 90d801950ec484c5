"""Change: what it shows of itself."""

from dataclasses import replace

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
