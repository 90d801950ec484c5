"""Frames are unpacked as they were packed, wherever the bytes are cut, and bytes that are no frame are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.workers.frames import BadFrame, Frames, Kind, cut_payload, join_payload

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=50) | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(frames=st.lists(st.lists(values, max_size=4), min_size=1, max_size=4), cuts=st.lists(st.integers(1, 40)))
def test_frames_are_unpacked_as_they_were_packed_wherever_the_bytes_are_cut(frames, cuts):
    sender, receiver = Frames(), Frames()
    data = b"".join(sender.pack(Kind.MESSAGES, *items) for items in frames)
    found = []
    for cut in cuts:
        found += receiver.feed(data[:cut])
        data = data[cut:]
    found += receiver.feed(data)
    assert found == [(Kind.MESSAGES, *items) for items in frames]


@given(st.binary(max_size=100))
def test_bytes_that_are_no_frame_raise_bad_frame_and_nothing_else(data):
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
        pytest.param(b"\x91\xa1x", id="an array that begins with text"),
        pytest.param(b"\x91\xc3", id="an array that begins with True"),
        pytest.param(b"\x92\x01", id="an array that is cut short"),
        pytest.param(b"\x91\x01\x01", id="more than an array"),
        pytest.param(b"\xdd\xff\xff\xff\xff\x01", id="an array that is longer than the frame"),
        pytest.param(b"\x91" * 2000, id="arrays in arrays"),
    ],
)
def test_frame_is_one_array_that_begins_with_a_number(payload):
    with pytest.raises(BadFrame):
        Frames().feed(len(payload).to_bytes(4, "big") + payload)


def test_frame_that_is_too_long_is_refused_by_its_length_and_is_not_packed():
    with pytest.raises(BadFrame, match="a frame of 1001 bytes"):
        Frames(longest=1000).feed((1001).to_bytes(4, "big"))
    with pytest.raises(ValueError, match="do not fit into a frame"):
        Frames(longest=1000).pack(Kind.MESSAGES, b"x" * 1000)


def test_text_with_lone_surrogates_is_transferred():
    (frame,) = Frames().feed(Frames().pack(Kind.MESSAGES, "a\udc80b"))
    assert frame[1] == "a\udc80b"


def test_object_that_can_not_be_packed_raises_type_error():
    with pytest.raises(TypeError):
        Frames().pack(Kind.MESSAGES, object())


@given(first=st.lists(values, max_size=3), others=st.lists(values, max_size=4))
def test_items_that_are_packed_one_by_one_make_the_same_frame(first, others):
    frames = Frames()
    assert frames.pack_with([3, *first], [frames.pack_item(each) for each in others]) == frames.pack(3, *first, *others)


def test_packed_items_that_are_too_long_together_are_refused():
    frames = Frames(longest=1000)
    with pytest.raises(ValueError, match="do not fit into a frame"):
        frames.pack_with([3], [frames.pack_item(b"x" * 600)] * 2)
    with pytest.raises(TypeError):
        frames.pack_item(object())


@given(payload=st.binary(min_size=1, max_size=30) | st.text(min_size=1, max_size=30), longest=st.integers(1, 12))
def test_payload_that_is_cut_is_joined_at_the_other_end(payload, longest):
    *parts, last = cut_payload(payload, longest)
    assert all(0 < len(part) <= longest for part in (*parts, last))
    name = "text" if isinstance(payload, str) else "bytes"
    message, other = {"type": "websocket.send", name: last}, {"type": "websocket.close"}
    if parts:
        joined = join_payload(parts, (Kind.MESSAGES, message, other))
        assert joined == (Kind.MESSAGES, {"type": "websocket.send", name: payload}, other)
    else:
        assert last == payload


@pytest.mark.parametrize(
    "part, frame",
    [
        pytest.param(b"x", (Kind.END, None), id="no message"),
        pytest.param(b"x", (Kind.MESSAGES,), id="no messages"),
        pytest.param(b"x", (Kind.MESSAGES, {"type": "websocket.send", "text": "y"}), id="text behind bytes"),
        pytest.param("x", (Kind.MESSAGES, {"type": "websocket.send", "text": None}), id="no text"),
        pytest.param(7, (Kind.MESSAGES, {"type": "websocket.send", "text": "y"}), id="a number"),
        pytest.param("x", (Kind.MESSAGES, 7), id="no dictionary"),
    ],
)
def test_frame_that_does_not_end_the_message_of_the_parts_before_it_is_refused(part, frame):
    with pytest.raises((ValueError, TypeError, LookupError)):
        join_payload([part], frame)
