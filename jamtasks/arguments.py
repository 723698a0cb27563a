"""The words of a command line as values: modules, datasets, params, places for results."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import DataSetError, JamError, ModuleError, UsageError

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*\Z")
OUTPUTS = (".npy", ".json", ".pkl")


def local_imports() -> None:
    """Let modules in the current folder be imported, as with `python -m`."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def check_module_name(name: str) -> None:
    """Raise ModuleError, at once and before anything is connected, if there is no such module."""
    if name.startswith("-"):
        raise UsageError(f"no such flag: {name}", "the flags: inv --help map")
    try:
        found = _DOTTED.match(name) and importlib.util.find_spec(name)
    except ModuleNotFoundError as error:  # a parent package that is not there
        found = None
        if error.name and not f"{name}.".startswith(f"{error.name}."):
            raise ModuleError(f"{name} cannot be imported: {error}") from error
    except JamError:
        raise
    except Exception as error:  # a parent package that runs and fails
        raise ModuleError(f"{name} cannot be imported: {_text(error)}") from error
    if not found:
        hint = "give its dotted name, such as examples.sum_matrix"
        if name.endswith(".py") or "/" in name:
            dotted = name.removesuffix(".py").strip("./").replace("/", ".")
            hint = f"give its dotted name: {dotted}"
        raise ModuleError(f"no module named {name!r} here or among the installed ones", hint)


def module(name: str) -> ModuleType:
    """The module to map, imported. Raises ModuleError."""
    check_module_name(name)
    try:
        loaded = importlib.import_module(name)
    except Exception as error:
        raise ModuleError(f"{name} cannot be imported: {_text(error)}", _where(error)) from error
    if not callable(getattr(loaded, "mapfunc", None)):
        raise ModuleError(
            f"{name} has no function mapfunc", "it needs `def mapfunc(params, dataset): ...`"
        )
    return loaded


def reducer(name: str) -> ModuleType:
    """The module that folds what jobs printed, imported. Raises ModuleError."""
    local_imports()
    check_module_name(name)
    try:
        loaded = importlib.import_module(name)
    except Exception as error:
        raise ModuleError(f"{name} cannot be imported: {_text(error)}", _where(error)) from error
    if not callable(getattr(loaded, "reduce", None)):
        raise ModuleError(f"{name} has no function reduce", "it needs `def reduce(a, b): ...`")
    return loaded


def dataset(word: str | None, target: ModuleType, shared: bool = False) -> Any:
    """What `--dataset` names, else what the module offers, else None.

    shared: it has to be files, which the hosts read themselves.

    A word with a suffix of a file, a glob, or a file that exists is a file; else module.attr.
    Files are looked for in the current folder, then in that of the module."""
    if word is None:
        if shared:
            raise UsageError("--shared needs --dataset", "name files that the hosts see too")
        return _offered(target, "dataset")
    home = os.path.dirname(os.path.abspath(getattr(target, "__file__", None) or ""))
    for path in (word, os.path.join(home, word)):
        matching = glob.iglob(path, recursive=True)
        if os.path.isfile(path) or any(map(os.path.isfile, matching)):
            from . import datasets

            return datasets.as_dataset(path, shared=shared)
    if shared:
        raise UsageError(f"--shared: {word} is no file", "name files that the hosts see too")
    hint = "relative to here, or to the module's file"
    if glob.has_magic(word):
        raise DataSetError(f"no file matches {word!r}", hint)
    if os.path.splitext(word)[1] in (".npy", ".csv", ".txt") or os.sep in word:
        raise DataSetError(f"no file {word!r}", hint)
    return _attribute(word, "--dataset", DataSetError)


def params(word: str | None, target: ModuleType) -> Any:
    """What `--params` says (JSON, @file with JSON, module.attr), else what the module offers."""
    import json

    if word is None:
        return _offered(target, "params")
    if word.startswith("@"):
        try:
            return json.loads(Path(word[1:]).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--params {word}: {error.strerror}") from None
        except ValueError as error:
            raise UsageError(f"--params {word}: not JSON: {error}") from None
    try:
        return json.loads(word)
    except ValueError as error:
        if _DOTTED.match(word) and "." in word:
            return _attribute(word, "--params", UsageError)
        raise UsageError(f"--params {word!r}: {error}", "give JSON, @file or module.attr") from None


def positive(word: str | None, flag: str) -> int | None:
    """A whole number above zero. Raises UsageError."""
    if word is None:
        return None
    if not re.fullmatch(r"[0-9]+", word) or int(word) < 1:
        raise UsageError(f"{flag} {word}: not a whole number above zero")
    return int(word)


def whole(word: str | None, flag: str, smallest: int, largest: int = 10**9) -> int | None:
    """A whole number in a range. Raises UsageError."""
    if word is None:
        return None
    if not re.fullmatch(r"-?[0-9]{1,10}", word) or not smallest <= int(word) <= largest:
        span = f"of {smallest} or more" if largest == 10**9 else f"from {smallest} to {largest}"
        raise UsageError(f"{flag} {word}: not a whole number {span}")
    return int(word)


def variables(words: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE, several times. Raises UsageError."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError(f"--env {word}: not NAME=VALUE")
        found[name] = value
    return found


def seconds(word: str | None, flag: str) -> float | None:
    """A time above zero: seconds, or with a unit: 90, 1.5m, 2h. Raises UsageError."""
    if word is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([smhd]?)", word)
    value = (
        float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else 0
    )
    if value <= 0:
        raise UsageError(f"{flag} {word}: not a time above zero, such as 90, 1.5m or 2h")
    return value


class Output:
    """The file of `--output`. Wrong names fail when it is made, not after hours of work."""

    def __init__(self, word: str):
        self.path = Path(word)
        if self.path.suffix not in OUTPUTS:
            raise UsageError(f"--output {word}: the name must end in {', '.join(OUTPUTS)}")
        folder = self.path.parent
        if not folder.is_dir():
            raise UsageError(f"--output {word}: no folder {str(folder)!r}")
        if not os.access(folder, os.W_OK) or self.path.is_dir():
            raise UsageError(f"--output {word}: cannot be written")

    def write(self, result: Any) -> int:
        """Write the result, whole or not at all; returns its size. Raises UsageError if the
        format cannot hold it."""
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with open(aside, "wb") as handle:
                self._dump(result, handle)
            written = aside.stat().st_size
            os.replace(aside, self.path)
            return written
        except OSError as error:
            raise UsageError(f"--output {self.path}: {error.strerror or error}") from error
        finally:
            aside.unlink(missing_ok=True)

    def _dump(self, result: Any, handle: Any) -> None:
        if self.path.suffix == ".json":
            from .report import dumps, jsonable

            handle.write(dumps(jsonable(result)).encode("utf-8") + b"\n")
        elif self.path.suffix == ".npy":
            import numpy

            try:
                numpy.save(handle, numpy.asarray(result), allow_pickle=False)
            except ValueError:
                kind = type(result).__name__
                raise UsageError(
                    f"--output {self.path}: a {kind} like this is no array", "use .pkl or .json"
                ) from None
        else:
            import pickle

            try:
                pickle.dump(result, handle, protocol=4)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise UsageError(f"--output {self.path}: {error}") from None


# --- details -----------------------------------------------------------------------------------


def _offered(target: ModuleType, name: str) -> Any:
    return _value(getattr(target, name, None), f"{target.__name__}.{name}")


def _attribute(word: str, flag: str, kind: type[JamError]) -> Any:
    """The value of `package.module.attr`."""
    from . import modules

    try:
        found = modules.resolve(word)
    except ModuleError as error:
        raise kind(f"{flag} {word}: {error.message}", error.hint) from error
    if isinstance(found, ModuleType):
        raise kind(f"{flag} {word}: a module, not a value", f"name something in it: {word}.NAME")
    return _value(found, word)


def _value(found: Any, name: str) -> Any:
    """Values as they are; functions (not data sets, which may be callable) for what they return."""
    from types import BuiltinFunctionType, FunctionType

    if not isinstance(found, (FunctionType, BuiltinFunctionType)):
        return found
    return guarded(name, found)


def guarded(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """function(*args); what the user's code raises becomes an error in two lines."""
    try:
        return function(*args)
    except (JamError, BrokenPipeError):  # a pipe: the reader of stdout has gone
        raise
    except Exception as error:
        raise UserCodeError(f"{name}(): {_text(error)}", _where(error)) from error


class UserCodeError(JamError):
    """A function of the user's that runs here (dataset, params, report) raised."""


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _where(error: BaseException) -> str | None:
    """The innermost line of a traceback that is not inside the import machinery."""
    import traceback

    if isinstance(error, SyntaxError) and error.filename:
        return f"at {error.filename}:{error.lineno}: {(error.text or '').strip()}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    if not frames:
        return None
    last = frames[-1]
    return f"at {last.filename}:{last.lineno}: {(last.line or '').strip()}"
