"""Which hosts a project was brought to from this machine, as `inv fire` is told of them."""

from __future__ import annotations

import os
import stat
import threading
import time

import pytest

from jamtasks import bootstrap, fleet, project, remembered
from jamtasks.errors import HostError
from jamtasks.settings import HostSpec, Settings
from jamtasks.transport import Attempt

LAB1, LAB2 = HostSpec("lab1"), HostSpec("lab2", transport="openssh", user="me", port=2222)
LONG_AGO = 1e9


@pytest.fixture(autouse=True)
def run_dir(tmp_path, monkeypatch):
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("JAM_RUN_DIR", str(path))
    monkeypatch.setenv("JAM_HOME", str(tmp_path / "jobs"))
    return path


def specs(name="p"):
    return [spec for spec, _ in remembered.hosts(name)]


def labels(name="p"):
    return [spec.label for spec in specs(name)]


def files(run_dir):
    return sorted(run_dir.iterdir())


def age(run_dir, when=LONG_AGO):
    for path in files(run_dir):
        os.utime(path, (when, when))


# --- files --------------------------------------------------------------------------------------


def test_hosts_are_remembered_by_project_with_the_way_there(run_dir):
    remembered.remember("p", LAB2)
    remembered.remember("p", LAB1)
    remembered.remember("q", LAB2)
    assert specs() == [LAB1, LAB2]
    assert specs("q") == [LAB2]
    assert specs("r") == []
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(run_dir)} == {0o600}


def test_this_machine_and_ssh_to_it_are_two():
    """A hosts file may leave it out, and its agent lives on under screen."""
    both = [HostSpec("localhost"), HostSpec("localhost", port=2222, label="localhost:2222")]
    for spec in both:
        remembered.remember("p", spec)
    assert specs() == both


def test_a_password_is_never_written(run_dir):
    remembered.remember("p", HostSpec("lab1", password="s3cret"))
    assert specs() == [LAB1]
    assert not any(b"s3cret" in path.read_bytes() for path in files(run_dir))


def test_files_are_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    remembered.remember("p", HostSpec("lab1", key="id", ssh_config="~/.ssh/other"))
    assert specs() == [HostSpec("lab1", key=str(tmp_path / "id"), ssh_config="/home/me/.ssh/other")]


def test_a_host_used_again_is_one_file_and_newer(run_dir):
    remembered.remember("p", LAB1)
    age(run_dir)
    assert remembered.hosts("p")[0][1] == LONG_AGO
    remembered.remember("p", LAB1)
    assert abs(remembered.hosts("p")[0][1] - time.time()) < 60
    assert len(files(run_dir)) == 1


def test_of_two_ways_to_a_host_the_last_one_counts_and_both_are_forgotten(run_dir):
    remembered.remember("p", LAB1)
    age(run_dir)
    other = HostSpec("lab1", port=2222)
    remembered.remember("p", other)
    assert specs() == [other]
    remembered.forget("p", ["lab1"], time.time())
    assert files(run_dir) == []


def test_what_was_used_again_meanwhile_is_not_forgotten(run_dir):
    remembered.remember("p", LAB1)
    remembered.remember("p", LAB2)
    age(run_dir)
    remembered.remember("p", LAB1)  # an agent that came after the fire began
    remembered.forget("p", ["lab1", "lab2"], LONG_AGO + 1)
    assert labels() == ["lab1"]
    remembered.forget("p", [], time.time())
    remembered.forget("q", ["lab1"], time.time())
    assert labels() == ["lab1"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": 7}', b"\xff\0", b"x" * 100_000])
def test_bad_content_is_no_host_and_goes(run_dir, content):
    remembered.remember("p", LAB1)
    (path,) = files(run_dir)
    path.write_bytes(content)
    (run_dir / "reached.p.notes.txt").write_text("not ours")
    assert specs() == []
    assert not path.exists() and (run_dir / "reached.p.notes.txt").exists()
    remembered.remember("p", LAB1)
    assert specs() == [LAB1]


@pytest.mark.parametrize("text", ["[]", '{"odd": 1}', "7", '"lab1"'])
def test_what_another_version_wrote_whole_is_no_host_either(run_dir, text):
    data = text.encode()
    (run_dir / f"reached.p.{remembered._digest(data)}.json").write_bytes(data)
    assert specs() == []


def test_a_directory_or_a_dangling_link_in_the_way_harms_nothing(run_dir):
    remembered.remember("p", LAB1)
    (path,) = files(run_dir)
    path.unlink()
    path.mkdir()
    remembered.remember("p", LAB1)
    assert specs() == []
    path.rmdir()
    path.symlink_to(run_dir / "nowhere")
    remembered.remember("p", LAB1)
    assert specs() == [LAB1]


def test_many_at_once_leave_one_whole_file_and_nothing_beside_it(run_dir):
    start = threading.Barrier(8)

    def go():
        start.wait(10)
        for _ in range(20):
            remembered.remember("p", LAB1)
            assert set(labels()) <= {"lab1"}
            remembered.forget("p", ["lab1"], time.time())
        remembered.remember("p", LAB1)

    threads = [threading.Thread(target=go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    remembered.remember("p", LAB1)
    assert specs() == [LAB1]
    assert len(files(run_dir)) == 1


def test_nothing_fails_where_nothing_can_be_written(tmp_path, monkeypatch, run_dir):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAM_RUN_DIR", str(tmp_path / "file" / "below"))
    remembered.remember("p", LAB1)
    assert specs() == []
    remembered.forget("p", ["lab1"], time.time())


def test_a_full_disk_fails_nothing_and_leaves_nothing(run_dir, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        remembered.remember("p", LAB1)
    assert files(run_dir) == []
    remembered.remember("p", HostSpec("lab1", python=object()))  # type: ignore[arg-type]
    assert files(run_dir) == []


def test_a_folder_that_is_gone_fails_nothing(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    remembered.remember("p", HostSpec("lab1", key="id"))
    assert specs() == []


def test_no_descriptor_is_left_open():
    before = len(os.listdir("/proc/self/fd"))
    remembered.remember("p", LAB1)
    remembered.hosts("p")
    remembered.forget("p", ["lab1"], time.time())
    assert len(os.listdir("/proc/self/fd")) == before


# --- who remembers, and who forgets -------------------------------------------------------------


class Hosts:
    """What hosts answer to `fire`: 0 is what is left, an error that they cannot be asked."""

    def __init__(self, monkeypatch, **answers):
        self.asked = []
        self.answers = answers
        monkeypatch.setattr(bootstrap, "command", self._command)

    def _command(self, spec, settings, project, verb, request):
        self.asked.append(spec)
        left = self.answers.get(spec.name, 0)
        if isinstance(left, Exception):
            raise left
        return {"ended": 1, "left": left, "names": [], "workers": 0, "draining": 0}

    def fire(self, hosts=None, agents=True, settings=None, name="p"):
        """The rows, and the labels that were asked."""
        self.asked.clear()
        rows = (
            project.Project(name, settings=settings or Settings()).fire(hosts, agents=agents).hosts
        )
        return {row.name: row for row in rows}, sorted(spec.label for spec in self.asked)


def test_a_host_is_remembered_once_it_has_an_agent(monkeypatch):
    def start(spec, settings, project, verb, attempt):
        if spec.name == "lab2":
            raise HostError("lab2", "no route")
        return "attached"

    monkeypatch.setattr(bootstrap, "_start", start)
    assert bootstrap.attach(LAB1, Settings(), "p", Attempt()) == "attached"
    with pytest.raises(HostError):
        bootstrap.attach(LAB2, Settings(), "p")
    assert specs() == [LAB1]


def test_fire_asks_them_too_and_forgets_those_where_nothing_is_left(monkeypatch):
    hosts = Hosts(monkeypatch, lab2=1)
    for spec in (LAB1, LAB2):
        remembered.remember("p", spec)
    rows, asked = hosts.fire()
    assert asked == ["lab1", "lab2", "localhost"]
    assert [row.left for row in rows.values()] == [0, 0, 1]
    assert labels() == ["lab2"]
    assert hosts.fire()[1] == ["lab2", "localhost"]
    assert hosts.fire(name="q")[1] == ["localhost"]


def test_fire_takes_from_the_hosts_file_what_stands_there(monkeypatch):
    hosts = Hosts(monkeypatch)
    for spec in (LAB1, LAB2):
        remembered.remember("p", spec)
    now = HostSpec("lab1", port=22)
    secret = HostSpec("", password="s3cret")
    hosts.fire(settings=Settings(hosts=(now,), fallback=secret))
    assert now in hosts.asked and LAB1 not in hosts.asked
    assert {spec.label: spec.password for spec in hosts.asked} == {"lab1": None, "lab2": "s3cret"}
    assert specs() == []


def test_fire_of_named_hosts_asks_and_forgets_only_these(monkeypatch):
    hosts = Hosts(monkeypatch)
    for spec in (LAB1, LAB2):
        remembered.remember("p", spec)
    assert hosts.fire("lab1")[1] == ["lab1"]
    assert labels() == ["lab2"]


def test_fire_of_job_workers_neither_asks_nor_forgets(monkeypatch):
    hosts = Hosts(monkeypatch)
    remembered.remember("p", LAB1)
    assert hosts.fire(agents=False)[1] == ["localhost"]
    fleet.fire(Settings(), [LAB1], "p", agents=False)
    assert labels() == ["lab1"]


def test_a_host_that_is_gone_is_not_proven_and_asked_for_a_day(monkeypatch, run_dir):
    hosts = Hosts(monkeypatch, lab1=HostError("lab1", "no route"))
    remembered.remember("p", LAB1)
    age(run_dir, time.time() - 3 * 3600)
    row = hosts.fire()[0]["lab1"]
    assert (row.ended, row.left) == (None, None)
    assert row.note == "no route (used 3 h 0 min ago; it is asked for a day)"
    assert hosts.fire("lab1")[0]["lab1"].note == "no route"
    age(run_dir, time.time() - 25 * 3600)
    row = hosts.fire()[0]["lab1"]
    assert row.left is None
    assert row.note == "no route (not used for a day; it will not be asked again)"
    assert hosts.fire()[1] == ["localhost"]
