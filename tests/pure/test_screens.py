"""screen's words."""

import pytest

from jamtasks import screens

LISTING = """\
There are screens on:
\t4242.jam.a.agent\t(11/22/26 04:00:00)\t(Detached)
\t4243.jam.a.w12\t(Attached)
\t4244.jam.ab.agent\t(22.11.2026 04:00:00)\t(Multi, detached)
\t4245.jam.a.agentx\t(Detached)
\t4246.jam.a.w3\t(Dead ???)
\t4247.vm\t(Detached)
Remove dead screens with 'screen -wipe'.
5 Sockets in /run/screen/S-me.
"""


def test_listing():
    found = screens.parse(LISTING)
    assert [session.pid for session in found] == [4242, 4243, 4244, 4245, 4246, 4247]
    assert found[0].full_name == "4242.jam.a.agent"
    assert [session.alive for session in found] == [True, True, True, True, False, True]


def test_nothing_listed():
    assert screens.parse("No Sockets found in /run/screen/S-me.\n\n") == ()


def test_a_project_is_not_another_that_begins_like_it():
    found = screens.of_project(screens.parse(LISTING), "a")
    assert [session.pid for session in found] == [4242, 4243, 4246]


def test_names():
    assert screens.name("my-project_1") == "jam.my-project_1.agent"
    assert screens.name("a", 3) == "jam.a.w3"
    for bad in ("", "a.b", "a b", "ä", "x" * 41, "a\n"):
        with pytest.raises(ValueError, match="no project name"):
            screens.name(bad)


def test_command_lines():
    (session, *_) = screens.parse(LISTING)
    assert screens.quit(session) == ["screen", "-S", "4242.jam.a.agent", "-X", "quit"]
    assert screens.start("jam.a.w1", ["sh", "-c", "x"], log="/l")[-5:] == [
        "-Logfile", "/l", "sh", "-c", "x",
    ]  # fmt: skip
