"""What a source file imports, and whether that is local, installed, or part of Python.

Sources are parsed, not run. What lies under `if TYPE_CHECKING:` or `if __name__ == "__main__":` is
no import of a host.
"""

from __future__ import annotations

import ast
import enum
import functools
import importlib.machinery
import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from typing import NamedTuple

_SITE = ("site-packages", "dist-packages")
_CATCH_ALL = ("ImportError", "ModuleNotFoundError", "Exception", "BaseException")


class Import(NamedTuple):
    """One dotted name that a source wants. sure: its own import fails if this does.

    attribute: the last part may be a name in the module before it, rather than a module."""

    name: str
    sure: bool
    attribute: bool


class Kind(enum.Enum):
    LOCAL = "local"
    INSTALLED = "installed"
    STDLIB = "stdlib"
    MISSING = "missing"


class Found(NamedTuple):
    """Where a module lies. path: its .py file; "" for a folder without __init__.py; None if it has
    no source (compiled, built in)."""

    kind: Kind
    path: str | None
    is_package: bool
    search: tuple[str, ...]


# --- what a source imports -----------------------------------------------------------------------


def imports_of(tree: ast.AST, package: str) -> list[Import]:
    """All imports in a parsed source, in order; `package` is what relative ones start from."""
    visitor = _Visitor(package)
    visitor.visit(tree)
    return visitor.found


def public_names(tree: ast.Module) -> list[str]:
    """What `__all__` lists, if it is a plain list of strings."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            try:
                return [str(name) for name in ast.literal_eval(node.value)]
            except (ValueError, TypeError):
                return []
    return []


def absolute_imports(source: str, tree: ast.AST, package: str) -> str:
    """The source with its relative imports spelled out, each in its own place and line."""
    lines = source.splitlines(keepends=True)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    # from the end, so that the offsets of the others stay right
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        base = _absolute(node, package)
        if base is None:
            continue
        line = lines[node.lineno - 1].encode()
        head, rest = line[: node.col_offset], line[node.col_offset :].decode()
        rest = re.sub(r"^from[\s.]+[\w.]*\s*import\b", f"from {base} import", rest)
        lines[node.lineno - 1] = head.decode() + rest
    return "".join(lines)


class _Visitor(ast.NodeVisitor):
    def __init__(self, package: str):
        self.found: list[Import] = []
        self._package = package
        self._sure = True

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.found.append(Import(alias.name, self._sure, False))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = _absolute(node, self._package)
        if base is None:  # beyond the top: it fails here as there
            return
        self.found.append(Import(base, self._sure, False))
        for alias in node.names:
            self.found.append(Import(f"{base}.{alias.name}", self._sure, True))

    def visit_If(self, node: ast.If) -> None:
        if not _never_on_hosts(node.test):
            self._perhaps(node.body)
        self._perhaps(node.orelse)

    def visit_Try(self, node: ast.Try) -> None:
        forgiving = any(_catches_import_errors(handler) for handler in node.handlers)
        for part in (node.body, node.orelse):
            if forgiving:
                self._perhaps(part)
            else:
                self._all(part)
        self._perhaps(node.handlers)
        self._all(node.finalbody)

    visit_TryStar = visit_Try

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        body = node.body if isinstance(node.body, list) else [node.body]
        self._perhaps(body)

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    def _all(self, nodes: list[ast.stmt]) -> None:
        for node in nodes:
            self.visit(node)

    def _perhaps(self, nodes: list[ast.stmt] | list[ast.expr] | list[ast.ExceptHandler]) -> None:
        before, self._sure = self._sure, False
        for node in nodes:
            self.visit(node)
        self._sure = before


def _absolute(node: ast.ImportFrom, package: str) -> str | None:
    if not node.level:
        return node.module
    parts = package.split(".")
    if node.level > len(parts) or not package:
        return None
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _never_on_hosts(test: ast.expr) -> bool:
    """`TYPE_CHECKING`, `typing.TYPE_CHECKING`, `__name__ == "__main__"` either way round."""
    if isinstance(test, ast.Name):
        return test.id == "TYPE_CHECKING"
    if isinstance(test, ast.Attribute):
        return test.attr == "TYPE_CHECKING"
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq):
        sides = [test.left, *test.comparators]
        names = any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides)
        return names and any(
            isinstance(side, ast.Constant) and side.value == "__main__" for side in sides
        )
    return False


def _catches_import_errors(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in _CATCH_ALL for kind in kinds)


# --- where it lies -------------------------------------------------------------------------------


def prefixes(name: str) -> Iterator[str]:
    """ "a.b.c" -> "a", "a.b", "a.b.c"."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        yield ".".join(parts[:end])


def locate(name: str, parent: Found | None) -> Found:
    """Where a module lies, without importing it. parent: of the package it is in."""
    try:
        if parent is None:
            spec = importlib.util.find_spec(name)
        else:
            spec = importlib.machinery.PathFinder.find_spec(name, list(parent.search))
    except (ImportError, ValueError, AttributeError):  # ValueError: a module made by hand
        spec = None
    if spec is None:
        return Found(Kind.MISSING, None, False, ())
    search = tuple(spec.submodule_search_locations or ())
    is_package = spec.submodule_search_locations is not None
    if spec.origin and spec.has_location:
        path: str | None = spec.origin if spec.origin.endswith(".py") else None
        where = spec.origin
    elif search:
        path, where = "", os.path.join(search[0], "")
    else:
        return Found(Kind.STDLIB, None, False, ())  # built in, frozen
    kind = _kind_of(where, is_package) if parent is None else parent.kind
    return Found(kind, path, is_package, search)


def _kind_of(path: str, is_package: bool) -> Kind:
    """Of a top-level module with this file (its folder with a slash, if it has no file)."""
    real = os.path.realpath(path)
    parts = real.split(os.sep)
    if any(part in _SITE for part in parts):
        return Kind.INSTALLED
    if any(real.startswith(folder + os.sep) for folder in _stdlib_folders()):
        return Kind.STDLIB
    folder = os.path.dirname(os.path.dirname(real) if is_package else real)
    return Kind.INSTALLED if _holds_installed(folder) else Kind.LOCAL


@functools.cache
def _stdlib_folders() -> frozenset[str]:
    names = ("stdlib", "platstdlib")
    folders = {os.path.realpath(sysconfig.get_paths()[name]) for name in names}
    # a standard library in a zip file has its compiled modules elsewhere
    folders |= {os.path.realpath(path) for path in sys.path if path.endswith("lib-dynload")}
    return frozenset(folders)


@functools.cache
def _holds_installed(folder: str) -> bool:
    """Whether pip has installed into this folder (`--target`), whatever it is called."""
    try:
        return any(name.endswith(".dist-info") for name in os.listdir(folder))
    except OSError:
        return False
