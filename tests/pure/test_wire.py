"""Frames: every message there and back, however the bytes are cut, and nonsense refused."""

import doctest
import itertools
import json
import mmap
import struct
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_payload import frames, room, wire
from worker_payload.fields import CHECKS
from worker_payload.frames import Decoder, encode
from worker_payload.shortcuts import read_again, read_result, write_again
from worker_payload.wire import ProtocolError


def test_doctests():
    failed, attempted = doctest.testmod(frames)
    assert attempted and not failed


counts = st.integers(0, 2**63 - 1)
numbers = st.integers(-(2**63), 2**63 - 1)
small = st.integers(0, 1000)
texts = st.text(max_size=20)  # lone surrogates too: a path or an error may hold them
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
dicts = st.dictionaries(texts, values, max_size=3)
segments = st.lists(st.binary(max_size=200) | st.binary(max_size=20).map(bytearray), max_size=4)
seconds = st.integers(0, 9) | st.floats(0, 1e6)
ids = st.lists(counts, max_size=5)


def lists(*fields):
    return st.lists(st.tuples(*fields).map(list), max_size=5)


@st.composite
def results(draw):
    parts = draw(segments)
    cuts = draw(st.lists(st.integers(0, len(parts)), max_size=3).map(sorted))
    bounds = list(zip([0, *cuts], [*cuts, len(parts)], strict=True))
    tasks = [[draw(counts), draw(counts), b - a, draw(seconds)] for a, b in bounds]
    return wire.Result(draw(counts), tasks, parts)


MESSAGES = {
    wire.Hello: st.builds(wire.Hello, numbers, texts, texts, texts, counts, dicts),
    wire.Require: st.builds(wire.Require, counts, st.lists(texts, max_size=3)),
    wire.Begin: st.builds(
        wire.Begin, counts, digests, texts, digests | st.just(""), dicts, segments
    ),
    wire.Task: st.builds(
        wire.Task, counts, lists(counts, digests | counts | st.none(), counts | st.none()), segments
    ),
    wire.Blob: st.builds(wire.Blob, digests, counts, counts, segments),
    wire.Revoke: st.builds(wire.Revoke, counts, ids),
    wire.Cancel: st.builds(wire.Cancel, counts, ids),
    wire.End: st.builds(wire.End, counts),
    wire.Again: st.builds(wire.Again, counts, counts, segments),
    wire.Welcome: st.builds(
        wire.Welcome, numbers, texts, texts, texts, texts, counts, counts, counts, counts, counts,
        texts, st.lists(texts, max_size=3),
    ),
    wire.Lacks: st.builds(wire.Lacks, counts, st.lists(texts, max_size=3)),
    wire.Gone: st.builds(wire.Gone, counts, st.lists(digests, max_size=3)),
    wire.Missing: st.builds(wire.Missing, counts, st.lists(digests, max_size=3)),
    wire.Credit: st.builds(wire.Credit, counts),
    wire.Started: st.builds(wire.Started, counts, lists(counts, counts)),
    wire.Result: results(),
    wire.Yield: st.builds(wire.Yield, counts),
    wire.Combined: st.builds(
        wire.Combined, counts, lists(counts, counts, seconds), lists(counts, counts, counts),
        segments,
    ),
    wire.Broken: st.builds(wire.Broken, counts, counts, counts, texts, texts, texts),
    wire.Failure: st.builds(wire.Failure, counts, counts, counts, texts, texts, texts, counts),
    wire.Lost: st.builds(
        wire.Lost, counts, counts, counts, st.none() | numbers, st.none() | numbers, texts, texts
    ),
    wire.Revoked: st.builds(wire.Revoked, counts, ids),
    wire.Output: st.builds(wire.Output, counts, numbers, counts, counts, segments),
    wire.Note: st.builds(wire.Note, texts),
    wire.Refused: st.builds(wire.Refused, counts, texts),
    wire.Ending: st.builds(wire.Ending, texts),
    wire.Beat: st.builds(wire.Beat),
}  # fmt: skip
streams = st.lists(st.one_of(list(MESSAGES.values())), max_size=6)


def stream_of(messages):
    return b"".join(bytes(part) for message in messages for part in encode(message))


def decoded(*chunks, allowed=None):
    decoder = Decoder(allowed)
    return [message for chunk in chunks for message in decoder.feed(chunk)]


def cut(data, places):
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.builds(wire.Again, counts, counts, segments), st.data())
def test_the_short_way_of_an_again_agrees_with_the_decoder(message, data):
    whole = stream_of([message])
    if len(message.segments) == 1 and max(message[:2]) < 10**18:
        assert read_again(whole) == (*message[:2], bytes(message.segments[0]))
        assert write_again(*message[:2], bytes(message.segments[0])) == whole
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=2)):
        whole = whole[:at] + data.draw(st.binary(max_size=2)) + whole[at + 1 :]
    found = read_again(whole)
    if found is not None:
        assert decoded(whole) == [wire.Again(found[0], found[1], [found[2]])]


@given(
    st.integers(0, 10**17),
    st.lists(
        st.tuples(
            st.integers(0, 10**9 - 1), st.integers(0, 999),
            st.floats(0, 10**6), st.lists(st.binary(max_size=40), max_size=3),
        ),
        min_size=1, max_size=20,
    ),
    st.data(),
)  # fmt: skip
def test_the_short_way_of_a_result_agrees_with_the_decoder(call, answers, data):
    tasks = [[task, worker, len(parts), seconds] for task, worker, seconds, parts in answers]
    segments = [part for *_, parts in answers for part in parts]
    whole = stream_of([wire.Result(call, tasks, segments)])
    if "+" not in str(tasks) and segments:
        rows = [(b"%d" % task, b"%d" % len(parts)) for task, *_, parts in answers]
        assert read_result(whole, call) == (rows, segments)
    assert read_result(whole, call + 1) is None
    assert read_result(whole + b"x", call) is read_result(whole[:-1], call) is None
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=2)):
        whole = whole[:at] + data.draw(st.binary(max_size=2)) + whole[at + 1 :]
    found = read_result(whole, call)
    if found is not None:
        (message,) = decoded(whole)
        rows = [(b"%d" % task, b"%d" % count) for task, _, count, _ in message.tasks]
        assert message.call == call and (rows, message.segments) == found


# --- there and back ----------------------------------------------------------------------------


def test_every_message_is_tested_here():
    assert set(MESSAGES) == {cls for kind, cls in wire.KINDS.items() if kind < 128}


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_every_message_comes_back(cls):
    @settings(max_examples=20)
    @given(MESSAGES[cls])
    def check(message):
        (back,) = decoded(stream_of([message]))
        assert type(back) is cls and back == message
        for name in cls._fields:
            assert type(getattr(back, name)) in (type(getattr(message, name)), list)

    check()


@given(streams, st.lists(st.integers(0, 10**6), max_size=8))
def test_however_the_stream_is_cut_the_messages_are_the_same(messages, places):
    assert decoded(*cut(stream_of(messages), places)) == messages


@settings(max_examples=20)
@given(streams)
def test_a_byte_at_a_time(messages):
    data = stream_of(messages)
    decoder = Decoder()
    got = []
    for i in range(len(data)):
        got += decoder.feed(data[i : i + 1])
    assert got == messages and decoder.at_boundary()


@given(streams.filter(bool), st.integers(1, 10**6))
def test_a_stream_that_breaks_off_gives_the_whole_messages_and_no_more(messages, missing):
    data = stream_of(messages)
    whole, length = [], 0
    kept = len(data) - 1 - missing % len(data)
    for message in messages:
        length += len(stream_of([message]))
        if length <= kept:
            whole.append(message)
    decoder = Decoder()
    assert decoder.feed(data[:kept]) == whole
    assert decoder.at_boundary() == (stream_of(whole) == data[:kept])


@pytest.mark.parametrize(
    "size",
    [frames.STREAM_FROM - 1, frames.STREAM_FROM, 3 * frames.STREAM_FROM, room.OWN_FROM + 100],
)
def test_large_segments(size):
    big = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    message = wire.Result(
        1, [[1, 0, 3, 0.5], [2, 0, 0, 0], [3, 0, 2, 0]], [b"", big, b"", big, b"y"]
    )
    data = stream_of([wire.Beat(), message, wire.Beat()])
    expected = [wire.Beat(), message, wire.Beat()]
    for piece in (len(data), 4096, 65537):
        assert decoded(*(data[i : i + piece] for i in range(0, len(data), piece))) == expected


@pytest.mark.parametrize("step", [4096, 100_001, 1 << 30])
def test_a_long_segment_is_filled_where_it_stays(step):
    """As far as its reader likes; other bytes come as usual."""
    first, second = (bytes(range(256)) * (size >> 8) for size in (room.OWN_FROM << 1, 3 << 20))
    message = wire.Result(1, [[1, 0, 4, 0.5]], [b"", first, b"between", second])
    data = memoryview(stream_of([wire.Beat(), message, wire.Beat(), message]))
    decoder, found, put = Decoder(), [], 0
    assert decoder.room() is None
    while data:
        place = decoder.room()
        if place is not None and put % 3 < 2:
            count = min(step, len(place), len(data))
            place[:count] = data[:count]
            decoder.put(count)
            put += count
        else:
            count = min(step, 70_000, len(data))
            found += decoder.feed(data[:count])
            put += 1
        data = data[count:]
    assert found == [wire.Beat(), message, wire.Beat(), message] and decoder.at_boundary()
    assert put > 4 << 20, "most of it went that way"


def test_no_room_for_what_grows_as_it_comes_and_for_the_end():
    data = stream_of([wire.Blob("0" * 64, 0, 4 << 20, [bytes(4 << 20)])])
    decoder = Decoder()
    assert decoder.feed(data[:1000]) == [] and decoder.room() is not None
    assert decoder.feed(data[1000:-1000]) == [] and decoder.room() is None
    assert len(decoder.feed(data[-1000:])) == 1 and decoder.room() is None
    short = stream_of([wire.Blob("0" * 64, 0, 300_000, [bytes(300_000)])])
    assert decoder.feed(short[:1000]) == [] and decoder.room() is None


def test_the_memory_of_a_long_segment_is_given_back():
    """Also if one that came later is still in use."""
    data = stream_of([wire.Result(1, [[1, 0, 1, 0.5]], [bytes(1 << 20)])])
    decoder = Decoder()
    decoder.feed(data)  # malloc takes the size of what is freed first for the usual one
    before = resident()
    messages = [message for _ in range(40) for message in decoder.feed(data)]
    messages[-1].segments[0][5] = 7
    assert bytes(messages[-1].segments[0][:7]) == b"\0\0\0\0\0\7\0"
    assert resident() - before > 35 << 20
    del messages[:-1]
    assert resident() - before < 8 << 20


def resident():
    """Bytes of memory that this process takes."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * mmap.PAGESIZE


def test_segments_are_not_copied_on_the_way_out():
    data = bytearray(100000)
    parts = encode(wire.Blob("0" * 64, 0, len(data), [memoryview(data)]))
    data[0] = 7
    assert parts[-1][0] == 7


def test_segments_of_other_shapes_travel_as_their_bytes():
    numbers_ = memoryview(struct.pack("6I", *range(6))).cast("I", (2, 3))
    (back,) = decoded(stream_of([wire.Blob("0" * 64, 0, 24, [numbers_])]))
    assert bytes(back.segments[0]) == numbers_.tobytes()


# --- nonsense ----------------------------------------------------------------------------------


def frame(kind, header, parts=(), lengths=None, magic=frames.MAGIC):
    lengths = [len(part) for part in parts] if lengths is None else lengths
    head = frames.HEAD.pack(magic, kind, len(header), len(lengths))
    return head + struct.pack(f">{len(lengths)}Q", *lengths) + header + b"".join(parts)


def refused(*chunks, allowed=None):
    """Feeds them; the error must come, and keep coming."""
    decoder = Decoder(allowed)
    with pytest.raises(ProtocolError) as info:
        for chunk in chunks:
            decoder.feed(chunk)
    with pytest.raises(ProtocolError):
        decoder.feed(stream_of([wire.Beat()]))
    return str(info.value)


@given(st.binary(min_size=frames.HEAD.size, max_size=300))
def test_random_bytes(data):
    if not data.startswith(frames.MAGIC):
        refused(data)


@settings(max_examples=150)
@given(streams.filter(bool), st.data())
def test_damaged_bytes_end_in_messages_or_a_protocol_error(messages, data):
    stream = bytearray(stream_of(messages))
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    decoder = Decoder()
    began = time.monotonic()
    try:
        for chunk in cut(bytes(stream), data.draw(st.lists(st.integers(0, 10**6), max_size=3))):
            decoder.feed(chunk)
    except ProtocolError:
        pass
    assert time.monotonic() - began < 5


@given(st.sampled_from(sorted(wire.KINDS)), values)
def test_headers_of_any_value_end_in_a_message_or_a_protocol_error(kind, header):
    data = frame(kind, json.dumps(header).encode())
    try:
        (message,) = decoded(data)
    except ProtocolError:
        return
    assert decoded(stream_of([message])) == [message]


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_each_field_is_checked(cls):
    """No field takes everything; so for each there is a value that it alone refuses."""

    @settings(max_examples=5)
    @given(MESSAGES[cls])
    def check(message):
        if cls in wire.WITH_SEGMENTS:
            message = message._replace(segments=[])
            if cls is wire.Result:
                message = message._replace(tasks=[])
        kind = next(kind for kind, other in wire.KINDS.items() if other is cls)
        fields = list(message[: len(CHECKS[cls])])
        for i, name in enumerate(cls._fields[: len(fields)]):
            for wrong in (1.5, True, [["x", {}]]):
                bad = [*fields[:i], wrong, *fields[i + 1 :]]
                assert name in refused(frame(kind, json.dumps(bad).encode()))
        refused(frame(kind, json.dumps([*fields, 1]).encode()))
        refused(frame(kind, json.dumps({"a": fields}).encode()))

    check()


@pytest.mark.parametrize(
    "data, words",
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "not a jam frame"),
        (frame(8, b"[1]", magic=b"JAM\x02"), "not a jam frame"),
        (frame(0, b"[]"), "kind 0"),
        (frame(200, b"[]"), "kind 200"),
        (frame(8, b"[1]", [b"x"]), "End"),
        (frame(8, b"[-1]"), "bad call"),
        (frame(8, b"[9223372036854775808]"), "bad call"),
        (frame(8, b"[true]"), "bad call"),
        (frame(8, b"[" + b"1" * 100000 + b"]"), "not JSON: a number of 100000 digits"),
        (frame(8, b"[1" + b" " * 99), "not JSON"),
        (frame(8, b"[\xff]"), "not JSON"),
        (frame(8, b"[" * 100000), "not JSON"),
        (frame(8, b"[" * 900 + b"]" * 900), "bad call"),
        (frame(8, b"[NaN]"), "bad call"),
        (frame(37, b"[1,[[1,0,2,0.5]]]", [b"x"]), "do not account for its segments"),
        (frame(37, b"[1,[[1,0,0,NaN]]]"), "bad tasks"),
        (frame(37, b"[1,[[1,0,0,-1]]]"), "bad tasks"),
        (frame(4, b'[1,[[1,"short",null]]]'), "bad tasks"),
        (frame(5, b'["","0","0"]', lengths=[1 << 45]), "segment of 35184372088832 bytes"),
        (frames.HEAD.pack(frames.MAGIC, 5, frames.MAX_HEADER + 1, 0), "header of"),
        (frames.HEAD.pack(frames.MAGIC, 5, 10, frames.MAX_SEGMENTS + 1), "segments"),
    ],
)
def test_what_is_refused_and_why(data, words):
    assert words in refused(data)
    assert words in refused(*(data[i : i + 1000] for i in range(0, len(data), 1000)))


def test_only_what_may_come_from_there_is_taken():
    task, result = wire.Task(1, [], []), wire.Result(1, [], [])
    assert decoded(stream_of([task]), allowed=wire.FROM_MASTER) == [task]
    assert decoded(stream_of([result]), allowed=wire.FROM_AGENT) == [result]
    assert "Task" in refused(stream_of([task]), allowed=wire.FROM_AGENT)
    assert "Result" in refused(stream_of([result]), allowed=wire.FROM_MASTER)
    both_ways = wire.FROM_MASTER & wire.FROM_AGENT
    assert both_ways == {wire.Beat}


def test_no_length_is_believed_before_its_bytes_have_come():
    claims = [
        frame(37, b"[1,[[1,0,1,0]]]", lengths=[1 << 44]),
        frame(37, b"[1,[[1,0,1,0]]]", lengths=[1 << 30]),
        frame(5, b'["%s",0,9]' % (b"0" * 64), lengths=[1 << 43] * 100),
        frames.HEAD.pack(frames.MAGIC, 37, frames.MAX_HEADER, frames.MAX_SEGMENTS),
    ]
    for claim in claims:
        decoder = Decoder()
        before = resident()
        tracemalloc.start()
        try:
            assert decoder.feed(claim) == []
            assert decoder.feed(b"x" * 1000) == []
            assert tracemalloc.get_traced_memory()[1] < 200_000
            assert resident() - before < 8 << 20
        finally:
            tracemalloc.stop()


def test_a_large_frame_in_small_pieces_takes_linear_time():
    message = wire.Blob("0" * 64, 0, 1, [bytes(4 << 20)])
    data = memoryview(stream_of([message]))
    began = time.monotonic()
    decoder = Decoder()
    for i in range(0, len(data), 512):
        decoder.feed(data[i : i + 512])
    assert decoder.at_boundary() and time.monotonic() - began < 2
