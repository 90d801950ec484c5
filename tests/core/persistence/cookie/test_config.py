"""Options of a cookie: which are accepted, and the problems of those that cannot work."""

from collections.abc import Mapping

import pytest

from sticky_core.backend.backend import Backend
from sticky_core.errors import ConfigError
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.server.server import Server

SECRET = "a secret of some length"
OTHER = "another secret, as long"


def app(environ: object, start_response: object) -> list[bytes]:
    return []


@pytest.fixture(autouse=True)
def no_secret_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STICKY_SECRET", raising=False)


def make_cookie(options: Mapping[str, object]) -> Cookie:
    return Cookie(**{"name": "SERVERID"} | dict(options))  # type: ignore[arg-type]


def problems(**options: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        make_cookie(options)
    return refused.value.problems


# -- options and modes

# An option with a value that works where the option does, and the modes in which it does.
EFFECT: dict[str, tuple[object, str]] = {
    "secret": (SECRET, "insert rewrite prefix"),
    "indirect": (True, "insert prefix passive"),
    "preserve": (True, "insert prefix passive"),
    "nocache": (True, "insert"),
    "postonly": (True, "insert"),
    "httponly": (True, "insert"),
    "secure": (True, "insert"),
    "samesite": ("Lax", "insert"),
    "partitioned": (True, "insert"),
    "path": ("/", "insert"),
    "domain": ("a.example", "insert"),
    "attr": ("Priority=High", "insert"),
    "max_age": (60, "insert"),
    "expires": (60, "insert"),
    "fallback": (FallbackCookie("SERVERID-old"), "insert"),
    "refresh": ("always", "insert"),
    "maxidle": ("30m", "insert rewrite"),
    "maxlife": ("8h", "insert rewrite"),
    "opaque": (True, "insert rewrite prefix"),
    "dynamic": ("a key", "insert rewrite prefix passive"),
    "signed": (False, "insert rewrite prefix passive"),
    "accepts": ([Cookie("OLD", signed=False)], "insert rewrite prefix passive"),
    "accepts_until": ("2027-03-01", "insert rewrite prefix passive"),
}
MODES = ("insert", "rewrite", "prefix", "passive")
# what else an option needs in order to work
BESIDE: dict[tuple[str, str], dict[str, object]] = {
    ("preserve", "prefix"): {"indirect": True},
    ("preserve", "passive"): {"indirect": True},
    **{("accepts_until", mode): {"accepts": [Cookie("OLD", signed=False)]} for mode in MODES},
}


def options_in(option: str, mode: str, value: object) -> dict[str, object]:
    signing: dict[str, object] = {} if mode == "passive" or option in ("secret", "signed") else {"secret": SECRET}
    return {"mode": mode, option: value} | signing | BESIDE.get((option, mode), {})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("option", EFFECT)
def test_option_is_accepted_exactly_where_it_has_an_effect(option: str, mode: str):
    value, modes = EFFECT[option]
    options = options_in(option, mode, value)
    if mode in modes.split():
        assert getattr(make_cookie(options), option) == value
    else:
        (problem,) = problems(**options)
        assert problem.startswith(
            f"cookie SERVERID: {option} has no effect with mode={mode!r}: leave it out, or use mode="
        )
        assert all(repr(each) in problem for each in modes.split())


@pytest.mark.parametrize("option", [option for option, (value, _) in EFFECT.items() if value is True])
@pytest.mark.parametrize("mode", MODES)
def test_false_for_an_option_without_an_effect_is_a_problem_as_well(option: str, mode: str):
    if mode in EFFECT[option][1].split():
        make_cookie(options_in(option, mode, False))
    else:
        assert len(problems(**options_in(option, mode, False))) == 1


def test_every_option_has_a_row():
    from dataclasses import fields

    assert {field.name for field in fields(Cookie)} - {"name", "mode"} == EFFECT.keys()


# -- wrong, one by one

WRONG = [
    pytest.param(
        {"mode": "inserted"}, "mode 'inserted' is none of insert, rewrite, prefix, passive", id="another mode"
    ),
    # names
    pytest.param({"name": "", "signed": False}, "a cookie's name is made of letters", id="no name"),
    pytest.param({"name": "a b", "signed": False}, "a cookie's name is made of letters", id="a name with a space"),
    pytest.param({"name": "a=b", "signed": False}, "a cookie's name is made of letters", id="a name with ="),
    pytest.param({"name": "a;b", "signed": False}, "a cookie's name is made of letters", id="a name with ;"),
    pytest.param({"name": "$SRV", "signed": False}, "does not begin with $", id="a name with a dollar"),
    pytest.param({"name": "é", "signed": False}, "a cookie's name is made of letters", id="a name with an accent"),
    pytest.param({"name": "a\n", "signed": False}, "a cookie's name is made of letters", id="a name with a line end"),
    # secrets
    pytest.param({}, "a signed cookie needs a secret", id="no secret"),
    pytest.param({"mode": "rewrite"}, "a signed cookie needs a secret", id="no secret for rewrite"),
    pytest.param({"mode": "prefix"}, "a signed cookie needs a secret", id="no secret for prefix"),
    pytest.param({"secret": ""}, "shorter than 16 bytes", id="an empty secret"),
    pytest.param({"secret": "short"}, "shorter than 16 bytes", id="a short secret"),
    pytest.param({"secret": [SECRET, ""]}, "shorter than 16 bytes", id="an empty secret among others"),
    pytest.param({"secret": []}, "secret is an empty list", id="no secret in a list"),
    pytest.param(
        {"signed": False, "secret": SECRET}, "secret has no effect with signed=False", id="a secret that signs nothing"
    ),
    pytest.param({"signed": False, "opaque": True}, "needs a secret", id="opaque without a secret"),
    pytest.param(
        {"mode": "passive", "signed": True},
        "a passive cookie is the application's own and never signed",
        id="passive and signed",
    ),
    pytest.param(
        {"secret": SECRET, "opaque": True, "dynamic": "k"},
        "opaque and dynamic both make ids: use one",
        id="opaque and dynamic",
    ),
    pytest.param({"secret": SECRET, "dynamic": ""}, "dynamic needs a key", id="dynamic without a key"),
    # what one option needs of another
    pytest.param(
        {"mode": "prefix", "secret": SECRET, "preserve": True},
        "preserve has no effect with mode='prefix' unless indirect=True",
        id="prefix preserve",
    ),
    pytest.param(
        {"mode": "prefix", "secret": SECRET, "preserve": True, "indirect": False},
        "unless indirect=True",
        id="prefix preserve, not indirect",
    ),
    pytest.param(
        {"mode": "passive", "preserve": True},
        "preserve has no effect with mode='passive' unless indirect=True",
        id="passive preserve",
    ),
    pytest.param(
        {"mode": "rewrite", "signed": False, "maxidle": 60},
        "so maxidle and maxlife have no effect: sign them",
        id="plain rewrite with maxidle",
    ),
    pytest.param(
        {"mode": "rewrite", "signed": False, "maxlife": 60},
        "so maxidle and maxlife have no effect: sign them",
        id="plain rewrite with maxlife",
    ),
    pytest.param(
        {"secret": SECRET, "refresh": "never", "maxidle": 60},
        "would let maxidle end sessions that are in use",
        id="maxidle never renewed",
    ),
    # times
    *(
        pytest.param(
            {"secret": SECRET, option: value},
            f"{option} {value!r} is not within 1..2147483647 seconds",
            id=f"{option}={value!r}",
        )
        for option in ("max_age", "expires", "maxidle", "maxlife")
        for value in (0, -1, 0.5, "0", "999ms", 2147483648, "24856d", float("inf"), float("nan"))
    ),
    *(
        pytest.param(
            {"secret": SECRET, option: value}, f"{option}: {value!r} is not a duration", id=f"{option}={value!r}"
        )
        for option in ("max_age", "expires", "maxidle", "maxlife")
        for value in ("", "soon", "1.5h", "-1", "8 h", "8H", True, None)
    ),
    pytest.param(
        {"secret": SECRET, "refresh": "sometimes"},
        "refresh 'sometimes' is none of due, never, always",
        id="another refresh",
    ),
    # attributes
    pytest.param({"secret": SECRET, "path": ""}, "path '' is no path", id="no path"),
    pytest.param(
        {"secret": SECRET, "path": "api"},
        "path 'api' is no path: it begins with / and has no semicolon",
        id="a path without a slash",
    ),
    pytest.param({"secret": SECRET, "path": "/a;b"}, "is no path", id="a path with a semicolon"),
    pytest.param({"secret": SECRET, "path": "/é"}, "is no path", id="a path with an accent"),
    pytest.param({"secret": SECRET, "path": "/\r\nx: y"}, "is no path", id="a path with a line end"),
    pytest.param({"secret": SECRET, "domain": ""}, "domain '' is no domain", id="no domain"),
    pytest.param({"secret": SECRET, "domain": "a b"}, "domain 'a b' is no domain", id="a domain with a space"),
    pytest.param(
        {"secret": SECRET, "domain": ["a.example", "b;c"]}, "domain 'b;c' is no domain", id="one domain of several"
    ),
    pytest.param({"secret": SECRET, "domain": "a.example\n"}, "is no domain", id="a domain with a line end"),
    pytest.param({"secret": SECRET, "attr": ""}, "attr '' can't be written", id="no attribute"),
    pytest.param(
        {"secret": SECRET, "attr": "A; B"},
        "attr 'A; B' can't be written: printable ASCII without a semicolon",
        id="two attributes in one",
    ),
    pytest.param(
        {"secret": SECRET, "attr": ["A=1", "B\x00"]}, r"attr 'B\x00' can't be written", id="a control character"
    ),
    pytest.param({"secret": SECRET, "attr": "A\r\nx: y"}, "can't be written", id="an attribute with a line end"),
    pytest.param(
        {"secret": SECRET, "samesite": "Laxx"},
        "samesite 'Laxx' is none of Lax, Strict, None, or None to leave it out",
        id="another samesite",
    ),
    pytest.param(
        {"secret": SECRET, "secure": "yes"}, "secure 'yes' is none of True, False, 'auto'", id="another secure"
    ),
    # fallbacks
    pytest.param(
        {"secret": SECRET, "fallback": "old"},
        "fallback 'old' is no FallbackCookie: write fallback=FallbackCookie",
        id="a name for a fallback",
    ),
    pytest.param(
        {"secret": SECRET, "fallback": FallbackCookie("SERVERID")},
        "its fallback has the same name",
        id="a fallback of the same name",
    ),
    pytest.param(
        {"secret": SECRET, "fallback": FallbackCookie("a b")},
        "its fallback a b: a cookie's name is made of",
        id="a fallback without a name",
    ),
    pytest.param(
        {"secret": SECRET, "fallback": FallbackCookie("old", samesite="None", secure=False)},
        "its fallback old: browsers refuse SameSite=None without Secure",
        id="a fallback that browsers refuse",
    ),
    pytest.param(
        {"secret": SECRET, "samesite": "Laxx", "fallback": FallbackCookie("old")},
        "samesite 'Laxx' is none of",
        id="what is wrong with both is said once",
    ),
    # what browsers refuse
    pytest.param(
        {"secret": SECRET, "samesite": "None", "secure": False},
        "browsers refuse SameSite=None without Secure",
        id="SameSite=None, not secure",
    ),
    pytest.param(
        {"secret": SECRET, "samesite": "None", "secure": "auto"},
        "browsers refuse SameSite=None without Secure",
        id="SameSite=None, perhaps secure",
    ),
    pytest.param(
        {"signed": False, "samesite": "none", "secure": False},
        "browsers refuse SameSite=None without Secure",
        id="plain SameSite=None, not secure",
    ),
    pytest.param(
        {"secret": SECRET, "partitioned": True, "secure": False},
        "browsers refuse Partitioned without Secure",
        id="Partitioned, not secure",
    ),
    pytest.param(
        {"secret": SECRET, "partitioned": True, "secure": "auto"},
        "browsers refuse Partitioned without Secure",
        id="Partitioned, perhaps secure",
    ),
    pytest.param(
        {"name": "__Secure-ID", "secret": SECRET, "secure": False},
        "browsers refuse names that begin with __Secure- without Secure",
        id="__Secure-, not secure",
    ),
    pytest.param(
        {"name": "__Host-ID", "secret": SECRET, "secure": "auto"},
        "browsers refuse names that begin with __Host- without Secure",
        id="__Host-, perhaps secure",
    ),
    pytest.param(
        {"name": "__host-ID", "secret": SECRET, "secure": False},
        "names that begin with __Host- without Secure",
        id="__host- in small letters",
    ),
    pytest.param(
        {"name": "__Host-ID", "secret": SECRET, "path": "/api"},
        "unless path is / and there is no domain",
        id="__Host- with a path",
    ),
    pytest.param(
        {"name": "__Host-ID", "secret": SECRET, "domain": "a.example"},
        "unless path is / and there is no domain",
        id="__Host- with a domain",
    ),
]


@pytest.mark.parametrize("options, problem", WRONG)
def test_what_cannot_work_is_refused_with_exactly_its_problem(options: dict[str, object], problem: str):
    (only,) = problems(**options)
    assert problem in only
    assert only.startswith(f"cookie {options.get('name', 'SERVERID')}: ")


@pytest.mark.parametrize(
    "options, parts",
    [
        pytest.param(
            {"name": "a b", "mode": "rewrite", "indirect": True, "nocache": True, "maxidle": 0, "secret": "x"},
            ["name is made of", "indirect has no effect", "nocache has no effect", "maxidle 0", "shorter than 16"],
            id="name, mode, time and secret",
        ),
        pytest.param(
            {"name": "__Host-ID", "secure": False, "samesite": "None", "partitioned": True, "path": "/a"},
            ["needs a secret", "__Host- without", "SameSite=None without", "Partitioned without", "unless path is /"],
            id="everything that browsers refuse",
        ),
        pytest.param(
            {"mode": "passive", "secret": SECRET, "opaque": True, "refresh": "x", "attr": ["a;b", "c;d"]},
            ["secret has no", "opaque has no", "refresh has no", "attr has no", "refresh 'x'", "'a;b'", "'c;d'"],
            id="passive, and half of it unreadable",
        ),
    ],
)
def test_all_problems_are_reported_at_once_with_the_name_of_the_cookie(options: dict[str, object], parts: list[str]):
    with pytest.raises(ConfigError) as refused:
        make_cookie(options)
    found = refused.value.problems
    assert len(found) == len(parts)
    assert all(any(part in problem for problem in found) for part in parts)
    assert all(problem.startswith(f"cookie {options.get('name', 'SERVERID')}: ") for problem in found)
    assert str(refused.value).startswith(f"{len(parts)} problems:\n  - cookie")
    assert all(problem in str(refused.value) for problem in found)


# -- right, and what it comes to

RIGHT = [
    pytest.param({"secret": SECRET}, id="nothing but a secret"),
    pytest.param({"secret": [SECRET, OTHER.encode()]}, id="several secrets"),
    pytest.param({"signed": False}, id="plain"),
    pytest.param({"signed": True, "secret": SECRET}, id="signed, said aloud"),
    pytest.param({"mode": "passive"}, id="passive needs no secret"),
    pytest.param({"mode": "passive", "signed": False}, id="passive, not signed"),
    pytest.param({"mode": "passive", "indirect": True, "preserve": True}, id="passive indirect preserve"),
    pytest.param(
        {"mode": "prefix", "secret": SECRET, "indirect": True, "preserve": True}, id="prefix indirect preserve"
    ),
    pytest.param(
        {"mode": "rewrite", "secret": SECRET, "maxidle": "30m", "maxlife": "8h"}, id="signed rewrite with dates"
    ),
    pytest.param({"mode": "rewrite", "signed": False}, id="plain rewrite"),
    pytest.param({"signed": False, "opaque": True, "secret": SECRET}, id="opaque, keyed but not signed"),
    pytest.param({"signed": False, "maxidle": "30m", "maxlife": "8h"}, id="plain dates"),
    pytest.param({"secret": SECRET, "max_age": 1}, id="the shortest time"),
    pytest.param({"secret": SECRET, "maxlife": "2147483647s", "maxidle": 2147483647}, id="the longest time"),
    pytest.param({"secret": SECRET, "refresh": "never", "maxlife": 60}, id="a fixed end"),
    pytest.param({"secret": SECRET, "refresh": "never", "max_age": 60}, id="a fixed age"),
    pytest.param(
        {"secret": SECRET, "domain": [".a.example", "b"], "attr": ("Priority=High", "X=1")},
        id="several domains and attributes",
    ),
    pytest.param({"secret": SECRET, "samesite": "None"}, id="SameSite=None is secure by itself"),
    pytest.param({"secret": SECRET, "partitioned": True}, id="Partitioned is secure by itself"),
    pytest.param({"secret": SECRET, "samesite": None}, id="nothing said of sites"),
    pytest.param({"name": "__Host-ID", "secret": SECRET}, id="__Host-"),
    pytest.param({"name": "__Host-ID", "secret": SECRET, "secure": True, "path": "/"}, id="__Host-, said aloud"),
    pytest.param(
        {"name": "__Secure-ID", "secret": SECRET, "path": "/api", "domain": "a.example"},
        id="__Secure- with path and domain",
    ),
    pytest.param({"name": "__Host-ID", "mode": "prefix", "secret": SECRET}, id="__Host- of an application"),
    pytest.param(
        {"name": "__Hosted", "secret": SECRET, "secure": False, "path": "/x"}, id="a name that only begins alike"
    ),
]


@pytest.mark.parametrize("options", RIGHT)
def test_what_can_work_is_accepted_and_equals_the_same_options(options: dict[str, object]):
    cookie = make_cookie(options)
    assert cookie == make_cookie(dict(options))
    assert cookie != Cookie("OTHER", mode="passive")


@pytest.mark.parametrize(
    "options, is_secure, same_site",
    [
        pytest.param({"secret": SECRET}, "auto", "Lax", id="signed"),
        pytest.param({"signed": False}, False, None, id="plain"),
        pytest.param({"secret": SECRET, "secure": True}, True, "Lax", id="as asked"),
        pytest.param({"secret": SECRET, "secure": False, "samesite": None}, False, None, id="less, as asked"),
        pytest.param({"secret": SECRET, "samesite": "None"}, True, "None", id="SameSite=None"),
        pytest.param({"signed": False, "samesite": "None"}, True, "None", id="plain SameSite=None"),
        pytest.param({"secret": SECRET, "samesite": "strict"}, "auto", "Strict", id="in Starlette's spelling"),
        pytest.param({"secret": SECRET, "samesite": "none"}, True, "None", id="SameSite=None in Starlette's spelling"),
        pytest.param({"signed": False, "partitioned": True}, True, None, id="plain Partitioned"),
        pytest.param({"signed": False, "name": "__Host-A"}, True, None, id="plain __Host-"),
        pytest.param({"signed": False, "name": "__SECURE-A"}, True, None, id="plain __Secure- in capitals"),
    ],
)
def test_secure_and_samesite_by_default(options: dict[str, object], is_secure: object, same_site: object):
    (cookie,) = make_cookie(options).settings().written
    assert (cookie.secure, cookie.samesite) == (is_secure, same_site)


@pytest.mark.parametrize(
    "mode, inserts, is_indirect",
    [("insert", True, True), ("rewrite", False, False), ("prefix", False, False), ("passive", False, False)],
)
def test_defaults_belong_to_insert(mode: str, inserts: bool, is_indirect: bool):
    settings = make_cookie({"mode": mode} if mode == "passive" else {"mode": mode, "secret": SECRET}).settings()
    assert (settings.mode.inserts, settings.is_indirect, settings.is_signed) == (
        inserts,
        is_indirect,
        mode != "passive",
    )
    (cookie,) = settings.written
    assert (cookie.path, cookie.domains, cookie.attr, settings.preserves) == ("/", (), (), False)


def test_secret_of_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STICKY_SECRET", SECRET)
    assert Cookie("SERVERID").settings().keys == (SECRET.encode(),)
    assert Cookie("SERVERID", secret=OTHER).settings().keys == (OTHER.encode(),)
    assert Cookie("SERVERID", signed=False).settings().keys == ()
    assert Cookie("SERVERID", mode="passive").settings().keys == ()


def test_two_secrets_make_two_cookies():
    assert Cookie("SERVERID", secret=SECRET) == Cookie("SERVERID", secret=SECRET)
    assert Cookie("SERVERID", secret=SECRET) != Cookie("SERVERID", secret=OTHER)
    assert Cookie("SERVERID", secret=SECRET, path="/") != Cookie("SERVERID", secret=SECRET), (
        "what was asked, not what it comes to"
    )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"secret": SECRET}, id="one secret"),
        pytest.param({"secret": SECRET.encode()}, id="bytes"),
        pytest.param({"secret": [OTHER, SECRET]}, id="several secrets"),
        pytest.param({"secret": SECRET, "opaque": True, "signed": False}, id="a secret for opaque ids"),
        # HAProxy calls it a secret key as well: with it every server's id is known
        pytest.param({"signed": False, "dynamic": SECRET}, id="the key of dynamic ids"),
    ],
)
def test_a_secret_is_in_no_repr(options: dict[str, object]):
    cookie = make_cookie(options)
    backend = Backend("web", [Server("s1", app, cookie="A")], persist=cookie)
    for thing in (cookie, backend, backend.config, backend.persistence):
        assert SECRET not in repr(thing)
        assert OTHER not in repr(thing)


@pytest.mark.parametrize("secret", ["0123456789abcde", ["0123456789abcde", SECRET]])
def test_refused_secret_is_not_shown(secret: object):
    (problem,) = problems(secret=secret)
    assert "0123456789abcde" not in problem
    assert SECRET not in problem


# -- over servers: what the ids make impossible


@pytest.mark.parametrize(
    "options, server, problem",
    [
        pytest.param(
            {"signed": False},
            Server("s1", app, cookie="a|b"),
            "'|' in cookie 'a|b' would begin the dates there",
            id="a bar",
        ),
        pytest.param(
            {"secret": SECRET},
            Server("s1", app, cookie="a|b"),
            "'|' in cookie 'a|b' would begin the dates there",
            id="a bar, signed",
        ),
        pytest.param(
            {"secret": SECRET},
            Server("s1", app, cookie="a@b"),
            "'@' in cookie 'a@b' would begin the instance of a replica there",
            id="an at sign, signed",
        ),
        pytest.param(
            {"mode": "prefix", "signed": False},
            Server("s1", app, cookie="a~b"),
            "'~' in cookie 'a~b' would end the prefix there",
            id="a tilde in prefix mode",
        ),
        pytest.param(
            {"signed": False, "dynamic": "k"},
            Server("s1", app),
            "dynamic needs the address of server s1 (it is an app)",
            id="dynamic over an app",
        ),
        pytest.param(
            {"signed": False, "dynamic": "k"},
            Server("s1", "unix:/run/x"),
            "dynamic needs the address of server s1 (it is a UNIX socket)",
            id="dynamic over a UNIX socket",
        ),
        pytest.param(
            {"signed": False, "dynamic": "k"},
            Server("s1", "http://shop.example"),
            "dynamic needs the address of server s1",
            id="dynamic over a name",
        ),
    ],
)
def test_id_that_could_be_parsed_wrongly_is_refused(options: dict[str, object], server: Server, problem: str):
    with pytest.raises(ConfigError) as refused:
        Backend("web", [server, Server("s2", app, cookie="fine")], persist=make_cookie(options))
    (only,) = refused.value.problems
    assert only.startswith("backend web: cookie SERVERID: ")
    assert problem in only


@pytest.mark.parametrize(
    "options, cookie",
    [
        pytest.param({"signed": False}, "a@b", id="an at sign, plain"),
        pytest.param({"signed": False}, "a~b", id="a tilde, inserted"),
        pytest.param({"mode": "prefix", "signed": False}, "a|b", id="a bar in prefix mode"),
        pytest.param({"secret": SECRET}, "a.b.c", id="dots, signed"),
    ],
)
def test_id_that_cannot_be_parsed_wrongly_is_accepted(options: dict[str, object], cookie: str):
    Backend("web", [Server("s1", app, cookie=cookie)], persist=make_cookie(options))


def test_a_server_with_an_id_of_its_own_needs_no_address():
    Backend("web", [Server("s1", app, cookie="A")], persist=Cookie("SERVERID", signed=False, dynamic="k"))
