"""Logins that begin early: who waits for what."""

import threading

import pytest

from jamtasks import logins
from jamtasks.errors import HostError
from jamtasks.settings import HostSpec, Settings

SPECS = (HostSpec("lab1", transport="openssh"), HostSpec("lab2", transport="openssh"))


class Hosts:
    """What attaching to them does: it waits for the host, and for a word of the test."""

    def __init__(self):
        self.answer = threading.Event()

    def attach(self, spec, settings, project, attempt):
        if spec.name == "lab2":
            raise HostError("lab2", "there is no such host")
        attempt.waits.set()
        assert self.answer.wait(10)
        return f"attached to {spec.label}"


@pytest.fixture
def hosts(monkeypatch):
    hosts = Hosts()
    monkeypatch.setattr(logins.bootstrap, "attach", hosts.attach)
    yield hosts
    hosts.answer.set()


def test_sent_off_are_those_that_wait_for_their_host_or_failed(hosts, monkeypatch):
    monkeypatch.setattr(logins, "SEND_OFF_SECONDS", 60.0)
    begun = logins.Logins(Settings(), SPECS, "p")
    helper = threading.Thread(target=begun.send_off, daemon=True)
    helper.start()
    helper.join(10)
    assert not helper.is_alive()
    hosts.answer.set()
    attempt = logins.Attempt("lab1")
    assert begun.attach(SPECS[0], attempt) == "attached to lab1"
    with pytest.raises(HostError, match="no such host"):
        begun.attach(SPECS[1], attempt)


def test_one_that_still_works_is_left_behind(hosts, monkeypatch):
    monkeypatch.setattr(logins, "SEND_OFF_SECONDS", 0.01)
    monkeypatch.setattr(
        logins.bootstrap, "attach", lambda spec, *more: hosts.answer.wait(10) and spec.label
    )
    begun = logins.Logins(Settings(), SPECS[:1], "p")
    begun.send_off()
    assert not hosts.answer.is_set()
    hosts.answer.set()
    assert begun.attach(SPECS[0], logins.Attempt("lab1")) == "lab1"
