"""The payload's bytes depend on its files and on nothing else."""

import io
import os
import zipfile

from jamtasks import archive


def _tree(folder, **files):
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_same_files_same_bytes(tmp_path):
    one = _tree(tmp_path / "one", cli="A = 1\n", deep__sub="B = 2\n")
    two = _tree(tmp_path / "two", deep__sub="B = 2\n", cli="A = 1\n")
    for path in two.rglob("*.py"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    (two / "notes.txt").write_text("not a module")
    assert archive.pack(one) == archive.pack(two)


def test_any_change_is_another_build(tmp_path):
    folder = _tree(tmp_path, cli="A = 1\n", wire="B = 1\n")
    builds = {archive.pack(folder).build}
    (folder / "cli.py").write_text("A = 2\n")
    builds.add(archive.pack(folder).build)
    (folder / "wire.py").rename(folder / "wires.py")
    builds.add(archive.pack(folder).build)
    assert len(builds) == 3
    assert all(len(build) == 16 and int(build, 16) >= 0 for build in builds)


def test_build_is_told_to_the_payload_and_does_not_depend_on_a_source_trees(tmp_path):
    folder = _tree(tmp_path, cli="A = 1\n")
    before = archive.pack(folder)
    (folder / "_build.py").write_text('BUILD = "source"\n')
    assert archive.pack(folder) == before
    with zipfile.ZipFile(io.BytesIO(before.data)) as packed:
        assert packed.read("worker_payload/_build.py") == f'BUILD = "{before.build}"\n'.encode()


def test_payload_is_read_once():
    assert archive.payload() is archive.payload()
