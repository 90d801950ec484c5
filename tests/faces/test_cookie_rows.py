"""HAProxy's cookie persistence, to the byte, on both faces: one row per statement of what it does
(configuration manual, 4.2 `cookie`, and what its 3.5 was seen to send). The first part of an id is a chapter:
1.1 claims, 1.2 when a cookie is inserted, 1.3 nocache, 1.4 dates, 1.5 what the server sees, 1.6 rewrite,
1.7 prefix, 1.8 passive.

Ids that end in `-ours` are where we differ on purpose; what HAProxy does stands beside them. Statements that
need parts that do not exist yet are in `NOT_YET`. `STATEMENTS` lists all; the last tests check that.

In every row server s1 is called A, s2 is called B, and balance chooses s2: a client that gets s1 was recognised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from sticky_core.balance import RoundRobin
from sticky_core.clock import ManualClock
from sticky_core.errors import ConfigError, Failure, ServerFailure
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState, Health

if TYPE_CHECKING:
    from tests.faces.conftest import AsgiClient, Face

Headers = tuple[tuple[str, str], ...]
T = TypeVar("T")

NOW = 1_700_000_000  # is ZVPxA


def date(seconds: int) -> str:
    """The date that many seconds from now: a count of four seconds, rounded up, in five characters."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    units, text = (NOW + seconds + 3) // 4, ""
    for _ in range(5):
        units, digit = divmod(units, 64)
        text = alphabet[digit] + text
    return text


# HAProxy's options, spelled out; the comment is its line

INSERT = Cookie("SRV", signed=False, indirect=False, nocache=False)  # cookie SRV insert
INDIRECT = Cookie("SRV", signed=False, indirect=True, nocache=False)  # cookie SRV insert indirect
NOCACHE = Cookie("SRV", signed=False, indirect=False, nocache=True)  # cookie SRV insert nocache
POSTONLY = Cookie("SRV", signed=False, indirect=False, nocache=False, postonly=True)  # ... insert postonly
PRESERVE = Cookie("SRV", signed=False, indirect=False, nocache=False, preserve=True)  # ... insert preserve
REWRITE = Cookie("SRV", signed=False, mode="rewrite")  # cookie SRV rewrite
PREFIX = Cookie("JSESSIONID", signed=False, mode="prefix")  # cookie JSESSIONID prefix
PREFIX_INDIRECT = Cookie("JSESSIONID", signed=False, mode="prefix", indirect=True)  # ... prefix indirect
PASSIVE = Cookie("SRV", mode="passive")  # cookie SRV
PASSIVE_INDIRECT = Cookie("SRV", mode="passive", indirect=True)  # cookie SRV indirect
PASSIVE_PRESERVE = Cookie("SRV", mode="passive", indirect=True, preserve=True)  # cookie SRV indirect preserve

# cookie SRV insert maxidle 60, ... maxlife 600, ... maxidle 60 maxlife 600, and with further options
IDLE = Cookie("SRV", signed=False, indirect=False, nocache=False, maxidle=60)
LIFE = Cookie("SRV", signed=False, indirect=False, nocache=False, maxlife=600)
BOTH = Cookie("SRV", signed=False, indirect=False, nocache=False, maxidle=60, maxlife=600)
IDLE_INDIRECT = Cookie("SRV", signed=False, indirect=True, nocache=False, maxidle=60)
IDLE_POSTONLY = Cookie("SRV", signed=False, indirect=False, nocache=False, postonly=True, maxidle=60)
IDLE_PRESERVE = Cookie("SRV", signed=False, indirect=False, nocache=False, preserve=True, maxidle=60)

# ... insert domain .a.example domain .b.example httponly secure attr SameSite=None attr Priority=High
DRESSED = Cookie(
    "SRV",
    signed=False,
    indirect=False,
    nocache=False,
    domain=[".a.example", ".b.example"],
    httponly=True,
    secure=True,
    attr=["SameSite=None", "Priority=High"],
)

NEW = "SRV=B; path=/"
ATTRIBUTES = "; domain=.a.example; domain=.b.example; HttpOnly; Secure; SameSite=None; Priority=High"
DELETION = "SRV=; Expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/"
TWO = {"s1": "A", "s2": "B"}
UNNAMED = {"s1": "A", "s2": ""}  # balance chooses one that no cookie can name


def always(request: object) -> bool:
    return True


IGNORED: Mapping[str, Any] = {"ignore_persist": always}  # ignore-persist if TRUE
USE_S1: Mapping[str, Any] = {"use_server": {"s1": always}}  # use-server s1 if TRUE


@dataclass(frozen=True)
class Row:
    """An exchange. By default the method is GET, the servers are ready, and the app sets no cookie."""

    id: str
    cookie: Cookie
    sends: str | tuple[str, ...] = ()  # Cookie headers
    _: KW_ONLY
    method: str = "GET"
    ids: Mapping[str, str] = field(default_factory=lambda: TWO)
    backup: str = ""
    states: Mapping[str, str] = field(default_factory=dict)
    after: int = 0  # seconds from NOW
    http_version: str = "1.1"
    rules: Mapping[str, Any] = field(default_factory=dict)  # options of the backend
    status: int = 200
    app: Headers = ()  # the headers that the app sends

    server: str = "s2"
    sees: str | tuple[str, ...] | None = None  # None: what was sent
    sees_joined: Mapping[str, str] = field(default_factory=dict)  # by what joins several Cookie headers
    gets: tuple[str, ...] | str = ()  # Set-Cookie headers
    cache: tuple[str, ...] | str = ()  # Cache-Control headers
    letters: str  # HAProxy's letters: claim, mark
    attempts: tuple[str, ...] | None = None  # None: only the server that responded

    def backend(self, face: Face):
        servers = [
            face.server(name, cookie=cookie, backup=name == self.backup, status=self.status, headers=self.app)
            for name, cookie in self.ids.items()
        ]
        clock = ManualClock(NOW)
        made = face.backend(*servers, persist=self.cookie, balance=RoundRobin(start=1), clock=clock, **self.rules)
        for name, state in self.states.items():
            put(face, made[name], state)
        clock.advance(self.after)
        return made


def put(face: Face, server: Server, state: str) -> None:
    match state:
        case "down":
            server.health = Health.DOWN
        case "nolb":
            server.health = Health.NOLB
        case "weight 0":
            server.weight = 0
        case "refuses":
            face.apps[server.name].raises = ServerFailure(Failure.REFUSED)
        case _:
            server.state = AdminState(state)


def several(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


CLAIMS = [  # 1.1
    Row("1.1-first-usable-unknown", INSERT, "SRV=Z; SRV=A", server="s1", letters="VN"),
    Row("1.1-first-usable-empty", INSERT, "SRV=; SRV=A", server="s1", letters="VN"),
    Row("1.1-first-usable-maint", INSERT, "SRV=B; SRV=A", states={"s2": "maint"}, server="s1", letters="VN"),
    Row("1.1-later-does-not-override", INSERT, "SRV=A; SRV=B", server="s1", letters="VN"),
    Row("1.1-several-headers", INSERT, ("SRV=Z", "SRV=A"),
        sees_joined={",": "SRV=Z,SRV=A", "; ": "SRV=Z; SRV=A"}, server="s1", letters="VN"),
    Row("1.1-down-beats-unknown", INSERT, "SRV=A; SRV=Z", states={"s1": "maint"}, gets=NEW, letters="DI"),
    Row("1.1-name-is-case-sensitive", INSERT, "srv=A", gets=NEW, letters="NI"),
    Row("1.1-value-is-case-sensitive", INSERT, "SRV=a", gets=NEW, letters="II"),
    Row("1.1-backup-of-the-same-value", INSERT, "SRV=A", ids={**TWO, "bk": "A"}, backup="bk",
        states={"s1": "down"}, server="bk", letters="VN"),
    Row("1.1-backup-by-its-own-value", INSERT, "SRV=C", ids={**TWO, "bk": "C"}, backup="bk", server="bk",
        letters="VN"),
]  # fmt: skip

INSERTED = [  # 1.2
    # on every final response of a server
    *(
        Row(f"1.2-status-{status}", INSERT, status=status, app=app, gets=NEW, letters="NI")
        for status, app in {200: (), 204: (), 301: (("location", "/x"),), 304: (), 404: (), 500: ()}.items()
    ),
    Row("1.2-head", INSERT, method="HEAD", gets=NEW, letters="NI"),
    # the table
    Row("1.2-none-inserted", INSERT, gets=NEW, letters="NI"),
    Row("1.2-none-inserted-indirect", INDIRECT, gets=NEW, letters="NI"),
    Row("1.2-valid-kept", INSERT, "SRV=A", server="s1", letters="VN"),
    Row("1.2-valid-kept-indirect", INDIRECT, "SRV=A", server="s1", sees=(), letters="VN"),
    Row("1.2-unknown-replaced", INSERT, "SRV=Z", gets=NEW, letters="II"),
    Row("1.2-unknown-replaced-indirect", INDIRECT, "SRV=Z", sees=(), gets=NEW, letters="II"),
    Row("1.2-empty-replaced", INSERT, "SRV=", gets=NEW, letters="II"),
    Row("1.2-quotes-are-part-of-the-value", INSERT, 'SRV="A"', gets=NEW, letters="II"),
    Row("1.2-down-replaced", INSERT, "SRV=A", states={"s1": "down"}, gets=NEW, letters="DI"),
    Row("1.2-maint-replaced", INSERT, "SRV=A", states={"s1": "maint"}, gets=NEW, letters="DI"),
    Row("1.2-drain-kept", INSERT, "SRV=A", states={"s1": "drain"}, server="s1", letters="VN"),
    Row("1.2-weight-zero-kept", INSERT, "SRV=A", states={"s1": "weight 0"}, server="s1", letters="VN"),
    Row("1.2-refused-redispatched", INSERT, "SRV=A", states={"s1": "refuses"}, attempts=("s1", "s2"),
        gets=NEW, letters="DI"),
    # a server that no cookie can name: HAProxy deletes every client's cookie, and logs I
    Row("1.2-no-id-nothing-to-take-back-ours", INSERT, ids=UNNAMED, letters="NN"),
    Row("1.2-no-id-takes-unknown-back-ours", INSERT, "SRV=Z", ids=UNNAMED, gets=DELETION, letters="ID"),
    Row("1.2-no-id-takes-dead-back-ours", INSERT, "SRV=A", ids=UNNAMED, states={"s1": "maint"},
        gets=DELETION, letters="DD"),
    Row("1.2-no-id-deletion-attributes-ours", DRESSED, "SRV=Z", ids=UNNAMED, letters="ID",
        gets=DELETION + ATTRIBUTES),
    # postonly: POST to the letter
    Row("1.2-postonly-get", POSTONLY, letters="NN"),
    Row("1.2-postonly-put", POSTONLY, method="PUT", letters="NN"),
    Row("1.2-postonly-post", POSTONLY, method="POST", gets=NEW, letters="NI"),
    Row("1.2-postonly-unknown-stays", POSTONLY, "SRV=Z", letters="IN"),
    # the application sets a cookie of that name
    Row("1.2-own-replaced", INSERT, app=(("set-cookie", "SRV=x; Path=/x"),), gets=NEW, letters="NI"),
    Row("1.2-own-replaced-every-one", INSERT, letters="NI",
        app=(("set-cookie", "SRV=x"), ("set-cookie", "a=1"), ("Set-Cookie", "SRV = y; Path=/y")),
        gets=("a=1", NEW)),
    Row("1.2-own-dropped-when-direct", INSERT, "SRV=A", app=(("set-cookie", "SRV=x"),), server="s1",
        letters="VD"),
    Row("1.2-own-dropped-when-direct-indirect", INDIRECT, "SRV=A", app=(("set-cookie", "SRV=x"),),
        server="s1", sees=(), letters="VD"),
    Row("1.2-preserve-passes", PRESERVE, app=(("set-cookie", "SRV = x;Path=/x ;  foo"),),
        gets="SRV = x;Path=/x ;  foo", letters="NP"),
    Row("1.2-preserve-passes-when-direct", PRESERVE, "SRV=A", app=(("set-cookie", "SRV=; Max-Age=0"),),
        server="s1", gets="SRV=; Max-Age=0", letters="VP"),
    Row("1.2-preserve-inserts-where-app-is-silent", PRESERVE, app=(("set-cookie", "a=1"),),
        gets=("a=1", NEW), letters="NI"),
    Row("1.2-preserve-before-dates", IDLE_PRESERVE, f"SRV=A|{date(-40)}", app=(("set-cookie", "SRV=x"),),
        server="s1", gets="SRV=x", letters="VP"),
    # bytes
    Row("1.2-attributes-in-order", DRESSED, gets=NEW + ATTRIBUTES, letters="NI"),
    Row("1.2-value-is-not-escaped", INSERT, ids={"s1": "A", "s2": "x%20/+=~:'{}"},
        gets="SRV=x%20/+=~:'{}; path=/", letters="NI"),
    Row("1.2-value-is-read-as-written", INSERT, "SRV=x%20/+=~:'{}", ids={"s1": "x%20/+=~:'{}", "s2": "B"},
        server="s1", letters="VN"),
    # rules
    Row("1.2-use-server-inserts-nothing", INSERT, rules=USE_S1, server="s1", letters="NN"),
    Row("1.2-use-server-leaves-cookie-unused", INSERT, "SRV=B", rules=USE_S1, server="s1", letters="UN"),
    Row("1.2-ignore-persist-leaves-cookie-unused", INSERT, "SRV=A", rules=IGNORED, letters="UN"),
    Row("1.2-ignore-persist-without-cookie", INSERT, rules=IGNORED, letters="NN"),
    Row("1.2-ignore-persist-leaves-own-untouched", INSERT, "SRV=A", rules=IGNORED,
        app=(("set-cookie", "SRV=x"),), gets="SRV=x", letters="UN"),
    Row("1.2-option-persist", INSERT, "SRV=A", rules={"persist_on_down": True}, states={"s1": "down"}, server="s1",
        letters="DN"),
    Row("1.2-force-persist", INSERT, "SRV=A", rules={"force_persist": always}, states={"s1": "maint"}, server="s1",
        letters="DN"),
    Row("1.2-nolb-kept", INSERT, "SRV=A", states={"s1": "nolb"}, server="s1", letters="VN"),
]  # fmt: skip

FRESH = ("etag", '"1"')  # something that makes HAProxy think a response cacheable

# HAProxy guesses what may be cached; we add `private` unless the response has `private` or `no-store`.
NOT_CACHED = [  # 1.3
    *(
        Row(f"1.3-{name}", NOCACHE, app=(header,), gets=NEW, cache="private", letters="NI")
        for name, header in {
            "etag": FRESH,
            "last-modified": ("last-modified", "Tue, 14 Nov 2023 22:13:20 GMT"),
            "expires": ("expires", "Tue, 14 Nov 2023 23:13:20 GMT"),
        }.items()
    ),
    *(
        Row(f"1.3-{name}", NOCACHE, app=(FRESH, ("cache-control", directives)), gets=NEW, cache=(directives, "private"),
            letters="NI")
        for name, directives in {
            "max-age": "max-age=60",
            "s-maxage": "s-maxage=60",
            "no-cache-of-set-cookie-only": 'no-cache="set-cookie"',
            # with these HAProxy adds no header
            "no-cache-ours": "no-cache",
            "no-cache-of-a-field-ours": 'no-cache="x-foo"',
            "private-of-a-field-ours": 'private="x-foo"',
            "no-store-of-a-field-ours": 'no-store="x-foo"',
            "max-age-0-ours": "max-age=0",
            "s-maxage-0-ours": "max-age=60, s-maxage=0",
        }.items()
    ),
    Row("1.3-private-already", NOCACHE, app=(FRESH, ("cache-control", "max-age=60, Private")), gets=NEW,
        cache="max-age=60, Private", letters="NI"),
    Row("1.3-no-store-already", NOCACHE, app=(FRESH, ("cache-control", "no-store")), gets=NEW,
        cache="no-store", letters="NI"),
    Row("1.3-private-in-a-second-header", NOCACHE,
        app=(("cache-control", "max-age=60"), ("Cache-Control", "private")),
        gets=NEW, cache=("max-age=60", "private"), letters="NI"),
    Row("1.3-bare-200-ours", NOCACHE, gets=NEW, cache="private", letters="NI"),  # HAProxy since 2.4: nothing
    Row("1.3-public-alone-ours", NOCACHE, app=(("cache-control", "public"),), gets=NEW,
        cache=("public", "private"), letters="NI"),
    Row("1.3-pragma-ours", NOCACHE, app=(FRESH, ("pragma", "no-cache")), gets=NEW, cache="private",
        letters="NI"),
    *(
        Row(f"1.3-{method.lower()}", NOCACHE, method=method, app=(FRESH,), gets=NEW, cache="private",
            letters="NI")
        for method in ("HEAD", "OPTIONS", "TRACE")
    ),
    *(
        Row(f"1.3-{method.lower()}-ours", NOCACHE, method=method, app=(FRESH,), gets=NEW, cache="private",
            letters="NI")
        for method in ("POST", "PUT", "PATCH", "DELETE")
    ),
    *(
        Row(f"1.3-status-{status}", NOCACHE, status=status, app=(FRESH,), gets=NEW, cache="private",
            letters="NI")
        for status in (203, 204, 206, 300, 301, 404, 405, 410, 414, 501)
    ),
    *(
        Row(f"1.3-status-{status}-ours", NOCACHE, status=status, app=(FRESH,), gets=NEW, cache="private",
            letters="NI")
        for status in (201, 302, 400, 500)
    ),
    Row("1.3-only-where-inserted", NOCACHE, "SRV=A", app=(FRESH,), server="s1", letters="VN"),
    Row("1.3-only-with-nocache", INSERT, app=(FRESH,), gets=NEW, letters="NI"),
    # a response that deletes a mark must not be cached (HAProxy likewise, but logs I)
    Row("1.3-deletion-is-private-ours", NOCACHE, "SRV=Z", ids=UNNAMED, app=(FRESH,), gets=DELETION,
        cache="private", letters="ID"),
]  # fmt: skip

DATES = [  # 1.4
    # what is written
    Row("1.4-maxidle-writes-last", IDLE, gets="SRV=B|ZVPxA; path=/", letters="NI"),
    Row("1.4-maxlife-writes-last-and-first", LIFE, gets="SRV=B|ZVPxA|ZVPxA; path=/", letters="NI"),
    Row("1.4-both-write-last-and-first", BOTH, gets="SRV=B|ZVPxA|ZVPxA; path=/", letters="NI"),
    Row("1.4-another-date", IDLE, after=1795279088 - NOW, gets="SRV=B|awHI8; path=/", letters="NI"),
    Row("1.4-rounded-up-to-four-seconds", IDLE, after=1, gets="SRV=B|ZVPxB; path=/", letters="NI"),
    Row("1.4-first-is-kept", BOTH, f"SRV=A|{date(-40)}|{date(-400)}", server="s1",
        gets=f"SRV=A|ZVPxA|{date(-400)}; path=/", letters="VU"),
    Row("1.4-first-is-kept-of-a-dead-server", BOTH, f"SRV=A|{date(-40)}|{date(-400)}", states={"s1": "maint"},
        gets=f"SRV=B|ZVPxA|{date(-400)}; path=/", letters="DI"),
    Row("1.4-first-is-kept-of-an-unknown-server", BOTH, f"SRV=Z|{date(-40)}|{date(-400)}",
        gets=f"SRV=B|ZVPxA|{date(-400)}; path=/", letters="II"),
    # what is read
    Row("1.4-no-date-is-accepted-maxidle", IDLE, "SRV=A", server="s1", gets="SRV=A|ZVPxA; path=/",
        letters="VU"),
    Row("1.4-no-date-is-accepted-maxlife", LIFE, "SRV=A", server="s1", gets="SRV=A|ZVPxA|ZVPxA; path=/",
        letters="VU"),
    Row("1.4-no-first-date-is-accepted", LIFE, f"SRV=A|{date(-4000)}", server="s1",
        gets="SRV=A|ZVPxA|ZVPxA; path=/", letters="VU"),
    Row("1.4-short-date-is-none", IDLE, "SRV=A|ZVPx", server="s1", gets="SRV=A|ZVPxA; path=/", letters="VU"),
    Row("1.4-bad-characters-are-none", IDLE, "SRV=A|ZV!xA", server="s1", gets="SRV=A|ZVPxA; path=/",
        letters="VU"),
    Row("1.4-zero-is-none", IDLE, "SRV=A|AAAAA", server="s1", gets="SRV=A|ZVPxA; path=/", letters="VU"),
    Row("1.4-short-first-date-is-none", LIFE, f"SRV=A|ZVPxA|{date(-4000)[:4]}", server="s1",
        gets="SRV=A|ZVPxA|ZVPxA; path=/", letters="VU"),
    Row("1.4-further-characters-are-ignored", IDLE, "SRV=A|ZVPxAzzz", server="s1", letters="VN"),
    Row("1.4-further-characters-of-first-are-ignored", LIFE, "SRV=A|ZVPxA|ZVPxAzzz", server="s1",
        letters="VN"),
    Row("1.4-read-without-an-option", INSERT, f"SRV=A|{date(-40)}", server="s1", gets="SRV=A; path=/",
        letters="VU"),
    Row("1.4-not-read-in-prefix-mode", PREFIX, "JSESSIONID=A|ZVPxA~x", sees="JSESSIONID=x", letters="IN"),
    # what is rejected
    Row("1.4-idle-for-too-long", IDLE, f"SRV=A|{date(-64)}", gets="SRV=B|ZVPxA; path=/", letters="EI"),
    Row("1.4-idle-to-the-limit", IDLE, f"SRV=A|{date(-60)}", server="s1", gets="SRV=A|ZVPxA; path=/",
        letters="VU"),
    Row("1.4-too-old", LIFE, f"SRV=A|ZVPxA|{date(-604)}", gets="SRV=B|ZVPxA|ZVPxA; path=/", letters="OI"),
    Row("1.4-old-to-the-limit", LIFE, f"SRV=A|ZVPxA|{date(-600)}", server="s1", letters="VN"),
    Row("1.4-old-before-idle", BOTH, f"SRV=A|{date(-64)}|{date(-604)}", gets="SRV=B|ZVPxA|ZVPxA; path=/",
        letters="OI"),
    Row("1.4-last-a-day-ahead", IDLE, f"SRV=A|{date(86400)}", server="s1", letters="VN"),
    Row("1.4-last-further-ahead", IDLE, f"SRV=A|{date(86404)}", gets="SRV=B|ZVPxA; path=/", letters="EI"),
    Row("1.4-first-a-day-ahead", LIFE, f"SRV=A|ZVPxA|{date(86400)}", server="s1", letters="VN"),
    Row("1.4-first-further-ahead", LIFE, f"SRV=A|ZVPxA|{date(86404)}", gets="SRV=B|ZVPxA|ZVPxA; path=/",
        letters="OI"),
    Row("1.4-dates-of-an-expired-one-are-forgotten", BOTH, f"SRV=A|{date(-64)}|{date(-400)}",
        gets="SRV=B|ZVPxA|ZVPxA; path=/", letters="EI"),
    Row("1.4-expired-is-still-stripped", IDLE_INDIRECT, f"a=1; SRV=A|{date(-64)}", sees="a=1",
        gets="SRV=B|ZVPxA; path=/", letters="EI"),
    # what is renewed
    Row("1.4-older-than-now-is-renewed", IDLE, f"SRV=A|{date(-4)}", server="s1", gets="SRV=A|ZVPxA; path=/",
        letters="VU"),
    Row("1.4-of-now-is-kept", IDLE, "SRV=A|ZVPxA", server="s1", letters="VN"),
    Row("1.4-kept-until-the-four-seconds-are-over", IDLE, "SRV=A|ZVPxB", after=4, server="s1", letters="VN"),
    Row("1.4-renewed-when-the-four-seconds-are-over", IDLE, "SRV=A|ZVPxB", after=5, server="s1",
        gets="SRV=A|ZVPxC; path=/", letters="VU"),
    Row("1.4-ahead-is-not-renewed", IDLE, f"SRV=A|{date(40)}", server="s1", letters="VN"),
    Row("1.4-ahead-is-renewed-for-the-first-date", LIFE, f"SRV=A|{date(40)}", server="s1",
        gets="SRV=A|ZVPxA|ZVPxA; path=/", letters="VU"),
    Row("1.4-last-is-renewed-for-maxlife-too", LIFE, f"SRV=A|{date(-40)}|{date(-40)}", server="s1",
        gets=f"SRV=A|ZVPxA|{date(-40)}; path=/", letters="VU"),
    Row("1.4-first-is-dropped-without-maxlife", IDLE, "SRV=A|ZVPxA|ZVPxA", server="s1",
        gets="SRV=A|ZVPxA; path=/", letters="VU"),
    Row("1.4-no-option-drops-a-first-date", INSERT, "SRV=A|ZVPxA|ZVPxA", server="s1", gets="SRV=A; path=/",
        letters="VU"),
    Row("1.4-no-option-keeps-a-date-of-now", INSERT, "SRV=A|ZVPxA", server="s1", letters="VN"),
    Row("1.4-postonly-blocks-renewal", IDLE_POSTONLY, f"SRV=A|{date(-40)}", server="s1", letters="VN"),
    Row("1.4-postonly-renews-with-post", IDLE_POSTONLY, f"SRV=A|{date(-40)}", method="POST", server="s1",
        gets="SRV=A|ZVPxA; path=/", letters="VU"),
]  # fmt: skip

QUOTED = 'a="x;SRV=A;y"; b=1'
UNCLOSED = 'a="x; SRV=A'

STRIPPED = [  # 1.5
    Row("1.5-ignored-is-stripped-too", INDIRECT, "SRV=A; a=1", rules=IGNORED, sees="a=1", letters="UN"),
    *(
        Row(f"1.5-{name}", INDIRECT, sent, server="s1", sees=seen, letters="VN")
        for name, sent, seen in (
            ("alone", "SRV=A", ()),
            ("first", "SRV=A; a=1; b=2", "a=1; b=2"),
            ("in-the-middle", "a=1; SRV=A; b=2", "a=1; b=2"),
            ("last", "a=1; b=2; SRV=A", "a=1; b=2"),
            ("without-spaces-in-the-middle", "a=1;SRV=A;b=2", "a=1; b=2"),
            ("spaces-before-delimiters", "a=1 ; SRV=A ; b=2", "a=1; b=2"),
            ("many-spaces", "a=1;   SRV=A;   b=2", "a=1; b=2"),
            ("without-spaces-first", "SRV=A;a=1", "a=1"),
            ("duplicate", "SRV=A; a=1; SRV=B", "a=1"),
            ("spaces-around-equals", "SRV = A; a=1", "a=1"),
            ("trailing-delimiter", "a=1; SRV=A;", "a=1; "),
            ("dollar-attributes", "$Version=1; SRV=A; $Path=/; a=1; $Path=/", "$Version=1; a=1; $Path=/"),
            ("commas", "a=1, SRV=A, b=2", "a=1, b=2"),
            ("two-delimiters", "SRV=A;;a=1", ";a=1"),
            ("no-equals-beside", "SRV=A; foo", "foo"),
            ("no-equals-before-a-comma", "foo, SRV=A", "foo"),
            # HAProxy: a=1
            ("spaces-in-foreign-cookies-stay-ours", "SRV=A; a = 1", "a = 1"),
            ("foreign-bytes-stay", "a= \xe9|%zz ; SRV=A; b=\"\\\";\"; c", "a= \xe9|%zz; b=\"\\\";\"; c"),
        )
    ),
    Row("1.5-three-headers", INDIRECT, ("a=1", "SRV=A", "b=2"), server="s1", sees=("a=1", "b=2"),
        sees_joined={",": "a=1, b=2", "; ": "a=1; b=2"}, letters="VN"),
    Row("1.5-http2-fields", INDIRECT, ("a=1", "b=2", "SRV=A"), http_version="2", server="s1", sees="a=1; b=2",
        sees_joined={",": "a=1,b=2", "; ": "a=1; b=2"}, letters="VN"),
    Row("1.5-quoted-value-is-another", INDIRECT, 'SRV="A"; a=1', sees="a=1", gets=NEW, letters="II"),
    Row("1.5-unknown-is-stripped-too", INDIRECT, "a=1; SRV=Z", sees="a=1", gets=NEW, letters="II"),
    *(
        Row(f"1.5-{name}", INDIRECT, sent, sees=sent, gets=NEW, letters="NI")
        for name, sent in (
            ("quoted-delimiters", QUOTED),
            ("escapes-inside-quotes", 'a="x\\";SRV=A;y"; b=1'),
            ("unclosed-quote", UNCLOSED),
            ("other-case", "srv=A"),
            ("longer-name", "SRVX=A"),
            ("no-equals", "SRV"),
        )
    ),
    Row("1.5-not-indirect-untouched", INSERT, "a=1;SRV=A ;  b=2", server="s1", letters="VN"),
]  # fmt: skip

REWRITTEN = [  # 1.6
    *(
        Row(f"1.6-{name}", REWRITE, app=(("set-cookie", sent),), gets=got, letters="NR")
        for name, sent, got in (
            ("value", "SRV=x", "SRV=B"),
            ("attributes-stay", "SRV=x;  Path=/x ;HttpOnly; foo", "SRV=B;  Path=/x ;HttpOnly; foo"),
            ("quoted-value", 'SRV="a;b"; Path=/', "SRV=B; Path=/"),
            ("spaces-around-equals", "SRV = x; Path=/", "SRV=B; Path=/"),
            ("deletion", "SRV=; expires=Thu, 01-Jan-1970", "SRV=B; expires=Thu, 01-Jan-1970"),
        )
    ),
    Row("1.6-every-one", REWRITE, letters="NR",
        app=(("set-cookie", "SRV=x; Path=/x"), ("set-cookie", "srv=x"), ("Set-Cookie", "SRV=y; Path=/y")),
        gets=("SRV=B; Path=/x", "srv=x", "SRV=B; Path=/y")),
    Row("1.6-nothing-from-nothing", REWRITE, app=(("set-cookie", "SRVX=x"),), gets="SRVX=x", letters="NN"),
    Row("1.6-nothing-for-an-unknown-one", REWRITE, "SRV=Z", letters="IN"),
    Row("1.6-when-direct-too", REWRITE, "SRV=A", app=(("set-cookie", "SRV=x"),), server="s1", gets="SRV=A",
        letters="VR"),
    Row("1.6-request-goes-on-as-it-is", REWRITE, "a=1;SRV=A ; b=2", server="s1", letters="VN"),
]  # fmt: skip

PREFIXED = [  # 1.7
    # responses
    *(
        Row(f"1.7-{name}", PREFIX, app=(("set-cookie", sent),), gets=got, letters="NR")
        for name, sent, got in (
            ("response", "JSESSIONID=abc", "JSESSIONID=B~abc"),
            ("attributes-stay", "JSESSIONID=abc;  Path=/x ;HttpOnly", "JSESSIONID=B~abc;  Path=/x ;HttpOnly"),
            ("deletion", "JSESSIONID=; Max-Age=0", "JSESSIONID=B~; Max-Age=0"),
            ("deletion-in-quotes", 'JSESSIONID=""', 'JSESSIONID=B~""'),
        )
    ),
    Row("1.7-every-one", PREFIX, letters="NR",
        app=(("set-cookie", "JSESSIONID=x; Path=/x"), ("set-cookie", "a=1"), ("set-cookie", "JSESSIONID=y")),
        gets=("JSESSIONID=B~x; Path=/x", "a=1", "JSESSIONID=B~y")),
    Row("1.7-no-equals-untouched", PREFIX, app=(("set-cookie", "JSESSIONID"),), gets="JSESSIONID",
        letters="NN"),
    Row("1.7-never-one-of-our-own", PREFIX, "JSESSIONID=Z~abc", sees="JSESSIONID=abc", letters="IN"),
    Row("1.7-when-direct-too", PREFIX, "JSESSIONID=A~abc", app=(("set-cookie", "JSESSIONID=def"),),
        server="s1",
        sees="JSESSIONID=abc", gets="JSESSIONID=A~def", letters="VR"),
    # requests
    *(
        Row(f"1.7-{name}", PREFIX, sent, server="s1", sees=seen, letters="VN")
        for name, sent, seen in (
            ("request", "JSESSIONID=A~abc", "JSESSIONID=abc"),
            ("others-stay", "a=1;JSESSIONID=A~abc ; b = 2", "a=1;JSESSIONID=abc ; b = 2"),
            ("first-tilde", "JSESSIONID=A~x~y", "JSESSIONID=x~y"),
            ("no-tilde-is-an-id", "JSESSIONID=A", "JSESSIONID=A"),
            ("empty-rest", "JSESSIONID=A~", "JSESSIONID="),
            ("several", "JSESSIONID=A~x; JSESSIONID=B~y", "JSESSIONID=x; JSESSIONID=y"),
            # HAProxy: invalid, and the server gets abc"
            ("quoted-ours", 'JSESSIONID="A~abc"', "JSESSIONID=abc"),
        )
    ),
    *(
        Row(f"1.7-{name}", PREFIX, sent, sees=seen, letters="IN")
        for name, sent, seen in (
            ("unknown-id-is-taken-off", "JSESSIONID=Z~abc", "JSESSIONID=abc"),
            ("empty-id-is-taken-off", "JSESSIONID=~abc", "JSESSIONID=abc"),
            ("no-tilde-is-unknown", "JSESSIONID=abc123", "JSESSIONID=abc123"),
        )
    ),
    Row("1.7-id-of-a-dead-server-is-taken-off", PREFIX, "JSESSIONID=A~abc", states={"s1": "maint"},
        sees="JSESSIONID=abc", letters="DN"),
    # indirect
    Row("1.7-indirect-deletes-when-direct", PREFIX_INDIRECT, "JSESSIONID=A~abc",
        app=(("set-cookie", "JSESSIONID=def"),), server="s1",
        sees="JSESSIONID=abc", letters="VD"),
    Row("1.7-indirect-otherwise", PREFIX_INDIRECT, app=(("set-cookie", "JSESSIONID=def"),),
        gets="JSESSIONID=B~def", letters="NR"),
]  # fmt: skip

READ = [  # 1.8; HAProxy logs `--` for a passive cookie without options
    Row("1.8-routes-ours", PASSIVE, "a=1;SRV=A ; b=2", server="s1", letters="VN"),
    Row("1.8-unknown-goes-on-ours", PASSIVE, "SRV=Z", letters="IN"),
    Row("1.8-response-goes-on-ours", PASSIVE, app=(("set-cookie", "SRV = B;Path=/"),), gets="SRV = B;Path=/",
        letters="NP"),
    Row("1.8-response-goes-on-when-direct-ours", PASSIVE, "SRV=A", app=(("set-cookie", "SRV=A"),), server="s1",
        gets="SRV=A", letters="VP"),
    Row("1.8-indirect-routes", PASSIVE_INDIRECT, "a=1; SRV=A", server="s1", letters="VN"),
    Row("1.8-indirect-deletes-when-direct", PASSIVE_INDIRECT, "SRV=A", app=(("set-cookie", "SRV=A"),),
        server="s1", letters="VD"),
    Row("1.8-indirect-passes-otherwise", PASSIVE_INDIRECT, app=(("set-cookie", "SRV=B"),), gets="SRV=B",
        letters="NP"),
    Row("1.8-indirect-preserve", PASSIVE_PRESERVE, "SRV=A", app=(("set-cookie", "SRV=A"),), server="s1",
        gets="SRV=A", letters="VP"),
]  # fmt: skip

ROWS = [*CLAIMS, *INSERTED, *NOT_CACHED, *DATES, *STRIPPED, *REWRITTEN, *PREFIXED, *READ]

#: by the part that they need
NOT_YET = {
    "1.2-stick-table-inserts-nothing": "5",
    "1.2-connect-failed-no-redispatch": "3 or later",
    "1.2-log-counts-retries": "3 or later",
    "1.2-own-redirects-carry-no-mark": "3 or later",
    "1.3-checkcache": "3 or later",
    "1.7-prefix-with-dynamic": "3 or later",  # ids made of addresses need servers that have one
    "1.7-prefix-with-stick": "5",
    "1.8-log-has-dashes": "3 or later",
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_cookie_does_what_haproxys_does(face: Face, row: Row) -> None:
    sends = several(row.sends)
    for joint in face.cookie_separators if len(sends) > 1 else face.cookie_separators[:1]:
        get = face.client(row.backend(face))
        response = get(cookie=sends, method=row.method, joint=joint, http_version=row.http_version)
        sees = sends if row.sees is None else several(row.sees)
        if joint and row.sees_joined:
            sees = (row.sees_joined[joint],)
        assert response.status == row.status
        assert response.server == row.server
        assert response.letters == row.letters
        assert response.seen is not None and response.seen.cookies == sees
        assert tuple(response.all("set-cookie")) == several(row.gets)
        assert tuple(response.all("cache-control")) == several(row.cache)
        assert response.decision.attempts == (row.attempts or (row.server,))
        assert tuple(seen.server for seen in response.tried) == response.decision.attempts


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_repeated_request_has_the_same_result(face: Face, row: Row) -> None:
    get = face.client(row.backend(face))
    first, *later = (get(cookie=row.sends, method=row.method, http_version=row.http_version) for _ in range(3))
    for again in later:
        assert again.decision.claim is first.decision.claim
        assert again.seen is not None and first.seen is not None
        assert again.seen.cookies == first.seen.cookies
        if first.letters.startswith("V"):
            assert (again.server, again.letters, again.headers) == (
                first.server,
                first.letters,
                first.headers,
            )


# What takes more than one exchange, or a look at something else.

ELSEWHERE: list[str] = []


def states(*ids: str) -> Callable[[T], T]:
    """The test below proves these statements."""

    def proves(test: T) -> T:
        ELSEWHERE.extend(ids)
        return test

    return proves


def both(face: Face, cookie: Cookie, **states: str):
    return Row("", cookie, states=states, letters="").backend(face)


@states("1.2-after-all-headers-of-the-app", "1.3-private-right-after-the-cookie")
def test_our_headers_come_after_those_of_the_app(face: Face) -> None:
    app = (("set-cookie", "a=1"), ("cache-control", "max-age=60"), ("x-last", "1"))
    response = face.client(Row("", NOCACHE, app=app, letters="").backend(face))()
    assert response.headers[-5:] == [*app, ("set-cookie", "SRV=B; path=/"), ("cache-control", "private")]


@states("1.2-names-in-lower-case")
@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_names_of_headers_are_lower_case_where_the_protocol_has_them_so(face: Face) -> None:
    response = face.client(both(face, NOCACHE))()
    assert response.raw_headers[-2:] == [("set-cookie", "SRV=B; path=/"), ("cache-control", "private")]


@states("1.2-own-responses-carry-no-mark")
@pytest.mark.parametrize("cookie", [INSERT, NOCACHE, DRESSED], ids=["insert", "nocache", "dressed"])
@pytest.mark.parametrize("sends", ["", "SRV=A", "SRV=Z"])
def test_responses_of_ours_carry_no_mark(face: Face, cookie: Cookie, sends: str) -> None:
    response = face.client(both(face, cookie, s1="maint", s2="down"))(cookie=sends)
    assert (response.status, response.server, response.all("set-cookie")) == (503, None, [])
    assert response.decision.mark.value == "N"


@states("1.2-status-101")
@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_a_websocket_is_marked_when_it_is_accepted(face: Face) -> None:
    get: AsgiClient = face.client(both(face, INDIRECT))  # type: ignore[assignment]  # the face is ASGI
    response = get.websocket()
    assert (response.status, response.server, response.letters) == (101, "s2", "NI")
    assert response.all("set-cookie") == ["SRV=B; path=/"]
    again = get.websocket(cookie="a=1; SRV=A")
    assert (again.server, again.letters, again.all("set-cookie")) == ("s1", "VN", [])
    assert again.seen is not None and again.seen.cookies == ("a=1",)


@states("1.2-interim-responses-carry-no-mark")
@pytest.mark.parametrize("face", ["asgi"], indirect=True)
def test_interim_response_carries_no_mark(face: Face) -> None:
    get: AsgiClient = face.client(both(face, INSERT))  # type: ignore[assignment]  # the face is ASGI
    response = get.request_with_early_hints()
    assert response.interim == [{"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]}]
    assert response.all("set-cookie") == ["SRV=B; path=/"]


@states("1.4-one-renewal-in-four-seconds", "1.4-first-is-kept-across-renewals")
def test_client_that_stays_gets_a_new_mark_every_four_seconds_with_its_first_date(face: Face) -> None:
    clock = ManualClock(NOW)
    get = face.client(face.backend(face.server("s1", cookie="A"), persist=BOTH, clock=clock))
    mark = get().mark
    renewals = []
    for second in range(1, 13):
        clock.advance(1)
        response = get(cookie=mark)
        assert response.server == "s1"
        if response.all("set-cookie"):
            mark = response.mark
            renewals.append((second, mark))
    assert renewals == [
        (1, "SRV=A|ZVPxB|ZVPxA"),
        (5, "SRV=A|ZVPxC|ZVPxA"),
        (9, "SRV=A|ZVPxD|ZVPxA"),
    ]


@states("1.4-maxlife-ends-what-is-in-use")
def test_client_that_stays_reaches_maxlife_however_often_it_comes(face: Face) -> None:
    clock = ManualClock(NOW)
    servers = [face.server("s1", cookie="A"), face.server("s2", cookie="B")]
    get = face.client(face.backend(*servers, persist=BOTH, clock=clock))
    mark = get().mark
    for _ in range(600 // 50):
        clock.advance(50)
        response = get(cookie=mark)
        assert response.letters == "VU"
        mark = response.mark
    clock.advance(4)
    assert get(cookie=mark).letters == "OI"


@states("1.7-prefix-survives-the-round")
def test_prefixed_cookie_brings_the_client_back_and_gives_the_app_its_value(face: Face) -> None:
    app = (("set-cookie", "JSESSIONID=abc; Path=/"),)
    get = face.client(Row("", PREFIX, app=app, letters="").backend(face))
    response = get()
    for _ in range(3):
        again = get(cookie=response.mark)
        assert (again.server, again.letters) == (response.server, "VR")
        assert again.seen is not None and again.seen.cookies == ("JSESSIONID=abc",)


@states(*(f"{chapter}-options-without-effect-ours" for chapter in ("1.6", "1.7", "1.8")))
@pytest.mark.parametrize("mode", ["rewrite", "prefix", "passive"])
@pytest.mark.parametrize("option", ["nocache", "httponly", "secure", "attr", "domain", "maxidle"])
def test_option_without_effect_is_refused_where_haproxy_ignores_it(mode: str, option: str) -> None:
    value = {"attr": "x", "domain": ".a.example", "maxidle": 60}.get(option, True)
    plain = {} if mode == "passive" else {"signed": False}
    options: dict[str, Any] = {"mode": mode, option: value, **plain}
    with pytest.raises(ConfigError, match=f"cookie SRV: .*{option}.* no effect"):
        Cookie("SRV", **options)


# The list of all statements. It is written out, so that a row that got lost is missed.

STATEMENTS = {
    "1.1": """
        first-usable-unknown first-usable-empty first-usable-maint later-does-not-override several-headers
        down-beats-unknown name-is-case-sensitive value-is-case-sensitive
        backup-of-the-same-value backup-by-its-own-value
    """,
    "1.2": """
        status-101 status-200 status-204 status-301 status-304 status-404 status-500 head
        interim-responses-carry-no-mark own-responses-carry-no-mark own-redirects-carry-no-mark
        none-inserted none-inserted-indirect valid-kept valid-kept-indirect
        unknown-replaced unknown-replaced-indirect empty-replaced quotes-are-part-of-the-value
        down-replaced maint-replaced drain-kept weight-zero-kept nolb-kept option-persist force-persist
        refused-redispatched connect-failed-no-redispatch log-counts-retries
        stick-table-inserts-nothing use-server-inserts-nothing use-server-leaves-cookie-unused
        ignore-persist-leaves-cookie-unused ignore-persist-without-cookie ignore-persist-leaves-own-untouched
        no-id-nothing-to-take-back-ours no-id-takes-unknown-back-ours no-id-takes-dead-back-ours
        no-id-deletion-attributes-ours
        postonly-get postonly-put postonly-post postonly-unknown-stays
        own-replaced own-replaced-every-one own-dropped-when-direct own-dropped-when-direct-indirect
        preserve-passes preserve-passes-when-direct preserve-inserts-where-app-is-silent preserve-before-dates
        attributes-in-order value-is-not-escaped value-is-read-as-written
        after-all-headers-of-the-app names-in-lower-case
    """,
    "1.3": """
        etag last-modified expires max-age s-maxage no-cache-of-set-cookie-only
        private-already no-store-already private-in-a-second-header private-right-after-the-cookie
        only-where-inserted only-with-nocache deletion-is-private-ours checkcache
        bare-200-ours public-alone-ours pragma-ours no-cache-ours no-cache-of-a-field-ours
        private-of-a-field-ours no-store-of-a-field-ours max-age-0-ours s-maxage-0-ours
        head options trace post-ours put-ours patch-ours delete-ours
        status-203 status-204 status-206 status-300 status-301 status-404 status-405 status-410 status-414
        status-501 status-201-ours status-302-ours status-400-ours status-500-ours
    """,
    "1.4": """
        maxidle-writes-last maxlife-writes-last-and-first both-write-last-and-first another-date
        rounded-up-to-four-seconds
        first-is-kept first-is-kept-of-a-dead-server first-is-kept-of-an-unknown-server
        no-date-is-accepted-maxidle no-date-is-accepted-maxlife no-first-date-is-accepted
        short-date-is-none bad-characters-are-none zero-is-none short-first-date-is-none
        further-characters-are-ignored further-characters-of-first-are-ignored
        read-without-an-option not-read-in-prefix-mode
        idle-for-too-long idle-to-the-limit too-old old-to-the-limit old-before-idle
        last-a-day-ahead last-further-ahead first-a-day-ahead first-further-ahead
        dates-of-an-expired-one-are-forgotten expired-is-still-stripped
        older-than-now-is-renewed of-now-is-kept kept-until-the-four-seconds-are-over
        renewed-when-the-four-seconds-are-over one-renewal-in-four-seconds
        ahead-is-not-renewed ahead-is-renewed-for-the-first-date last-is-renewed-for-maxlife-too
        first-is-kept-across-renewals maxlife-ends-what-is-in-use
        first-is-dropped-without-maxlife no-option-drops-a-first-date no-option-keeps-a-date-of-now
        postonly-blocks-renewal postonly-renews-with-post
    """,
    "1.5": """
        alone first in-the-middle last without-spaces-in-the-middle spaces-before-delimiters many-spaces
        without-spaces-first duplicate three-headers http2-fields spaces-around-equals
        quoted-value-is-another quoted-delimiters escapes-inside-quotes unclosed-quote
        other-case longer-name no-equals trailing-delimiter dollar-attributes commas two-delimiters
        no-equals-beside no-equals-before-a-comma unknown-is-stripped-too ignored-is-stripped-too
        not-indirect-untouched
        spaces-in-foreign-cookies-stay-ours foreign-bytes-stay
    """,
    "1.6": """
        value attributes-stay quoted-value spaces-around-equals deletion every-one
        nothing-from-nothing nothing-for-an-unknown-one when-direct-too request-goes-on-as-it-is
        options-without-effect-ours
    """,
    "1.7": """
        response attributes-stay every-one never-one-of-our-own when-direct-too
        deletion deletion-in-quotes no-equals-untouched
        request others-stay first-tilde empty-rest unknown-id-is-taken-off empty-id-is-taken-off
        id-of-a-dead-server-is-taken-off no-tilde-is-an-id no-tilde-is-unknown quoted-ours several
        prefix-survives-the-round indirect-deletes-when-direct indirect-otherwise
        options-without-effect-ours prefix-with-dynamic prefix-with-stick
    """,
    "1.8": """
        routes-ours unknown-goes-on-ours response-goes-on-ours response-goes-on-when-direct-ours log-has-dashes
        indirect-routes indirect-deletes-when-direct indirect-passes-otherwise indirect-preserve
        options-without-effect-ours
    """,
}


def test_no_two_rows_have_one_id() -> None:
    times = Counter([*(row.id for row in ROWS), *NOT_YET, *ELSEWHERE])
    assert [id for id, count in times.items() if count > 1] == []


def test_every_statement_has_a_row_or_is_listed_as_open() -> None:
    listed = [f"{chapter}-{name}" for chapter, names in STATEMENTS.items() for name in names.split()]
    assert len(listed) == len(set(listed))
    assert {row.id for row in ROWS} | {*NOT_YET} | {*ELSEWHERE} == {*listed}
