"""The examples' arithmetic, without hosts: slices are mapped here and reduced in order."""

import ast
import contextlib
import functools
import importlib
import itertools
import sys
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jamtasks
from examples import (
    char_count,
    inner_product,
    multiply_sum,
    newton_sqrt,
    progressions,
    sparse_autoencoder,
    sum_matrix,
)

FOLDER = Path(sum_matrix.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def add(a, b):
    return [x + y for x, y in zip(a, b, strict=True)] if isinstance(a, list) else a + b


def mapped(module, params, items, slices=7):
    """What a map call with about so many slices gives."""
    size = -(-len(items) // slices)
    parts = [items[i : i + size] for i in range(0, len(items), size)]
    reduce = getattr(module, "reduce", add)
    return functools.reduce(reduce, [module.mapfunc(params, part) for part in parts])


def test_sum_matrix(capsys):
    result = mapped(sum_matrix, None, sum_matrix.dataset())
    assert result == sum_matrix.expected() == int(sum_matrix.dataset().sum())
    sum_matrix.report(result)
    assert capsys.readouterr().out.splitlines()[-1] == "equal"
    sum_matrix.report(result + 1)
    assert capsys.readouterr().out.splitlines()[-1] == "NOT EQUAL"


def test_multiply_sum():
    assert mapped(multiply_sum, 3, multiply_sum.dataset) == 3 * 10000 * 10001 // 2


def test_inner_product():
    assert mapped(inner_product, None, inner_product.dataset()) == inner_product.expected()


@pytest.mark.parametrize("terms", [1, 20])
def test_progressions(terms):
    result = mapped(progressions, {"terms": terms}, progressions.dataset)
    assert result == progressions.expected(terms)


@given(st.floats(1e-30, 1e30))
def test_newton_finds_the_root_to_the_last_bits(number):
    steps, start, root = mapped(newton_sqrt, number, newton_sqrt.dataset, 5)
    assert root == pytest.approx(number**0.5, rel=1e-15)
    assert len(newton_sqrt.newton(number, start)) == steps


@pytest.mark.parametrize("words", [[], ["x"], ["-4"], ["inf"], ["1e300"]])
def test_newton_refuses_what_has_no_root_here(words, capsys):
    assert newton_sqrt.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_char_count_adds_up(capsys):
    lines = [
        line
        for path in sorted((FOLDER / "texts").glob("*.txt"))
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
    ]
    assert len(lines) > 30
    result = mapped(char_count, None, lines)
    assert sum(result.values()) == sum(len(line.rstrip("\n")) for line in lines)
    assert result["e"] == "".join(lines).count("e")
    char_count.report(result)
    assert len(capsys.readouterr().out.splitlines()) == 21


def evaluate(theta, patches, slices=1):
    sums = mapped(sparse_autoencoder, theta, patches, slices)
    return sparse_autoencoder.cost(theta, sums, len(patches))


def test_autoencoder_gradient_agrees_with_finite_differences():
    """Central differences with step h err by O(h^2) + O(1e-16 / h): about 1e-9 here."""
    patches = sparse_autoencoder.digits(40)
    theta = sparse_autoencoder.start(seed=3)
    random = numpy.random.RandomState(4)
    _, gradient = evaluate(theta, patches)
    h = 1e-5
    # some of every part of theta, and some directions through all of it
    edges = [0, 1920, 1950, 3870, sparse_autoencoder.SIZE]
    chosen = [random.randint(a, b, 12) for a, b in itertools.pairwise(edges)]
    directions = [numpy.eye(1, sparse_autoencoder.SIZE, int(i))[0] for i in numpy.hstack(chosen)]
    directions += [d / numpy.linalg.norm(d) for d in random.normal(size=(4, len(theta)))]
    for d in directions:
        slope = (evaluate(theta + h * d, patches)[0] - evaluate(theta - h * d, patches)[0]) / 2 / h
        assert slope == pytest.approx(gradient @ d, abs=1e-7, rel=1e-6)


def test_autoencoder_cost_does_not_depend_on_the_slices():
    patches, theta = sparse_autoencoder.digits(50), sparse_autoencoder.start()
    one, many = evaluate(theta, patches, 1), evaluate(theta, patches, 16)
    assert one[0] == pytest.approx(many[0], rel=1e-12)
    numpy.testing.assert_allclose(one[1], many[1], rtol=1e-9, atol=1e-12)


def test_autoencoder_makes_more_patches_than_there_are_digits():
    patches = sparse_autoencoder.digits(2000)
    assert patches.shape == (2000, 64)
    assert abs(patches).max() <= 0.9
    numpy.testing.assert_array_equal(patches[:100], sparse_autoencoder.digits(100))


def test_the_autoencoder_names_the_extra_of_what_it_lacks(monkeypatch, capsys):
    monkeypatch.setattr(jamtasks, "Master", lambda hosts: contextlib.nullcontext())
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert sparse_autoencoder.main(["--iterations", "1"]) == 2
    command = "pip install '.[examples]'"
    assert capsys.readouterr().err.endswith(f"; in the checkout: {command}\n")
    assert command in (FOLDER.parent / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_examples_offer_a_mapfunc_and_explain_themselves(name):
    module = importlib.import_module(f"examples.{name}")
    assert module.__doc__ and f"examples.{name}" in module.__doc__
    assert module.mapfunc.__code__.co_argcount == 2


@pytest.mark.parametrize("name", NAMES)
def test_examples_run_on_hosts_with_python_36_and_without_jam(name):
    """Their syntax is 3.6's, and importing them imports nothing of ours."""
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 6))
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = {(alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
                for node in top for alias in node.names}  # fmt: skip
    assert imported <= {"os", "sys", "numpy"}
