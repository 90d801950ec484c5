"""Cookie and Set-Cookie text: what is ours is found and taken out, what is not keeps every byte.

The rows of the facts are HAProxy's own answers, recorded (persistence 1.5); properties hold the quick way and
the general one together; long texts come back at all.
"""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sticky_core.http import cookies

NAME = "SRV"


def row(name: str, *values: object):
    return pytest.param(*values, id=name)


# -- take: what the client sent, what we find, what the server gets

FACTS = [
    row("only ours", "SRV=A", ["A"], ""),
    row("ours first", "SRV=A; a=1; b=2", ["A"], "a=1; b=2"),
    row("ours in the middle", "a=1; SRV=A; b=2", ["A"], "a=1; b=2"),
    row("ours last", "a=1; b=2; SRV=A", ["A"], "a=1; b=2"),
    row("no spaces, in the middle: one is put after the delimiter", "a=1;SRV=A;b=2", ["A"], "a=1; b=2"),
    row("a space before each delimiter", "a=1 ; SRV=A ; b=2", ["A"], "a=1; b=2"),
    row("many spaces after each delimiter", "a=1;   SRV=A;   b=2", ["A"], "a=1; b=2"),
    row("no spaces, ours first", "SRV=A;a=1", ["A"], "a=1"),
    row("twice", "SRV=A; a=1; SRV=B", ["A", "B"], "a=1"),
    row("spaces around =", "SRV = A; a=1", ["A"], "a=1"),
    row("quotes belong to the value", 'SRV="A"; a=1', ['"A"'], "a=1"),
    row("our text inside another's quotes", 'a="x;SRV=A;y"; b=1', [], 'a="x;SRV=A;y"; b=1'),
    row("an unclosed quote runs to the end", 'a="x; SRV=A', [], 'a="x; SRV=A'),
    row("another case is another name", "srv=A", [], "srv=A"),
    row("a longer name", "SRVX=A", [], "SRVX=A"),
    row("no =", "SRV", [], "SRV"),
    row("a trailing delimiter stays", "a=1; SRV=A;", ["A"], "a=1; "),
    row(
        "the $ attributes of ours go with it",
        "$Version=1; SRV=A; $Path=/; a=1; $Path=/",
        ["A"],
        "$Version=1; a=1; $Path=/",
    ),
    row("a comma delimits", "a=1, SRV=A, b=2", ["A"], "a=1, b=2"),
    row("an empty pair stays", "SRV=A;;a=1", ["A"], ";a=1"),
    row("a foreign pair without =", "SRV=A; foo", ["A"], "foo"),
]

BEYOND_THE_FACTS = [
    row("no text", "", [], ""),
    row("empty value", "SRV=; a=1", [""], "a=1"),
    row("value with = in it", "SRV=A=B; a=1", ["A=B"], "a=1"),
    row("value that is our own text", "SRV=SRV=A; a=1", ["SRV=A"], "a=1"),
    row("our name at the end of another", "XSRV=Z; SRV=A", ["A"], "XSRV=Z"),
    row("our name as another's value", "a=SRV; SRV=A", ["A"], "a=SRV"),
    row("our text as another's value", "a=SRV=Z; SRV=A", ["A"], "a=SRV=Z"),
    row("our name without = beside ours", "SRV; SRV=A", ["A"], "SRV"),
    row("thrice in a row", "SRV=A; SRV=B; SRV=C", ["A", "B", "C"], ""),
    row("ours around another", "SRV=A; a=1; SRV=B; b=2; SRV=C", ["A", "B", "C"], "a=1; b=2"),
    row("commas without spaces", "a=1,SRV=A,b=2", ["A"], "a=1, b=2"),
    row("tabs", "a=1;\tSRV\t=\tA\t;\tb=2", ["A"], "a=1; b=2"),
    row("space before the first", "  SRV=A; a=1", ["A"], "a=1"),
    row("a quote inside the value", 'SRV=A"; x=1"; a=1', ['A"; x=1"'], "a=1"),
    row("a comma inside quotes", 'a="1,SRV=Z"; SRV=A', ["A"], 'a="1,SRV=Z"'),
    row("an escaped quote does not close", r'a="\";SRV=Z"; SRV=A', ["A"], r'a="\";SRV=Z"'),
    row("an escaped backslash before the closing quote", r'a="\\";SRV=A', ["A"], r'a="\\"'),
    row("a backslash outside quotes escapes nothing", r"a=\;SRV=A", ["A"], "a=\\"),
    row("an unclosed quote that ends in a backslash", 'SRV=A; a="\\', ["A"], 'a="\\'),
    row("an unclosed quote in ours", 'a=1; SRV="A; b=2', ['"A; b=2'], "a=1"),
    row("ours and its $ attributes only", "SRV=A; $Path=/; $Domain=x", ["A"], ""),
    row("another's $ attributes stay", "a=1; $Path=/; SRV=A", ["A"], "a=1; $Path=/"),
    row("$ attributes by comma", "SRV=A,$Path=/,a=1", ["A"], "a=1"),
    row("Latin-1", "a=\xff\x80; SRV=\xe4; b=\xa0", ["\xe4"], "a=\xff\x80; b=\xa0"),
    row("a no-break space is no space", "SRV=\xa0A\xa0; a=1", ["\xa0A\xa0"], "a=1"),
    row("control characters and line ends stay", "a=\x00\n; SRV=A; b=\r\x0b", ["A"], "a=\x00\n; b=\r\x0b"),
    row("foreign bytes are not tidied", "a = 1 ;  b=\t2 ,SRV=A,  c =3 ", ["A"], "a = 1 ;  b=\t2, c =3 "),
]


@pytest.mark.parametrize("text, values, rest", FACTS + BEYOND_THE_FACTS)
def test_ours_are_found_in_order_and_taken_out(text: str, values: list[str], rest: str):
    found, left = cookies.take(text, NAME)
    assert (list(found), left) == (values, rest)


def test_of_three_headers_one_is_left_empty_and_two_as_they_are():
    assert [cookies.take(text, NAME)[1] for text in ("a=1", "SRV=A", "b=2")] == ["a=1", "", "b=2"]


@pytest.mark.parametrize("name", ["a.b", "a+b", "a*", "(x", "[", "a|b", "^", "__Host-SRV"])
def test_a_name_is_text_and_never_a_pattern(name: str):
    assert cookies.take(f"axb=1; {name}=A; aab=2", name) == (("A",), "axb=1; aab=2")


# -- properties: a reader of one character at a time, slow and plain, that says what a Cookie text means


def delimited(text: str) -> list[tuple[str, str]]:
    """The pieces of a Cookie text, each with the delimiter before it."""
    found: list[tuple[str, str]] = []
    delimiter, piece = "", ""
    quoted = escaped = valued = False
    for character in text:
        if not quoted and character in ";,":
            found.append((delimiter, piece))
            delimiter, piece, valued = character, "", False
            continue
        piece += character
        if not quoted:
            quoted = valued and character == '"'
            valued = valued or character == "="
        elif escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == '"':
            quoted = False
    return [*found, (delimiter, piece)]


def taken_slowly(text: str, name: str) -> tuple[list[str], str]:
    values: list[str] = []
    kept: list[str] = []
    after_ours = gap = foreign = False
    for delimiter, piece in delimited(text):
        called, equals, value = (part.strip(" \t") for part in piece.partition("="))
        ours = called == name and equals == "="
        if ours:
            values.append(value)
        after_ours = ours or (after_ours and called.startswith("$"))
        if after_ours:
            gap = True
            continue
        foreign = foreign or not called.startswith("$")
        if not gap:
            kept.append(delimiter + piece)
        elif kept:
            kept[-1] = kept[-1].rstrip(" \t")
            kept.append(f"{delimiter} {piece.lstrip(' 	')}")
        else:
            kept.append(piece.lstrip(" \t"))
        gap = False
    if not values:
        return [], text
    return values, "".join(kept) if foreign else ""


# what matters to a reader of cookies: our name, whole and in parts, and all that delimits, quotes or escapes
MORSELS = [
    "SRV=",
    "SRV=A",
    "SRV",
    "S",
    "XSRV=",
    "A",
    "=",
    ";",
    "; ",
    ",",
    ", ",
    " ",
    "\t",
    '"',
    "\\",
    "$",
    "$Path=/",
    "a=1",
    "b=2",
]
texts = st.lists(st.sampled_from(MORSELS), max_size=24).map("".join)
# and texts as browsers write them, with an oddity here and there, where the quick way is tempted
browsers = st.lists(
    st.sampled_from(["SRV=A", "SRV=B", "SRV=", "a=1", "b=2", "c=SRV", "XSRV=1", "foo", "", "$x=1", ' d=" "', "e=1 "]),
    max_size=6,
).map("; ".join)


@given(texts | browsers)
@example("a=1 ; ; SRV=A;  ; b=2")
@example("; SRV=A")
@example("SRV=A;")
@example("\t; SRV=A; b=2")
@example('a=" ; SRV=A; b="2"')
def test_the_quick_way_finds_what_a_slow_reader_finds(text: str):
    found, left = cookies.take(text, NAME)
    assert (list(found), left) == taken_slowly(text, NAME)


@given(texts | browsers)
def test_taking_twice_takes_nothing_more(text: str):
    _, left = cookies.take(text, NAME)
    again, rest = cookies.take(left, NAME)
    assert (list(again), rest) == ([], left)


@given(texts | browsers)
def test_a_text_without_ours_is_the_same_text(text: str):
    found, left = cookies.take(text, "OTHER")
    assert not found
    assert left == text


@given(texts | browsers)
def test_foreign_pairs_keep_every_byte(text: str):
    """White space around the place where ours was does not count, nor do the `$` attributes of ours."""

    def foreign(text: str) -> list[str]:
        pieces = [piece.strip(" \t") for _, piece in delimited(text)]
        return [piece for piece in pieces if piece and not piece.startswith("$") and pair_name(piece) != NAME]

    def pair_name(piece: str) -> str | None:
        called, equals, _ = piece.partition("=")
        return called.rstrip(" \t") if equals else None

    assert foreign(cookies.take(text, NAME)[1]) == foreign(text)


@given(st.text(st.characters(max_codepoint=255), max_size=40), st.text(st.characters(max_codepoint=255), max_size=40))
def test_any_latin_1_text_is_read_and_none_refused(before: str, after: str):
    text = f"{before}; SRV=A; {after}"
    found, left = cookies.take(text, NAME)
    assert (list(found), left) == taken_slowly(text, NAME)


# -- long texts: a megabyte each, so that a reader that looks at anything again and again never comes back

MEGABYTE = 1_000_000


@pytest.fixture
def patience() -> Iterator[None]:
    """Twenty seconds for what takes one or two: what is quadratic would take hours, and fails by its name."""

    def lost(*_: object):
        raise AssertionError("still reading after twenty seconds: some text is looked at again and again")

    before = signal.signal(signal.SIGALRM, lost)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


LONG = [
    row("quotes", "a=" + '"' * MEGABYTE),
    row("quotes in names", '"' * MEGABYTE),
    row("unclosed quotes", 'a="' * (MEGABYTE // 3)),
    row("quotes, each a pair", 'a=";' * (MEGABYTE // 4)),
    row("closed quotes", 'a=""' * (MEGABYTE // 4)),
    row("backslashes in quotes", 'a="' + "\\" * MEGABYTE),
    row("an odd number of backslashes in quotes", 'a="' + "\\" * (MEGABYTE + 1)),
    row("escaped quotes", 'a="' + '\\"' * (MEGABYTE // 2)),
    row("backslashes", "a=" + "\\" * MEGABYTE),
    row("spaces", " " * MEGABYTE),
    row("spaces in a name", "a" + " " * MEGABYTE + "b=1"),
    row("spaces after =", "a=" + " " * MEGABYTE),
    row("spaces and letters in a value", "a=" + "b " * (MEGABYTE // 2)),
    row("tabs and spaces", " \t" * (MEGABYTE // 2)),
    row("empty pairs", ";" * (MEGABYTE // 2)),
    row("empty pairs by comma", "," * (MEGABYTE // 2)),
    row("pairs of spaces", " ; " * (MEGABYTE // 3)),
    row("equal signs", "=" * MEGABYTE),
    row("our name again and again", "SRV" * (MEGABYTE // 3)),
    row("our name and = again and again", "SRV=" * (MEGABYTE // 4)),
    row("names that end like ours", "XSRV=1; " * (MEGABYTE // 8)),
    row("our name with spaces before =", "SRV" + " " * MEGABYTE + "=A"),
    row("dollars", "$" * MEGABYTE),
    row("$ attributes", "$a;" * (MEGABYTE // 3)),
    row("one long value", "a=" + "x" * MEGABYTE),
    row("one long name", "x" * MEGABYTE),
]


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("text", LONG)
def test_a_long_text_before_or_after_ours_is_read_to_its_end(text: str):
    values, left = cookies.take(f"SRV=A;{text}", NAME)
    assert values[0] == "A"
    assert len(left) <= len(text)
    assert cookies.replace(f"{text};SRV=A", NAME, str) == f"{text};SRV=A"


@pytest.mark.usefixtures("patience")
def test_of_ours_a_hundred_thousand_times_the_first_are_taken_and_the_rest_stays():
    values, left = cookies.take("SRV=A; " * 100_000, NAME)
    read = -(-cookies.MAX_LENGTH // len("SRV=A; "))
    assert (len(values), left) == (read, "SRV=A; " * (100_000 - read))


# -- the limit of what is read


@pytest.mark.parametrize("odd", ["", ' "'], ids=["as browsers write it", "with a quote"])
@pytest.mark.parametrize(
    ("begins", "is_read"), [(cookies.MAX_LENGTH, True), (cookies.MAX_LENGTH + 1, False)], ids=["at the limit", "behind"]
)
def test_cookie_that_begins_behind_the_limit_is_not_read_and_stays(begins: int, is_read: bool, odd: str):
    before = "a=" + "x" * (begins - len("a=;"))
    text = f"{before}; SRV=A; b=2{odd}"
    values, left = cookies.take(text, NAME)
    assert (list(values), left) == ((["A"], f"{before}; b=2{odd}") if is_read else ([], text))
    assert cookies.replace(text, NAME, str.lower) == (text.replace("SRV=A", "SRV=a") if is_read else text)


@pytest.mark.parametrize("odd", ["", "; $Path=/", '; c="'], ids=["as browsers write it", "attributes", "a quote"])
def test_cookie_that_begins_within_the_limit_is_read_to_its_end(odd: str):
    value = "x" * 4 * cookies.MAX_LENGTH
    values, left = cookies.take(f"a=1; SRV={value}; b=2{odd}", NAME)
    assert (list(values), left) == ([value], f"a=1; b=2{odd}")


def test_what_is_not_read_stays_as_it_is_behind_what_was_taken():
    rest = "SRV=B;b =  2 ,$x;" * cookies.MAX_LENGTH
    values, left = cookies.take(f"SRV=A;{'c;' * (cookies.MAX_LENGTH // 2)}{rest}", NAME)
    assert (list(values), left) == (["A"], f"{'c;' * (cookies.MAX_LENGTH // 2)}{rest}")


@pytest.mark.parametrize(
    ("key", "is_read"),
    [
        ((b"x",) * cookies.MAX_HEADERS, True),
        ((b"x",) * (cookies.MAX_HEADERS + 1), False),
        ((b"x" * (cookies.MAX_LENGTH - 1), b"x"), True),
        ((b"x" * cookies.MAX_LENGTH, b"x"), False),
    ],
)
def test_headers_that_are_too_many_or_too_long_are_not_read(key: tuple[bytes, ...], is_read: bool):
    assert cookies.limited_key(key) == (key if is_read else cookies.UNREAD)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("text", LONG)
def test_a_long_set_cookie_is_read_to_its_end(text: str):
    cookies.set_cookie_name(text)
    cookies.edit_set_cookie_value(text, str)
    assert cookies.set_cookie_name(f"SRV={text}") == NAME


# -- replace: the values change, nothing else does


def shout(value: str) -> str:
    return f"<{value}>"


@pytest.mark.parametrize(
    "text, expected",
    [
        row("only ours", "SRV=A", "SRV=<A>"),
        row("ours among others", "a=1; SRV=A; b=2", "a=1; SRV=<A>; b=2"),
        row("every one", "SRV=A; SRV=B,SRV=C", "SRV=<A>; SRV=<B>,SRV=<C>"),
        row("white space stays", "a=1 ;\tSRV = A ;b=2", "a=1 ;\tSRV = <A> ;b=2"),
        row("empty value", "SRV=; a=1", "SRV=<>; a=1"),
        row("quotes are handed over", 'SRV="A"', 'SRV=<"A">'),
        row("inside another's quotes it is not ours", 'a="SRV=A;SRV=B"', 'a="SRV=A;SRV=B"'),
        row("another case", "srv=A", "srv=A"),
        row("no =", "SRV; a=1", "SRV; a=1"),
        row("not there", "a=1", "a=1"),
        row("no text", "", ""),
    ],
)
def test_replace_puts_each_value_through_a_function(text: str, expected: str):
    assert cookies.replace(text, NAME, shout) == expected


@given(texts | browsers)
def test_replacing_each_value_by_itself_changes_nothing(text: str):
    seen: list[str] = []

    def same(value: str) -> str:
        seen.append(value)
        return value

    assert cookies.replace(text, NAME, same) == text
    assert seen == taken_slowly(text, NAME)[0]


@given(texts | browsers)
def test_what_take_calls_ours_is_what_replace_calls_ours(text: str):
    assert list(cookies.take(cookies.replace(text, NAME, lambda _: "new"), NAME)[0]) == ["new"] * len(
        cookies.take(text, NAME)[0]
    )


# -- Set-Cookie


@pytest.mark.parametrize(
    "text, name",
    [
        row("name and value", "SRV=A", "SRV"),
        row("attributes", "SRV=A; Path=/; HttpOnly", "SRV"),
        row("spaces around the name", " \tSRV =A", "SRV"),
        row("empty value", "SRV=", "SRV"),
        row("empty name", "=A", ""),
        row("no =", "SRV", None),
        row("no = before the attributes", "SRV; Path=/", None),
        row("no text", "", None),
        row("a comma is no delimiter here", "a,SRV=A", "a,SRV"),
    ],
)
def test_name_in_a_set_cookie_is_what_stands_before_the_first_equal_sign(text: str, name: str | None):
    assert cookies.set_cookie_name(text) == name


@pytest.mark.parametrize(
    "text, expected",
    [
        row("only a value", "SRV=A", "SRV=<A>"),
        row("attributes keep every byte", "SRV=A ;  path = / ;HttpOnly;x=\xff", "SRV=<A> ;  path = / ;HttpOnly;x=\xff"),
        row("white space around = goes", "SRV \t= \tA; Path=/", "SRV=<A>; Path=/"),
        row("white space before the name stays", "  SRV=A", "  SRV=<A>"),
        row("quotes are handed over", 'SRV="A;B"; Path=/', 'SRV=<"A;B">; Path=/'),
        row("an escaped quote does not close", r'SRV="A\";B"; Path=/', r'SRV=<"A\";B">; Path=/'),
        row("a comma belongs to the value", "SRV=A,B; Path=/", "SRV=<A,B>; Path=/"),
        row("empty value", "SRV=; Max-Age=0", "SRV=<>; Max-Age=0"),
        row("an attribute of our name is an attribute", "SRV=A; SRV=B", "SRV=<A>; SRV=B"),
        row(
            "expires has a comma",
            "SRV=A; expires=Thu, 01-Jan-1970 00:00:01 GMT",
            "SRV=<A>; expires=Thu, 01-Jan-1970 00:00:01 GMT",
        ),
        row("no =", "SRV; Path=/", "SRV; Path=/"),
    ],
)
def test_edited_set_cookie_has_another_value_and_the_same_attributes(text: str, expected: str):
    assert cookies.edit_set_cookie_value(text, shout) == expected


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_any_set_cookie_keeps_its_attributes_and_its_name(text: str):
    name = cookies.set_cookie_name(text)
    changed = cookies.edit_set_cookie_value(text, lambda _: "new")
    if name is None:
        assert changed == text
    else:
        assert cookies.set_cookie_name(changed) == name
        assert cookies.edit_set_cookie_value(changed, lambda value: value) == changed


# -- single values


@pytest.mark.parametrize(
    "value, expected",
    [
        row("quoted", '"A"', "A"),
        row("bare", "A", "A"),
        row("empty", "", ""),
        row("two quotes", '""', ""),
        row("one quote is no pair of them", '"', '"'),
        row("only before", '"A', '"A'),
        row("only after", 'A"', 'A"'),
        row("one layer only", '""A""', '"A"'),
    ],
)
def test_unquote_takes_off_one_pair_of_quotes(value: str, expected: str):
    assert cookies.unquote(value) == expected


VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
NOT_IN_NAMES = '()<>@,;:\\"/[]?={}'  # RFC 9110, 5.6.2: the delimiters that no token holds
NOT_IN_VALUES = '",;\\'  # RFC 6265, 4.1.1


@pytest.mark.parametrize(
    "what, allowed",
    [
        row("name", cookies.is_name, set(VISIBLE) - set(NOT_IN_NAMES)),
        row("value", cookies.is_value, set(VISIBLE) - set(NOT_IN_VALUES)),
        row("attribute", cookies.is_attribute, set(VISIBLE) - {";"} | {" "}),
    ],
)
def test_what_may_be_written_is_what_the_rfc_allows(what: Callable[[str], bool], allowed: set[str]):
    assert {character for character in map(chr, range(0x180)) if what(f"a{character}a")} == allowed
    assert not what("")
    assert not what("a\n"), "a line end after it is not overlooked"


def test_a_name_does_not_begin_with_a_dollar_which_marks_an_attribute():
    assert not cookies.is_name("$SRV")
    assert cookies.is_name("SRV$")


# -- Set-Cookie headers of our own


def test_set_cookie_has_its_expiry_before_its_attributes():
    assert cookies.set_cookie("SRV", "s1") == "SRV=s1"
    attributes = cookies.attribute_text(path="/", secure=True)
    assert cookies.set_cookie("SRV", "s1", cookies.expires(0), attributes) == (
        "SRV=s1; Expires=Thu, 01 Jan 1970 00:00:00 GMT; path=/; Secure"
    )


def test_deletion_is_recognised_as_one():
    text = cookies.delete_cookie("SRV", cookies.attribute_text(path="/shop"))
    assert text == "SRV=; Expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/shop"
    assert cookies.deletes(text, 10.0)


@pytest.mark.parametrize(
    "options, text",
    [
        ({}, ""),
        ({"path": "/"}, "; path=/"),
        (
            {
                "attr": ["Priority=High"],
                "partitioned": True,
                "samesite": "None",
                "secure": True,
                "httponly": True,
                "max_age": 60.9,
                "domains": [".a.example", ".b.example"],
                "path": "/",
            },
            (
                "; path=/; domain=.a.example; domain=.b.example; Max-Age=60; HttpOnly; Secure; SameSite=None"
                "; Partitioned; Priority=High"
            ),
        ),
        ({"max_age": 0, "samesite": None}, ""),
    ],
)
def test_attributes_are_in_the_order_of_haproxy(options: dict[str, Any], text: str):
    assert cookies.attribute_text(**options) == text


def test_attributes_are_in_the_order_and_case_of_nginx():
    text = cookies.nginx_attribute_text(domain=".a.example", httponly=True, secure=True, samesite="lax", path="/")
    assert text == "; domain=.a.example; httponly; secure; samesite=lax; path=/"
    assert cookies.nginx_attribute_text(domain=None, httponly=False, secure=False, samesite=None, path=None) == ""
    assert cookies.nginx_expires(0, 60.5) == "; expires=Thu, 01-Jan-70 00:00:00 GMT; max-age=60"
