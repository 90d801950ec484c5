"""What middleware adds around StickyWorkers, and a forwarded request loses: reported once for each name."""

import pytest

from sticky_core.workers.lost_names import LostNames, is_known_in_environ, is_plain


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


@pytest.mark.parametrize(
    "value, plain",
    [
        pytest.param("text", True, id="text"),
        pytest.param(b"bytes", True, id="bytes"),
        pytest.param(True, True, id="a truth value"),
        pytest.param(0.5, True, id="a float"),
        pytest.param(None, True, id="None"),
        pytest.param(-(1 << 63), True, id="the lowest number of 64 bits"),
        pytest.param((1 << 63) - 1, True, id="the highest number of 64 bits"),
        pytest.param(1 << 63, False, id="a number above"),
        pytest.param(-(1 << 63) - 1, False, id="a number below"),
        pytest.param({}, False, id="a dict"),
        pytest.param(["text"], False, id="a list"),
        pytest.param(type("Markup", (str,), {})("text"), False, id="a subclass of str"),
        pytest.param(print, False, id="a function"),
    ],
)
def test_text_and_numbers_are_forwarded_and_objects_are_not(value, plain):
    assert is_plain(value) is plain
