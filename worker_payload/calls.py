"""Import a bundle of source files from memory, and call its map function.

A worker process imports one bundle in its life, so modules of two versions never mix.
"""

import gc
import importlib
import importlib.machinery
import linecache
import sys
import traceback
import types
from typing import Any, Dict, List, Optional, Sequence, Tuple

from worker_payload import sums

_ASIDE = "__jam_main__"  # not "__main__", so that what a script does only as a script is not done
_READ_ONLY_HINT = (
    "slices and params are shared by all workers and read-only: copy the array, "
    "or run with writable=True to get private ones"
)


class Bundle(object):
    """Finder and loader of modules whose source is here. Comes first on sys.meta_path.

    modules: [file name, source, is a package] by module name. The classes of importlib.abc would
    add nothing but 7 ms."""

    def __init__(self, modules):
        # type: (Dict[str, Sequence[Any]]) -> None
        self._modules = modules
        for filename, source, _ in modules.values():
            # no modification time: linecache then never looks at the disk for it
            lines = source.splitlines(True)
            linecache.cache[filename] = (len(source), None, lines, filename)

    def install(self):
        # type: () -> None
        for name in self._modules:
            sys.modules.pop(name, None)
        sys.meta_path.insert(0, self)

    def find_spec(self, name, path=None, target=None):
        # type: (str, Any, Any) -> Optional[importlib.machinery.ModuleSpec]
        if name not in self._modules or name == "__main__":
            return None
        filename, _, is_package = self._modules[name]
        loader = self  # type: Any
        spec = importlib.machinery.ModuleSpec(
            name, loader, origin=filename, is_package=bool(is_package)
        )
        spec.has_location = True  # gives the module its __file__
        return spec

    def create_module(self, spec):
        # type: (Any) -> None
        return None

    def exec_module(self, module):
        # type: (types.ModuleType) -> None
        self._run(module, module.__name__)

    def get_source(self, name):
        # type: (str) -> str
        return self._modules[name][1]

    def _run(self, module, name):
        # type: (types.ModuleType, str) -> None
        filename, source, _ = self._modules[name]
        exec(compile(source, filename, "exec", dont_inherit=True), module.__dict__)

    def load(self, name):
        # type: (str) -> types.ModuleType
        """The module of this name, imported. Raises what its import raises."""
        if name != "__main__":
            return importlib.import_module(name)
        module = types.ModuleType(_ASIDE)
        module.__file__ = self._modules[name][0]
        module.__package__ = ""
        # pickles and classes of a script name __main__, so that must be it, from the start
        sys.modules["__main__"] = sys.modules[_ASIDE] = module
        self._run(module, name)
        _rename(vars(module), set())
        return module


def _rename(namespace, seen):
    # type: (Any, set) -> None
    """Classes and functions made while `__name__` was another belong to `__main__` after all."""
    for value in list(namespace.values()):
        if getattr(value, "__module__", None) != _ASIDE or id(value) in seen:
            continue
        seen.add(id(value))
        try:
            value.__module__ = "__main__"
        except (AttributeError, TypeError):
            continue
        if isinstance(value, type):
            _rename(vars(value), seen)


class NoMapFunction(Exception):
    """The module has no mapfunc."""


def load(bundle, name, wanted=None):
    # type: (Dict[str, Any], str, Optional[str]) -> Any
    """The mapfunc of module `name` of a bundle {"main": ..., "modules": ...}, or the function of
    that qualified name in it."""
    loaded = bundle.setdefault("loaded", {})
    module = loaded.get(name)
    if module is None:
        finder = Bundle(bundle["modules"])
        finder.install()
        module = loaded[name] = finder.load(name)
    function = module  # type: Any
    for part in (wanted or "mapfunc").split("."):
        function = getattr(function, part, None)
    if not callable(function):
        what = wanted or "mapfunc(params, slice)"
        raise NoMapFunction("module %s has no function %s" % (name, what))
    return function


def reduction(bundle, name):
    # type: (Dict[str, Any], str) -> Any
    """The reduce of a module that was loaded: its own, or the default."""
    return getattr(bundle["loaded"][name], "reduce", None) or sums.default_reduce


def describe(error):
    # type: (BaseException) -> Tuple[str, str, str]
    """(qualified type name, message, traceback as text) of an exception that user code raised.

    The frames of our own files are left out; a result that cannot travel is an EncodeError, whose
    module is nobody's business."""
    cls = type(error)
    name = getattr(cls, "__qualname__", cls.__name__)
    if cls.__module__ not in ("builtins", "worker_payload.arrays", None):
        name = "%s.%s" % (cls.__module__, name)
    try:
        message = str(error)
    except BaseException as other:
        message = "(its str() raised %s)" % type(other).__name__
    if "read-only" in message and isinstance(error, (ValueError, TypeError, BufferError)):
        message = "%s (%s)" % (message, _READ_ONLY_HINT)
    try:
        text = "".join(_format(error))
    except BaseException:  # a traceback of hundreds of thousands of frames, a broken __repr__
        text = ""
    return name, _limited(message), _limited(text)


def _limited(text, size=1 << 20):
    # type: (str, int) -> str
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) <= size:
        return text
    return "%s\n[%d characters left out]\n%s" % (
        text[: size // 2], len(text) - size, text[-size // 2 :])  # fmt: skip


def _format(error):
    # type: (BaseException) -> List[str]
    formatted = traceback.TracebackException(type(error), error, error.__traceback__)
    seen = set()  # type: set
    pending = [formatted]  # type: List[Any]
    while pending:
        item = pending.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        theirs = [frame for frame in item.stack if not _is_ours(frame.filename)]
        if len(theirs) != len(item.stack):
            item.stack[:] = theirs
        pending += [item.__cause__, item.__context__]
        pending += getattr(item, "exceptions", None) or []
    return list(formatted.format())


_HERE = __file__[: -len("calls.py")] if __file__.endswith("calls.py") else None


def _is_ours(filename):
    # type: (str) -> bool
    return filename.startswith("<frozen importlib") or (
        _HERE is not None and filename.startswith(_HERE)
    )


_trim = None  # type: Any


def release_memory():
    # type: () -> None
    """Give back to the system what the last call left behind, as far as possible."""
    global _trim
    gc.collect()
    if _trim is None:
        try:
            import ctypes

            _trim = ctypes.CDLL(None).malloc_trim
        except Exception:  # no ctypes, or no glibc
            _trim = int
    _trim(0)
