"""Well-known load balancers, by their names: each statement about AWS's and nginx's stickiness is a row, on both
faces. Ids begin with the balancer; those that end in `-ours` are where we differ on purpose, with the reason beside.

In every row balance chooses s2: a client that gets s1 was recognised. `{s1}` and `{s2}` are the values that name them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient
from werkzeug.test import Client as WsgiBrowser

from sticky_asgi import Cookie, Follow, NginxCookie, alb, elb
from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.decision import Decision
from sticky_core.errors import Failure, ServerFailure
from sticky_core.persistence.persistence import Persist
from sticky_core.server.state import AdminState, Health

if TYPE_CHECKING:
    from tests.faces.conftest import Client, Face

SECRET = "a secret of some length"
NOW = 1_795_279_552  # Sat, 21 Nov 2026 16:45:52 GMT
DAY = 86_400

DURATION = elb(duration="1h", secret=SECRET)
BROWSER = elb(secret=SECRET)
POLICY = elb(application="SID", secret=SECRET)
ALB = alb(duration="1h", secret=SECRET)
DEFAULT = alb(secret=SECRET)
APP = alb(application="SID", secret=SECRET)
NGINX = NginxCookie("route")

WEEK = "Sat, 28 Nov 2026 16:45:52 GMT"
GONE = "Expires=Thu, 01-Jan-1970 00:00:01 GMT"


def pair(first: str, second: str, behind: str, also: str = "", server: str = "{s2}") -> tuple[str, str]:
    """Return the Set-Cookie values of two cookies with the same value."""
    return f"{first}={server}{behind}", f"{second}={server}{behind}{also}"


def elb_pair(behind: str, server: str = "{s2}") -> tuple[str, str]:
    return pair("AWSELB", "AWSELBCORS", behind, "; Secure; SameSite=None", server)


def alb_pair(expires: str = WEEK, server: str = "{s2}") -> tuple[str, str]:
    return pair("AWSALB", "AWSALBCORS", f"; Expires={expires}; path=/", "; Secure; SameSite=None", server)


@dataclass(frozen=True)
class Row:
    """A request and its response. By default the servers are ready and the app sets no cookie."""

    id: str
    persist: Persist
    sends: str = ""  # the Cookie header
    _: KW_ONLY
    app: Sequence[str] = ()  # the Set-Cookie values of the app
    cookies: Mapping[str, str] = field(default_factory=dict)  # `Server(cookie=…)`, by server
    backup: str = ""
    maxconn: int = 0
    states: Mapping[str, str] = field(default_factory=dict)
    after: float = 0  # seconds from NOW, when the values were made

    server: str = "s2"
    sees: str | None = None  # the Cookie header that the app receives; None: what was sent, without ours
    gets: Sequence[str] = ()  # the Set-Cookie values beside the app's
    letters: str


ELB_DURATION = [
    Row("elb-duration-inserts-both", DURATION, gets=elb_pair("; path=/; Max-Age=3600"), letters="NI"),
    Row("elb-duration-unset-is-a-session-cookie", BROWSER, gets=elb_pair("; path=/"), letters="NI"),
    Row("elb-duration-checked-first", DURATION, "AWSELB={s1}; AWSELBCORS={s1}", server="s1", letters="VN"),
    Row("elb-duration-from-another-site", DURATION, "a=1; AWSELBCORS={s1}", sees="a=1", server="s1", letters="VN"),
    Row("elb-duration-before-cors", DURATION, "AWSELBCORS={s2}; AWSELB={s1}", server="s1", letters="VN"),
    Row("elb-duration-is-not-refreshed", DURATION, "AWSELB={s1}", after=3599, server="s1", letters="VN"),
    Row("elb-duration-is-not-checked-here", DURATION, "AWSELB={s1}", after=30 * DAY, server="s1", letters="VN"),
    Row("elb-duration-unhealthy-gets-a-new-mark", DURATION, "AWSELB={s1}", states={"s1": "down"},
        gets=elb_pair("; path=/; Max-Age=3600"), letters="DI"),
    Row("elb-duration-unreadable", DURATION, "AWSELB=s1", gets=elb_pair("; path=/; Max-Age=3600"), letters="II"),
    # AWS forwards its cookie to the server; here the cookie is removed
    Row("elb-duration-is-not-forwarded-ours", DURATION, "a=1; AWSELB={s1}; AWSELBCORS={s1}; b=2", sees="a=1; b=2",
        server="s1", letters="VN"),
]  # fmt: skip

COPIED = [  # the attributes that our cookie copies from the application's
    ("path", "Path=/shop"),
    ("port", 'Port="80,8080"'),
    ("domain", "Domain=.example.com"),
    ("secure", "Secure"),
    ("httponly", "HttpOnly"),
    ("discard", "Discard"),
    ("max-age", "Max-Age=600"),
    ("expires", "Expires=Sun, 22 Nov 2026 00:00:00 GMT"),
    ("version", "Version=1"),
    ("comment", "Comment=x"),
    ("commenturl", 'CommentURL="http://example.com/"'),
    ("samesite", "SameSite=Lax"),
]

ELB_APPLICATION = [
    Row("elb-app-nothing-without-the-cookie", POLICY, letters="NN"),
    Row("elb-app-nothing-for-another-cookie", POLICY, app=["SIDE=1; Path=/"], letters="NN"),
    Row("elb-app-marks-a-response-that-sets-the-cookie", POLICY, app=["SID=1"], gets=elb_pair(""), letters="NI"),
    *(
        Row(f"elb-app-copies-{name}", POLICY, app=[f"SID=1; {attribute}"], letters="NI",
            gets=(f"AWSELB={{s2}}; {attribute}", f"AWSELBCORS={{s2}}{also}; Secure; SameSite=None"))
        for name, attribute in COPIED
        for also in ["" if name in ("secure", "samesite") else f"; {attribute}"]
    ),
    Row("elb-app-copies-no-other-attribute", POLICY, app=["SID=1; Path=/; Priority=High; Partitioned"],
        gets=elb_pair("; Path=/"), letters="NI"),
    Row("elb-app-escapes-an-underscore-in-a-path", POLICY, app=["SID=a_b; Path=/my_app"],
        gets=elb_pair("; Path=/my%5Fapp"), letters="NI"),
    Row("elb-app-trailing-semicolon", POLICY, app=["SID=1; Path=/;"], letters="NN"),
    Row("elb-app-not-with-each-response", POLICY, "SID=1; AWSELB={s1}", sees="SID=1", server="s1",
        letters="VN"),
    Row("elb-app-new-cookie-sets-ours-again", POLICY, "SID=1; AWSELB={s1}", sees="SID=1", app=["SID=2; Max-Age=60"],
        server="s1", gets=elb_pair("; Max-Age=60", "{s1}"), letters="VU"),
    Row("elb-app-expired-is-not-sticky", POLICY, "AWSELB={s1}", sees="", letters="NN"),
    Row("elb-app-expired-and-a-new-cookie", POLICY, "AWSELB={s1}", sees="", app=["SID=2"], gets=elb_pair(""),
        letters="NI"),
    Row("elb-app-removed-removes-ours", POLICY, "SID=1; AWSELB={s1}", sees="SID=1", server="s1",
        app=["SID=; Path=/shop; Max-Age=0"], letters="VD",
        gets=(f"AWSELB=; {GONE}; Path=/shop", f"AWSELBCORS=; {GONE}; Path=/shop; Secure; SameSite=None")),
    # the mark is sent at once, and not with the next application cookie: there may be none, and the client would go
    # back to the first server when that is up again
    Row("elb-app-unhealthy-stays-with-the-new", POLICY, "SID=1; AWSELB={s1}", sees="SID=1", states={"s1": "down"},
        gets=elb_pair("; path=/"), letters="DI"),
    Row("elb-app-unhealthy-and-a-new-cookie", POLICY, "SID=1; AWSELB={s1}", sees="SID=1", states={"s1": "down"},
        app=["SID=2; Path=/shop"], gets=elb_pair("; Path=/shop"), letters="DI"),
    Row("elb-app-without-ours-is-not-sticky", POLICY, "SID=1", letters="NN"),
]  # fmt: skip

ALB_DURATION = [
    Row("alb-inserts-both", ALB, gets=alb_pair(), letters="NI"),
    Row("alb-resets-both-with-each-response", ALB, "AWSALB={s1}; AWSALBCORS={s1}", server="s1",
        gets=alb_pair(server="{s1}"), letters="VU"),
    Row("alb-from-another-site", ALB, "AWSALBCORS={s1}", server="s1", gets=alb_pair(server="{s1}"), letters="VU"),
    Row("alb-duration-in-the-value-not-over", ALB, "AWSALB={s1}", after=3600, server="s1", letters="VU",
        gets=alb_pair("Sat, 28 Nov 2026 17:45:52 GMT", "{s1}")),
    Row("alb-duration-in-the-value-over", ALB, "AWSALB={s1}", after=3604, letters="EI",
        gets=alb_pair("Sat, 28 Nov 2026 17:45:56 GMT")),
    Row("alb-duration-is-a-day", DEFAULT, "AWSALB={s1}", after=DAY, server="s1", letters="VU",
        gets=alb_pair("Sun, 29 Nov 2026 16:45:52 GMT", "{s1}")),
    Row("alb-duration-of-a-day-is-over", DEFAULT, "AWSALB={s1}", after=DAY + 4, letters="EI",
        gets=alb_pair("Sun, 29 Nov 2026 16:45:56 GMT")),
    Row("alb-unreadable", ALB, "AWSALB=AAAA", gets=alb_pair(), letters="II"),
    Row("alb-unhealthy", ALB, "AWSALB={s1}", states={"s1": "down"}, gets=alb_pair(), letters="DI"),
    Row("alb-deregistered", ALB, "AWSALB={s1}", states={"s1": "maint"}, gets=alb_pair(), letters="DI"),
    Row("alb-server-refuses", ALB, "AWSALB={s1}", states={"s1": "refuses"}, gets=alb_pair(), letters="DI"),
]  # fmt: skip

ALB_NEW = (f"AWSALBAPP-0={{s2}}; Expires={WEEK}; path=/",)
ALB_APPLICATION = [
    Row("alb-app-nothing-without-the-cookie", APP, letters="NN"),
    Row("alb-app-attributes-not-copied", APP, app=["SID=1; Path=/shop; Max-Age=60; HttpOnly"], gets=ALB_NEW,
        letters="NI"),
    Row("alb-app-both-come-back", APP, "SID=1; AWSALBAPP-0={s1}", sees="SID=1", server="s1", letters="VN"),
    Row("alb-app-only-the-name-is-checked", APP, "SID=nonsense; AWSALBAPP-0={s1}", sees="SID=nonsense", server="s1",
        letters="VN"),
    Row("alb-app-without-the-application-cookie", APP, "AWSALBAPP-0={s1}", sees="", letters="NN"),
    Row("alb-app-without-ours", APP, "SID=1", letters="NN"),
    Row("alb-app-of-a-similar-name", APP, "SIDE=1; XSID=1; AWSALBAPP-0={s1}", sees="SIDE=1; XSID=1", letters="NN"),
    Row("alb-app-set-again", APP, "SID=1; AWSALBAPP-0={s1}", sees="SID=1", app=["SID=2"], server="s1",
        gets=(f"AWSALBAPP-0={{s1}}; Expires={WEEK}; path=/",), letters="VU"),
    Row("alb-app-unhealthy-stays-with-the-new", APP, "SID=1; AWSALBAPP-0={s1}", sees="SID=1", states={"s1": "down"},
        gets=ALB_NEW, letters="DI"),
    Row("alb-app-removed", APP, "SID=1; AWSALBAPP-0={s1}", sees="SID=1", app=["SID=; Max-Age=0"], server="s1",
        gets=(f"AWSALBAPP-0=; {GONE}; path=/",), letters="VD"),
]  # fmt: skip


def nginx(**options: object) -> NginxCookie:
    return NginxCookie("route", **options)  # type: ignore[arg-type]


HOUR = "; expires=Sat, 21-Nov-26 17:45:52 GMT; max-age=3600"
ROUTES = {"s1": "a", "s2": "b"}
NGINX_COOKIE = [
    Row("nginx-inserts", NGINX, gets=["route={s2}"], letters="NI"),
    Row("nginx-route-in-place-of-the-md5", NGINX, cookies=ROUTES, gets=["route=b"], letters="NI"),
    Row("nginx-with-each-response", NGINX, "route={s1}", server="s1", gets=["route={s1}"], letters="VU"),
    Row("nginx-bytes-expires", nginx(expires="1h"), gets=["route={s2}" + HOUR], letters="NI"),
    Row("nginx-bytes-expires-moves", nginx(expires="1h"), "route={s1}", after=60, server="s1",
        gets=["route={s1}; expires=Sat, 21-Nov-26 17:46:52 GMT; max-age=3600"], letters="VU"),
    Row("nginx-bytes-expires-max", nginx(expires="max"), letters="NI",
        gets=["route={s2}; expires=Thu, 31-Dec-37 23:55:55 GMT; max-age=315360000"]),
    Row("nginx-bytes-domain", nginx(domain=".example.com"), gets=["route={s2}; domain=.example.com"], letters="NI"),
    Row("nginx-bytes-httponly", nginx(httponly=True), gets=["route={s2}; httponly"], letters="NI"),
    Row("nginx-bytes-secure", nginx(secure=True), gets=["route={s2}; secure"], letters="NI"),
    *(
        Row(f"nginx-bytes-samesite-{word}", nginx(samesite=word), gets=[f"route={{s2}}; samesite={word}"], letters="NI")
        for word in ("strict", "lax", "none")
    ),
    Row("nginx-bytes-path", nginx(path="/"), gets=["route={s2}; path=/"], letters="NI"),
    Row("nginx-bytes-all-in-order", letters="NI",
        persist=nginx(path="/", samesite="lax", secure=True, httponly=True, domain=".example.com", expires="1h"),
        gets=["route={s2}" + HOUR + "; domain=.example.com; httponly; secure; samesite=lax; path=/"]),
    Row("nginx-cookie-is-forwarded", NGINX, "a=1; route={s1}; b=2", server="s1",
        gets=["route={s1}"], letters="VU"),
    Row("nginx-cookie-of-the-app-is-sent-too", NGINX, app=["route=mine; Path=/"], gets=["route={s2}"], letters="NI"),
    Row("nginx-first-occurrence", NGINX, "route={s2}; route={s1}", gets=["route={s2}"], letters="VU"),
    Row("nginx-first-occurrence-even-unknown", NGINX, "route=x; route={s1}", gets=["route={s2}"], letters="II"),
    Row("nginx-unknown", NGINX, "route=x", gets=["route={s2}"], letters="II"),
    Row("nginx-empty", NGINX, "route=", gets=["route={s2}"], letters="II"),
    Row("nginx-down", NGINX, "route={s1}", states={"s1": "down"}, gets=["route={s2}"], letters="DI"),
    Row("nginx-server-refuses", NGINX, "route={s1}", states={"s1": "refuses"}, gets=["route={s2}"], letters="DI"),
    Row("nginx-drain-keeps-its-clients", NGINX, "route={s1}", states={"s1": "drain"}, server="s1",
        gets=["route={s1}"], letters="VU"),
    Row("nginx-full-server-gets-no-request", NGINX, "route={s1}", maxconn=1, states={"s1": "busy"},
        gets=["route={s2}"], letters="DI"),
    Row("nginx-backup-gets-no-request-while-others-are-usable", NGINX, "route={s1}", backup="s1",
        gets=["route={s2}"], letters="II"),
    Row("nginx-backup-gets-requests-when-no-other-is-usable", NGINX, "route={s1}", backup="s1",
        states={"s2": "down"}, server="s1", gets=["route={s1}"], letters="VU"),
    Row("nginx-backup-is-marked-too", NGINX, backup="s1", states={"s2": "down"}, server="s1", gets=["route={s1}"],
        letters="NI"),
]  # fmt: skip

ROWS = [*ELB_DURATION, *ELB_APPLICATION, *ALB_DURATION, *ALB_APPLICATION, *NGINX_COOKIE]


def made(face: Face, row: Row, start: int = 1):
    servers = [
        face.server(
            name,
            cookie=row.cookies.get(name),
            backup=name == row.backup,
            headers=[("set-cookie", text) for text in row.app],
            stateless=True,  # so a value is the same whenever it is made
            maxconn=row.maxconn,
        )
        for name in ("s1", "s2")
    ]
    return face.backend(*servers, persist=row.persist, balance=RoundRobin(start=start), clock=ManualClock(NOW))


def value(face: Face, row: Row, number: int, after: float) -> str:
    """Return the value that names a server."""
    app = ("SID=1",) if isinstance(row.persist, Follow) else ()
    plain = Row(row.id, row.persist, app=app, cookies=row.cookies, letters="NI")
    backend = made(face, plain, start=number)
    assert isinstance(backend.clock, ManualClock)
    backend.clock.advance(after)
    ours = [text for text in face.client(backend)().all("set-cookie") if text not in plain.app]
    return ours[0].partition("=")[2].partition(";")[0]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS])
def test_preset_behaves_as_its_load_balancer(face: Face, row: Row):
    then, now = (
        {name: value(face, row, number, after) for number, name in enumerate(("s1", "s2"))} for after in (0, row.after)
    )
    backend = made(face, row)
    assert isinstance(backend.clock, ManualClock)
    for name, state in row.states.items():
        match state:
            case "down":
                backend[name].health = Health.DOWN
            case "refuses":
                face.apps[name].raises = ServerFailure(Failure.REFUSED)
            case "busy":
                backend[name].in_flight.append(None)
            case _:
                backend[name].state = AdminState(state)
    backend.clock.advance(row.after)
    sends = row.sends.format(**then)
    response = face.client(backend)(cookie=sends or None)
    assert response.server == row.server
    assert [text for text in response.all("set-cookie") if text not in row.app] == [
        text.format(**now) for text in row.gets
    ]
    assert [text for text in response.all("set-cookie") if text in row.app] == [*row.app]
    assert response.letters == row.letters
    assert response.seen is not None
    sees = row.sees if row.sees is not None else "" if "AWS" in sends else sends
    assert response.seen.cookies == ((sees,) if sees else ())


def test_each_row_has_an_id_of_its_own():
    assert [name for name, times in Counter(row.id for row in ROWS).items() if times > 1] == []


def test_values_do_not_name_servers_and_cannot_be_forged(face: Face):
    """AWS encrypts its values; ours do not contain the name of a server, and a client can't forge one."""
    for persist in (DURATION, POLICY, ALB, APP):
        row = Row("", persist, letters="NI")
        text = value(face, row, 0, 0)
        assert "s1" not in text.partition(".")[0]
        name = "AWSELB" if persist in (DURATION, POLICY) else "AWSALB" if persist is ALB else "AWSALBAPP-0"
        forged = ("0" if text[0] != "0" else "1") + text[1:]
        assert face.client(made(face, row))(cookie=f"SID=1; {name}={forged}").letters[0] == "I"


def test_503_without_a_server_has_no_mark(face: Face):
    """nginx marks its own 502 with the server that it tried last; our 503 is from no server, and has no mark."""
    for persist in (NGINX, ALB):
        backend = made(face, Row("", persist, letters=""))
        for server in backend.servers:
            server.health = Health.DOWN
        response = face.client(backend)()
        assert (response.status, response.all("set-cookie")) == (503, [])


def test_client_stays_at_its_new_server_when_the_failed_one_is_back(face: Face):
    for persist in (DURATION, POLICY, ALB, APP, NGINX):
        backend = made(face, Row("", persist, app=["SID=1; Path=/"], letters=""), start=0)
        get = face.client(backend)
        jar: dict[str, str] = {}

        def request(get: Client = get, jar: dict[str, str] = jar) -> str | None:
            response = get(cookie="; ".join(f"{name}={value}" for name, value in jar.items()) or None)
            for text in response.all("set-cookie"):
                name, _, value = text.partition(";")[0].partition("=")
                jar[name] = value
            return response.server

        assert [request(), request()] == ["s1", "s1"]
        face.apps["s2"].headers = ()  # the new one need not begin a session
        backend["s1"].health = Health.DOWN
        assert [request(), request()] == ["s2", "s2"]
        backend["s1"].health = Health.UP
        assert [request(), request()] == ["s2", "s2"]


BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHOWN = BLOCK.findall((Path(__file__).parents[2] / "docs" / "presets.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("shown", [pytest.param(text, id=text.strip().splitlines()[0]) for text in SHOWN])
def test_examples_of_the_documentation_work(face: Face, shown: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STICKY_SECRET", SECRET)
    names: dict[str, Any] = {**vars(face.package), "create_shop": lambda: face.app("shop")}
    exec(shown.replace("sticky_asgi", face.package.__name__), names)
    made = [each for each in names.values() if isinstance(each, face.package.Backend)]
    assert [len(each.config.persist) for each in made] == [1] * shown.count("Backend(")


class Upstream(BaseHTTPRequestHandler):
    """An upstream that returns the Cookie header of its request, and begins a session."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.headers.get("cookie", "").encode()
        self.send_response(200)
        self.send_header("Set-Cookie", "SID=1; Path=/; Max-Age=60")
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def upstreams():
    """Two addresses that respond."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Upstream) for _ in range(2)]
    threads = [Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    yield [server.server_address[1] for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    "persist",
    [
        pytest.param(DURATION, id="elb duration"),
        pytest.param(POLICY, id="elb application"),
        pytest.param(ALB, id="alb duration"),
        pytest.param(APP, id="alb application"),
        pytest.param(NGINX, id="nginx"),
        pytest.param(Follow("SID", Cookie("SRV", secret=SECRET)), id="follow"),
    ],
)
def test_upstreams_are_recognised_like_apps(face: Face, upstreams: list[int], persist: Persist):
    servers = [face.package.Server(f"s{port}", f"http://127.0.0.1:{port}") for port in upstreams]
    decided: list[Decision] = []
    app = face.dispatcher(face.backend(*servers, persist=persist, log=decided.append))
    with browsers(face, app) as browser:
        for server in servers:
            client = browser()
            texts = [client.get("/").text for _ in range(3)]
            assert [each.server for each in decided[-3:]] == [server.name] * 3
            assert "SID=1" in texts[-1]
            assert "AWS" not in texts[-1]


@contextmanager
def browsers(face: Face, app: Callable[..., Any]) -> Iterator[Callable[[], Any]]:
    """Yield a function that returns a new client with its own cookie jar."""
    if face.name == "wsgi":
        yield lambda: WsgiBrowser(app)
        return
    with TestClient(app) as first:  # all on one event loop

        def another() -> TestClient:
            first.cookies.clear()
            return first

        yield another
