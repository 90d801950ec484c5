"""Frames come out as they went in, however they are cut on the way, and what is none is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.workers.frames import BadFrame, Frames, Kind

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=50) | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(frames=st.lists(st.lists(values, max_size=4), min_size=1, max_size=4), cuts=st.lists(st.integers(1, 40)))
def test_frames_come_out_as_they_went_in_however_they_are_cut(frames, cuts):
    going, coming = Frames(), Frames()
    data = b"".join(going.pack(Kind.MESSAGES, *items) for items in frames)
    found = []
    for cut in cuts:
        found += coming.feed(data[:cut])
        data = data[cut:]
    found += coming.feed(data)
    assert found == [(Kind.MESSAGES, *items) for items in frames]


@given(st.binary(max_size=100))
def test_what_is_none_is_refused_and_nothing_else_is_raised(data):
    frames = Frames(longest=1000)
    try:
        for frame in frames.feed(data):
            assert isinstance(frame, tuple) and isinstance(frame[0], int)
    except BadFrame:
        pass


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc0", id="None"),
        pytest.param(b"\x90", id="an empty array"),
        pytest.param(b"\x91\xa1x", id="an array that begins with a text"),
        pytest.param(b"\x91\xc3", id="an array that begins with True"),
        pytest.param(b"\x92\x01", id="an array that is cut short"),
        pytest.param(b"\x91\x01\x01", id="more than an array"),
        pytest.param(b"\xdd\xff\xff\xff\xff\x01", id="an array that is longer than the frame"),
        pytest.param(b"\x91" * 2000, id="arrays in arrays"),
    ],
)
def test_a_frame_is_one_array_that_begins_with_a_number(payload):
    with pytest.raises(BadFrame):
        Frames().feed(len(payload).to_bytes(4, "big") + payload)


def test_a_frame_that_is_too_long_is_refused_before_it_has_come_and_is_not_sent():
    with pytest.raises(BadFrame, match="a frame of 1001 bytes"):
        Frames(longest=1000).feed((1001).to_bytes(4, "big"))
    with pytest.raises(ValueError, match="more than fit into a frame"):
        Frames(longest=1000).pack(Kind.MESSAGES, b"x" * 1000)


def test_text_that_is_no_unicode_arrives():
    (frame,) = Frames().feed(Frames().pack(Kind.MESSAGES, "a\udc80b"))
    assert frame[1] == "a\udc80b"


def test_what_can_not_travel_is_told_so():
    with pytest.raises(TypeError):
        Frames().pack(Kind.MESSAGES, object())
