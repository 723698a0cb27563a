"""The command line that any login shell passes on, and the conversation up to the ready marker."""

import json
import re
import sys

import pytest

from jamtasks import bootstrap, loader
from jamtasks.errors import HostError
from jamtasks.settings import HostSpec
from jamtasks.transport.base import Attempt, Channel, Crowded, patiently

HALVES = ("a" * 16, "b" * 16)
MARK = "b" * 16 + "a" * 16
ANSWERS = {"P": b"text of prepare", "L": b"loader", "N": b"payload" * 1000}


def line(**settings):
    spec = HostSpec("lab1", **settings)
    answers = {**ANSWERS, "P": bootstrap.prepare_text(spec.prepare)}
    return bootstrap.command_line(spec, HALVES, "c" * 16, "attach", "p" * 40, answers)


def test_command_line_is_short_and_plain():
    for settings in ({}, {"python": "/opt/a b/" + "x" * 150}, {"prepare": "module load x"}):
        text = line(**settings)
        assert len(text.encode()) < 900
        assert not re.search(r"[\\!\n\r\"`]", text.replace('"$HOME"', ""))
        # single quotes come in pairs, with nothing between them that could end one
        assert text.count("'") % 2 == 0
        assert text.startswith("exec sh -c 'IFS=;")
    assert MARK not in line()


def test_pythons_in_the_line():
    assert " '/opt/my python/bin/python3' 'python3' " in line(python="/opt/my python/bin/python3")
    assert " \"$HOME\"'/venv/bin/python' 'python3' " in line(python="~/venv/bin/python")
    for odd in ("/it's/python", "/a\\b/python", "/wow!/python", "/a\nb", "/ä/python", "~me/py'"):
        assert odd not in line(python=odd)  # left to the loader


def test_prepare_travels_apart():
    text = line(prepare="echo 'it''s'!")
    assert "echo 'it" not in text
    size = len(bootstrap.prepare_text("echo 'it''s'!"))
    assert f" '{size}' " in text
    assert bootstrap.prepare_text("  ") == b""
    assert bootstrap.prepare_text("a").endswith(b"\na\n")


class Scripted(Channel):
    """A host that says these pieces one by one; with writes, what it was sent."""

    def __init__(self, *pieces, status=0, stderr="", cause=None):
        super().__init__("lab1")
        self.pieces = [p.encode() if isinstance(p, str) else p for p in pieces]
        self.written = []
        self.closed = False
        self.status, self.errors, self.why = status, stderr, cause

    def read(self, size):
        return self.pieces.pop(0) if self.pieces else b""

    def poll(self, seconds):
        return True

    def write(self, buffers):
        self.written.append(b"".join(buffers))

    def stderr_tail(self):
        return self.errors

    def close(self):
        self.closed = True

    def cause(self):
        return self.why

    def exit_status(self, timeout=2.0):
        return self.status


def talk(*pieces, **more):
    channel = Scripted(*pieces, **more)
    return bootstrap._Talk(HostSpec("lab1"), channel, MARK, ANSWERS).run(), channel


def refused(*pieces, **more):
    channel = Scripted(*pieces, **more)
    with pytest.raises(HostError) as caught:
        bootstrap._Talk(HostSpec("lab1"), channel, MARK, ANSWERS).run()
    assert channel.closed
    return str(caught.value)


def test_ready_at_once():
    done, channel = talk(f"{MARK}:W\n", f"\n{MARK}:R\nbytes of the agent")
    assert (bytes(done.buffer), channel.written, done.sent) == (b"bytes of the agent", [], False)
    assert not channel.closed


def test_everything_is_asked_for():
    pieces = [f"{MARK}:{stage}\n" for stage in "PLNR"]
    done, channel = talk(*pieces)
    assert channel.written == [ANSWERS["P"], ANSWERS["L"], ANSWERS["N"]]
    assert done.sent


@pytest.fixture
def fetch(monkeypatch):
    """fetch() -> (what the loader gets of the payload, what it said for that). harm: of the bytes
    on their way."""

    def fetch(harm=lambda data: data):
        said, left = [], bytearray()

        def say(stage):
            said.append(stage)
            _, channel = talk(f"{MARK}:{stage}\n", f"{MARK}:R\n")
            left.extend(harm(channel.written[0]))

        def read(fd, size):
            data = bytes(left[:1000])
            del left[:1000]
            return data

        monkeypatch.setattr(loader, "TOLD", {"size": len(ANSWERS["N"])})
        monkeypatch.setattr(loader, "_say", say)
        monkeypatch.setattr(loader.os, "read", read)
        return loader._fetch(), said

    return fetch


def test_the_payload_is_packed_for_whoever_can_unpack_it(fetch, monkeypatch):
    assert fetch() == (ANSWERS["N"], ["Nz"])
    with pytest.raises(loader.Unable, match="damaged"):
        fetch(lambda data: b"x" + data)
    with pytest.raises(SystemExit):  # the connection has ended
        fetch(lambda data: data[:-1])
    monkeypatch.setitem(sys.modules, "zlib", None)
    assert fetch() == (ANSWERS["N"], ["N"])
    with pytest.raises(SystemExit):
        fetch(lambda data: data[:-1])


def test_byte_by_byte_with_noise():
    text = f"Welcome to lab1\nno newline here{MARK}:L\nmore noise\n{MARK}:R\nJAM"
    done, _ = talk(*text)
    done2, _ = talk(text)
    assert bytes(done2.buffer) == b"JAM"
    assert (
        bytes(done.noise) == bytes(done2.noise) == b"Welcome to lab1\nno newline heremore noise\n"
    )


def test_an_echoed_command_line_is_no_marker():
    done, channel = talk(line() + "\n", f"{MARK}:R\n")
    assert channel.written == []
    assert line().encode() in done.noise


def test_much_noise_is_skipped_and_more_is_an_error():
    done, _ = talk("x" * bootstrap.MAX_NOISE, f"{MARK}:R\n")
    assert len(done.noise) == bootstrap.MAX_NOISE
    told = refused(*["spam spam\n" * 1000] * 10_000)
    assert "print more than 64 kB before they let a command run: " in told
    assert "spam spam" in told


def test_refusals_are_shown():
    reason = json.dumps({"message": "no room", "hint": "buy some"}).encode().hex()
    assert refused(f"{MARK}:X{reason}\n") == "lab1: no room\n  buy some"
    told = refused(f"{MARK}:X\n")
    assert "no Python 3.6 or newer" in told
    assert "platform-python" in told
    for broken in ("zz", "7b7d", "5b5d", "22"):
        assert "no Python" in refused(f"{MARK}:X{broken}\n")


def test_nonsense_is_refused():
    assert "means nothing" in refused(f"{MARK}:Q\n")
    assert "means nothing" in refused(f"{MARK}:\n")
    assert "twice" in refused(f"{MARK}:L\n", f"{MARK}:L\n")


def test_an_end_before_ready_shows_what_was_printed():
    told = refused("This account is currently not available.\n", status=1)
    assert "its login shell ended with 1" in told
    assert "not available" in told
    told = refused(f"{MARK}:P\n", status=2, stderr="sh: 3: module: not found\n")
    assert "`prepare:` ended with 2" in told
    assert "module: not found" in told
    assert "its Python ended with" in refused(f"{MARK}:L\n", status=1)


def test_the_connections_own_reason_comes_first():
    assert refused("", cause=HostError("lab1", "no route")) == "lab1: no route"


def test_a_warm_start_that_fails_is_another_matter():
    with pytest.raises(bootstrap._WarmStartFailed):
        talk(f"{MARK}:W\n", status=1)


def test_control_characters_are_not_shown():
    assert "\x1b" not in refused("\x1b[31mred\n")


def test_patience_ends(monkeypatch):
    monkeypatch.setattr(Attempt, "pause", lambda attempt, seconds: None)
    tries = []

    def attempt():
        tries.append(1)
        raise Crowded("lab1", "full")

    with pytest.raises(HostError, match="full") as caught:
        patiently(attempt, 60, Attempt())
    assert not isinstance(caught.value, Crowded)
    assert 3 <= len(tries) <= 20
    assert patiently(lambda: "in", 60, Attempt()) == "in"


def test_other_errors_are_not_tried_again():
    tries = []

    def attempt():
        tries.append(1)
        raise HostError("lab1", "refused", retry=True)

    with pytest.raises(HostError):
        patiently(attempt, 60, Attempt())
    assert len(tries) == 1
