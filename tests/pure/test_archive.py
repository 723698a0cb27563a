"""The payload's bytes depend on its files and on nothing else."""

import os

from jamtasks import archive, loader


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
    found = dict(loader.unpacked(before.build, before.data))
    assert found["worker_payload/_build.py"] == f'BUILD = "{before.build}"\n'.encode()


def test_what_is_packed_is_unpacked(tmp_path):
    folder = _tree(tmp_path, cli="A = 1\n", deep__empty="", deep__odd="B = 'a\0b'\n" * 300)
    packed = archive.pack(folder)
    assert loader.digest(packed.data) == packed.build
    found = dict(loader.unpacked(packed.build, packed.data))
    assert {name: text.decode() for name, text in found.items() if "_build" not in name} == {
        "__main__.py": found["__main__.py"].decode(),
        "worker_payload/cli.py": "A = 1\n",
        "worker_payload/deep/empty.py": "",
        "worker_payload/deep/odd.py": "B = 'a\0b'\n" * 300,
    }


def test_payload_is_read_once():
    assert archive.payload() is archive.payload()
