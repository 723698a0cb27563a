"""The master's end of one host, against hand-made bytes: order, flow control, what is refused."""

from __future__ import annotations

import pytest

from jamtasks.session import TRANSITIONS, WINDOW_MIN, Session, State
from worker_payload import frames, wire

BUILD = "b" * 16
DIGEST = "d" * 64
WELCOME = wire.Welcome(
    wire.VERSION, BUILD, "3.11.7", "CPython", "2.0", 7, 4, 4, 1 << 30, 1 << 30, "lab1", []
)


def frame(message):
    return b"".join(bytes(part) for part in frames.encode(message))


def session():
    fresh = Session(wire.Hello(wire.VERSION, BUILD, "default", "m", 0, {}))
    fresh.pending()
    return fresh


def ready():
    fresh = session()
    fresh.receive(frame(WELCOME), 0.0)
    return fresh


def sent(fresh):
    """Messages that the session wants to write now."""
    return frames.Decoder(wire.FROM_MASTER).feed(b"".join(bytes(b) for b in fresh.pending()))


def begin(fresh, call=1):
    fresh.send(wire.Begin(call, DIGEST, "m", "", {}, [b""]))
    sent(fresh)


def test_hello_is_the_first_thing_said():
    fresh = Session(wire.Hello(wire.VERSION, BUILD, "default", "m", 3, {}))
    assert [type(m) for m in sent(fresh)] == [wire.Hello]


def test_nothing_comes_before_the_welcome():
    with pytest.raises(wire.ProtocolError, match="Result while greeting"):
        session().receive(frame(wire.Result(1, [[0, 0, 0, 0.1]], [])), 0.0)


def test_a_second_welcome_is_refused():
    with pytest.raises(wire.ProtocolError, match="Welcome while ready"):
        ready().receive(frame(WELCOME), 0.0)


def test_another_build_is_refused():
    with pytest.raises(wire.ProtocolError, match="build"):
        session().receive(frame(WELCOME._replace(build="c" * 16)), 0.0)


def test_messages_of_the_master_are_refused_from_an_agent():
    for message in (wire.End(1), wire.Hello(1, BUILD, "p", "m", 0, {}), wire.Revoke(1, [2])):
        with pytest.raises(wire.ProtocolError):
            ready().receive(frame(message), 0.0)


def test_every_message_of_an_agent_has_its_place_in_the_table():
    assert {kind for _state, kind in TRANSITIONS} == wire.FROM_AGENT
    assert {state for state, _kind in TRANSITIONS} == set(State)


def test_answers_of_a_call_that_is_over_are_dropped():
    fresh = ready()
    begin(fresh)
    answer = frame(wire.Result(1, [[0, 0, 1, 0.1]], [b"x"]))
    assert len(fresh.receive(answer, 0.0)) == 1
    fresh.send(wire.End(1))
    assert fresh.receive(answer, 0.0) == []


def test_a_missing_blob_is_sent_whole_and_in_order():
    fresh = ready()
    begin(fresh)
    data = bytes(range(256)) * 400
    fresh.offer(1, DIGEST, len(data), lambda: [data[:10], data[10:]])
    fresh.receive(frame(wire.Missing(1, [DIGEST])), 0.0)
    got = b""
    for _ in range(50):
        for message in sent(fresh):
            assert (message.offset, message.total) == (len(got), len(data))
            got += message.segments[0]
            fresh.receive(frame(wire.Credit(len(message.segments[0]))), 0.1)
    assert got == data
    assert fresh.bytes_sent == {1: len(data)}


def test_a_host_cannot_ask_for_what_it_was_not_told_of():
    fresh = ready()
    begin(fresh)
    with pytest.raises(wire.ProtocolError, match="not told"):
        fresh.receive(frame(wire.Missing(1, ["e" * 64])), 0.0)


def test_asking_for_a_blob_of_a_call_that_just_ended_is_no_fault():
    fresh = ready()
    begin(fresh)
    fresh.offer(1, DIGEST, 3, lambda: [b"abc"])
    fresh.send(wire.End(1))
    assert fresh.receive(frame(wire.Missing(1, [DIGEST])), 0.0) == []
    assert [type(m) for m in sent(fresh)] == [wire.End, wire.Gone]


def test_no_more_than_the_window_is_unacknowledged():
    fresh = ready()
    begin(fresh)
    data = bytes(4 << 20)
    fresh.offer(1, DIGEST, len(data), lambda: [data])
    fresh.receive(frame(wire.Missing(1, [DIGEST])), 0.0)
    out = 0
    while fresh.has_pending():
        out += sum(len(m.segments[0]) for m in sent(fresh))
    assert WINDOW_MIN <= out <= 2 * WINDOW_MIN
    fresh.receive(frame(wire.Credit(out)), 0.01)
    assert fresh.has_pending()


def test_the_window_grows_with_the_rate_and_shrinks_again():
    fresh = ready()
    begin(fresh)
    data = bytes(64 << 20)
    fresh.offer(1, DIGEST, len(data), lambda: [data])
    fresh.receive(frame(wire.Missing(1, [DIGEST])), 0.0)

    def flight():
        out = 0
        while fresh.has_pending():
            out += sum(len(m.segments[0]) for m in sent(fresh))
        return out

    now = 0.0
    flights = []
    for _ in range(8):  # a fast host: everything is taken within 10 ms
        flights.append(flight())
        now += 0.01
        fresh.receive(frame(wire.Credit(flights[-1])), now)
    assert flights[-1] > 4 * WINDOW_MIN
    for _ in range(6):  # then it gets slow: so much takes it 20 s
        now += 20.0
        size = flight()
        fresh.receive(frame(wire.Credit(size)), now)
    assert size < 4 * WINDOW_MIN


def test_a_small_message_goes_before_the_rest_of_a_blob():
    fresh = ready()
    begin(fresh)
    data = bytes(8 << 20)
    fresh.offer(1, DIGEST, len(data), lambda: [data])
    fresh.receive(frame(wire.Missing(1, [DIGEST])), 0.0)
    sent(fresh)
    fresh.receive(frame(wire.Credit(WINDOW_MIN)), 0.0)
    fresh.send(wire.Cancel(1, []))
    assert type(sent(fresh)[0]) is wire.Cancel


def test_more_credit_than_was_sent_is_refused():
    with pytest.raises(wire.ProtocolError, match="credit"):
        ready().receive(frame(wire.Credit(1)), 0.0)


def test_any_chopping_gives_the_same_messages():
    stream = frame(WELCOME) + frame(wire.Note("x")) + frame(wire.Beat()) + frame(wire.Note("y"))
    whole = session().receive(stream, 0.0)
    fresh = session()
    parts = [m for i in range(len(stream)) for m in fresh.receive(stream[i : i + 1], 0.0)]
    assert parts == whole and len(whole) == 3


def test_an_agent_that_ends_may_still_answer_but_not_start():
    fresh = ready()
    begin(fresh)
    fresh.receive(frame(wire.Ending("idle")), 0.0)
    assert fresh.state is State.ENDING
    assert len(fresh.receive(frame(wire.Result(1, [[0, 0, 0, 0.1]], [])), 0.0)) == 1
    with pytest.raises(wire.ProtocolError):
        fresh.receive(frame(wire.Started(1, [[0, 0]])), 0.0)
