"""Heads forwarded to an upstream and back, byte by byte, through real servers: targets, headers, the client's address.

What a server in front makes impossible is skipped by name; conftest.py has the list.
"""

import re

import pytest

HOST = "127.0.0.1"


def request_received(front, origin, line: str, *fields: str, site: str = "plain", body: bytes = b""):
    """Send a request; the origin reads it and responds. Return what the origin received."""
    client = front.request(line, *fields, site=site, body=body)
    received = origin.next_request()
    received.body = received.read_body()
    received.respond()
    assert client.response().status == 200
    return received


def response_received(front, origin, *fields: str, status: str = "200 OK", body: bytes = b""):
    """Have the origin send a response. Return what the client received."""
    client = front.request("GET /")
    origin.next_request().respond(status, *fields, body=body)
    return client.response()


def status_of_refused(front, origin, line: str, *fields: str, site: str = "plain") -> int:
    """Return the status of the response to a request that the origin does not receive."""
    client = front.request(line, *fields, site=site)
    status: int = client.response().status
    assert origin.has_no_request()
    return status


# -- the request target

TARGETS = {
    "root": "/",
    "encoded slash": "/a%2Fb",
    "encoded slash in lower case": "/a%2fb",
    "encoded tilde": "/%7Eu",
    "plain tilde": "/~u",
    "parameters": "/a;b=1;c/d;e",
    "dot segments": "/a/./b/../c",
    "dot segments, encoded": "/a/%2e/b/%2E%2e/c",
    "UTF-8": "/caf%C3%A9",
    "UTF-8 in lower case": "/caf%c3%a9",
    "not UTF-8": "/%ff%fe",
    "NUL": "/a%00b",
    "line break": "/a%0d%0ab",
    "no escape": "/%zz",
    "half an escape": "/a%2",
    "lone percent": "/100%",
    "quote": "/it's",
    "double escape": "/%2525%252F",
    "double slash": "//double//slash//",
    "trailing slash": "/a/b/",
    "reserved": "/!$&'()*+,;=:@",
    "encoded question mark": "/a%3Fb=c",
    "encoded space": "/a%20b",
    "plus": "/a+b",
    "query": "/q?a=%20+b&c=?d&&=",
    "query with slashes": "/q?to=http://other/a/../b",
    "query, escapes": "/q?%zz=%2F%2f%7E~%25",
    "query without path": "/?a",
    "empty value": "/q?a=",
    "a lone question mark": "/a?",
    "characters that a URL should not have": '/a|b"<>^`{}\\',
    "a fragment": "/a?b#c",
}


@pytest.mark.parametrize("which", TARGETS)
def test_target_is_forwarded_unchanged(which, front, a):
    front.skip_if_impossible(which)
    assert request_received(front, a, f"GET {TARGETS[which]}").target == TARGETS[which]


@pytest.mark.parametrize(
    "target, arrives",
    [("http://plain/a%2Fb?c", "/a%2Fb?c"), ("http://plain?c", "/?c"), ("http://plain", "/")],
    ids=["with a path", "with a query only", "with neither"],
)
def test_absolute_target_is_forwarded_as_its_path(target, arrives, front, a):
    if arrives[:2] in ("/", "/?"):
        front.skip_if_impossible("an absolute target without a path")
    assert request_received(front, a, f"GET {target}").target == arrives


def test_options_of_the_whole_server_are_forwarded_as_an_asterisk(front, a):
    assert request_received(front, a, "OPTIONS *").line == "OPTIONS * HTTP/1.1"


@pytest.mark.parametrize("site, origin", [("based", "a"), ("unix-based", "unix"), ("mounted-based", "a")])
@pytest.mark.parametrize(
    "target",
    ["/", "/a%2Fb", "//double", "/a/../b", "/a/%2e%2e/b", "/%ff", "/%zz", "/...", "/..a/b", "/?..%2f", "/a;..;/b"],
)
def test_path_of_an_upstream_url_is_prepended_to_the_target(site, origin, target, front, origins):
    sent = f"/mounted{target}" if site.startswith("mounted") else target
    assert request_received(front, origins[origin], f"GET {sent}", site=site).target == f"/base{target}"


@pytest.mark.parametrize("site", ["based", "mounted-based"])
@pytest.mark.parametrize(
    "target",
    [
        "/..%2fadmin",
        "/..%2Fadmin",
        "/../admin",
        "/%2e%2e/admin",
        "/.%2E%2fadmin",
        "/a/../../admin",
        "/a/..%2f..%2fadmin",
        "/..",
        "/%2e%2e",
        "/..;/admin",
        "/..%5cadmin",
        "//../../admin",
        "/./../admin",
        "/..?a",
    ],
)
def test_no_target_leaves_the_path_of_an_upstream_url(site, target, front, a):
    sent = f"/mounted{target}" if site == "mounted-based" else target
    assert status_of_refused(front, a, f"GET {sent}", site=site) in (400, 404)


@pytest.mark.parametrize("target", ["/..%2fadmin", "/../admin", "/a/../../admin"])
def test_dot_segments_are_unchanged_without_a_path_in_the_url(target, front, a):
    assert request_received(front, a, f"GET {target}").target == target


@pytest.mark.parametrize(
    "site, sent, arrives",
    [
        ("mounted", "/mounted/a%2Fb?c", "/a%2Fb?c"),
        ("mounted", "/mounted/", "/"),
        ("mounted", "/mounted//a", "//a"),
        ("mounted", "/mounted/mounted/a", "/mounted/a"),
        ("mounted", "/%6Dounted/a%2fb", "/a%2fb"),
        ("mounted", "/mounted/caf%c3%a9/%ff/%zz", "/caf%c3%a9/%ff/%zz"),
        ("nested", "/outer/inner/a%2Fb?c", "/a%2Fb?c"),
        ("nested", "/outer/inner/outer/inner/", "/outer/inner/"),
    ],
)
def test_mounted_dispatcher_forwards_the_path_below_its_mount(site, sent, arrives, front, a):
    assert request_received(front, a, f"GET {sent}", site=site).target == arrives


#: the command, the environment, and what the client sends before the path: uvicorn adds its root path itself
ROOT_PATHS: dict[str, tuple[str, dict[str, str], str]] = {
    "uvicorn": ("uvicorn --root-path /under --no-proxy-headers sites_asgi:app", {}, ""),
    "hypercorn": ("hypercorn --root-path /under sites_asgi:app", {}, "/under"),
    "granian": ("granian --url-path-prefix /under sites_asgi:app", {}, "/under"),
    "gunicorn": ("gunicorn -k gthread --threads 4 sites_wsgi:app", {"SCRIPT_NAME": "/under"}, "/under"),
    "waitress": ("waitress-serve --url-prefix /under sites_wsgi:app", {}, "/under"),
}


@pytest.mark.parametrize("command, more, before", ROOT_PATHS.values(), ids=ROOT_PATHS)
def test_root_path_of_a_server_is_removed(command, more, before, serve, variables, connect, a):
    served = serve(*command.split(), variables={**variables, **more})
    for target in ("/a%2Fb?c=%2f", "/", "//double", "/under/a"):
        client = connect(served)
        client.request(f"GET {before}{target}")
        received = a.next_request()
        assert received.target == target
        received.respond()
        assert client.response().status == 200


# -- headers of requests


def test_repeated_request_headers_stay_separate_and_in_order(front, a):
    front.skip_if_impossible("repeated request headers")
    received = request_received(front, a, "GET /", "X-Many: 1", "Cookie: a=1", "x-many: 2", "Cookie: b=2", "X-Many: 1")
    assert received.values("x-many") == ["1", "2", "1"]
    assert received.values("cookie") == ["a=1", "b=2"]


def test_repeated_request_headers_keep_every_value_where_an_environ_joins_them(front, a):
    received = request_received(front, a, "GET /", "X-Many: 1", "x-many: 2", "X-Many: 1")
    assert [value.strip() for text in received.values("x-many") for value in text.split(",")] == ["1", "2", "1"]


@pytest.mark.parametrize(
    "value",
    [
        "caf\xe9 \x80\xff",
        "",
        "sp  ace",
        '"quoted, \\"text"; a=b',
        "a" * 4000,
        "Sat, 01 Jan 2028 00:00:00 GMT",
        "tab\tin it",
    ],
    ids=["latin-1", "empty", "spaces", "quotes", "long", "date", "tab"],
)
def test_header_values_are_unchanged(value, front, a):
    assert request_received(front, a, "GET /", f"X-Value: {value}").values("x-value") == [value]
    assert response_received(front, a, f"X-Value: {value}").values("x-value") == [value]


def test_no_headers_of_http_clients_are_added(front, a):
    received = request_received(front, a, "GET /")
    assert {name.lower() for name, _ in received.fields} == {
        "host",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-real-ip",
    }
    assert received.values("host") == ["plain"]


@pytest.mark.parametrize(
    "sent, arrives",
    [
        ("a=1; SERVERID=a; b=2", ["a=1; b=2"]),
        ("SERVERID=a", []),
        ('a="1; 2"; b', ['a="1; 2"; b']),
        ("a=caf\xe9", ["a=caf\xe9"]),
    ],
    ids=["the session cookie among others", "only the session cookie", "unusual ones", "latin-1"],
)
def test_session_cookie_is_removed_and_others_are_unchanged(sent, arrives, front, a):
    assert request_received(front, a, "GET /", f"Cookie: {sent}").values("cookie") == arrives


def test_cookie_set_for_one_client_is_never_sent_for_another(front, a):
    first = front.request("GET /")
    wire = a.next_request()
    wire.respond("200 OK", "Set-Cookie: session=alice; Path=/", "Set-Cookie: theme=dark")
    first.response()
    second = front.request("GET /")
    received = a.next_request()
    assert received.wire is wire.wire  # the same connection, and no header of the first client
    assert received.values("cookie") == []
    received.respond()
    assert second.response().values("set-cookie") == ["SERVERID=a; path=/"]


HOP_BY_HOP = {
    "Keep-Alive": "timeout=5",
    "Proxy-Authenticate": "Basic",
    "Proxy-Connection": "keep-alive",
    "Trailer": "X-Late",
    "Upgrade": "gopher/1",
}


def test_hop_by_hop_headers_of_a_request_are_not_forwarded(front, a):
    fields = [f"{name}: {value}" for name, value in HOP_BY_HOP.items()]
    received = request_received(
        front,
        a,
        "GET /",
        *fields,
        "Connection: X-Gone, x-too, keep-alive",
        "X-Gone: 1",
        "X-Too: 2",
        "X-Stays: 3",
        "Proxy-Authorization: Basic YTpi",
    )
    names = {name.lower() for name, _ in received.fields}
    assert names & {name.lower() for name in (*HOP_BY_HOP, "Connection", "X-Gone", "X-Too", "HTTP2-Settings")} == set()
    assert received.values("x-stays") == ["3"]
    assert received.values("proxy-authorization") == ["Basic YTpi"]  # RFC 9110, 7.6.1, does not name it


def test_te_is_reduced_to_trailers(front, a):
    assert request_received(front, a, "GET /", "Connection: TE", "TE: gzip, trailers;q=0.5").values("te") in (
        [],
        ["trailers"],
    )


@pytest.mark.parametrize("connection", ["X-Gone\r\nConnection: X-Too", "X-Gone,,\t x-too ,", "close, X-Gone,X-Too"])
def test_connection_header_is_parsed_in_every_notation(connection, front, a):
    received = request_received(front, a, "GET /", f"Connection: {connection}", "X-Gone: 1", "X-Too: 2")
    assert (received.values("x-gone"), received.values("x-too"), received.values("connection")) == ([], [], [])


def test_connection_header_cannot_remove_headers_that_are_needed(front, a):
    received = request_received(
        front,
        a,
        "POST /",
        "Connection: Host, Content-Length, Cookie, X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Gone",
        "Cookie: a=1",
        "X-Gone: 1",
        body=b"hello",
    )
    assert (received.values("host"), received.values("cookie"), received.body) == (["plain"], ["a=1"], b"hello")
    assert received.values("x-forwarded-for") == [HOST]
    assert (received.values("x-forwarded-proto"), received.values("x-forwarded-host")) == (["http"], ["plain"])
    assert received.values("x-gone") == []


@pytest.mark.parametrize(
    "field",
    ["X-A: a\0b", "X-A: a\rb", "X A: b", "X-A : b", ": b"],
    ids=["NUL", "CR", "space", "space before", "no name"],
)
def test_ambiguous_header_is_never_forwarded(field, front, a):
    client = front.request("GET /first", field)
    assert client.response().status == 400
    client.close()
    assert a.has_no_request()
    assert request_received(front, a, "GET /second").target == "/second"


# -- headers of responses


def test_every_set_cookie_stays_separate_and_the_mark_is_added(front, a):
    response = response_received(
        front,
        a,
        "Set-Cookie: a=1; Expires=Sat, 01 Jan 2028 00:00:00 GMT",
        "Vary: Accept",
        "Set-Cookie: b=caf\xe9; Path=/shop; Domain=.shop.test",
        "Vary: Cookie",
        "Set-Cookie: a=1; Expires=Sat, 01 Jan 2028 00:00:00 GMT",
    )
    assert response.values("set-cookie") == [
        "a=1; Expires=Sat, 01 Jan 2028 00:00:00 GMT",
        "b=caf\xe9; Path=/shop; Domain=.shop.test",
        "a=1; Expires=Sat, 01 Jan 2028 00:00:00 GMT",
        "SERVERID=a; path=/",
    ]
    assert response.values("vary") == ["Accept", "Cookie"]


def test_redirect_is_forwarded_unchanged(front, a):
    client = front.request("GET /mounted/a", site="mounted")
    a.next_request().respond("302 Found", "Location: /base/next?a=%2F", "Set-Cookie: a=1; Path=/base")
    response = client.response()
    assert response.status == 302
    assert response.values("location") == ["/base/next?a=%2F"]
    assert response.values("set-cookie")[0] == "a=1; Path=/base"
    assert a.has_no_request()


def test_hop_by_hop_headers_of_a_response_are_not_forwarded(front, a):
    response = response_received(
        front,
        a,
        "Connection: X-Gone, keep-alive",
        "Connection: x-too",
        "Keep-Alive: timeout=77",
        "Proxy-Authenticate: Basic",
        "Proxy-Connection: keep-alive",
        "Trailer: X-Late",
        "Upgrade: gopher/1",
        "X-Gone: 1",
        "X-Too: 2",
        "X-Stays: 3",
        body=b"hello",
    )
    assert response.body == b"hello"
    for name in ("x-gone", "x-too", "proxy-authenticate", "proxy-connection", "trailer", "upgrade"):
        assert response.values(name) == []
    assert "timeout=77" not in response.values("keep-alive")
    assert not any("gone" in value.lower() for value in response.values("connection"))
    assert response.values("x-stays") == ["3"]


def test_connection_header_of_a_response_cannot_remove_headers_that_are_needed(front, a):
    response = response_received(
        front,
        a,
        "Connection: Content-Length, Set-Cookie, Content-Type",
        "Set-Cookie: a=1",
        "Content-Type: a/b",
        body=b"x",
    )
    assert (response.body, response.values("content-length")) == (b"x", ["1"])
    assert response.values("set-cookie")[0] == "a=1"
    assert response.values("content-type") == ["a/b"]


def test_only_the_server_in_front_sends_date_and_server(front, a):
    response = response_received(front, a, "Date: Sat, 01 Jan 2000 00:00:00 GMT", "Server: the origin's own")
    assert len(response.values("date")) == 1 and "2000" not in response.values("date")[0]
    assert "the origin's own" not in response.values("server") and len(response.values("server")) <= 1


@pytest.mark.parametrize(
    "status", ["200 OK", "203 Non-Authoritative", "299 Own", "404 Not Found", "418 Teapot", "503 Busy"]
)
def test_status_is_unchanged(status, front, a):
    assert response_received(front, a, status=status, body=b"why").status == int(status[:3])


def test_nul_in_a_response_header_is_never_forwarded(front, a):
    assert response_received(front, a, "X-A: a\0b").status == 502


# -- headers about the client: by default its address, its scheme, and the host that it requested

SPOOF = (
    "X-Forwarded-For: 203.0.113.9",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: shop.test",
    "X-Forwarded-Port: 444",
    "X-Real-IP: 203.0.113.9",
)
CLIENT_HEADERS = {
    "no header": (
        "plain",
        (),
        {"x-forwarded-for": HOST, "x-forwarded-proto": "http", "x-forwarded-host": "plain", "x-real-ip": HOST},
    ),
    "headers of an untrusted client are replaced": (
        "plain",
        SPOOF,
        {"x-forwarded-for": HOST, "x-forwarded-proto": "http", "x-forwarded-host": "plain", "x-real-ip": HOST},
    ),
    "repeated headers of an untrusted client are replaced": (
        "plain",
        (*SPOOF, "X-Forwarded-For: 198.51.100.1", "x-forwarded-proto: wss"),
        {"x-forwarded-for": HOST, "x-forwarded-proto": "http", "x-forwarded-host": "plain", "x-real-ip": HOST},
    ),
    "a trusted proxy sends no header": (
        "trusting",
        (),
        {"x-forwarded-for": HOST, "x-forwarded-proto": "http", "x-forwarded-host": "trusting", "x-real-ip": HOST},
    ),
    "headers of a trusted proxy are extended": (
        "trusting",
        SPOOF,
        {
            "x-forwarded-for": f"203.0.113.9, {HOST}",
            "x-forwarded-proto": "https",
            "x-forwarded-host": "shop.test",
            "x-forwarded-port": "444",
            "x-real-ip": "203.0.113.9",
        },
    ),
    "a trusted proxy sends several addresses": (
        "trusting",
        ("X-Forwarded-For: 203.0.113.9, 198.51.100.1",),
        {
            "x-forwarded-for": f"203.0.113.9, 198.51.100.1, {HOST}",
            "x-forwarded-proto": "http",
            "x-forwarded-host": "trusting",
        },
    ),
    "a trusted proxy passes on what its client wrote in X-Real-IP": (
        "trusting",
        ("X-Real-IP: 203.0.113.9", "X-Forwarded-For: 198.51.100.1"),
        {
            "x-forwarded-for": f"198.51.100.1, {HOST}",
            "x-forwarded-proto": "http",
            "x-forwarded-host": "trusting",
            "x-real-ip": "198.51.100.1",
        },
    ),
    "forwardfor adds an address": ("forwardfor", (), {"x-forwarded-for": HOST}),
    "forwardfor changes no other header": (
        "forwardfor",
        SPOOF,
        {
            "x-forwarded-for": f"203.0.113.9, {HOST}",
            "x-forwarded-proto": "https",
            "x-forwarded-host": "shop.test",
            "x-forwarded-port": "444",
            "x-real-ip": "203.0.113.9",
        },
    ),
    "forwardfor, the client excepted": ("forwardfor-except", (), {}),
    "forwardfor, the client excepted, its header is unchanged": (
        "forwardfor-except",
        ("X-Forwarded-For: 203.0.113.9",),
        {"x-forwarded-for": "203.0.113.9"},
    ),
    "forwardfor, others excepted": ("forwardfor-elsewhere", (), {"x-forwarded-for": HOST}),
    "forwardfor if none": ("forwardfor-if-none", (), {"x-forwarded-for": HOST}),
    "forwardfor if none, and there is one": (
        "forwardfor-if-none",
        ("X-Forwarded-For: 203.0.113.9",),
        {"x-forwarded-for": "203.0.113.9"},
    ),
    "none adds no header": ("silent", (), {}),
    "none changes no header": (
        "silent",
        SPOOF,
        {
            "x-forwarded-for": "203.0.113.9",
            "x-forwarded-proto": "https",
            "x-forwarded-host": "shop.test",
            "x-forwarded-port": "444",
            "x-real-ip": "203.0.113.9",
        },
    ),
}


@pytest.mark.parametrize("site, fields, expected", CLIENT_HEADERS.values(), ids=CLIENT_HEADERS)
def test_headers_about_the_client(site, fields, expected, front, a):
    received = request_received(front, a, "GET /", *fields, site=site)
    names = {name.lower() for name, _ in received.fields if name.lower().startswith(("x-forwarded-", "x-real-ip"))}
    found = {name: ", ".join(received.values(name)) for name in names}
    assert {name: found.get(name) for name in {*found, *expected} - {"x-real-ip"}} == {
        name: value for name, value in expected.items() if name != "x-real-ip"
    }
    if "x-real-ip" in expected:
        assert found["x-real-ip"] == expected["x-real-ip"]
    assert received.values("forwarded") == []


@pytest.mark.parametrize("site", ["plain", "trusting", "forwardfor", "silent"])
def test_names_that_differ_by_underscores_from_ours_are_not_passed_on(site, front, a):
    fields = [field.replace("-", "_", 2) for field in SPOOF]
    received = request_received(front, a, "GET /", *fields, "X_Forwarded-For: 203.0.113.9", site=site)
    assert [name for name, _ in received.fields if "_" in name] == []
    assert "203.0.113.9" not in str(received.fields)


def test_forwardfor_adds_a_separate_header(front, a):
    received = request_received(front, a, "GET /", "X-Forwarded-For: 203.0.113.9", site="forwardfor")
    assert received.values("x-forwarded-for") == ["203.0.113.9", HOST]


def forwarded_elements(received) -> list[dict[str, str]]:
    """Return the elements of Forwarded (RFC 7239), names in lower case."""
    text = ",".join(received.values("forwarded"))
    return [
        {name.lower().strip(): value.strip('"') for name, _, value in (pair.partition("=") for pair in part.split(";"))}
        for part in re.split(r",\s*", text)
    ]


def test_forwarded_is_one_header(front, a):
    received = request_received(front, a, "GET /", site="forwarded")
    assert forwarded_elements(received) == [{"for": HOST, "proto": "http", "host": "forwarded"}]
    assert [name for name, _ in received.fields if name.lower().startswith("x-forwarded-")] == []


def test_forwarded_of_an_untrusted_client_is_replaced(front, a):
    received = request_received(front, a, "GET /", "Forwarded: for=203.0.113.9;proto=https", *SPOOF, site="forwarded")
    assert forwarded_elements(received) == [{"for": HOST, "proto": "http", "host": "forwarded"}]
    assert received.values("x-forwarded-for") == []


def test_forwarded_of_a_trusted_proxy_is_extended(front, a):
    received = request_received(
        front, a, "GET /", 'Forwarded: for=203.0.113.9;proto=https, for="[2001:db8::1]"', site="forwarded-trusting"
    )
    assert forwarded_elements(received)[:2] == [{"for": "203.0.113.9", "proto": "https"}, {"for": "[2001:db8::1]"}]
    assert forwarded_elements(received)[2]["for"] == HOST


def test_host_is_kept(front, a):
    received = request_received(front, a, "GET /", "Host: plain:8443")
    assert (received.values("host"), received.values("x-forwarded-host")) == (["plain:8443"], ["plain:8443"])


def test_host_can_be_the_upstreams(front, a):
    received = request_received(front, a, "GET /", site="their-host")
    assert (received.values("host"), received.values("x-forwarded-host")) == ([f"{HOST}:{a.port}"], ["their-host"])


def test_host_can_be_configured(front, a):
    received = request_received(front, a, "GET /", site="configured-host")
    assert (received.values("host"), received.values("x-forwarded-host")) == (["configured.test"], ["configured-host"])


def test_request_without_a_host_gets_the_upstreams(front, a):
    front.skip_if_impossible("a client without a Host")
    client = front.client()
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    received = a.next_request()
    assert (received.line, received.values("host")) == ("GET / HTTP/1.1", [f"{HOST}:{a.port}"])
    received.respond(body=b"hello")
    assert client.response().body == b"hello"


def test_unix_socket_gets_the_same_host(front, origins):
    received = request_received(front, origins["unix"], "GET /a%2Fb", site="unix")
    assert (received.target, received.values("host")) == ("/a%2Fb", ["unix"])


def test_upstream_without_a_backend_sets_no_mark(front, a):
    client = front.request("GET /a%2Fb?c", "X-A: caf\xe9", site="alone")
    received = a.next_request()
    assert (received.target, received.values("x-a"), received.values("x-forwarded-for")) == (
        "/a%2Fb?c",
        ["caf\xe9"],
        [HOST],
    )
    received.respond("200 OK", "X-B: caf\xe9", body=b"hello")
    response = client.response()
    assert (response.status, response.values("x-b"), response.body) == (200, ["caf\xe9"], b"hello")
    assert response.values("set-cookie") == []
