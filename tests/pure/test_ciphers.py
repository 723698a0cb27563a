"""Which ciphers the openssh transport asks for."""

import subprocess

import pytest

from jamtasks.transport import ssh_config
from jamtasks.transport.ssh_config import quicker

UP_TO_9 = (
    "chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,"
    "aes128-gcm@openssh.com,aes256-gcm@openssh.com"
)


@pytest.fixture(autouse=True)
def processor(monkeypatch):
    monkeypatch.setattr(ssh_config, "_does_aes", lambda: True)


def test_the_same_ciphers_in_another_order():
    asked = quicker(UP_TO_9)
    assert asked.startswith("aes128-gcm@openssh.com,")
    assert sorted(asked.split(",")) == sorted(UP_TO_9.split(","))


@pytest.mark.parametrize(
    "chosen", ["", "aes256-ctr", UP_TO_9.replace("aes128-ctr,", ""), UP_TO_9 + ",3des-cbc"]
)
def test_what_somebody_chose_stands(chosen):
    assert quicker(chosen) is None


def test_a_processor_without_aes_keeps_to_what_it_does_well(monkeypatch):
    monkeypatch.setattr(ssh_config, "_does_aes", lambda: False)
    assert quicker(UP_TO_9) is None


def test_this_very_ssh_is_known(tmp_path):
    """A release that asks for others by itself is not mistaken for a user's choice for ever."""
    empty = tmp_path / "config"
    empty.write_text("")
    told = subprocess.run(
        ["ssh", "-G", "-F", str(empty), "host"], capture_output=True, text=True, check=True
    )
    ciphers = next(line[8:] for line in told.stdout.splitlines() if line.startswith("ciphers "))
    asked = quicker(ciphers)
    assert asked is not None, ciphers
    subprocess.run(["ssh", "-G", "-F", str(empty), "-o", f"Ciphers={asked}", "host"], check=True,
                   capture_output=True)  # fmt: skip
