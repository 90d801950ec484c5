"""How the head of a request to an upstream frames its body."""

import pytest

from sticky_core.http.forwarding import (
    Framing,
)
from sticky_core.http.http1 import Header
from tests.core.http.heads import CHUNKED, HOST, LENGTH, made, parsed, refused


@pytest.mark.parametrize(
    "said, is_undeclared, framing, length, lines",
    [
        pytest.param([], False, Framing.NONE, 0, [], id="nothing"),
        pytest.param([], True, Framing.UNDECLARED, 0, [], id="nothing, and a body may come all the same"),
        pytest.param([(LENGTH, b"5")], False, Framing.LENGTH, 5, [(LENGTH, b"5")], id="a length"),
        pytest.param(
            [(LENGTH, b"5")], True, Framing.LENGTH, 5, [(LENGTH, b"5")], id="a length, where it need not be said"
        ),
        pytest.param([(LENGTH, b"0")], False, Framing.LENGTH, 0, [(LENGTH, b"0")], id="a length of 0"),
        pytest.param(
            [(LENGTH, b"005")], False, Framing.LENGTH, 5, [(LENGTH, b"5")], id="a length with zeros before it"
        ),
        pytest.param([(LENGTH, b"5")] * 2, False, Framing.LENGTH, 5, [(LENGTH, b"5")], id="one length twice"),
        pytest.param([(CHUNKED, b"chunked")], False, Framing.CHUNKED, 0, [(CHUNKED, b"chunked")], id="chunked"),
        pytest.param([(CHUNKED, b" Chunked\t")], False, Framing.CHUNKED, 0, [(CHUNKED, b"chunked")], id="Chunked"),
    ],
)
def test_a_body_is_framed_as_the_client_declared(
    said: list[Header], is_undeclared: bool, framing: Framing, length: int, lines: list[Header]
):
    for order in ([HOST, *said], [*said, HOST]):
        outgoing = made(order, "POST", is_undeclared=is_undeclared)
        assert (outgoing.framing, outgoing.length) == (framing, length)
        assert parsed(outgoing.head)[1] == [HOST, *lines]
        assert outgoing.has_body == (framing is not Framing.NONE and (framing is not Framing.LENGTH or length > 0))


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([(LENGTH, b"5"), (CHUNKED, b"chunked")], id="a length and chunked"),
        pytest.param([(CHUNKED, b"chunked"), (LENGTH, b"5")], id="chunked and a length"),
        pytest.param([(LENGTH, b"0"), (CHUNKED, b"chunked")], id="a length of 0 and chunked"),
        pytest.param([(LENGTH, b"5"), (LENGTH, b"6")], id="two lengths"),
        pytest.param([(LENGTH, b"0"), (LENGTH, b"6")], id="two lengths, one of 0"),
        pytest.param([(LENGTH, b"5, 5")], id="one length twice in a line"),
        pytest.param([(LENGTH, b"")], id="an empty length"),
        pytest.param([(LENGTH, b"-5")], id="a length below 0"),
        pytest.param([(LENGTH, b"+5")], id="a length with a sign"),
        pytest.param([(LENGTH, b" 5")], id="a length with a space"),
        pytest.param([(LENGTH, b"0x5")], id="a length in hexadecimal"),
        pytest.param([(LENGTH, b"5.0")], id="a length with a fraction"),
        pytest.param([(LENGTH, b"1_0")], id="a length with an underscore"),
        pytest.param([(LENGTH, b"five")], id="a length in letters"),
        pytest.param([(LENGTH, "٥".encode())], id="a length of other digits"),  # noqa: RUF001
        pytest.param([(LENGTH, b"\xb2")], id="a length of a small 2"),
        pytest.param([(LENGTH, b"9" * 19)], id="a length beyond any"),
        pytest.param([(LENGTH, b"9" * 5000)], id="a length of 5000 digits"),
        pytest.param([(CHUNKED, b"gzip")], id="another coding"),
        pytest.param([(CHUNKED, b"gzip, chunked")], id="another coding before chunked"),
        pytest.param([(CHUNKED, b"chunked, gzip")], id="another coding behind chunked"),
        pytest.param([(CHUNKED, b"identity")], id="identity"),
        pytest.param([(CHUNKED, b"chunked, chunked")], id="chunked twice in a line"),
        pytest.param([(CHUNKED, b"chunked")] * 2, id="chunked twice"),
        pytest.param([(CHUNKED, b"gzip"), (CHUNKED, b"chunked")], id="two codings"),
        pytest.param([(CHUNKED, b"")], id="an empty coding"),
        pytest.param([(CHUNKED, b"\x0bchunked")], id="chunked behind a vertical tab"),
        pytest.param([(CHUNKED, b'"chunked"')], id="chunked in quotes"),
        pytest.param([(CHUNKED, b"chunked;a=b")], id="chunked with a parameter"),
        pytest.param([(CHUNKED, b"xchunked")], id="a longer word"),
    ],
)
def test_an_ambiguous_body_length_is_refused(said: list[Header]):
    refused([HOST, *said], method="POST")
    refused([HOST, *((name.title(), value) for name, value in said)], method="POST")


@pytest.mark.parametrize(
    "framing, length, line",
    [
        pytest.param(Framing.LENGTH, 5, [(LENGTH, b"5")], id="a length"),
        pytest.param(Framing.CHUNKED, 0, [(CHUNKED, b"chunked")], id="chunked"),
        pytest.param(Framing.NONE, 0, [], id="none after all"),
    ],
)
def test_an_undeclared_framing_can_be_set_later(framing: Framing, length: int, line: list[Header]):
    outgoing = made([HOST, (b"x-a", b"1")], "POST", is_undeclared=True).with_framing(framing, length)
    assert (outgoing.framing, outgoing.length) == (framing, length)
    assert parsed(outgoing.head) == (b"POST / HTTP/1.1", [(b"x-a", b"1"), HOST, *line])


@pytest.mark.parametrize(
    "value, said, continues",
    [
        pytest.param(b"100-continue", [(LENGTH, b"5")], True, id="with a length"),
        pytest.param(b"100-Continue", [(CHUNKED, b"chunked")], True, id="with chunks"),
        pytest.param(b"100-continue", [], False, id="without a body"),
        pytest.param(b"100-continue", [(LENGTH, b"0")], False, id="with a body of no length"),
        pytest.param(b"200-ok", [(LENGTH, b"5")], False, id="another expectation"),
    ],
)
@pytest.mark.parametrize("is_undeclared", [False, True])
def test_expect_100_continue_is_passed_on_if_there_is_a_body(
    value: bytes, said: list[Header], continues: bool, is_undeclared: bool
):
    outgoing = made([HOST, (b"expect", value), *said], "POST", is_undeclared=is_undeclared)
    assert outgoing.expects_continue is continues
    assert parsed(outgoing.head)[1] == [
        HOST,
        *[(name, value.lower()) for name, value in said],
        *([(b"expect", b"100-continue")] if continues else []),
    ]
