"""What hosts have in place of `jamtasks`: its names, so that a module that imports them loads.

`default_reduce` is the real one, since answers may be reduced on hosts too."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Runs on hosts, from Python 3.6 on.
_HEAD = '''\
"""Stands for a module of jamtasks on a host, where map functions run and nothing else does."""


def _refuse(name):
    raise RuntimeError(
        "%s belongs to the program that calls Master.run: a map function cannot use it, and a "
        "script, which hosts import too, uses it under `if __name__ == '__main__':` only" % name
    )


class _Absent(object):
    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        if name[:2] == "__":
            raise AttributeError(name)
        _refuse(type(self).__name__)

    def __call__(self, *args, **kwargs):
        _refuse(type(self).__name__)

    def __enter__(self):
        _refuse(type(self).__name__)

    def __exit__(self, *args):
        pass
'''
_ERRORS = ("Error", "Failed", "Lost")


def modules(top: str, wanted: Iterable[str]) -> dict[str, list[Any]]:
    """Entries of a bundle for the wanted names of package `top`: modules, or names in them.

    Depends on nothing but the names and our sources, so that a bundle keeps its digest."""
    names: dict[str, set[str]] = {}
    for dotted in sorted(wanted):
        owner, _, name = dotted.rpartition(".")
        if dotted == top or _is_module(dotted):
            names.setdefault(dotted, set())
        elif owner in names and name != "*":
            names[owner].add(name)
    if not names:
        return {}
    names.setdefault(top, set())
    return {
        module: [f"<{module}>", _source(module, extra), module == top]
        for module, extra in sorted(names.items())
    }


def _is_module(dotted: str) -> bool:
    try:
        return importlib.util.find_spec(dotted) is not None
    except ImportError:
        return False


def _source(module: str, extra: set[str]) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    names = set(extra)
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom) and node.level:
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.If):  # names that are loaded when first used
            for inner in ast.walk(node):
                if isinstance(inner, ast.ImportFrom) and inner.level:
                    names |= {alias.name for alias in inner.names}
    public = sorted(name for name in names if not name.startswith("_") or name in extra)
    return _HEAD + "".join(_definition(name) for name in public)


def _definition(name: str) -> str:
    if name == "default_reduce":  # a module's `reduce` may be it, and run on hosts: `combine`
        return "\n\nfrom worker_payload.sums import default_reduce\n"
    if name.endswith(_ERRORS):
        return f"\n\nclass {name}(Exception):\n    pass\n"
    if name.startswith("__"):
        return f"\n\n{name} = None\n"
    if name[0].isupper():
        return f"\n\nclass {name}(_Absent):\n    pass\n"
    return f"\n\ndef {name}(*args, **kwargs):\n    _refuse({name!r})\n"
