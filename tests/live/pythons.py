"""The Pythons of this machine, and a numpy for each: what hosts may have.

numpy is fetched once per version, as a wheel of the right kind, into a folder of its own (no
environment is touched) below JAM_TEST_CACHE, by default ~/.cache/jam-tests."""

import functools
import glob
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

NEWEST, OLDEST = 13, 6
_PROBE = (
    "import json, platform as p, sys\n"
    "print(json.dumps([p.python_version(), p.python_implementation(), sys.executable]))"
)
# looked up now: tests have homes of their own, which end with them
_CACHE = Path(os.environ.get("JAM_TEST_CACHE") or "~/.cache/jam-tests").expanduser()
_PLATFORMS = ("2_28", "2_27", "2_17", "2014", "2010", "1")


class Python(NamedTuple):
    """version: "3.6.15"; of PyPy, the Python it is like. implementation: "CPython" or "PyPy"."""

    version: str
    executable: str
    implementation: str

    @property
    def minor(self) -> tuple[int, int]:
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    def __str__(self) -> str:
        return f"{self.implementation}-{self.version}"


@functools.cache
def pythons() -> list[Python]:
    """One of each CPython 3.6 to 3.13 and of PyPy that is installed here, oldest first."""
    candidates = sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin/python3")))
    names = [f"python3.{minor}" for minor in range(OLDEST, NEWEST + 1)]
    candidates += [shutil.which(name) or "" for name in [*names, "python3", "pypy3"]]
    candidates.append(sys.executable)  # so that there is one at least
    found: dict[tuple[str, tuple[int, int]], Python] = {}
    for candidate in filter(None, candidates):
        python = _probe(candidate)
        if python is not None and (3, OLDEST) <= python.minor <= (3, NEWEST):
            found.setdefault((python.implementation, python.minor), python)
    return sorted(found.values(), key=lambda python: (python.implementation, python.minor))


def _probe(executable: str) -> Python | None:
    """None for what only looks like a Python, such as a shim of a version that is not there."""
    try:
        done = subprocess.run(
            [executable, "-c", _PROBE], capture_output=True, text=True, timeout=30, check=True
        )
        version, implementation, real = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return Python(version, real or executable, implementation)


@functools.cache
def numpy_for(python: Python) -> str | None:
    """A folder with numpy for this Python, for its PYTHONPATH; None if no wheel was ever made.

    Raises RuntimeError if it cannot be fetched."""
    tag = "cp" if python.implementation == "CPython" else "pp"
    short = "{}.{}".format(*python.minor)
    cache = _CACHE
    folder = cache / f"numpy-{tag}{short}-{platform.machine()}"
    none = folder.with_name(folder.name + ".none")
    if none.exists():
        return None
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        if not _fetch(folder, tag, short):
            none.touch()
            return None
    return str(folder)


def _fetch(folder: Path, tag: str, short: str) -> bool:
    """pip's newest wheel for that Python, unpacked aside and renamed. False if there is none."""
    aside = tempfile.mkdtemp(prefix="new-", dir=folder.parent)
    command = [
        sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--no-deps",
        "--target", aside, "--only-binary=:all:", "--disable-pip-version-check",
        "--implementation", tag, "--python-version", short,
    ]  # fmt: skip
    if tag == "pp":
        command += ["--abi", f"pypy{short.replace('.', '')}_pp73"]
    if sys.platform == "linux":
        for name in _PLATFORMS:
            joint = "_" if "_" in name else ""
            command += ["--platform", f"manylinux{joint}{name}_{platform.machine()}"]
    try:
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [*command, "numpy"], capture_output=True, text=True, env=environ, timeout=600
        )
        if done.returncode:
            if "No matching distribution" in done.stderr:
                return False
            raise RuntimeError(f"numpy for Python {short}: {done.stderr.strip()}")
        os.chmod(aside, 0o755)
        try:
            os.rename(aside, folder)
        except OSError:
            if not folder.is_dir():  # else another run was quicker
                raise
        return True
    finally:
        shutil.rmtree(aside, ignore_errors=True)
