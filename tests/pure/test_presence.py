"""What masters on one machine show, and what they are told."""

from __future__ import annotations

import os

import pytest

from jamtasks import presence
from jamtasks.presence import News, Presence


@pytest.fixture(autouse=True)
def run_dir(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.setenv("JAM_RUN_DIR", str(tmp_path))
    return tmp_path


def test_what_a_master_shows_is_seen_until_it_hides(run_dir):
    one, other = Presence("p"), Presence("q")
    one.show({"done": 1, "text": "x" * 1000})
    other.show({"done": 5})
    assert presence.running("p") == [{"done": 1, "text": "x" * 1000}]
    one.show({"done": 2})
    assert presence.running("p") == [{"done": 2}]
    one.close()
    assert presence.running("p") == []
    assert presence.running("q") == [{"done": 5}]
    other.close()
    assert not list(run_dir.glob("master.*"))


def test_the_file_of_a_killed_master_is_taken_away(run_dir):
    dead = run_dir / "master.p.0123456789abcdef.json"
    dead.write_text('{"done": 1}')
    assert presence.running("p") == []
    assert not dead.exists()


def test_news_are_heard_once_and_by_all_that_listen():
    presence.tell("p", "fire", ["before"])
    one, other = Presence("p"), Presence("p")
    presence.tell("p", "fire", ["lab1", "lab2"])
    presence.tell("q", "fire", ["lab1"])
    assert one.news() == [News("fire", ("lab1", "lab2"))]
    assert one.news() == []
    presence.tell("p", "bootstrap", ["lab1"])
    assert one.news() == [News("bootstrap", ("lab1",))]
    assert other.news() == [News("fire", ("lab1", "lab2")), News("bootstrap", ("lab1",))]
    one.close(), other.close()


def test_news_that_began_anew_are_heard(run_dir):
    presence.tell("p", "fire", ["x" * presence.NEWS_MAX])
    listener = Presence("p")
    presence.tell("p", "fire", ["lab1"])
    assert listener.news() == [News("fire", ("lab1",))]
    listener.close()


def test_without_a_run_directory_nothing_is_shown_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("JAM_RUN_DIR", str(tmp_path / "file" / "below"))
    (tmp_path / "file").write_text("")
    silent = Presence("p")
    silent.show({})
    presence.tell("p", "fire", ["lab1"])
    assert silent.news() == [] and presence.running("p") == []
    silent.close()


def test_no_descriptor_is_left_open():
    before = len(os.listdir("/proc/self/fd"))
    one = Presence("p")
    one.show({})
    presence.tell("p", "fire", ["lab1"])
    one.news()
    presence.running("p")
    one.close()
    assert len(os.listdir("/proc/self/fd")) == before
