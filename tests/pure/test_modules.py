"""Bundles: what is sent with a module, what is asked for, and what an edit changes."""

import importlib
import json
import sys
import types

import pytest

from jamtasks import modules
from jamtasks.errors import ModuleError
from jamtasks.imports import absolute_imports, ast
from worker_payload import calls, codec

MAPFUNC = "\ndef mapfunc(params, dataset):\n    return 1\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes files below a folder that is on sys.path; forgets the modules afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write_files(**files):
        for name, text in files.items():
            path = tmp_path / (name.replace("__init__", "%").replace("__", "/") + ".py")
            path = path.with_name(path.name.replace("%", "__init__"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    yield write_files
    for name in set(sys.modules) - before:
        del sys.modules[name]
    modules._run.clear()
    modules._made.clear()
    modules._script.clear()


def content(bundle):
    return codec.decode(codec.blob_segments(b"".join(bundle.parts)))


def sent(bundle):
    return set(content(bundle)["modules"])


@pytest.fixture
def on_host(monkeypatch):
    """Loads a bundle as a worker does, with nothing of this machine's to import; its mapfunc."""
    saved = dict(sys.modules)
    finders = list(sys.meta_path)

    def load(bundle):
        data = content(bundle)
        for name in set(sys.modules) - {"__main__"}:
            if name.partition(".")[0] in {"jamtasks", *(m.split(".")[0] for m in data["modules"])}:
                del sys.modules[name]
        monkeypatch.setattr(sys, "path", [])
        return calls.load(data, data["main"])

    yield load
    sys.meta_path[:] = finders
    sys.modules.clear()
    sys.modules.update(saved)


# --- what is sent ------------------------------------------------------------------------------


def test_a_module_and_the_local_modules_it_imports(write):
    write(
        main="import helper\nfrom deep.inner import leaf, value\nimport json, os.path" + MAPFUNC,
        helper="import other",
        other="",
        unrelated="",
        deep____init__="",
        deep__inner____init__="value = 1",
        deep__inner__leaf="from . import sibling\nfrom ..cousin import thing",
        deep__inner__sibling="",
        deep__cousin="thing = 1",
        deep__unrelated="",
    )
    bundle = modules.bundle("main")
    assert sent(bundle) == {
        "main", "helper", "other", "deep", "deep.inner", "deep.inner.leaf", "deep.inner.sibling",
        "deep.cousin",
    }  # fmt: skip
    assert bundle.name == content(bundle)["main"] == "main"
    assert bundle.module is sys.modules["main"]
    filename, source, is_package = content(bundle)["modules"]["deep.inner"]
    assert filename.endswith("/deep/inner/__init__.py") and source == "value = 1" and is_package
    assert codec.blob_digest(bundle.parts) == bundle.digest
    assert codec.blob_size(bundle.parts) == bundle.size


def test_imports_in_functions_and_conditions_are_sent_too(write):
    write(
        main=MAPFUNC + "    import first\nif True:\n    import second\ntry:\n    import third\n"
        "except ImportError:\n    import fourth\nclass X:\n    import fifth\n"
        "lambda: __import__('never')",
        first="", second="", third="", fourth="", fifth="",
    )  # fmt: skip
    bundle = modules.bundle("main")
    assert sent(bundle) == {"main", "first", "second", "third", "fourth", "fifth"}


def test_what_only_this_side_needs_stays_here(write):
    write(
        main="from typing import TYPE_CHECKING\nimport typing\nif TYPE_CHECKING:\n    import a\n"
        "if typing.TYPE_CHECKING:\n    import a\nelse:\n    import b\n"
        "if __name__ == '__main__':\n    import a\nif '__main__' == __name__:\n    import a"
        + MAPFUNC,
        a="", b="",
    )  # fmt: skip
    assert sent(modules.bundle("main")) == {"main", "b"}


def test_the_packages_around_a_module_are_sent(write):
    write(outer____init__="import helper", outer__inner__main=MAPFUNC, helper="")
    bundle = modules.bundle("outer.inner.main")
    assert sent(bundle) == {"outer", "outer.inner", "outer.inner.main", "helper"}
    assert content(bundle)["modules"]["outer.inner"][1:] == ["", True]


def test_a_star_brings_the_modules_that_all_lists(write):
    write(
        main="from pack import *" + MAPFUNC,
        pack____init__="__all__ = ['one', 'name']\nname = 1",
        pack__one="", pack__two="",
    )  # fmt: skip
    assert sent(modules.bundle("main")) == {"main", "pack", "pack.one"}


def test_circles_end(write):
    write(main="import a" + MAPFUNC, a="import b", b="import a, main")
    assert sent(modules.bundle("main")) == {"main", "a", "b"}


def test_sources_in_other_encodings(write, tmp_path):
    (tmp_path / "main.py").write_bytes(b"# coding: latin-1\nx = '\xe9'\r\n" + MAPFUNC.encode())
    assert "x = 'é'\n" in content(modules.bundle("main"))["modules"]["main"][1]


def test_the_same_sources_have_the_same_digest(write):
    write(main="import b, a" + MAPFUNC, a="", b="")
    first = modules.bundle("main")
    assert modules.bundle("main") is first
    modules._made.clear()
    assert modules.bundle("main").digest == first.digest


# --- what is asked for -------------------------------------------------------------------------


def test_installed_modules_are_asked_for_and_not_sent(write):
    write(
        main="import numpy.linalg, json, helper\nwith open('/dev/null'):\n    import yaml" + MAPFUNC
        + "    import rich\ntry:\n    import paramiko\nexcept ImportError:\n    pass\n"
        "try:\n    import invoke\nfinally:\n    pass\nif not len('a'):\n    import fabric\n",
        helper="from hypothesis import given\nimport dataclasses",
    )  # fmt: skip
    bundle = modules.bundle("main")
    assert bundle.third_party == ("dataclasses", "hypothesis", "invoke", "numpy", "yaml")
    assert sent(bundle) == {"main", "helper"}


def test_a_folder_of_pip_target_is_not_local(write, tmp_path, monkeypatch):
    (tmp_path / "lib" / "thing-1.0.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    write(main="import thing" + MAPFUNC, lib__thing="")
    bundle = modules.bundle("main")
    assert sent(bundle) == {"main"} and bundle.third_party == ("thing",)


def test_an_installed_module_that_is_mapped_is_sent_with_its_package(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    write(**{
        "site-packages__pack____init__": "",
        "site-packages__pack__main": "from . import helper\nimport other" + MAPFUNC,
        "site-packages__pack__helper": "",
        "site-packages__other": "",
    })  # fmt: skip
    bundle = modules.bundle("pack.main")
    assert sent(bundle) == {"pack", "pack.main", "pack.helper"}
    assert bundle.third_party == ("other",)


def test_what_is_nowhere_is_not_asked_for(write):
    write(main="import sys\nif sys.platform == 'win32':\n    import winreg, nowhere" + MAPFUNC)
    assert modules.bundle("main").third_party == ()


def test_a_compiled_local_module_is_named(write, tmp_path):
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (tmp_path / ("fast" + suffix)).write_bytes(b"")
    write(main="try:\n    import fast\nexcept Exception:\n    pass" + MAPFUNC)
    assert sent(modules.bundle("main")) == {"main"}
    write(other="def f():\n    pass" + MAPFUNC)
    module = importlib.import_module("other")
    write(other="import fast" + MAPFUNC)
    with pytest.raises(ModuleError, match="needs fast, which is compiled and local"):
        modules.bundle(module)


# --- on the host -------------------------------------------------------------------------------


def test_a_bundle_runs_on_a_host(write, on_host):
    write(
        main="from pack import part\nfrom bare.mod import x\n"
        "def mapfunc(params, dataset):\n    return part.f(params) + x",
        pack____init__="", pack__part="def f(p):\n    from .late import y\n    return p + y",
        pack__late="y = 10", bare__mod="x = 100",
    )  # fmt: skip
    assert on_host(modules.bundle("main"))(1, None) == 111


SCRIPT = """\
import jamtasks
from jamtasks import BaseDataSet, DataSet, Master, TaskFailed, __version__, datasets, default_reduce
from jamtasks.datasets import ListDataSet, as_dataset
import jamtasks.errors

dataset = DataSet([1, 2])
reduce = default_reduce

class Mine(BaseDataSet):
    def __init__(self):
        super().__init__()
    def chunks(self):
        return 1
    def slice(self, index):
        return 1

class More(datasets.ListDataSet, dict):
    pass

class Wrong(jamtasks.errors.JamError):
    pass

class Answer:
    pass

def mapfunc(params, dataset):
    if params == "raise":
        raise Wrong("this")
    if params == "use":
        with Master(["host"]) as master:
            pass
    if params == "call":
        return default_reduce(1, 2)
    if params == "attribute":
        return DataSet([1]).plan
    return Answer()

if __name__ == "__main__":
    raise SystemExit("ran as a script")
"""


@pytest.fixture
def script(write, tmp_path, monkeypatch):
    """A module as it is when Python runs a script."""

    def run(text, package=None):
        path = tmp_path / "script.py"
        path.write_text(text)
        module = types.ModuleType("__main__")
        module.__file__ = str(path)
        if package:
            module.__spec__ = importlib.machinery.ModuleSpec(package + ".script", None)
        monkeypatch.setitem(sys.modules, "__main__", module)
        exec(compile(text.replace("raise SystemExit", "str"), str(path), "exec"), module.__dict__)
        return module

    return run


def test_a_script_that_imports_jamtasks_runs_on_a_host(script, on_host):
    bundle = modules.bundle(script(SCRIPT))
    assert bundle.name == "__main__" and bundle.third_party == ()
    assert sent(bundle) == {"__main__", "jamtasks", "jamtasks.datasets", "jamtasks.errors"}
    answer_here = bundle.module.Answer
    mapfunc = on_host(bundle)
    with pytest.raises(Exception, match="this") as info:
        mapfunc("raise", None)
    assert type(info.value).__name__ == "Wrong"
    assert mapfunc("call", None) == 3, "the default reduction may be called there"
    for way, name in (("use", "Master"), ("attribute", "DataSet")):
        with pytest.raises(RuntimeError, match=f"{name} belongs to .* under `if __name__"):
            mapfunc(way, None)
    segments = codec.encode(mapfunc("", None))
    back = codec.decode_untrusted(segments, bundle.modules)
    assert type(back) is answer_here


def test_the_stand_in_does_not_depend_on_what_is_loaded(script, monkeypatch):
    first = modules.bundle(script(SCRIPT))
    modules._made.clear()
    monkeypatch.delitem(sys.modules, "jamtasks.reduction", raising=False)
    assert modules.bundle(first.module).digest == first.digest


def test_a_script_keeps_the_source_it_was_started_with(script, tmp_path):
    module = script(MAPFUNC)
    first = modules.bundle(module)
    (tmp_path / "script.py").write_text("edited" + MAPFUNC)
    modules._made.clear()
    assert modules.bundle(module).digest == first.digest


def test_a_script_run_as_a_module_may_import_its_neighbours(write, script, on_host):
    write(pack____init__="", pack__near="x = 5")
    text = (
        "def mapfunc(params, dataset):\n"
        "    from . import near; from .near import (x,\n        x as y)\n"
        "    return near.x + x + y"
    )
    bundle = modules.bundle(script(text, package="pack"))
    assert sent(bundle) == {"__main__", "pack", "pack.near"}
    assert on_host(bundle)(None, None) == 15


def test_relative_imports_are_spelled_out_in_place():
    source = (
        "if 1:\n    é = 1; from  . import a\nfrom.b.c import(d)\nfrom .. import e\nfrom x import y"
    )
    tree = ast.parse(source)
    assert absolute_imports(source, tree, "p.q") == (
        "if 1:\n    é = 1; from p.q import a\nfrom p.q.b.c import(d)\nfrom p import e\n"
        "from x import y"
    )


# --- edits -------------------------------------------------------------------------------------


def test_an_edited_module_is_reloaded_and_has_another_digest(write):
    write(
        main="import helper\nfrom middle import g\nx = 1" + MAPFUNC,
        middle="from helper import f as g",
        helper="def f():\n    return 1",
    )
    first = modules.bundle("main")
    main = first.module
    assert main.g() == 1
    write(helper="def f():\n    return 2")  # as long as before, and in the same second
    second = modules.bundle(main)
    assert second.digest != first.digest
    assert second.module is main and main.helper.f() == 2
    assert main.g() == 2, "who imported from it has the new one"
    write(helper="def f():\n    return 1")
    assert modules.bundle(main).digest == first.digest


def test_an_edit_of_something_else_changes_nothing(write):
    write(main="import helper" + MAPFUNC, helper="class C: pass", other="")
    first = modules.bundle("main")
    cls = first.module.helper.C
    write(other="x = 1", helper="class C: pass")  # touched, not changed
    assert modules.bundle("main").digest == first.digest
    assert first.module.helper.C is cls


def test_an_import_added_by_an_edit_is_sent(write):
    write(main=MAPFUNC, helper="")
    assert sent(modules.bundle("main")) == {"main"}
    write(main="import helper" + MAPFUNC)
    assert sent(modules.bundle("main")) == {"main", "helper"}


def test_an_edit_that_does_not_load_is_named(write):
    write(main="import helper" + MAPFUNC, helper="")
    modules.bundle("main")
    write(helper="def (")
    with pytest.raises(ModuleError, match="helper cannot be read") as info:
        modules.bundle("main")
    assert "helper.py:1" in info.value.hint
    write(helper="1 / 0")
    with pytest.raises(ModuleError, match=r"helper was edited .* ZeroDivisionError"):
        modules.bundle("main")
    write(helper="")
    modules.bundle("main")


def test_modules_loaded_later_are_known_when_results_come(write):
    write(main=MAPFUNC + "    import late", late="")
    assert set(modules.bundle("main").modules) == {"main"}
    importlib.import_module("late")
    assert set(modules.bundle("main").modules) == {"main", "late"}


def test_a_module_that_put_something_else_in_its_place_is_not_trusted(write):
    write(main="import odd" + MAPFUNC, odd="import sys, os\nsys.modules[__name__] = os")
    assert set(modules.bundle("main").modules) == {"main"}


# --- errors ------------------------------------------------------------------------------------


def test_what_is_no_module_to_map(write):
    write(empty="", number="mapfunc = 3", broken="1 / 0", needs="import nowhere")
    for name, words in [
        ("nowhere", "no module 'nowhere'"),
        ("empty.inner", "no module 'empty.inner'"),
        ("empty", "empty has no function mapfunc"),
        ("number", "number has no function mapfunc"),
        ("broken", "broken cannot be imported: ZeroDivisionError"),
        ("needs", "needs cannot be imported: No module named 'nowhere'"),
        (3, "of type int"),
        (test_circles_end, "of type function"),
        (types.ModuleType("made_by_hand"), "no source file"),
        ("sys", "sys has no source file"),
    ]:
        with pytest.raises(ModuleError, match=words):
            modules.bundle(name)


def test_only_types_of_others_are_named_with_their_module():
    for error, name in [
        (codec.EncodeError("x"), "EncodeError"),
        (json.JSONDecodeError("x", "y", 0), "json.decoder.JSONDecodeError"),
        (ValueError("x"), "ValueError"),
    ]:
        assert calls.describe(error)[0] == name


def test_resolve(write):
    write(pack____init__="name = 1", pack__mod="class C:\n    x = 5", pack__name="")
    assert modules.resolve("pack.mod.C.x") == 5
    assert modules.resolve("pack.name") == 1
    assert modules.resolve("pack.mod") is sys.modules["pack.mod"]
    for name, words in [
        ("pack.mod.D", "pack.mod has nothing named 'D'"),
        ("pack.none.D", "pack has nothing named 'none'"),
        ("nowhere.x", "no module 'nowhere'"),
        ("a b.c", "not a dotted name"),
        ("pack..x", "not a dotted name"),
    ]:
        with pytest.raises(ModuleError, match=words):
            modules.resolve(name)
