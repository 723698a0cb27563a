"""Putting the payload in place: others start from it all the while."""

import errno
import os
import sys
import threading

import pytest

from jamtasks import archive, loader

PAYLOAD = archive.payload()


@pytest.fixture
def install(tmp_path):
    def install(repair=False):
        loader.install(str(tmp_path), PAYLOAD.build, PAYLOAD.data, repair)
        return tmp_path / "payload" / PAYLOAD.build

    return install


def test_all_that_an_agent_imports_is_compiled(install, monkeypatch):
    folder = install()
    names = {path.stem for path in (folder / "worker_payload").glob("*.py")}
    monkeypatch.chdir(folder)  # and back
    monkeypatch.setattr(sys, "argv", ["-c", str(folder)])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    found = {}
    exec(loader._COMPILE, found)
    compiled = {
        path.name.partition(".")[0] for path in folder.glob("worker_payload/__pycache__/*.pyc")
    }
    assert names - compiled == {"fire", "probe", "restricted"}
    assert set(found["names"]) < names


def test_folders_come_in_any_order(tmp_path):
    for name in ("a/b/deep.py", "a/shallow.py", "c.py"):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"NAME = {name!r}\n")
    packed = archive.pack(tmp_path / "source")
    loader.install(str(tmp_path), packed.build, packed.data)
    folder = tmp_path / "payload" / packed.build / "worker_payload"
    assert (folder / "a/shallow.py").read_text() == "NAME = 'a/shallow.py'\n"
    assert (folder / "a/b/deep.py").is_file()


def test_a_host_that_starts_no_process_says_so(monkeypatch):
    def fork():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(loader.Unable, match="start a process: Resource temporarily"):
        loader._run(["/bin/true"])


def test_what_is_whole_is_kept(install):
    folder = install()
    before = os.stat(folder / "worker_payload" / "cli.py")
    compiled = folder / "worker_payload" / "__pycache__"
    compiled.mkdir()
    install()
    assert compiled.is_dir()
    assert os.path.samestat(os.stat(folder / "worker_payload" / "cli.py"), before)
    assert os.listdir(folder.parent) == [PAYLOAD.build]


@pytest.mark.parametrize("repair", [False, True])
def test_nobody_ever_misses_a_file(install, repair):
    """Installers at work, while another looks for the files that it would import."""
    folder = install()
    wanted = [folder / "__main__.py", folder / "worker_payload" / "cli.py"]
    threads = [
        threading.Thread(target=lambda: [install(repair) for _ in range(3)]) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for path in wanted:
            assert path.is_file()
    for thread in threads:
        thread.join()
    assert os.listdir(folder.parent) == [PAYLOAD.build]


def test_an_installer_keeps_the_work_of_a_quicker_one(install, monkeypatch):
    path = install() / "worker_payload" / "cli.py"
    before = os.stat(path)
    answers = iter([False, True])  # it was not there when asked first
    monkeypatch.setattr(loader, "is_installed", lambda folder: next(answers))
    install()
    assert os.path.samestat(os.stat(path), before)


@pytest.mark.parametrize("harm", ["half gone", "damaged", "a file"])
def test_repair(install, harm):
    folder = install()
    if harm == "half gone":
        (folder / "__main__.py").unlink()
        (folder / "worker_payload" / "wire.py").unlink()
        install()
    elif harm == "damaged":
        (folder / "worker_payload" / "wire.py").write_text("no Python")
        install(repair=True)
    else:
        os.rename(folder, f"{folder}.old")
        folder.write_text("no folder")
        install()
    text = (folder / "worker_payload" / "wire.py").read_text()
    assert "class Welcome" in text
    assert (folder / "__main__.py").is_file()
