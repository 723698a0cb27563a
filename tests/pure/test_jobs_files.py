"""What files.py does beyond the ordinary, one thing at a time; test_jobs_machine.py mixes it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from worker_payload import layout
from worker_payload.jobs import files, names, steps
from worker_payload.jobs.files import Files, Full, Trouble
from worker_payload.jobs.steps import Append, Create, List, Read, Rename, Sync

LINES = names.results("h-w1-0123456789ab")


class System:
    """The module os, with some calls replaced."""

    def __init__(self, **calls: Any) -> None:
        self.__dict__.update(calls)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


@pytest.fixture
def root(tmp_path):
    path = str(tmp_path / "home" / "project")
    files.prepare(path)
    return path


def failing(call, number, times=99):
    """call, but at first so many times it fails with this error."""
    left = [times]

    def replaced(*given):
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return call(*given)

    return replaced


def test_a_project_is_closed_to_others_and_has_one_identity(root):
    for folder in ("", *names.FOLDERS):
        assert stat.S_IMODE(os.stat(os.path.join(root, folder)).st_mode) == 0o700
    assert files.prepare(root) == files.prepare(root) != ""


def test_create_overwrites_nothing_and_leaves_nothing_beside(root):
    project = Files(root)
    assert project.do(Create("cuts/a", b"1")) is True
    assert project.do(Create("cuts/a", b"2")) is False
    assert project.do(Read("cuts/a")) == b"1"
    assert project.do(List("cuts")) == ["a"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_create_where_there_are_no_links(root, number):
    project = Files(root, System(link=failing(os.link, number)))
    assert project.do(Create("cuts/a", b"1")) is True
    assert project.do(Create("cuts/a", b"2")) is False
    assert project.do(Read("cuts/a")) == b"1" and project.do(List("cuts")) == ["a"]


def test_a_full_disk_leaves_no_half_file(root):
    project = Files(root, System(fsync=failing(os.fsync, errno.EDQUOT)))
    with pytest.raises(Full):
        project.do(Create("cuts/a", b"1"))
    assert project.do(List("cuts")) == []


def test_a_rename_whose_answer_was_lost_is_known_by_its_target(root):
    def lost(source, target):
        os.rename(source, target)
        raise OSError(errno.ENOENT, "lost")

    project = Files(root, System(rename=lost))
    project.do(Create("jobqueue/a", b"1"))
    assert project.do(Rename("jobqueue/a", "jobpods/a")) is True
    assert project.do(Rename("jobqueue/b", "jobpods/b")) is False


def test_what_passes_is_tried_again_and_what_stays_is_told(root):
    pauses: list[float] = []
    project = Files(root, System(rename=failing(os.rename, errno.EIO, 2)), pauses.append)
    project.do(Create("jobqueue/a", b"1"))
    assert project.do(Rename("jobqueue/a", "jobpods/a")) is True
    assert pauses and pauses == sorted(pauses)
    project = Files(root, System(rename=failing(os.rename, errno.ESTALE)), pauses.append)
    with pytest.raises(Trouble, match="jobpods/a"):
        project.do(Rename("jobpods/a", "done/a"))
    project = Files(root, System(rename=failing(os.rename, errno.EACCES)), pauses.append)
    before = len(pauses)
    with pytest.raises(Trouble):
        project.do(Rename("jobpods/a", "done/a"))
    assert len(pauses) == before, "this does not pass"


def test_a_full_disk_holds_whole_lines_only(root):
    full = [False]

    def write(fd, data):
        if full[0]:
            if len(data) <= 3:
                raise OSError(errno.ENOSPC, "full")
            return os.write(fd, data[:3])
        return os.write(fd, data)

    project = Files(root, System(write=write))
    project.do(Append(LINES, b"one\n"))
    full[0] = True
    for _ in range(3):
        with pytest.raises(Full):
            project.do(Append(LINES, b"second\n"))
        assert project.do(Read(LINES)) == b"one\n"
    full[0] = False
    project.do(Append(LINES, b"third\n"))
    assert project.do(Read(LINES)) == b"one\nthird\n"
    project.close()


def test_what_a_failed_fsync_lost_is_written_anew(root):
    """As NFS does it: the disk is full, and only fsync tells, after which the data is gone."""
    path = os.path.join(root, LINES)
    full = [True]

    def fsync(fd):
        if full[0] and stat.S_ISREG(os.fstat(fd).st_mode):
            os.ftruncate(fd, 0)
            raise OSError(errno.ENOSPC, "full")
        os.fsync(fd)

    project = Files(root, System(fsync=fsync))
    project.do(Append(LINES, b"one\ntwo\n"))
    with pytest.raises(Full):
        project.do(Sync(LINES))
    full[0] = False
    os.truncate(path, 0)
    project.do(Append(LINES, b"three\n"))
    project.do(Sync(LINES))
    assert project.do(Read(LINES)) == b"one\ntwo\nthree\n"
    project.close()


def test_a_torn_line_from_before_is_cut_off(root):
    with open(os.path.join(root, LINES), "wb") as file:
        file.write(b"one\ntw")
    project = Files(root)
    project.do(Append(LINES, b"two\n"))
    assert project.do(Read(LINES)) == b"one\ntwo\n"
    project.close()


def test_nothing_appended_is_nothing_to_sync(root):
    project = Files(root)
    project.do(Sync(LINES))
    assert project.do(Read(LINES)) is None


def test_operations_on_folders_are_counted(root):
    project = Files(root)
    project.do(Create("jobqueue/a", b""))
    before = project.counted
    project.do(Rename("jobqueue/a", "jobpods/a"))
    assert project.counted == before + 1
    project.do(Append(LINES, b"one\n"))
    before = project.counted
    project.do(Append(LINES, b"two\n"))
    assert project.counted == before
    project.close()


def test_steps_that_fail_end_there(root):
    def two():
        yield Create("cuts/a", b"1")
        yield Create("nowhere/a", b"1")
        yield Create("cuts/b", b"1")

    project = Files(root)
    with pytest.raises(Trouble):
        project.run(two())
    assert project.do(List("cuts")) == ["a"]


def test_a_path_is_local_or_not_by_its_mount(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\n"
        "server:/home /home nfs4 rw 0 0\n"
        "tmpfs /home/local tmpfs rw 0 0\n"
        "host: /mnt/a\\040b fuse.sshfs rw 0 0\n"
    )
    real = open
    monkeypatch.setattr(files, "open", lambda path, *mode: real(mounts, *mode), raising=False)
    found = {
        path: files.is_network(path)
        for path in ("/", "/homes", "/home", "/home/x", "/home/local/x", "/mnt/a b/c", "/mnt/a")
    }
    assert found == {
        "/": False, "/homes": False, "/home": True, "/home/x": True, "/home/local/x": False,
        "/mnt/a b/c": True, "/mnt/a": False,
    }  # fmt: skip


def test_submit_makes_all_visible_or_what_it_left_is_discarded(root):
    project = Files(root)
    pods = [(names.Pod(names.new_pod(n), 1, 0, names.NO_CUT), b"pod") for n in range(20)]
    assert project.run(steps.submit(iter(pods), "0123456789ab")) == 20
    assert sorted(project.do(List(names.QUEUE))) == sorted(pod.name() for pod, _ in pods)
    assert project.do(List(names.SUBMITTED)) == []
    again = ((pod, data) if n < 9 else 1 / 0 for n, (pod, data) in enumerate(pods))
    with pytest.raises(ZeroDivisionError):
        project.run(steps.submit(again, "0123456789ac"))
    assert len(project.do(List(names.QUEUE))) == 20
    project.run(steps.discard("0123456789ac"))
    assert project.do(List(names.SUBMITTED)) == []


# --- litter --------------------------------------------------------------------------------------


class Aged(System):
    """A file server whose clock is `ahead` of ours. ages: of files, in seconds, by their ends."""

    def __init__(self, ahead: float, ages: dict[str, float]):
        super().__init__()
        self._ahead, self._ages = ahead, ages

    def stat(self, path: str) -> Any:
        age = next((age for end, age in self._ages.items() if path.endswith(end)), 0.0)
        return System(st_ctime=os.stat(path).st_ctime + self._ahead - age)


@pytest.mark.parametrize("ahead", [0.0, -1e7, 1e7])
def test_litter_goes_when_it_is_more_than_a_day_old_by_the_servers_clock(root, ahead):
    old, young = "." + layout.aside("new"), "." + layout.aside("new")
    ages = {old: files.LITTER_SECONDS + 60, young: 80_000.0, "/a.tmp": 1e9, "/.mine": 1e9}
    for folder in ("jobpods", "tails", "cuts", "jobqueue", ""):
        for name in (old, young, "a.tmp", ".mine"):
            (Path(root) / folder / name).write_text("x")
    project = Files(root, Aged(ahead, ages))
    assert project.tidy() == 5
    for folder in ("jobpods", "tails", "cuts", "jobqueue", ""):
        left = set(os.listdir(os.path.join(root, folder)))
        assert {young, "a.tmp", ".mine"} <= left and old not in left
        assert len([name for name in left if names.is_aside(name)]) == 1, "its own is left"
    assert project.tidy() == 0


def test_who_creates_and_finds_his_file_gone_has_done_nothing(root):
    """As if he had died: the steps count with that."""

    def link(source: str, target: str) -> None:
        os.unlink(source)  # swept away, after he had been stopped for days
        os.link(source, target)

    project = Files(root, System(link=link))
    with pytest.raises(Trouble):
        project.do(Create("cuts/a", b"1"))
    assert os.listdir(os.path.join(root, "cuts")) == []
