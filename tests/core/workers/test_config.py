"""The options of StickyWorkers, and which processes can have peers."""

import os

import pytest

from sticky_core.errors import ConfigError
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.samples import response as res
from sticky_core.samples.request import hdr, json_field, url_param
from sticky_core.workers.config import WorkersConfig, can_have_peers
from sticky_core.workers.directory import app_digest
from tests.core.samples.requests import make_request

SECRET = "a-secret-of-sixteen-bytes-at-least"


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"name": "a b"}, "name 'a b' is made of"),
        ({"on_lost": "cry"}, "on_lost 'cry' is neither"),
        ({"cookie": None}, "neither a cookie nor a key"),
        ({"cookie": "a b"}, "a cookie's name is made of"),
        ({"cookie": Cookie("X", secret=SECRET), "secret": SECRET}, "secret has no effect beside a Cookie"),
        ({"cookie": Cookie("X", signed=False)}, "need a signed cookie in mode insert"),
        ({"cookie": Cookie("X", mode="prefix", secret=SECRET)}, "need a signed cookie in mode insert"),
        ({"secret": "short"}, "a secret shorter than 16 bytes"),
        ({"on_lost": "gone"}, "a secret that the workers generate does not survive one"),
        ({"on_lost": "gone", "cookie": None, "key": "src"}, "has no effect without a cookie"),
        ({"slots": 4}, "no effect without key="),
        ({"key": "src", "slots": 0}, "slots 0 is not within 1..128"),
        ({"key": "src", "slots": "four"}, "slots 'four' is not within 1..128"),
        ({"key": "nonsense"}, "sample 'nonsense' is not known"),
        ({"key": 3}, "key 3 is not a sample"),
        ({"key": "/rooms"}, "nothing in braces"),
        ({"key": []}, "key is an empty list"),
        ({"key": ["hdr(X)", "/rooms"]}, "nothing in braces"),
        ({"key": [hdr("X"), 3]}, "key 3 is not a sample"),
        ({"key": hdr}, "is not a sample"),
        ({"key": res.hdr("X")}, "is a sample of responses, and belongs into learn="),
        ({"key": "src", "learn": "hdr(X)"}, "sample 'hdr(X)' is not known: write res.hdr"),
        ({"key": "src", "learn": json_field("sid")}, "is a sample of requests"),
        ({"key": "src", "learn": [3]}, "learn 3 is not a sample"),
        ({"key": "src", "learn": res.json_field}, "is not a sample"),
        ({"learn": res.json_field("sid")}, "learn has no effect without key="),
        ({"key": "src", "slots": 2, "learn": res.json_field("sid")}, "learn has no effect beside slots="),
        ({"drain": 0}, "drain 0 is not above 0"),
        ({"drain": "soon"}, "drain: 'soon' is not a duration"),
    ],
)
def test_options_that_cannot_work_are_reported_with_the_way_out(options, problem, monkeypatch):
    monkeypatch.delenv("STICKY_SECRET", raising=False)
    with pytest.raises(ConfigError) as caught:
        WorkersConfig(**options)
    assert problem in str(caught.value)


def signing_keys(cookie):
    return cookie.settings().keys


def test_secret_is_the_configured_one_else_the_environments_else_a_generated_one(monkeypatch):
    monkeypatch.delenv("STICKY_SECRET", raising=False)
    assert WorkersConfig().needs_generated_secret
    assert signing_keys(WorkersConfig().build_cookie("made" * 8)) == (b"made" * 8,)
    assert not WorkersConfig(secret=SECRET).needs_generated_secret
    monkeypatch.setenv("STICKY_SECRET", SECRET)
    assert not WorkersConfig(on_lost="gone").needs_generated_secret
    assert signing_keys(WorkersConfig().build_cookie("")) == (SECRET.encode(),)


@pytest.mark.parametrize(
    "options, spawned, software, expected",
    [
        pytest.param({}, False, "", False, id="server of one process"),
        pytest.param({}, True, "", True, id="child process of multiprocessing"),
        pytest.param({}, False, "gunicorn/27.0", True, id="gunicorn"),
        pytest.param({"name": "group"}, False, "", True, id="named group"),
    ],
)
def test_process_can_have_peers_if_it_may_be_one_of_several_workers(options, spawned, software, expected):
    assert can_have_peers(WorkersConfig(**options), spawned, software) is expected


def cookie_name(**options):
    config = WorkersConfig(**options)
    cookie = config.build_cookie("made" * 8)
    assert cookie is not None
    return cookie.name


def test_default_cookie_has_one_name_for_each_app_as_browsers_do_not_tell_ports_apart():
    apps = [
        {"app": "main:FastAPI"},
        {"app": "admin:FastAPI"},
        {"app": "main:FastAPI", "face": "wsgi"},
        {"app": "main:FastAPI", "name": "shop"},
        {"app": "main:FastAPI", "name": "cart"},
    ]
    names = [cookie_name(**app) for app in apps]
    assert len(set(names)) == len(apps)
    assert names[0] == cookie_name(**apps[0]) == f"STICKYWORKER_{app_digest(None, 'main:FastAPI', 'asgi')}"


@pytest.mark.parametrize(
    "cookie, expected",
    [
        pytest.param("SHOP", "SHOP", id="as it stands"),
        pytest.param("SHOP_*", f"SHOP_{app_digest(None, 'main:app', 'asgi')}", id="with a star at the end"),
        pytest.param(Cookie("SHOP*", secret=SECRET), "SHOP*", id="a Cookie as it stands"),
    ],
)
def test_explicit_cookie_has_the_name_that_is_written(cookie, expected):
    assert cookie_name(cookie=cookie, app="main:app") == expected


def test_name_on_a_system_without_lock_files_is_refused_at_construction_and_one_process_is_not(monkeypatch):
    monkeypatch.delattr(os, "geteuid")
    WorkersConfig()
    with pytest.raises(ConfigError, match="leave StickyWorkers out here"):
        WorkersConfig(name="shop")


def test_key_may_be_a_list_of_samples_of_which_the_first_that_finds_a_key_counts():
    sample = WorkersConfig(key=["hdr(Mcp-Session-Id)", url_param("session_id"), "/rooms/{id}"]).build_sample()
    assert sample is not None
    assert sample(make_request(headers=[("mcp-session-id", "h")], path="/rooms/r", query="session_id=q")) == "h"
    assert sample(make_request(path="/rooms/r", query="session_id=q")) == "q"
    assert sample(make_request(path="/rooms/r")) == "r"
    assert sample(make_request()) is None
    assert WorkersConfig(key=[hdr("X")]).build_sample() == WorkersConfig(key=hdr("X")).build_sample() == hdr("X")


@pytest.mark.parametrize(
    "learn, samples, from_bodies",
    [
        (None, (), False),
        ("res.hdr(X)", (res.hdr("X"),), False),
        (res.json_field("sid"), (res.json_field("sid"),), True),
        (["res.cook(a)", res.sse_endpoint("id")], (res.cook("a"), res.sse_endpoint("id")), True),
        ([], (), False),
    ],
    ids=repr,
)
def test_learn_may_be_one_or_several_samples_of_responses(learn, samples, from_bodies):
    config = WorkersConfig(key="url_param(id)", learn=learn)
    assert (config.build_learn(), config.learns_from_bodies) == (samples, from_bodies)
