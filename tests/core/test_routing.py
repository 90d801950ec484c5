"""Routes: which backend a path belongs to, and which cookies would meet."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.backend.backend import Backend, BackendComponent, BackendConfig
from sticky_core.backend.change import Change
from sticky_core.errors import ConfigError
from sticky_core.persistence.cookie.config import Cookie, FallbackCookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import Persist
from sticky_core.routing import Frontend
from sticky_core.server.server import Server
from tests.counting import count_calls


def app(environ: object, start_response: object) -> list[bytes]:
    return []


def backend(name: str, *persist: Persist) -> Backend:
    return Backend(name, [Server("s1", app)], persist=persist)


def plain(name: str = "SERVERID", **options: object) -> Cookie:
    return Cookie(name, signed=False, **options)  # type: ignore[arg-type]


# -- which backend


@pytest.fixture(scope="module")
def frontend() -> Frontend:
    routes = {"/api": backend("api"), "/api/v2": backend("v2"), "/": backend("rest"), "/shop/cart": backend("cart")}
    return Frontend(routes)


@pytest.mark.parametrize(
    "path, name",
    [
        ("/api", "api"),
        ("/api/", "api"),
        ("/api/x", "api"),
        ("/api//x", "api"),
        ("/apix", "rest"),
        ("/API", "rest"),
        ("/api/v2", "v2"),
        ("/api/v2/", "v2"),
        ("/api/v2/x", "v2"),
        ("/api/v20", "api"),
        ("/api/v", "api"),
        ("/shop/cart/7", "cart"),
        ("/shop", "rest"),
        ("/", "rest"),
        ("", "rest"),
        ("//api", "rest"),
        ("/x/api", "rest"),
        ("api", "rest"),
        ("*", "rest"),
    ],
)
def test_a_route_matches_whole_segments_and_the_longest_wins(frontend: Frontend, path: str, name: str):
    found = frontend.routes.find(path)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("order", [1, -1], ids=["the longer first", "the longer last"])
def test_the_order_in_which_routes_are_written_does_not_matter(order: int):
    routes = [("/api/v2", backend("v2")), ("/api", backend("api"))][::order]
    assert Frontend(dict(routes)).routes.find("/api/v2/x") is dict(routes)["/api/v2"]


PATHS = st.lists(st.sampled_from(["", "a", "b", "ab"]), min_size=1, max_size=5).map("/".join)


@given(st.sets(PATHS.map(lambda path: f"/{path}".rstrip("/") or "/")), st.one_of(PATHS, PATHS.map("/{}".format)))
def test_route_is_the_longest_of_those_that_the_path_begins_with(prefixes: set[str], path: str):
    routes = {prefix: Backend(f"b{number}", [Server("s1", app)]) for number, prefix in enumerate(sorted(prefixes))}
    matching = [prefix for prefix in routes if prefix == "/" or path == prefix or path.startswith(f"{prefix}/")]
    longest = routes[max(matching, key=len)] if matching else None
    assert (Frontend(routes).routes.find(path) if routes else None) is longest


class CountedPath(str):
    """A path that counts how often a part of it is looked up, and how many characters these parts have."""

    lookups = 0
    characters = 0

    def __getitem__(self, key):
        return CountedPath(super().__getitem__(key))

    def __hash__(self):
        CountedPath.lookups += 1
        CountedPath.characters += len(self)
        return super().__hash__()

    def __eq__(self, other):
        return super().__eq__(other)


def cost(frontend: Frontend, path: str) -> tuple[int, int, int]:
    """Return how many calls are made, prefixes looked up and characters hashed to find the route of `path`."""
    CountedPath.lookups = CountedPath.characters = 0
    counted = CountedPath(path)
    frontend.routes.find(counted)
    lookups, characters = CountedPath.lookups, CountedPath.characters
    return count_calls(lambda: frontend.routes.find(path)), lookups, characters


@pytest.mark.parametrize(
    "path, lookups",
    [("/s0", 1), ("/s0/x/y/z", 1), ("/x/y/z", 1), ("/deep/and/deeper", 3), ("/deep/and/deeper/s0/x/y", 4), ("/", 1)],
)
def test_look_ups_are_as_many_as_segments_that_routes_have_whatever_the_number_of_routes(path: str, lookups: int):
    web = backend("web")
    costs = {}
    for number in (10, 1_000, 10_000):
        routes = {f"/s{each}": web for each in range(number)} | {
            f"/deep/and/deeper/s{each}": web for each in range(number)
        }
        costs[number] = cost(Frontend(routes), path)
    assert costs[10] == costs[1_000] == costs[10_000]
    assert costs[10][1] == lookups


@pytest.mark.parametrize("path", ["/" * 50_000, "/a" * 25_000, "/s" + "0" * 50_000])
def test_long_path_is_looked_up_in_linear_time(path: str):
    calls, lookups, characters = cost(Frontend({"/s": backend("web"), "/a/a": backend("api")}), path)
    assert calls < 20 and lookups <= 3 and characters <= len(path)


@pytest.mark.parametrize("path", ["/", "", "/other", "/apix"])
def test_where_no_route_matches_there_is_no_backend(path: str):
    assert Frontend({"/api": backend("api")}).routes.find(path) is None


def test_one_backend_for_every_path():
    web = backend("web")
    frontend = Frontend.build(web, None)
    assert frontend.routes.find("/") is frontend.routes.find("/any/where") is frontend.routes.find("") is web


def test_a_backend_under_two_routes_is_one_backend():
    web, api = backend("web"), backend("api")
    frontend = Frontend.build(None, {"/a": web, "/b": api, "/c": web})
    assert frontend.backends == (web, api)


# -- what cannot work


@pytest.mark.parametrize("route", ["", "api", "/api/", "//", "api/", "http://x/api", "*"])
def test_a_route_that_is_no_path_is_refused(route: str):
    with pytest.raises(ConfigError, match="is no path"):
        Frontend({route: backend("api")})


def test_no_routes_are_refused():
    with pytest.raises(ConfigError, match="routes is empty"):
        Frontend.build(None, {})


@pytest.mark.parametrize("both", [True, False], ids=["both", "neither"])
def test_a_middleware_has_either_a_backend_or_routes(both: bool):
    problem = "a middleware has one backend for every path, or routes" if both else "needs either a backend"
    with pytest.raises(ConfigError, match=problem):
        Frontend.build(backend("web") if both else None, {"/": backend("api")} if both else None)


ROUTE_PATHS = [
    pytest.param("/cart", "/", True, id="the whole host"),
    pytest.param("/cart", "/cart", True, id="the route"),
    pytest.param("/cart/items", "/cart", True, id="a path that contains the route"),
    pytest.param("/cart", "/shop/cart", True, id="the route behind another path"),
    pytest.param("/cart/items", "/shop/cart", True, id="a path that contains the route behind another path"),
    pytest.param("/caf\u00e9", "/caf%C3%A9", True, id="percent-encoded"),
    pytest.param("/", "/shop", True, id="every path, behind another path"),
    pytest.param("/cart", "/shop", False, id="another path"),
    pytest.param("/cart", "/Cart", False, id="another case"),
    pytest.param("/cart", "/cart/", False, id="a slash at the end"),
    pytest.param("/cart", "/cart/items", False, id="a part of the route"),
    pytest.param("/cart", "/car", False, id="a part of a segment"),
    pytest.param("/cart", "/shopcart", False, id="the end of a segment"),
    pytest.param("/cart", "/shop/cart/", False, id="behind another path with a slash at the end"),
]

WITH_PATH: dict[str, Callable[[str], Persist]] = {
    "Cookie": lambda path: plain(path=path),
    "fallback": lambda path: plain(path=path, fallback=FallbackCookie("B")),
    "NginxCookie": lambda path: NginxCookie("route", path=path),
    "Follow with attributes of its own": lambda path: Follow("SID", plain(path=path), attributes="own"),
    "Follow with copied attributes": lambda path: Follow("SID", plain(path=path)),
}


@pytest.mark.parametrize("route, path, covers", ROUTE_PATHS)
@pytest.mark.parametrize("persist", WITH_PATH.values(), ids=WITH_PATH)
def test_cookie_that_browsers_do_not_send_to_its_route_is_refused(
    persist: Callable[[str], Persist], route: str, path: str, covers: bool
):
    cart = backend("cart", persist(path))
    if covers:
        Frontend({route: cart})
        return
    with pytest.raises(ConfigError) as refused:
        Frontend({route: cart})
    assert refused.value.problems[0].startswith("backend cart: browsers would not send cookie ")
    assert f"with path={path!r} to the route {route!r}" in refused.value.problems[0]
    assert f"leave path out, or write path={route!r}" in refused.value.problems[0]


def test_path_of_a_cookie_that_only_the_application_sets_is_the_application_s():
    Frontend({"/cart": backend("cart", plain(mode="passive"), Cookie("SID", mode="prefix", secret="a" * 20))})


def test_path_has_to_cover_all_routes_of_the_backend():
    cart = backend("cart", plain(path="/cart"))
    with pytest.raises(ConfigError, match="to the route '/basket'"):
        Frontend({"/cart": cart, "/basket": cart})


def test_change_to_a_path_that_does_not_cover_the_route_is_refused():
    cart = backend("cart", plain())
    frontend = Frontend({"/cart": cart})
    with pytest.raises(ConfigError, match="browsers would not send cookie SERVERID with path='/basket'"):
        cart.apply(replace(cart.config, persist=(plain(path="/basket"),)))
    cart.apply(replace(cart.config, persist=(plain(path="/cart"),)))
    assert frontend.routes.find("/cart") is cart


def test_two_backends_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="two backends are called web"):
        Frontend({"/a": backend("web"), "/b": backend("web")})


def test_every_problem_is_told_at_once():
    with pytest.raises(ConfigError) as refused:
        Frontend({"a": backend("web", plain()), "/b/": backend("web", plain())})
    assert len(refused.value.problems) == 4


MEET = "both insert a cookie SERVERID"


@pytest.mark.parametrize(
    "one, other",
    [
        pytest.param(plain(), plain(), id="the whole site"),
        pytest.param(plain(), plain(path="/api"), id="the whole site and a part"),
        pytest.param(plain(path="/api"), plain(path="/api"), id="one path"),
        pytest.param(plain(path="/api"), plain(path="/api/"), id="one path with a slash"),
        pytest.param(plain(path="/api"), plain(path="/api/v2"), id="a path inside another"),
        pytest.param(plain(domain="a.example"), plain(domain="a.example"), id="one domain"),
        pytest.param(plain(domain="a.example"), plain(), id="a domain and whichever"),
        pytest.param(
            plain(domain=["a.example", "b.example"]), plain(domain=["b.example"]), id="one of several domains"
        ),
        # RFC 6265, 5.2.3: a leading dot is ignored, and letters are compared in lower case
        pytest.param(plain(domain=".a.example"), plain(domain="a.example"), id="one domain with a dot"),
        pytest.param(plain(domain="A.example"), plain(domain="a.example"), id="one domain in other letters"),
        pytest.param(plain("A", fallback=FallbackCookie("SERVERID")), plain(), id="a fallback"),
        pytest.param(Follow("SID", plain(), attributes="own"), plain(), id="one that follows another"),
        pytest.param(NginxCookie("SERVERID", path="/"), plain(path="/api"), id="nginx's"),
    ],
)
@pytest.mark.parametrize("turned", [False, True], ids=["", "the other way round"])
def test_two_cookies_of_one_name_that_a_browser_would_mix_up_are_refused(one: Persist, other: Persist, turned: bool):
    first, second = (other, one) if turned else (one, other)
    with pytest.raises(ConfigError, match=MEET) as refused:
        Frontend({"/a": backend("web", first), "/b": backend("api", second)})
    assert "give one another name, or each the path of its route" in str(refused.value)


@pytest.mark.parametrize(
    "one, other",
    [
        pytest.param(plain("A"), plain("B"), id="two names"),
        pytest.param(plain("a"), plain("A"), id="names in other letters"),
        pytest.param(plain(path="/api"), plain(path="/shop"), id="two paths"),
        pytest.param(plain(path="/api"), plain(path="/apix"), id="a path that only begins alike"),
        pytest.param(plain(domain="a.example"), plain(domain="b.example"), id="two domains"),
        pytest.param(plain(), Cookie("SERVERID", mode="passive"), id="one that we never insert"),
        pytest.param(plain(mode="prefix"), plain(mode="prefix"), id="cookies of applications"),
        pytest.param(Follow("SID", plain()), plain(), id="one with a path that the application decides"),
        pytest.param(NginxCookie("SERVERID"), plain(), id="one with a path that browsers decide"),
        pytest.param(NginxCookie("SERVERID", path="/a", domain="a.example"), plain(path="/b"), id="nginx's elsewhere"),
    ],
)
def test_cookies_that_cannot_meet_are_left_alone(one: Persist, other: Persist):
    Frontend({route_of(one, "/a"): backend("web", one), route_of(other, "/b"): backend("api", other)})


def route_of(persist: Persist, route: str) -> str:
    """Return the path of the cookie, or `route` if it has none."""
    path = getattr(persist, "path", None)
    return path if isinstance(path, str) else route


def test_one_backend_under_two_routes_does_not_meet_itself():
    web = backend("web", plain())
    Frontend({"/a": web, "/b": web})


def test_all_of_a_backend_s_cookies_are_compared():
    with pytest.raises(ConfigError, match="both insert a cookie B"):
        Frontend({"/a": backend("web", plain("A"), plain("B")), "/b": backend("api", plain("B"), plain("C"))})


def test_what_is_no_backend_is_told_so():
    with pytest.raises(ConfigError, match=r"is no Backend: write Backend\(name, servers="):
        Frontend({"/": [Server("s1", app)]})  # type: ignore[dict-item]


# -- what is changed later


def test_change_of_a_backend_is_checked_against_cookies_of_other_backends():
    web, api, far = backend("web", plain("A")), backend("api", plain("B"), plain("C")), backend("far", plain("A"))
    frontend = Frontend({"/a": web, "/b": api})
    Frontend({"/": far})
    before = web.config, web.snapshot
    asked = replace(web.config, name="else", persist=(plain("B"), plain("C")))
    for change in (web.apply, web.plan):
        with pytest.raises(ConfigError) as refused:
            change(asked)
        assert [
            ("the configuration is that of backend" in each, "both insert a cookie" in each)
            for each in refused.value.problems
        ] == [
            (True, False),
            (False, True),
            (False, True),
        ]
    assert (web.config, web.snapshot) == before
    web.apply(replace(web.config, persist=(plain("D"),)))
    api.apply(replace(api.config, persist=(plain("A"),)))
    with pytest.raises(ConfigError, match="backends web and api both insert a cookie A"):
        web.apply(replace(web.config, persist=(plain("A"),)))
    del frontend
    gc.collect()
    web.apply(replace(web.config, persist=(plain("A"),)))


class Slow(BackendComponent):
    """What takes its time to be ready."""

    def __init__(self, backend: Backend) -> None:
        self.ready: Callable[[Exception | None], None]

    def prepare(self, change: Change, on_ready: Callable[[Exception | None], None]) -> None:
        self.ready = on_ready


@pytest.mark.parametrize("succeeds", [True, False])
def test_prepared_config_of_another_backend_counts_until_its_change_is_decided(succeeds: bool):
    web, api = backend("web", plain("A")), backend("api", plain("B"))
    routes = Frontend({"/a": web, "/b": api})
    slow = web.component(Slow)
    change = web.apply(replace(web.config, persist=(plain("C"),)))
    for name in ("A", "C"):
        with pytest.raises(ConfigError, match=f"both insert a cookie {name}"):
            api.apply(replace(api.config, persist=(plain(name),)))
    slow.ready(None if succeeds else RuntimeError("no luck"))
    assert change.is_in_force is succeeds and routes.backends == (web, api)
    api.apply(replace(api.config, persist=(plain("A" if succeeds else "C"),)))


def test_in_a_forked_child_nothing_is_about_to_be():
    web, api = backend("web", plain("A")), backend("api", plain("B"))
    routes = Frontend({"/a": web, "/b": api})
    web.component(Slow)
    web.apply(replace(web.config, persist=(plain("C"),)))
    web.after_fork()
    api.apply(replace(api.config, persist=(plain("C"),)))
    assert routes.backends == (web, api)


class Rival(BackendComponent):
    """Changes the other backend at the moment in which this one changes: after the new configuration was checked, and
    before it is in force.
    """

    def __init__(self, backend: Backend) -> None:
        self.acts: Callable[[], object] = lambda: None

    def config_problems(self, config: BackendConfig) -> Iterator[str]:
        self.acts()
        yield from ()


def test_of_two_that_change_at_the_same_moment_one_gives_way():
    web, api = backend("web", plain("A")), backend("api", plain("B"))
    routes = Frontend({"/a": web, "/b": api})
    api.component(Rival).acts = lambda: web.apply(replace(web.config, persist=(plain("C"),)))
    with pytest.raises(ConfigError, match="both insert a cookie C"):
        api.apply(replace(api.config, persist=(plain("C"),)))
    assert [each.config.cookie_scopes[0].name for each in routes.backends] == ["C", "B"]


def test_a_frontend_that_was_refused_does_not_restrict_its_backends():
    web, api = backend("web", plain("A")), backend("api", plain("A"))
    with pytest.raises(ConfigError) as refused:
        Frontend({"/a": web, "/b": api})
    web.apply(replace(web.config, persist=(plain("B"),)))
    api.apply(replace(api.config, persist=(plain("B"),)))
    assert refused.value.problems


def test_a_cookie_that_its_backend_has_given_up_may_be_inserted_by_another():
    web, api = backend("web", plain("A")), backend("api", plain("B"))
    routes = Frontend({"/a": web, "/b": api})
    for number in range(2):
        web.apply(replace(web.config, persist=(plain(f"C{number}"),)))
        api.apply(replace(api.config, persist=(plain("A"),)))
        api.apply(replace(api.config, persist=(plain("B"),)))
        web.apply(replace(web.config, persist=(plain("A"),)))
    assert routes.backends == (web, api)


# -- what many backends cost


def many(count: int, cookie: Callable[[int], Cookie]) -> dict[str, Backend]:
    return {f"/p{number}": backend(f"b{number}", cookie(number)) for number in range(count)}


COOKIES = [
    pytest.param(lambda number: plain(f"A{number}"), id="other names"),
    pytest.param(lambda number: plain(path=f"/p{number}"), id="other paths"),
    pytest.param(lambda number: plain(domain=f"p{number}.example"), id="other domains"),
]


@pytest.mark.parametrize("cookie", COOKIES)
def test_twice_as_many_backends_cost_twice_as_much(cookie: Callable[[int], Cookie]):
    one, two = (count_calls(partial(Frontend, many(count, cookie))) for count in (20, 40))
    assert two < 2.2 * one


def test_the_clashes_of_twice_as_many_backends_are_found_at_twice_the_cost():
    refused: list[ConfigError] = []

    def refuse(routes: dict[str, Backend]) -> None:
        with pytest.raises(ConfigError) as error:
            Frontend(routes)
        refused.append(error.value)

    one, two = (count_calls(partial(refuse, many(count, lambda number: plain()))) for count in (20, 40))
    assert [len(error.problems) for error in refused] == [19, 39]
    assert two < 2.2 * one


@pytest.mark.parametrize("cookie", COOKIES)
def test_another_cookie_of_a_backend_costs_the_same_however_many_others_there_are(cookie: Callable[[int], Cookie]):
    costs: list[int] = []
    for count in (10, 10, 40):  # the first fills caches, such as that of the log's levels
        routes = many(count, cookie)
        frontend = Frontend(routes)
        changed = frontend.backends[3]
        costs.append(count_calls(partial(changed.apply, replace(changed.config, persist=(plain("New"),)))))
    assert costs[1] == costs[2]
