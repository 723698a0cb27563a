"""When the agent sleeps so that more comes together, and when it would only be late."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from worker_payload import agent, masters
from worker_payload.agent import FILL_SECONDS, Agent
from worker_payload.masters import Masters


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(agent, "time", SimpleNamespace(sleep=slept.append))
    return slept


def at_work(behind: bool = False, owes: bool = False, patience: float = 0.0) -> SimpleNamespace:
    host = SimpleNamespace(owes=lambda: owes, patience=lambda: patience)
    return SimpleNamespace(_host=host, _behind=behind, cpus=2)


def test_a_pipe_is_given_time_to_fill(naps):
    Agent._let_them_work(at_work(owes=True))
    assert naps == [FILL_SECONDS]


def test_what_is_there_already_is_read_at_once(naps):
    Agent._let_them_work(at_work(owes=True, behind=True))
    assert not naps


def test_workers_are_given_time_to_answer(naps):
    Agent._let_them_work(at_work(patience=0.0004, behind=True))
    Agent._let_them_work(at_work(patience=0.00001))
    assert naps == [0.0002]


@pytest.mark.parametrize("vectors", [True, False])
def test_it_knows_whether_it_has_read_all(monkeypatch, vectors):
    if not vectors:  # PyPy
        monkeypatch.setattr(masters, "os", SimpleNamespace(read=os.read))
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    monkeypatch.setattr(masters, "READ", 1000)
    this = SimpleNamespace(_buffer=bytearray(1000), _behind=False)
    os.write(write_end, bytes(1001))
    assert len(Masters._read(this, read_end)) == 1000
    assert this._behind
    assert len(Masters._read(this, read_end)) == 1
    assert not this._behind
    assert Masters._read(this, read_end) is None
    os.close(write_end)
    assert len(Masters._read(this, read_end)) == 0
    os.close(read_end)
