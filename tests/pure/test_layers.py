"""The arrows between the modules, as docs/architecture.md draws them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A module imports only modules with a lower number (of its own package).
LAYERS = {
    "errors": 0, "interrupts": 0, "settings": 0.5,
    "slices": 0.5, "filesets": 0.6, "imports": 0.5, "stand_in": 0.5,
    "datasets": 1, "modules": 1, "session": 1, "holding": 0.9, "scheduler": 1,
    "combining": 1.1, "reduction": 1, "treefold": 1.1, "screens": 1,
    "report": 1, "call_report": 1.1, "parameters": 1, "job_report": 1.1, "joblog": 1.2, "ledger": 2,
    "folding": 2, "submission": 3, "resume": 3.1, "sweep": 3,
    "private_files": 0.5, "placement": 1, "presence": 1, "remembered": 1,
    "archive": 2, "transport": 2,
    "loader": 2, "bootstrap": 3, "logins": 3.2,
    "encoding": 2, "printing": 1, "spans": 1, "link": 3.5, "rounds": 3.6, "calls": 3.8,
    "laps": 4.2, "lookout": 4.6, "outcome": 3.9, "answering": 3.9, "sending": 3.95, "engine": 4,
    "feeding": 4.5,
    "dispatch": 4, "master": 5, "fleet": 5, "project": 5.05, "via_jobs": 5.06,
    "arguments": 5.1, "words": 5.1, "progress": 5.1, "console": 5.2, "job_progress": 5.2,
    "checkout": 5.3, "job_logs": 5.3, "jobs_cli": 5.4,
    "cli": 6, "start": 7,
}  # fmt: skip
# The same within transport.
TRANSPORT = {
    "wakeful": 0, "sealing": 0, "known_hosts": 0, "libraries": 0,
    "base": 1, "lending": 1,
    "ssh_config": 2, "local": 2,
    "openssh": 3, "host_keys": 3, "authentication": 3, "dialing": 3,
    "login": 4, "gateways": 5, "fabric_ssh": 6,
}  # fmt: skip
SHARED = {
    "wire",
    "frames",
    "shortcuts",
    "codec",
    "layout",
    "room",
    "shared",
    "sums",
    "tree",
} | {  # what the master may use of the payload
    f"jobs.{name}" for name in "names lines files steps commands leases mapping".split()
}
# Loaded by functions when they need them: `inv --list` pays for none of these.
HEAVY = {"fabric", "paramiko", "numpy", "rich", "yaml", "scipy", "sklearn"}


def imports_of(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, dotted name, at module level) of every import; type checkers' imports left out."""
    tree = ast.parse(path.read_text())

    def walk(nodes: list[ast.stmt], top: bool) -> Iterator[tuple[int, str, bool]]:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name, top
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = path.relative_to(ROOT).parent.parts
                    parents = parents[: len(parents) - node.level + 1]
                    base = ".".join([*parents, base]).rstrip(".")
                    if not node.module:
                        for alias in node.names:
                            yield node.lineno, f"{base}.{alias.name}", top
                        continue
                yield node.lineno, base, top
                if base.split(".")[0] == "worker_payload" or base == "jamtasks.transport":
                    for alias in node.names:
                        yield node.lineno, f"{base}.{alias.name}", top
            else:
                inner = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                for field in ("body", "orelse", "finalbody"):
                    yield from walk(getattr(node, field, []), inner)
                for handler in getattr(node, "handlers", []):
                    yield from walk(handler.body, inner)

    yield from walk(tree.body, True)


def layer_of(path: Path) -> str:
    """The module below the package that a file is or belongs to: transport/base.py is transport."""
    return path.relative_to(ROOT / "jamtasks").with_suffix("").parts[0]


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", sources("jamtasks"), ids=lambda path: path.stem)
def test_arrows_point_down(path):
    name = layer_of(path)
    if name == "__init__":
        return
    assert name in LAYERS, f"{path.name}: give it a layer here and in docs/architecture.md"
    for line, target, _top in imports_of(path):
        package, _, rest = target.partition(".")
        if package == "jamtasks" and rest:
            other = rest.partition(".")[0]
            if other in LAYERS and other != name:
                assert LAYERS[other] < LAYERS[name], f"{path.name}:{line} imports {other}"
        if package == "worker_payload" and rest:
            shared = rest == "jobs" or any(f"{rest}.".startswith(f"{one}.") for one in SHARED)
            assert shared, f"{path.name}:{line} imports {target}, which is the host's own"
        if package == "fabric":
            assert name == "transport", f"{path.name}:{line}: only transport imports Fabric"


@pytest.mark.parametrize("path", sources("jamtasks/transport"), ids=lambda path: path.stem)
def test_arrows_point_down_within_transport(path):
    if path.stem == "__init__":
        return
    assert path.stem in TRANSPORT, f"{path.name}: give it a layer here and in docs/architecture.md"
    for line, target, _top in imports_of(path):
        other = target.removeprefix("jamtasks.transport.")
        if other in TRANSPORT:
            assert TRANSPORT[other] < TRANSPORT[path.stem], f"{path.name}:{line} imports {other}"


@pytest.mark.parametrize("path", sources("jamtasks"), ids=lambda path: path.stem)
def test_heavy_imports_wait_until_needed(path):
    for line, target, top in imports_of(path):
        assert not (top and target.partition(".")[0] in HEAVY), f"{path.name}:{line}: {target}"


@pytest.mark.parametrize("path", sources("worker_payload"), ids=lambda path: path.stem)
def test_the_payload_needs_nothing_but_python(path):
    for line, target, top in imports_of(path):
        name = target.partition(".")[0]
        if name in ("numpy",) and not top:
            continue  # used where it is there
        assert name in sys.stdlib_module_names | {"worker_payload"}, (
            f"{path.name}:{line} imports {target}, which the hosts lack"
        )


@pytest.mark.parametrize("path", sources("worker_payload"), ids=lambda path: path.stem)
def test_the_payload_is_python_3_6(path):
    ast.parse(path.read_text(), feature_version=(3, 6))
    for line, target, _top in imports_of(path):
        assert target.partition(".")[0] not in ("dataclasses", "contextvars", "graphlib"), (
            f"{path.name}:{line} imports {target}, which Python 3.6 lacks"
        )
