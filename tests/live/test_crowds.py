"""Thirty hosts behind one stock sshd, and behind one jump host: none of its limits is tripped."""

from __future__ import annotations

import subprocess

import pytest
from sshd import sshd_program

from jamtasks import Master

COUNT = 30
# what sshd has by default, said again in case a distribution changed it
LIMITS = ("MaxStartups 10:30:100", "MaxSessions 10")
# a connection without a login, such as our look whether sshd answers, costs a "deferred penalty"
TRIPPED = ("MaxStartups", "drop connection", "no more sessions", "activating", "Too many")


def limits() -> tuple[str, ...]:
    """LIMITS, and penalties where this sshd knows them."""
    known = subprocess.run(
        [sshd_program(), "-t", "-f", "/dev/null", "-h", "/dev/null",
         "-o", "PerSourcePenalties=yes"], capture_output=True, text=True,
    ).stderr  # fmt: skip
    return LIMITS if "Bad configuration" in known else (*LIMITS, "PerSourcePenalties yes")


@pytest.mark.parametrize("way", ["one sshd", "one jump host"])
def test_thirty_hosts(lab, ssh, module, way):
    name = module("def mapfunc(params, items):\n    return sum(items)\n")
    host = lab.host("lab1", *limits())
    names = [f"many{number}" for number in range(COUNT)]
    extra = f"Host many*\n  HostName 127.0.0.1\n  Port {host.port}\n"
    doors = [host]
    if way == "one jump host":
        doors.append(lab.host("gate", *limits(), key="host2"))
        extra += "  ProxyJump gate\n"
    lab.write_ssh_config(extra)
    specs = [lab.spec(one, workers=1) for one in names]
    with Master(specs, settings=lab.settings(connect_timeout=40.0)) as master:
        up = [one.name for one in master.wait() if one.state == "up"]
        assert up == names, [one.note for one in master.hosts() if one.note]
        assert master.run(name, None, list(range(300)), slice_size=1) == 44850
    for door in doors:
        for word in TRIPPED:
            assert word not in door.log
        accepted = door.log.count("Accepted publickey")
        assert accepted == (1 if door is not host and ssh == "fabric" else COUNT)
