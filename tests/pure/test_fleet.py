"""bootstrap and fire over hosts that only pretend: a row for each, whatever happens to one."""

import threading
import types

import pytest

from jamtasks import archive, bootstrap, fleet, presence
from jamtasks.errors import HostError
from jamtasks.settings import HostSpec, Settings
from worker_payload import frames, wire


@pytest.fixture(autouse=True)
def run_dir(tmp_path, monkeypatch):
    """Masters that really run here hear nothing of these tests."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("JAM_RUN_DIR", str(tmp_path))


SETTINGS = Settings()
SPECS = [HostSpec("a", workers=3), HostSpec("b")]


class FakeChannel:
    """A channel that answers with these bytes, a few at a time; the end of file comes after
    `close` if it is patient, at once otherwise."""

    def __init__(self, data, *, patient=False, stderr=""):
        self.data = data
        self.patient = patient
        self.stderr = stderr
        self.written = b""
        self.closed = threading.Event()

    def write(self, buffers):
        self.written += b"".join(buffers)

    def read(self, size):
        if not self.data:
            if self.patient:
                assert self.closed.wait(10)
            return b""
        part, self.data = self.data[:7], self.data[7:]
        return part

    def stderr_tail(self):
        return self.stderr

    def cause(self):
        return None

    def close(self):
        self.closed.set()


def welcome(build=None, **changes):
    values = {
        "version": wire.VERSION,
        "build": build or archive.payload().build,
        "python": "3.11.7",
        "implementation": "CPython",
        "numpy": "2.4.6",
        "pid": 1,
        "workers": 8,
        "cpus": 8,
        "free": 0,
        "store": 0,
        "hostname": "somewhere",
        "notes": ["x", "y"],
    }
    return b"".join(frames.encode(wire.Welcome(**{**values, **changes})))


@pytest.fixture
def attach(monkeypatch):
    """attach(name=channel or exception, ...): what attaching to a host gives."""

    def hosts(**answers):
        def attached(spec, settings, project):
            answer = answers[spec.name]
            if isinstance(answer, Exception):
                raise answer
            head, answer.data = answer.data[:10], answer.data[10:]
            return types.SimpleNamespace(
                channel=answer, head=head, payload="sent", noise="", seconds=0.25
            )

        monkeypatch.setattr(bootstrap, "attach", attached)
        return answers

    return hosts


def test_bootstrap_says_what_each_host_is_and_lets_go(attach):
    channels = attach(a=FakeChannel(welcome()), b=FakeChannel(welcome()))
    a, b = fleet.bootstrap(SETTINGS, SPECS, "p").hosts
    assert (a.name, a.state, a.workers, a.cpus) == ("a", "up", 3, 8)
    assert (a.python, a.implementation, a.numpy) == ("3.11.7", "CPython", "2.4.6")
    assert (a.payload, a.seconds, a.note) == ("sent", 0.25, "x; y")
    assert b.workers == 8
    assert all(channel.closed.is_set() for channel in channels.values())
    (hello,) = frames.Decoder().feed(channels["a"].written)
    assert (hello.project, hello.workers) == ("p", 3)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (HostError("a", "timed out", "is it on?"), "timed out (is it on?)"),
        (OSError("odd"), "OSError: odd"),
        (FakeChannel(b"", stderr="Killed\n"), "the agent ended before it said anything (Killed)"),
        (FakeChannel(b"x" * 100), "not an agent of ours"),
        (FakeChannel(welcome(build="0" * 16)), "build"),
    ],
)
def test_a_host_in_trouble_is_a_row_and_stops_nothing(attach, trouble, words):
    attach(a=trouble, b=FakeChannel(welcome()))
    a, b = fleet.bootstrap(SETTINGS, SPECS, "p").hosts
    assert (a.state, b.state) == ("unreachable", "up")
    assert words in a.note
    assert not a.note.startswith("a:")


def test_an_agent_that_says_nothing_is_given_up(attach, monkeypatch):
    monkeypatch.setattr(fleet, "WELCOME_SECONDS", 0.01)
    attach(a=FakeChannel(b"", patient=True), b=FakeChannel(welcome()))
    a, b = fleet.bootstrap(SETTINGS, SPECS, "p").hosts
    assert (a.state, b.state) == ("unreachable", "up")
    assert "said nothing" in a.note


def ended(count, left=0, names=(), workers=0, draining=0):
    """What a host answers to `fire`."""
    return {
        "ended": count, "left": left, "names": list(names), "workers": workers,
        "draining": draining,
    }  # fmt: skip


def test_hosts_are_done_at_the_same_time(monkeypatch):
    meeting = threading.Barrier(8, timeout=10)

    def command(spec, settings, project, verb, request):
        meeting.wait()
        return ended(1)

    monkeypatch.setattr(bootstrap, "command", command)
    specs = [HostSpec(f"h{i}") for i in range(8)]
    fired = fleet.fire(SETTINGS, specs, "p")
    assert [row.name for row in fired.hosts] == [spec.name for spec in specs]
    assert all(row.clean for row in fired.hosts)


def test_fire_never_says_zero_of_a_host_it_could_not_ask(monkeypatch):
    def command(spec, settings, project, verb, request):
        assert (project, verb) == ("p", "fire")
        assert request == {"agents": True, "workers": True, "drain": False}
        if spec.name == "b":
            raise HostError("b", "no route")
        return ended(4, left=1, names=["python (pid 7)"])

    monkeypatch.setattr(bootstrap, "command", command)
    a, b = fleet.fire(SETTINGS, SPECS, "p").hosts
    assert (a.ended, a.left, a.note) == (4, 1, "python (pid 7)")
    assert (b.ended, b.left, b.note) == (None, None, "no route")


def test_a_host_that_drains_is_asked_until_nothing_does(monkeypatch):
    answers = [ended(1, workers=1, draining=2), ended(0, draining=2), ended(2, workers=2)]

    def command(spec, settings, project, verb, request):
        assert request["drain"]
        return answers.pop(0)

    monkeypatch.setattr(bootstrap, "command", command)
    (row,) = fleet.fire(SETTINGS, SPECS[:1], "p", agents=False, drain=True).hosts
    assert (row.ended, row.workers, row.left) == (3, 3, 0) and not answers


def test_what_was_done_to_hosts_is_told_to_masters_here(monkeypatch, attach):
    listener = presence.Presence("p")
    monkeypatch.setattr(bootstrap, "command", lambda *args: ended(1))
    fleet.fire(SETTINGS, SPECS, "p", agents=False)
    assert listener.news() == [], "its agents live on"
    fleet.fire(SETTINGS, SPECS, "p")
    attach(a=FakeChannel(welcome()), b=HostError("b", "no route"))
    fleet.bootstrap(SETTINGS, SPECS, "p")
    assert listener.news() == [
        presence.News("fire", ("a", "b")),
        presence.News("bootstrap", ("a",)),
    ]
    listener.close()
