"""Hosts that come and go on purpose while a run goes on, and what a run shows of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from faults import Running, states, wait_state
from sshd import wait_until

from jamtasks import Master, fleet, presence
from jamtasks.errors import NoHostsError

ROOT = Path(__file__).resolve().parents[2]

# Each slice says where it runs, then waits for the file `go-<host>` or `go`.
GATED = """
import os, time
def mapfunc(folder, items):
    where = os.path.basename(os.environ["JAM_TEST"])
    open(os.path.join(folder, "at-%s-%d" % (where, items[0])), "a").close()
    gates = [os.path.join(folder, name) for name in ("go", "go-" + where)]
    deadline = time.time() + 60
    while not any(map(os.path.exists, gates)) and time.time() < deadline:
        time.sleep(0.01)
    return [(where, items[0])]
def reduce(a, b):
    return a + b
"""
ITEMS = list(range(40))


@pytest.fixture
def lab2(lab, transport):
    lab.host("lab1")
    lab.host("lab2", key="host2")
    return lab


def hosts_yaml(lab, *names):
    return lab.hosts_yaml_of(*(lab.spec(name, workers=1) for name in names))


def at(folder, host):
    return list(folder.glob(f"at-{host}-*"))


def test_hosts_follow_the_hosts_file(lab2, module, tmp_path):
    """One that is added joins; one that is taken out ends its slice, and gets no more."""
    name = module(GATED)
    notices = []
    hosts_yaml(lab2, "lab1")
    with Master(on_notice=notices.append) as master:
        run = Running(master.run, name, str(tmp_path), ITEMS, slice_size=1)
        wait_until(lambda: at(tmp_path, "lab1"), "lab1 works")
        lab2.hosts_yaml("hosts: [lab1, lab2")
        wait_until(lambda: any("hosts.yaml" in text for text in notices), "the mistake is told")
        hosts_yaml(lab2, "lab1", "lab2")
        wait_until(lambda: at(tmp_path, "lab2"), "lab2 works")
        hosts_yaml(lab2, "lab2")
        wait_until(lambda: master._engine.links["lab1"].leaving, "lab1 is told to leave")
        (tmp_path / "go-lab1").touch()
        wait_state(master, "lab1", "left")
        (tmp_path / "go").touch()
        answer = run.result()
        assert [item for _, item in answer] == ITEMS
        assert [where for where, _ in answer].count("lab1") == len(at(tmp_path, "lab1")) == 2
        report = master.last_run
        assert report.retried == 0
        notes = "; ".join(report.notes)
        assert "lab2 joined" in notes and "lab1 left: it is no longer in " in notes
        hosts_yaml(lab2, "lab1", "lab2")
        wait_state(master, "lab1", "up")
        assert len(master.run(name, str(tmp_path), ITEMS, slice_size=1)) == len(ITEMS)


def test_a_host_that_is_fired_leaves_and_one_that_is_bootstrapped_joins(lab2, module, tmp_path):
    name = module(GATED)
    specs = [lab2.spec("lab1", workers=1), lab2.spec("lab2", workers=1)]
    settings = lab2.settings()
    with Master(specs, settings=settings) as master:
        run = Running(master.run, name, str(tmp_path), ITEMS, slice_size=1)
        wait_until(lambda: at(tmp_path, "lab1") and at(tmp_path, "lab2"), "both work")
        assert all(row.clean for row in fleet.fire(settings, specs[:1], "default").hosts)
        wait_state(master, "lab1", "left")
        assert states(master)["lab2"] == "up"
        fleet.bootstrap(settings, specs[:1], "default")
        wait_state(master, "lab1", "up")
        (tmp_path / "go").touch()
        assert [item for _, item in run.result()] == ITEMS
        assert "lab1 left: it was ended by `inv fire`" in master.last_run.notes
        assert "lab1 joined" in master.last_run.notes


def test_a_run_whose_only_host_was_fired_ends_at_once(lab2, module, tmp_path):
    name = module(GATED)
    spec, settings = lab2.spec("lab1", workers=1), lab2.settings()
    with Master([spec], settings=settings) as master:
        run = Running(master.run, name, str(tmp_path), ITEMS, slice_size=1)
        wait_until(lambda: at(tmp_path, "lab1"), "it works")
        fleet.fire(settings, [spec], "default")
        with pytest.raises(NoHostsError, match="it was ended by `inv fire`"):
            run.result(20.0)


def test_a_run_shows_what_each_slice_waits_for(host, module, tmp_path):
    name = module(GATED.replace('("go", "go-" + where)', '("go-%d" % (items[0] > 0), "go")'))
    with Master([host]) as master:
        master.wait()
        run = Running(master.run, name, str(tmp_path), ITEMS[:9], slice_size=1)
        (tmp_path / "go-1").touch()
        shown = wait_until(
            lambda: [one for one in presence.running("default") if one["fold"]],
            "the fold waits for slice 0",
        )[0]
        json.dumps(shown)
        assert shown["module"] == name and shown["slices"] == 9 and shown["done"] == 8
        assert shown["waiting"][0]["slice"] == shown["fold"]["slice"] == 0
        assert shown["waiting"][0]["host"] == host.label
        assert shown["waiting"][0]["for"] == "its map function"
        assert [(one["name"], one["state"]) for one in shown["hosts"]] == [(host.label, "up")]
        status = [sys.executable, "-m", "invoke", "status"]
        text = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f"Map call {name} of process" in text and "8 of 9 slices done" in text
        assert "fold waits for slice 0 on " in text
        status.append("--json")
        data = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert [call["done"] for call in json.loads(data)["calls"]] == [8]
        (tmp_path / "go").touch()
        run.result()
        assert presence.running("default") == []
