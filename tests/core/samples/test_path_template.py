"""Path templates: which paths match, what is in the braces, and that matching looks at each character a few times."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.errors import ConfigError
from sticky_core.samples.path_template import PathTemplate
from tests.core.samples.requests import make_request


@pytest.mark.parametrize(
    "template, path, key",
    [
        ("/rooms/{id}", "/rooms/7", "7"),
        ("/rooms/{id}", "/rooms/7/chat", "7"),
        ("/rooms/{id}", "/rooms/7/", "7"),
        ("/rooms/{id}", "/rooms/a%20b", "a b"),
        ("/rooms/{id}", "/%72ooms/%7Eann", "~ann"),
        ("/rooms/{id}", "/rooms/a%2Fb", "a"),
        ("/r\u00e4ume/{id}", "/r%C3%A4ume/7", "7"),
        ("/rooms/{n\u00fammer}", "/rooms/%C3%A4", "\xc3\xa4"),
        ("/rooms/{id}", "*", None),
        ("/rooms/{id}", "/rooms/", None),
        ("/rooms/{id}", "/rooms", None),
        ("/rooms/{id}", "/other/7", None),
        ("/rooms/{id}", "/x/rooms/7", None),
        ("/rooms/{id}/", "/rooms/7/", "7"),
        ("/rooms/{id}/", "/rooms/7/chat", "7"),
        ("/rooms/{id}/", "/rooms/7", None),
        ("/rooms/{id}/chat", "/rooms/7/chat", "7"),
        ("/rooms/{id}/chat", "/rooms/7/chats", None),
        ("/rooms/{id}/chat", "/rooms/7", None),
        ("/{building}/rooms/{id}", "/red/rooms/7", "red/7"),
        ("/v1.0/{id}", "/v1x0/7", None),
        ("/{name}.{type}", "/a.b.c", "a.b/c"),
        ("/{name}.{type}", "/a.b.", "a/b."),
        ("/{name}.{type}", "/.b", None),
        ("/{name}.{type}", "/ab", None),
        ("/room-{id}", "/room-7", "7"),
        ("/room-{id}", "/room-", None),
        ("/{a}-{b}.html", "/x-y-z.html/more", "x-y/z"),
        ("/{a}{b}", "/xyz", "xy/z"),
        ("/{a}{b}", "/x", None),
        ("/{a}aa{b}", "/aaaaa", "aa/a"),
    ],
)
def test_path_template_takes_the_part_in_braces_from_the_path(template, path, key):
    assert PathTemplate(template)(make_request(path=path)) == key


@pytest.mark.parametrize(
    "template, problem",
    [
        ("/a%20b/{id}", "key '/a%20b/{id}': paths are compared decoded: write '/a b/{id}'"),
        ("/rooms?id={id}", "key '/rooms?id={id}': a path ends before the query"),
    ],
)
def test_template_that_would_never_match_is_refused(template, problem):
    with pytest.raises(ConfigError) as refused:
        PathTemplate(template)
    assert problem in str(refused.value)


@pytest.mark.parametrize("template", ["/rooms", "/rooms/{}", "/rooms/{7}", "/rooms/{a b}"])
def test_template_without_a_name_in_braces_is_refused(template):
    with pytest.raises(ConfigError, match="has nothing in braces"):
        PathTemplate(template)


@given(
    st.text("a./", max_size=4),
    st.lists(st.text("a./", max_size=2), min_size=1, max_size=3),
    st.text("a./", max_size=12),
)
def test_template_matches_as_a_regular_expression_does_in_which_each_part_takes_as_much_as_it_can(
    first: str, others: list[str], rest: str
):
    literals = ["/" + first, *others]
    template = "{x}".join(literals)
    more = ".*" if template.endswith("/") else "(?:/.*)?"
    match = re.fullmatch("([^/]+)".join(map(re.escape, literals)) + more, "/" + rest)
    assert PathTemplate(template)(make_request(path="/" + rest)) == (match and "/".join(match.groups()))


class CountedText(str):
    """A text that counts how many of its characters may have been compared, those of its parts too."""

    looked_at = 0

    def split(self, sep=None, maxsplit=-1):
        CountedText.looked_at += len(self)
        return [CountedText(part) for part in super().split(sep, maxsplit)]

    def startswith(self, prefix, *bounds):
        CountedText.looked_at += len(prefix)
        return super().startswith(prefix, *bounds)

    def endswith(self, suffix, *bounds):
        CountedText.looked_at += len(suffix)
        return super().endswith(suffix, *bounds)

    def rfind(self, sub, start=0, end=None):
        end = len(self) if end is None else end
        at = super().rfind(sub, start, end)
        CountedText.looked_at += end - max(at, start)
        return at


@pytest.mark.parametrize(
    "template, shape",
    [
        ("/{a}.{b}.{c}/x", "/{dots}"),
        ("/{a}.{b}.{c}/x", "/{dots}/x"),
        ("/{a}.{b}.{c}.{d}.{e}/x", "/{dots}/y"),
        ("/{a}.{b}x{c}", "/{dots}"),
        ("/{a}{b}{c}/x", "/{dots}/y"),
        ("/{a}/{b}/x", "{slashes}"),
    ],
)
def test_matching_looks_at_each_character_a_few_times_however_long_the_path_is(template, shape):
    def looked_at(length: int) -> int:
        CountedText.looked_at = 0
        path = CountedText(shape.format(dots="." * length, slashes="/" * length))
        PathTemplate(template)(make_request(path=path))
        return CountedText.looked_at

    once, twice = looked_at(1000), looked_at(2000)
    assert 1000 <= once <= 3 * 1010
    assert twice <= 2 * once + 10
