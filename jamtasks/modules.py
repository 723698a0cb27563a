"""The module to map, with the local modules it imports, as one bundle of source texts.

What travels is source, never code objects: those do not cross versions of Python. The bundle is a
blob of {"main": name, "modules": {name: [file name, source, is package]}}; a folder without an
__init__.py is a package with an empty source. Installed modules are not sent but asked for.

A script (`python script.py`) travels as module "__main__". A host runs it under another `__name__`,
so that what stands under `if __name__ == "__main__":` is not done there, while `sys.modules` has it
as "__main__" too, and its classes belong to "__main__", as they do here: pickles name that.

`jamtasks` itself never travels. Where a sent module imports it, the bundle holds a stand-in: a host
can import it, and derive classes from its classes, but not use it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import linecache
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from worker_payload import codec
from worker_payload.wire import Buffer

from . import stand_in
from .errors import ModuleError
from .imports import (
    Found,
    Import,
    Kind,
    absolute_imports,
    imports_of,
    locate,
    prefixes,
    public_names,
)

_US = "jamtasks"
_ON_HOSTS = frozenset([_US, "worker_payload"])  # never sent: the host has its own, or none
# Part of Python here, and perhaps not on an older host: asked for like installed modules.
_RECENT = frozenset("contextvars dataclasses graphlib tomllib zoneinfo".split())


@dataclass(frozen=True)
class Bundle:
    """A module ready to be sent.

    name: its key in the bundle. parts: the blob. third_party: top-level modules that must be
    installed at the host. modules: those of the bundle that are loaded here, by name; what comes
    back may hold instances of their classes."""

    name: str
    module: ModuleType
    digest: str
    parts: tuple[Buffer, ...] = field(repr=False)
    size: int
    third_party: tuple[str, ...]
    modules: dict[str, ModuleType] = field(repr=False)


def bundle(module: ModuleType | str, function: str = "mapfunc") -> Bundle:
    """The bundle of a module, as its files are now: those edited since the last call are reloaded.

    Raises ModuleError if it cannot be imported, read, or has no such function."""
    if isinstance(module, str):
        module = import_module(module)
    elif not isinstance(module, ModuleType):
        raise ModuleError(
            f"what is to be mapped is no module but of type {type(module).__name__}",
            "give a module object or its dotted name; mapfunc must be a function in it",
        )
    with _lock:
        made = _made.get(module.__name__)
        if made is None or made.bundle.module is not module or made.stale():
            made = _made[module.__name__] = _make(module)
        loaded = list(map(id, map(sys.modules.get, made.sources)))
        if loaded != made.loaded:
            made.loaded = loaded
            made.bundle = replace(made.bundle, modules=_loaded(made.sources, module))
    if not has(module, function):
        hint = "it needs `def mapfunc(params, dataset): ...`" if function == "mapfunc" else None
        raise ModuleError(f"{module.__name__} has no function {function}", hint)
    return made.bundle


def known(module: ModuleType | str) -> Bundle | None:
    """The bundle that there was of a module, if any, whatever became of its files since."""
    found = sys.modules.get(module) if isinstance(module, str) else module
    made = _made.get(getattr(found, "__name__", ""))
    return made.bundle if made is not None and made.bundle.module is found else None


def has(module: ModuleType, name: str) -> bool:
    """Whether the module has a function of this qualified name."""
    if "." not in name:
        return callable(getattr(module, name, None))
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return callable(found)


def import_module(name: str) -> ModuleType:
    """The module of this dotted name. Raises ModuleError."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name in prefixes(name):
            hint = "give its dotted name, such as examples.sum_matrix"
            raise ModuleError(f"there is no module {error.name!r}", hint) from None
        raise ModuleError(f"{name} cannot be imported: {error}") from error
    except Exception as error:  # whatever its code raises
        raise ModuleError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def resolve(name: str) -> Any:
    """What a dotted name means: a module, or something in one. Raises ModuleError."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ModuleError(f"{name!r} is not a dotted name", "such as examples.sum_matrix.dataset")
    module, length = import_module(parts[0]), 1
    for prefix in list(prefixes(name))[1:]:
        if hasattr(module, "__path__") and _is_module(prefix, module):
            module, length = import_module(prefix), length + 1
        else:
            break
    value: Any = module
    for position in range(length, len(parts)):
        try:
            value = getattr(value, parts[position])
        except AttributeError:
            owner = ".".join(parts[:position])
            raise ModuleError(f"{owner} has nothing named {parts[position]!r}") from None
    return value


def _is_module(name: str, package: ModuleType) -> bool:
    """Whether there is such a module in a package; a name that its __init__ defines goes first."""
    known = getattr(package, name.rpartition(".")[2], None)
    if known is not None:
        return isinstance(known, ModuleType)
    return importlib.util.find_spec(name) is not None


# --- making a bundle -----------------------------------------------------------------------------


@dataclass
class _Source:
    """A module that travels. path: "" if it has no file of its own."""

    path: str
    text: str
    is_package: bool
    stamp: tuple[int, ...]
    tree: ast.Module
    imports: list[Import]
    needs: list[str] = field(default_factory=list)  # modules of the bundle that it imports


@dataclass
class _Made:
    """loaded: which modules are here by the sources' names, when that was looked at last."""

    bundle: Bundle
    sources: dict[str, _Source]
    loaded: list[int] = field(default_factory=list)
    files: dict[str, tuple[int, ...]] = field(init=False)  # their paths, and what is to be there

    def __post_init__(self) -> None:
        sources = [one for name, one in self.sources.items() if one.path and name != "__main__"]
        self.files = {source.path: source.stamp for source in sources}

    def stale(self) -> bool:
        return list(map(_stamp, self.files)) != list(self.files.values())


_lock = threading.RLock()
_made: dict[str, _Made] = {}
_run: dict[str, str] = {}  # what the modules loaded here were made of, by name
_script: list[_Source] = []  # __main__, as it was when first asked for: it is never loaded again


def _make(module: ModuleType) -> _Made:
    importlib.invalidate_caches()
    search = _Search(module)
    search.run()
    _reload_edited(search)
    entries = {
        name: [source.path or f"<{name}>", _text(name, source, module), source.is_package]
        for name, source in sorted(search.sources.items())
    }
    entries.update(stand_in.modules(_US, search.ours))
    parts = codec.blob_parts(codec.encode({"main": module.__name__, "modules": entries}))
    made = Bundle(
        name=module.__name__,
        module=module,
        digest=codec.blob_digest(parts),
        parts=tuple(parts),
        size=codec.blob_size(parts),
        third_party=tuple(sorted(search.installed)),
        modules=_loaded(search.sources, module),
    )
    return _Made(made, search.sources)


def _loaded(sources: dict[str, _Source], main: ModuleType) -> dict[str, ModuleType]:
    """The modules that are themselves: not one that put something else in its place."""
    found = {name: sys.modules.get(name) for name in sources}
    found[main.__name__] = main
    return {
        name: module
        for name, module in found.items()
        if isinstance(module, ModuleType) and module.__name__ == name
    }


class _Search:
    """Walks from the module to map through the imports of what is local."""

    def __init__(self, module: ModuleType):
        self._main = module
        self._top = module.__name__.partition(".")[0]
        self._places: dict[str, Found] = {}
        self.sources: dict[str, _Source] = {}
        self.installed: set[str] = set()
        self.ours: set[str] = set()  # names of jamtasks that are imported

    def run(self) -> None:
        main = self._main.__name__
        for name in list(prefixes(main))[:-1]:
            self._visit(name)
        self.sources[main] = self._read_main()
        pending = list(self.sources)
        while pending:
            source = self.sources[pending.pop()]
            for wanted in source.imports:
                for name in self._follow(wanted):
                    if name not in self.sources:
                        self._visit(name)
                        pending.append(name)
                    source.needs.append(name)

    def _visit(self, name: str) -> None:
        place = self._locate(name)
        if place.path is None:
            raise ModuleError(f"{self._main.__name__} cannot be sent: {name} has no source here")
        self.sources[name] = _read(name, place.path, place.is_package)

    def _read_main(self) -> _Source:
        module = self._main
        path = getattr(module, "__file__", None)
        if path is None or not path.endswith(".py"):
            raise ModuleError(
                f"{module.__name__} has no source file, so it cannot be sent",
                "put mapfunc into a .py file, and map that",
            )
        if module.__name__ != "__main__":
            return _read(module.__name__, path, hasattr(module, "__path__"))
        if not _script:
            _script.append(_read("__main__", path, False, _package_of(module)))
        return replace(_script[0], needs=[])

    def _follow(self, wanted: Import) -> list[str]:
        """The modules of the bundle that an import needs, packages first."""
        top = wanted.name.partition(".")[0]
        if top in _ON_HOSTS:
            if top == _US:
                self.ours.add(wanted.name)
            return []
        kind = self._locate(top).kind
        if kind is not Kind.LOCAL:
            if wanted.sure and (kind is Kind.INSTALLED or top in _RECENT):
                self.installed.add(top)
            return []
        names: list[str] = []
        for name in prefixes(wanted.name):
            if name.endswith(".*"):
                return names + self._star(wanted, names[-1])
            place = self._locate(name)
            if place.path is None:
                if wanted.sure and place.kind is not Kind.MISSING:
                    raise ModuleError(
                        f"{self._main.__name__} needs {name}, which is compiled and local",
                        "install it on the hosts, or import it inside try/except ImportError",
                    )
                break  # something in the module before, or not there at all
            names.append(name)
        return names

    def _star(self, wanted: Import, package: str) -> list[str]:
        """What `from package import *` imports besides the package."""
        place = self._locate(package)
        if not place.is_package or not place.path:
            return []
        if package not in self.sources:
            self._visit(package)
        listed = public_names(self.sources[package].tree)
        return [
            name
            for entry in listed
            for name in self._follow(Import(f"{package}.{entry}", False, True))[-1:]
        ]

    def _locate(self, name: str) -> Found:
        if name not in self._places:
            parent = name.rpartition(".")[0]
            place = locate(name, self._locate(parent) if parent else None)
            if name == self._top and place.kind is Kind.INSTALLED:
                # whoever maps an installed module wants it sent, with its own package
                place = place._replace(kind=Kind.LOCAL)
            self._places[name] = place
        return self._places[name]


def _package_of(script: ModuleType) -> str:
    """Of a script that runs by `python -m package.script`; else ""."""
    return (script.__spec__.parent or "") if script.__spec__ is not None else ""


def _text(name: str, source: _Source, main: ModuleType) -> str:
    if name == "__main__" and _package_of(main):
        return absolute_imports(source.text, source.tree, _package_of(main))
    return source.text


def _read(name: str, path: str, is_package: bool, package: str | None = None) -> _Source:
    if package is None:
        package = name if is_package else name.rpartition(".")[0]
    try:
        stamp = _stamp(path) if path else ()
        text = ""
        if path:
            with open(path, "rb") as handle:
                text = importlib.util.decode_source(handle.read())
        tree = ast.parse(text, path or name)
    except OSError as error:
        raise ModuleError(f"cannot read {path}: {error.strerror}") from error
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        where = f"{path}:{error.lineno}" if isinstance(error, SyntaxError) else path
        raise ModuleError(f"{name} cannot be read: {error}", f"at {where}") from error
    full = os.path.abspath(path) if path else ""
    return _Source(full, text, is_package, stamp, tree, imports_of(tree, package))


def _stamp(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


# --- edited files --------------------------------------------------------------------------------


def _reload_edited(search: _Search) -> None:
    """Run edited modules again in their places here, and then those that import from them."""
    sources = search.sources
    edited = {
        name
        for name, source in sources.items()
        if name in _run and _run[name] != source.text and _is_loaded(name)
    }
    order = _imported_first(sources)
    for name in order:  # a second round would be needed only for modules that import in a circle
        if edited.intersection(sources[name].needs) and _is_loaded(name):
            edited.add(name)
    for name in order:
        if name in edited:
            _run_again(name, sources[name], search)
        if _is_loaded(name):
            _run[name] = sources[name].text


def _is_loaded(name: str) -> bool:
    return name != "__main__" and isinstance(sys.modules.get(name), ModuleType)


def _run_again(name: str, source: _Source, search: _Search) -> None:
    main = search._main
    module = main if name == main.__name__ else sys.modules[name]
    linecache.checkcache(source.path)
    try:
        # not importlib.reload: to that, two edits within a second can be one
        exec(compile(source.text, source.path, "exec"), module.__dict__)
    except Exception as error:  # whatever the new code raises
        raise ModuleError(
            f"{name} was edited and cannot be loaded: {type(error).__name__}: {error}",
            f"see {source.path}",
        ) from error


def _imported_first(sources: dict[str, _Source]) -> Sequence[str]:
    """All names, each after those it imports, as far as they do not import in a circle."""
    order: dict[str, None] = {}
    seen: set[str] = set()
    for start in sources:
        stack = [(start, iter(sources[start].needs))] if start not in seen else []
        seen.add(start)
        while stack:
            name, rest = stack[-1]
            following = next((other for other in rest if other not in seen), None)
            if following is None:
                order[name] = None
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(sources[following].needs)))
    return list(order)
