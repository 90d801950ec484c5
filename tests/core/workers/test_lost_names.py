"""What middleware adds around StickyWorkers, and a forwarded request loses: reported once for each name."""

import pytest

from sticky_core.workers.lost_names import LostNames, is_known_in_environ


def test_each_name_is_reported_once_with_the_way_out(caplog):
    names = LostNames("scope", "Put it outside.")
    names.report(set())
    names.report({"user", "auth"})
    names.report({"auth"})
    names.report({"auth", "session"})
    assert [record.getMessage().partition("has put ")[2] for record in caplog.records] == [
        "auth, user into the scope, and requests that another worker serves do not have that. Put it outside.",
        "session into the scope, and requests that another worker serves do not have that. Put it outside.",
    ]


def test_known_names_are_not_reported(caplog):
    names = LostNames("environ", "", lambda name: name.startswith("wsgi."))
    names.report({"wsgi.input"})
    assert caplog.text == ""
    names.report({"wsgi.errors", "beaker.session"})
    assert "put beaker.session into" in caplog.text


@pytest.mark.parametrize(
    "name, is_known",
    [
        ("wsgi.input", True),
        ("gunicorn.socket", True),
        ("waitress.client_disconnected", True),
        ("x-wsgiorg.fdevent.readable", True),
        ("sticky.decision", True),
        ("werkzeug.request", True),
        ("werkzeug.session", False),
        ("beaker.session", False),
        ("wsgi", True),
        ("user", False),
        ("wsgix.input", False),
    ],
)
def test_names_that_servers_set_are_known(name, is_known):
    assert is_known_in_environ(name) is is_known
