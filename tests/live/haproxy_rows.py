"""Rows of the comparison with HAProxy: backends, and requests to them in order."""

import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class ServerSpec:
    """A server of a row."""

    name: str
    cookie: str = ""
    weight: int = 1
    backup: bool = False
    state: Literal["ready", "maint", "refusing"] = "ready"


@dataclass(frozen=True)
class Request:
    """A request, and how the application in the server responds."""

    cookies: tuple[str, ...] = ()
    method: str = "GET"
    status: int = 200
    response: tuple[tuple[str, str], ...] = ()

    @property
    def response_json(self) -> str:
        return json.dumps({"status": self.status, "headers": self.response})


@dataclass(frozen=True)
class Change:
    """A step that is no request: the operator changes the state or the weight of a server."""

    server: str
    state: Literal["ready", "drain", "maint"] | None = None
    weight: int | None = None


@dataclass(frozen=True)
class Exchange:
    """What the client received, and what the server did."""

    status: int = 200
    server: str | None = None
    cookies: tuple[str, ...] = ()
    set_cookie: tuple[str, ...] = ()
    cache_control: tuple[str, ...] = ()


A_AND_B = (ServerSpec("s1", "A"), ServerSpec("s2", "B"))


@dataclass(frozen=True)
class Row:
    """A backend, and some steps in order. Where this project differs on purpose the row gives the reason, and HAProxy
    has to differ.
    """

    id: str
    #: what follows `cookie SRV` in haproxy.cfg; None: no persistence
    cookie: str | None
    steps: tuple[Request | Change, ...]
    servers: tuple[ServerSpec, ...] = A_AND_B
    redispatch: bool = True
    why: str = ""  #: the reason of a difference
    ours: tuple[Exchange, ...] = ()  #: the exchanges of this project, where they differ

    @property
    def requests(self) -> list[Request]:
        return [step for step in self.steps if isinstance(step, Request)]


def sent(*cookies: str) -> Request:
    """Return a request with these Cookie headers."""
    return Request(cookies)


def app(*headers: str, cookies: tuple[str, ...] = (), status: int = 200, method: str = "GET") -> Request:
    """Return a request to which the application responds with these headers."""
    split = (header.partition(": ") for header in headers)
    return Request(cookies, method, status, tuple((name, value) for name, _, value in split))


# -- dates

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
NOW = int(time.time())
HOUR = 3600
DAY = 24 * HOUR


def date(ago: int) -> str:
    """Return the time `ago` seconds before now, as HAProxy writes it."""
    units = (NOW - ago + 3) >> 2
    return "".join(DIGITS[units >> shift & 63] for shift in (24, 18, 12, 6, 0))


S = ServerSpec
PLAIN, INDIRECT = "insert", "insert indirect"
MAINT_A = (S("s1", "A", state="maint"), S("s2", "B"))
REFUSING_A = (S("s1", "A", state="refusing"), S("s2", "B"))
NO_ID = (S("s1"), S("s2"))

BEHAVIOURS: tuple[tuple[str, tuple[Request | Change, ...], dict[str, Any]], ...] = (
    ("no cookie", (Request(), Request(), Request()), {}),
    ("valid", (sent("SRV=B"), sent("SRV=A"), sent("SRV=A")), {}),
    ("unknown", (sent("SRV=Z"), sent("SRV=Z")), {}),
    ("another case", (sent("SRV=a"),), {}),
    ("empty", (sent("SRV="),), {}),
    ("quoted", (sent('SRV="A"'),), {}),
    ("a longer value", (sent("SRV=AA"),), {}),
    ("in maint", (sent("SRV=A"), sent("SRV=A")), {"servers": MAINT_A}),
    ("drained", (Change("s1", state="drain"), sent("SRV=A"), Request(), Request()), {}),
    ("weight 0", (sent("SRV=A"), Request(), Request()), {"servers": (S("s1", "A", 0), S("s2", "B"))}),
    ("put into maint and back", (
        sent("SRV=A"), Change("s1", state="maint"), sent("SRV=A"), Change("s1", state="ready"), sent("SRV=A"),
    ), {}),
    ("refused, redispatched", (sent("SRV=A"),), {"servers": REFUSING_A}),
    ("a new client refused, redispatched", (Request(),), {"servers": REFUSING_A}),
    ("refused, not redispatched", (sent("SRV=A"),), {"servers": REFUSING_A, "redispatch": False}),
    ("all servers in maint", (Request(), sent("SRV=A")), {"servers": (S("s1", "A", state="maint"),)}),
    ("two, the first usable one wins", (
        sent("SRV=Z; SRV=B"), sent("SRV=A; SRV=B"), sent("SRV=B; SRV=A"),
    ), {}),
    ("two, one in maint", (
        sent("SRV=A; SRV=B"), sent("SRV=A; SRV=Z"), sent("SRV=Z; SRV=A"),
    ), {"servers": MAINT_A}),
    ("in two headers", (sent("SRV=Z", "SRV=B"), sent("a=1", "SRV=B", "c=1")), {}),
    ("shared with a backup, the primary in maint", (sent("SRV=A"), Request()), {
        "servers": (S("s1", "A", state="maint"), S("s2", "B"), S("s3", "A", backup=True)),
    }),
    ("names a backup", (sent("SRV=C"), Request(), Request()), {"servers": (*A_AND_B, S("s3", "C", backup=True))}),
    ("only a backup is usable", (Request(), sent("SRV=A")), {
        "servers": (S("s1", "A", state="maint"), S("s3", "C", backup=True)),
    }),
    ("a backup without a cookie deletes the cookie", (sent("SRV=A"), sent("SRV=Z"), sent("SRV=; a=1")), {
        "servers": (S("s1", "A", state="maint"), S("s3", backup=True)),
    }),
    ("a backup of two, in order", (Request(), Request()), {
        "servers": (S("s1", "A", state="maint"), S("s2", "B", backup=True), S("s3", "C", backup=True)),
    }),
    *(
        (f"status {status}", (app(status=status), app(status=status, cookies=("SRV=Z; a=1",))), {})
        for status in (200, 204, 301, 304, 404, 500)
    ),
    ("HEAD", (app(method="HEAD"), app(method="HEAD", cookies=("SRV=A",))), {}),
    # the application sets a cookie of the same name
    ("the application's cookie, no cookie", (app("Set-Cookie: SRV=own; path=/x"),), {}),
    ("the application's cookie, direct", (app("Set-Cookie: SRV=own; path=/x", cookies=("SRV=A",)),), {}),
    ("the application's cookies among others", (
        app("Set-Cookie: a=1", "Set-Cookie: SRV=own", "Set-Cookie: SRV=more", "Set-Cookie: b=2"),
    ), {}),
    ("a name that begins like the cookie's", (
        app("Set-Cookie: SRVX=own", "Set-Cookie: srv=own", "Set-Cookie: SRV"),
    ), {}),
)  # fmt: skip

INSERTED = [
    Row(f"{name}, {mode}", mode, steps, **more) for mode in (PLAIN, INDIRECT) for name, steps, more in BEHAVIOURS
]

OPTIONS = [
    Row("preserve, the application sets it", "insert preserve", (
        app("Set-Cookie: SRV=own; path=/x"), app("Set-Cookie: SRV=own; path=/x", cookies=("SRV=B",)),
    )),
    Row("preserve, the application does not", "insert preserve", (Request(), app("Set-Cookie: a=1"))),
    Row("preserve indirect", "insert indirect preserve", (
        app("Set-Cookie: SRV=own"), app("Set-Cookie: SRV=own", cookies=("SRV=B; a=1",)),
    )),
    Row("postonly", "insert postonly", (
        Request(), Request(method="POST"), Request(method="PUT"), Request(method="HEAD"),
        Request(("SRV=Z",)), Request(("SRV=Z",), "POST"),
    )),
    Row("postonly does not change a valid cookie", "insert indirect postonly", (
        Request(("SRV=B",)), Request(("SRV=B",), "POST"),
    )),
    Row("postonly blocks renewal", "insert postonly maxidle 1h", (
        sent(f"SRV=B|{date(60)}"), Request((f"SRV=B|{date(60)}",), "POST"),
    )),
    Row("every attribute, to the byte", (
        "insert domain .a.example domain .b.example httponly secure attr SameSite=None attr Priority=High"
    ), (Request(),)),
    Row("httponly", "insert httponly", (Request(),)),
    Row("secure", "insert secure", (Request(),)),
    Row("a backup without a cookie deletes it with its attributes", "insert domain .a.example httponly secure", (
        sent("SRV=A"),
    ), (S("s1", "A", state="maint"), S("s3", backup=True))),
]  # fmt: skip

NOCACHE = "insert nocache"
CACHING = [
    Row(f"nocache, {headers or 'nothing said'}, {method}", NOCACHE, (app(*headers, method=method),))
    for method in ("GET",)
    for headers in (
        ("Cache-Control: max-age=60",),
        ("Cache-Control: public, max-age=60",),
        ("ETag: x",),
        ("Last-Modified: Sat, 21 Nov 2026 17:00:00 GMT",),
        ("Expires: Thu, 01 Jan 2032 00:00:00 GMT",),
        ("Cache-Control: private",),
        ("Cache-Control: no-store",),
        ("Cache-Control: no-store, max-age=60",),
        ("Cache-Control: max-age=60, private",),
    )
] + [
    Row("nocache, nothing is inserted", NOCACHE, (app("Cache-Control: max-age=60", cookies=("SRV=A",)),)),
    Row("no nocache", PLAIN, (app("Cache-Control: max-age=60"),)),
]

DATES = [
    Row(name, f"insert indirect {options}", steps)
    for name, options, steps in (
        ("maxidle, a new client", "maxidle 1h", (Request(),)),
        ("maxlife, a new client", "maxlife 1h", (Request(),)),
        ("both, a new client", "maxidle 1h maxlife 1h", (Request(),)),
        ("maxidle, seen a minute ago", "maxidle 1h", (sent(f"SRV=B|{date(60)}"),)),
        ("maxidle, idle for too long", "maxidle 1h", (sent(f"SRV=B|{date(HOUR + 60)}"),)),
        ("maxidle, from a minute ahead", "maxidle 1h", (sent(f"SRV=B|{date(-60)}"),)),
        ("maxidle, from an hour ahead", "maxidle 1h", (sent(f"SRV=B|{date(-HOUR)}"),)),
        ("maxidle, from beyond a day ahead", "maxidle 1h", (sent(f"SRV=B|{date(-DAY - 60)}"),)),
        ("maxidle, undated", "maxidle 1h", (sent("SRV=B"),)),
        ("maxidle, a first date as well", "maxidle 1h", (sent(f"SRV=B|{date(60)}|{date(120)}"),)),
        ("maxidle, a future date and a first one", "maxidle 1h", (sent(f"SRV=B|{date(-60)}|{date(120)}"),)),
        ("maxlife, first seen a minute ago", "maxlife 1h", (sent(f"SRV=B|{date(-60)}|{date(120)}"),)),
        ("maxlife, the last date is old", "maxlife 1h", (sent(f"SRV=B|{date(5 * HOUR)}|{date(120)}"),)),
        ("maxlife, too old", "maxlife 1h", (sent(f"SRV=B|{date(60)}|{date(HOUR + 60)}"),)),
        ("maxlife, undated", "maxlife 1h", (sent("SRV=B"),)),
        ("maxlife, no first date", "maxlife 1h", (sent(f"SRV=B|{date(60)}"),)),
        ("maxlife, first date from a minute ahead", "maxlife 1h", (sent(f"SRV=B|{date(-60)}|{date(-60)}"),)),
        ("maxlife, first date from beyond a day ahead", "maxlife 1h", (
            sent(f"SRV=B|{date(60)}|{date(-DAY - 60)}"),
        )),
        ("both, in time", "maxidle 1h maxlife 8h", (sent(f"SRV=B|{date(60)}|{date(2 * HOUR)}"),)),
        ("both, idle", "maxidle 1h maxlife 8h", (sent(f"SRV=B|{date(2 * HOUR)}|{date(3 * HOUR)}"),)),
        ("both, old", "maxidle 1h maxlife 8h", (sent(f"SRV=B|{date(60)}|{date(9 * HOUR)}"),)),
        ("both, idle and old", "maxidle 1h maxlife 8h", (sent(f"SRV=B|{date(2 * HOUR)}|{date(9 * HOUR)}"),)),
        ("neither, a last date", "", (sent(f"SRV=B|{date(60)}"),)),
        ("neither, a future last date", "", (sent(f"SRV=B|{date(-60)}"),)),
        ("neither, both dates", "", (sent(f"SRV=B|{date(60)}|{date(120)}"),)),
        ("neither, a future last date and a first one", "", (sent(f"SRV=B|{date(-60)}|{date(120)}"),)),
        ("a date too short", "maxidle 1h", (sent("SRV=B|abc"),)),
        ("a date with bad characters", "maxidle 1h", (sent("SRV=B|ab-cd"),)),
        ("a date of zero", "maxidle 1h", (sent("SRV=B|AAAAA"),)),
        ("a date with more after it", "maxidle 1h", (
            sent(f"SRV=B|{date(60)}zzz"), sent(f"SRV=B|{date(60)}zzz|{date(120)}"),
        )),
        ("a second date too short", "maxidle 1h maxlife 1h", (sent(f"SRV=B|{date(60)}|abc"),)),
        ("only a bar", "maxidle 1h", (sent("SRV=B|"), sent("SRV=|"), sent(f"SRV=|{date(60)}"))),
        ("an unknown server with dates", "maxidle 1h", (sent(f"SRV=Z|{date(60)}"),)),
        ("idle for too long, and another that is not", "maxidle 1h", (
            sent(f"SRV=A|{date(2 * HOUR)}; SRV=B|{date(60)}"),
        )),
        ("a server in maint, idle for too long", "maxidle 1h", (
            Change("s2", state="maint"), sent(f"SRV=B|{date(2 * HOUR)}"),
        )),
    )
] + [
    Row("dates are not read in prefix mode", "prefix", (sent(f"SRV=B|{date(60)}~x"), sent(f"SRV=B|{date(60)}"))),
    Row("dates in rewrite mode", "rewrite", (sent(f"SRV=B|{date(60)}"),)),
]  # fmt: skip

STRIPPED = [
    Row(f"indirect, {text}", INDIRECT, (sent(text),))
    for text in (
        "SRV=A",
        "SRV=A; a=1; b=2",
        "a=1; SRV=A; b=2",
        "a=1; b=2; SRV=A",
        "a=1;SRV=A;b=2",
        "a=1 ; SRV=A ; b=2",
        "a=1;   SRV=A;   b=2",
        "SRV=A;a=1",
        "SRV=A; a=1; SRV=B",
        "SRV=A; SRV=B",
        "a=1; SRV=A; SRV=B; b=2",
        "SRV = A; a=1",
        "a=1; SRV =A",
        'SRV="A"; a=1',
        'a="x;SRV=A;y"; b=1',
        'a="x; SRV=A',
        r'a="x\";SRV=A;y"; b=1',
        "srv=A",
        "SRVX=A",
        "XSRV=A; a=1",
        "SRV",
        "SRV; a=1",
        "a=1; SRV=A;",
        "a=1; SRV=A; ",
        "SRV=A;",
        "$Version=1; SRV=A; $Path=/; a=1; $Path=/",
        "$Version=1; a=1; $Path=/; SRV=A; $Path=/",
        "$Version=1; SRV=A; $Path=/",
        "a=1, SRV=A, b=2",
        "a=1,SRV=A",
        "SRV=A;;a=1",
        "a=1;;SRV=A",
        "SRV=A; foo",
        "foo; SRV=A; bar",
        "SRV=A=B; a=1",
        "SRV==A; a=1",
        "a=SRV=A; b=1",
        "a=1; SRV=Z; b=2",
        "a=1; SRV=; b=2",
        "a=b c; SRV=A",
        "a=caf\xe9; SRV=A; b=\xff",
        "=A; SRV=A; a=1",
        "a=1; =; SRV=A",
        " SRV=A; a=1",
        "a=1;\tSRV=A;\tb=2",
    )
] + [
    Row("indirect, three headers", INDIRECT, (sent("a=1", "SRV=A", "b=2"),)),
    Row("indirect, two headers with both", INDIRECT, (sent("a=1; SRV=A", "SRV=B; b=2"),)),
    Row("plain insert strips nothing", PLAIN, (sent("a=1;  SRV=A ;b=2"), sent("SRV=Z; a=1"))),
]

OTHER_MODES = [
    # rewrite
    Row("rewrite, the application sets nothing", "rewrite", (Request(), sent("a=1; SRV=B; b=2"), sent("SRV=Z"))),
    Row("rewrite, the application sets it", "rewrite", (
        app("Set-Cookie: SRV=own; Path=/x; HttpOnly"),
        app("Set-Cookie: SRV=own; Path=/x", cookies=("SRV=B",)),
    )),
    Row("rewrite, a quoted value", "rewrite", (app('Set-Cookie: SRV="o;w n"; Path=/x'),)),
    Row("rewrite, an empty value", "rewrite", (app("Set-Cookie: SRV="),)),
    Row("rewrite, spaces around the sign", "rewrite", (app("Set-Cookie: SRV = own ; Path=/x"),)),
    Row("rewrite, a deletion", "rewrite", (app("Set-Cookie: SRV=; expires=Thu, 01-Jan-1970 00:00:01 GMT"),)),
    Row("rewrite, several headers among others", "rewrite", (
        app("Set-Cookie: a=SRV=1", "Set-Cookie: SRV=one", "Set-Cookie: SRVX=2", "Set-Cookie: SRV=2; Secure"),
    )),
    Row("rewrite, a server in maint", "rewrite", (app("Set-Cookie: SRV=own", cookies=("SRV=A",)),), MAINT_A),
    Row("rewrite, no sign", "rewrite", (app("Set-Cookie: SRV"), app("Set-Cookie: SRV; Path=/"))),
    Row("rewrite, no space", "rewrite", (app("Set-Cookie: SRV=own;Path=/;HttpOnly"),)),
    # prefix
    Row("prefix, the application sets nothing", "prefix", (Request(),)),
    Row("prefix, the application sets it", "prefix", (
        app("Set-Cookie: SRV=own; Path=/x; HttpOnly"),
        app("Set-Cookie: SRV=own", cookies=("SRV=B~old; a=1",)),
    )),
    Row("prefix, several headers among others", "prefix", (
        app("Set-Cookie: SRV=one", "Set-Cookie: b=~2", "Set-Cookie: SRV=two~x; Secure"),
    )),
    *(
        Row(f"prefix, {text}", "prefix", (sent(text),))
        for text in (
            "SRV=B~rest",
            "SRV=B~x~y",
            "SRV=Z~abc",
            "SRV=~abc",
            "SRV=B",
            "SRV=abc123",
            "SRV=B~",
            "SRV=~",
            "a=1; SRV=B~x; b=2",
            "SRV=B~x; SRV=A~y",
            "SRV=Z~x; SRV=A~y",
            "a=1;SRV=B~x;b=2",
            "SRV=",
        )
    ),
    Row("prefix, two headers", "prefix", (sent("a=1; SRV=B~x", "SRV=A~y"),)),
    Row("prefix, a server in maint", "prefix", (
        sent("SRV=A~x"), app("Set-Cookie: SRV=own", cookies=("SRV=A~x",)),
    ), MAINT_A),
    Row("prefix, deletions", "prefix", (
        app("Set-Cookie: SRV=; Max-Age=0"), app('Set-Cookie: SRV=""'), app("Set-Cookie: SRV"),
    )),
    Row("prefix, spaces around the sign", "prefix", (app("Set-Cookie: SRV = own ; Path=/x"),)),
    Row("prefix indirect", "prefix indirect", (
        app("Set-Cookie: SRV=own"), app("Set-Cookie: SRV=own", "Set-Cookie: a=1", cookies=("SRV=B~x",)),
    )),
    # passive
    Row("passive", "", (
        app("Set-Cookie: SRV=own"), app("Set-Cookie: SRV=own", cookies=("a=1; SRV=B",)),
        sent("SRV=Z"), sent("SRV=A"),
    )),
    Row("passive indirect", "indirect", (
        app("Set-Cookie: SRV=own"), app("Set-Cookie: SRV=own", "Set-Cookie: a=1", cookies=("a=1; SRV=B",)),
    )),
    Row("passive indirect preserve", "indirect preserve", (
        app("Set-Cookie: SRV=own", cookies=("a=1; SRV=B",)),
    )),
    Row("passive, a server in maint", "", (sent("SRV=A"),), MAINT_A),
]  # fmt: skip


def weighted(*weights: int) -> tuple[ServerSpec, ...]:
    return tuple(S(f"s{number}", chr(64 + number), weight) for number, weight in enumerate(weights, 1))


def new_clients(count: int) -> tuple[Request, ...]:
    return (Request(),) * count


ROUNDROBIN = [
    *(
        Row(f"roundrobin, weights {weights}", None, new_clients(3 * sum(weights) + 2), weighted(*weights))
        for weights in (
            (1, 1, 1, 1), (3, 1, 1, 1), (5, 3, 1, 1), (2, 1), (1, 2), (5, 1, 1), (1, 0, 2),
            (3, 3, 2), (7, 5, 3), (10, 7, 3, 2, 1),
        )
    ),
    Row("roundrobin, weights of more than one round", None, new_clients(60), weighted(256, 1, 100)),
    Row("bound requests do not change the order", PLAIN, (
        Request(), sent("SRV=A"), sent("SRV=A"), sent("SRV=C"), Request(), Request(), sent("SRV=D"),
        *new_clients(2),
    ), weighted(1, 1, 1, 1)),
    Row("a server refuses, and the next is used", None, new_clients(12), (
        S("s1"), S("s2", state="refusing"), S("s3"),
    )),
    Row("a heavy server refuses", None, new_clients(18), (
        S("s1", weight=3, state="refusing"), S("s2", weight=2), S("s3"),
    )),
    Row("a server goes into maint and comes back", None, (
        *new_clients(3), Change("s2", state="maint"), *new_clients(5), Change("s2", state="ready"), *new_clients(9),
    ), weighted(1, 1, 1, 1)),
    Row("a heavy server goes into maint and comes back", None, (
        *new_clients(3), Change("s1", state="maint"), *new_clients(5), Change("s1", state="ready"), *new_clients(20),
    ), weighted(5, 3, 1, 1)),
    Row("a server is drained and comes back", None, (
        *new_clients(4), Change("s3", state="drain"), *new_clients(7), Change("s3", state="ready"), *new_clients(20),
    ), weighted(3, 1, 2)),
    Row("a weight grows", None, (*new_clients(3), Change("s2", weight=5), *new_clients(20)), weighted(1, 1, 1)),
    Row("a weight shrinks", None, (*new_clients(3), Change("s1", weight=1), *new_clients(20)), weighted(7, 3, 1)),
    Row("a weight goes to 0 and back", None, (
        *new_clients(2), Change("s1", weight=0), *new_clients(4), Change("s1", weight=3), *new_clients(15),
    ), weighted(3, 1, 1)),
    Row("a server in maint from the beginning becomes ready", None, (
        *new_clients(3), Change("s1", state="ready"), *new_clients(12),
    ), (S("s1", state="maint", weight=2), S("s2"), S("s3"))),
]  # fmt: skip

# -- random rows

WHITE_SIGN = re.compile(r"[ \t]=|=[ \t]")
NAMELESS = re.compile(r"(^|[;,])[ \t]*[;,]")
IN_COOKIE = [
    *(
        "SRV=A",
        "SRV=B",
        "SRV=Z",
        "SRV=A~x",
        "SRV=B~y~",
        "SRV",
        "a=1",
        "b=2",
        'a="x;y"',
        "foo",
        "$Path=/",
        "$x",
    ),
    *(";", "; ", ",", ", ", " ", "\t", "=", "~", "|", "\\", '"'),
]
IN_SET_COOKIE = [
    *("SRV=own", "SRV=", "SRV=o~w", "SRV=two", 'SRV="q;r"', "SRV", "SRVX=1", "srv=2", "a=SRV=3"),
    *("; Path=/x", ";HttpOnly", "; Secure", ";", "~", "|", '"', " "),
]


def random_text(rng: random.Random, pieces: list[str], excluded: Callable[[str], object]) -> str:
    """Return a text of a few pieces that is not among the differences below."""
    while True:
        text = "".join(rng.choices(pieces, k=rng.randint(1, 7))).strip(" \t")
        if text and not WHITE_SIGN.search(text) and not excluded(text):
            return text


def random_cookies(mode: str) -> tuple[Request, ...]:
    rng = random.Random(f"cookies {mode}")
    return tuple(
        sent(random_text(rng, IN_COOKIE, lambda text: '"' in text if mode == "prefix" else NAMELESS.search(text)))
        for _ in range(150)
    )


def random_set_cookies(mode: str) -> tuple[Request, ...]:
    rng = random.Random(f"set-cookies {mode}")
    return tuple(
        app(
            *(f"Set-Cookie: {random_text(rng, IN_SET_COOKIE, lambda _: False)}" for _ in range(rng.randint(1, 3))),
            cookies=rng.choice(((), ("SRV=B",), ("SRV=A; a=1",), ("SRV=Z",))),
        )
        for _ in range(100)
    )


def random_roundrobin(number: int) -> Row:
    """Return a row with some servers that the operator changes again and again; s1 is always ready."""
    rng = random.Random(f"turns {number}")
    servers = weighted(*(rng.choice((1, 1, 2, 3, 4, 5, 7, 10, 20)) for _ in range(rng.randint(2, 6))))
    steps: list[Request | Change] = []
    for _ in range(60):
        steps.append(Request())
        if number % 2 and rng.random() < 0.15:
            server = rng.choice(servers[1:]).name
            changes = [Change(server, "ready"), Change(server, "drain"), Change(server, "maint")]
            changes += [Change(server, weight=weight) for weight in (0, 2, 8)]
            steps.append(rng.choice(changes))
    what = " and changes" if number % 2 else ""
    return Row(f"roundrobin{what} at random, {number}", None, tuple(steps), servers)


RANDOM = [
    *(
        Row(f"cookies at random, {mode or 'passive'}", mode, random_cookies(mode))
        for mode in (PLAIN, INDIRECT, "rewrite", "prefix", "")
    ),
    *(
        Row(f"set-cookies at random, {mode or 'passive'}", mode, random_set_cookies(mode))
        for mode in (
            PLAIN,
            INDIRECT,
            "insert preserve",
            "rewrite",
            "prefix",
            "prefix indirect",
            "",
            "indirect",
        )
    ),
    *(random_roundrobin(number) for number in range(10)),
]

# -- differences on purpose

PRIVATE = ("private",)
A = Exchange(server="s1", set_cookie=("SRV=A; path=/",))
BARE_BACKUP = (S("s1", "A", state="maint"), S("s3", backup=True))

DIFFERENCES = [
    *(
        Row(f"nocache, {what}", NOCACHE, (request,), why="a response that does not forbid caching may be cached", ours=(
            replace(A, cache_control=(*cache_control, "private")),
        ))
        for what, request, cache_control in (
            ("nothing said", Request(), ()),
            ("public", app("Cache-Control: public"), ("public",)),
            ("no-cache", app("Cache-Control: no-cache, max-age=60"), ("no-cache, max-age=60",)),
            ("max-age=0", app("Cache-Control: max-age=0"), ("max-age=0",)),
            ("Pragma", app("Pragma: no-cache", "Cache-Control: max-age=60"), ("max-age=60",)),
            ("POST", app("Cache-Control: max-age=60", method="POST"), ("max-age=60",)),
        )
    ),
    Row("nocache, a redirection", NOCACHE, (app("Cache-Control: max-age=60", status=302),),
        why="a response that does not forbid caching may be cached",
        ours=(replace(A, status=302, cache_control=("max-age=60", "private")),)),
    Row("a backup without a cookie, no cookie to delete", PLAIN, (Request(),), BARE_BACKUP,
        why="a client that sent no cookie has none to delete", ours=(Exchange(server="s3"),)),
    Row("servers without a cookie, no cookie to delete", INDIRECT, (Request(), Request(("a=1",))), NO_ID,
        why="a client that sent no cookie has none to delete",
        ours=(Exchange(server="s1"), Exchange(server="s2", cookies=("a=1",)))),
    Row("only draining servers are left", PLAIN, (
        Change("s1", state="drain"), Change("s2", state="drain"), Request(),
    ), why="a draining server is better than none", ours=(A,)),
    Row("prefix, quoted", "prefix", (sent('a=1; SRV="B~abc"; b=2'),),
        why="HAProxy reads the quote as part of the id",
        ours=(Exchange(server="s2", cookies=("a=1; SRV=abc; b=2",)),)),
    Row("spaces around the sign of another cookie", INDIRECT, (sent("a = 1; SRV=A"),),
        why="other cookies keep every byte",
        ours=(Exchange(server="s1", cookies=("a = 1",)),)),
    Row("preserve, spaces around the sign", "insert preserve", (app("Set-Cookie: SRV = own; path=/x"),),
        why="a preserved cookie keeps every byte",
        ours=(Exchange(server="s1", set_cookie=("SRV = own; path=/x",)),)),
    Row("rewrite, a comma in the value", "rewrite", (app("Set-Cookie: SRV=one,two; path=/x"),),
        why="browsers read a value up to the semicolon (RFC 6265, 5.2)",
        ours=(Exchange(server="s1", set_cookie=("SRV=A; path=/x",)),)),
    Row("a delimiter with nothing before it", INDIRECT, (sent(";SRV=A; a=1"),),
        why="a pair without a name is another cookie, and stays",
        ours=(Exchange(server="s1", cookies=("; a=1",)),)),
]  # fmt: skip

ROWS = [*INSERTED, *OPTIONS, *CACHING, *DATES, *STRIPPED, *OTHER_MODES, *ROUNDROBIN, *RANDOM, *DIFFERENCES]
