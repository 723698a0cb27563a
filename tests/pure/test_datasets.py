"""Datasets: how they are cut, what a slice's digest says, and what cannot be cut."""

import hashlib
import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jamtasks import filesets, slices
from jamtasks.datasets import (
    BaseDataSet,
    DataSet,
    FilesDataSet,
    ListDataSet,
    NpyFileDataSet,
    NumpyMatrixDataSet,
    NumpyMatrixFileDataSet,
    TextLinesDataSet,
    as_dataset,
)
from jamtasks.errors import DataSetError
from jamtasks.slices import slice_count
from worker_payload import codec


def value(ref):
    """What a worker gets of a slice."""
    blob = b"".join(ref.parts())
    assert (len(blob), hashlib.sha256(blob).hexdigest()) == (ref.size, ref.digest)
    return codec.decode(codec.blob_segments(blob))


def values(dataset, workers=1, slice_size=None):
    return [value(ref) for ref in dataset.plan(workers, slice_size)]


def digests(dataset, workers=1, slice_size=None):
    return [ref.digest for ref in dataset.plan(workers, slice_size)]


@pytest.fixture
def counted(monkeypatch):
    """How many slices have been encoded."""
    count = [0]
    encode = codec.encode

    def counting(obj):
        count[0] += 1
        return encode(obj)

    monkeypatch.setattr(codec, "encode", counting)
    return count


# --- how many slices ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "items, workers, size, count",
    [
        (1000, 1, None, 4),
        (1000, 3, None, 16),
        (1000, 4, None, 16),
        (1000, 16, None, 64),
        (10, 16, None, 10),
        (1, 4, None, 1),
        (1000, 4, 1 << 30, 16),
        (1000, 4, 2 << 20, 8),  # 256 KiB each
        (1000, 4, 1 << 20, 4),
        (1000, 4, 100, 4),  # but no worker goes without
        (1000, 12, 2 << 20, 12),
        (1000, 0, None, 4),
    ],
)
def test_the_number_of_slices(items, workers, size, count):
    assert slice_count(items, workers, size) == count


@given(items=st.integers(1, 10**6), workers=st.integers(1, 500), size=st.integers(0, 1 << 40))
def test_any_number_of_slices_is_sensible(items, workers, size):
    count = slice_count(items, workers, size)
    assert min(items, workers) <= count <= min(items, 8 * workers)


@given(items=st.integers(1, 300), workers=st.integers(1, 20), size=st.none() | st.integers(1, 400))
def test_slices_are_all_items_in_order_and_nearly_equal(items, workers, size):
    parts = [
        data.slice(i)
        for data in [ListDataSet(range(items), slice_size=size)]
        for i in range(data.chunks())
    ]
    assert [item for part in parts for item in part] == list(range(items))
    plan = ListDataSet(list(range(items))).plan(workers, size)
    lengths = [len(value(ref)) for ref in plan]
    assert sum(lengths) == items and min(lengths) > 0
    if size is None:
        assert max(lengths) - min(lengths) <= 1
    else:
        assert set(lengths[:-1]) <= {size} and lengths[-1] <= size


# --- lists -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple, lambda items: items])
def test_slices_are_of_the_kind_that_was_given(kind):
    items = kind(range(5))
    assert values(DataSet(items), slice_size=2) == [items[0:2], items[2:4], items[4:5]]


def test_a_list_that_grows_later_does_not_grow_the_dataset():
    items = [1, 2, 3]
    dataset = DataSet(items)
    items.append(4)
    assert values(dataset, slice_size=5) == [[1, 2, 3]]


def test_a_list_given_as_it_is_is_looked_at_anew():
    items = [[1], [2], [3]]
    dataset = as_dataset(items)
    before = digests(dataset, slice_size=1)
    items[1][0] = 7
    assert [a == b for a, b in zip(before, digests(dataset, slice_size=1), strict=True)] == [
        True, False, True,
    ]  # fmt: skip


def test_an_item_that_cannot_travel_is_named():
    refs = DataSet([1, 2, [threading.Lock()], 4]).plan(1, 2)
    assert value(refs[0]) == [1, 2]
    with pytest.raises(DataSetError, match=r"slice 1 .* item 2: .*lock"):
        refs[1].digest  # noqa: B018


# --- digests -----------------------------------------------------------------------------------


def test_the_same_content_has_the_same_digest_wherever_it_sits():
    a = np.arange(1000.0)
    assert (
        digests(DataSet(np.concatenate([a, a])), slice_size=1000)
        == digests(DataSet(a)) * 0 + [DataSet(a.copy()).plan(1, 1000)[0].digest] * 2
    )


def test_slicing_otherwise_never_gives_the_other_slices():
    dataset = DataSet(np.arange(100))
    known = {}
    for size in (50, 25, 7, 100, 50):
        for ref in dataset.plan(4, size):
            content = value(ref).tobytes()
            assert known.setdefault(ref.digest, content) == content


def test_one_changed_element_changes_one_slice():
    array = np.arange(100.0)
    dataset = DataSet(array)
    before = digests(dataset, slice_size=25)
    array.flags.writeable = True
    array[99] = 0
    assert digests(dataset, slice_size=25) == before  # nobody said so
    dataset.changed()
    after = digests(dataset, slice_size=25)
    assert after[:3] == before[:3] and after[3] != before[3]


def test_a_change_that_nobody_mentioned_is_never_sent():
    array = np.arange(100.0)
    dataset = DataSet(array)
    digests(dataset, slice_size=25)
    array.flags.writeable = True
    array[0] = 1
    with pytest.raises(DataSetError, match="not what it was") as info:
        dataset.plan(4, 25)[0].parts()
    assert "changed()" in info.value.hint


def test_an_array_is_read_only_once_it_is_a_dataset():
    array = np.zeros(10)
    DataSet(array)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_an_array_given_as_it_is_stays_writeable_and_is_looked_at_anew():
    array = np.zeros(100)
    before = digests(as_dataset(array), slice_size=50)
    array[99] = 1
    after = digests(as_dataset(array), slice_size=50)
    assert after[0] == before[0] and after[1] != before[1]


def test_a_dataset_is_digested_once(counted):
    dataset = DataSet(np.zeros((64, 100)))
    digests(dataset, workers=4)
    first = counted[0]
    assert first > 1
    digests(dataset, workers=4)
    assert counted[0] == first
    assert [ref.size for ref in dataset.plan(4)] and counted[0] == first


def test_nothing_is_read_before_it_is_asked_for(counted):
    refs = DataSet(list(range(10**6))).plan(4, 1)
    assert len(refs) == 10**6 and refs[-1].index == 10**6 - 1
    assert counted[0] == 0
    assert DataSet(np.zeros(5)).plan(1)[0].needs_numpy and counted[0] == 0


def test_large_arrays_are_digested_by_several_threads(monkeypatch):
    threads = set()
    digest = codec.blob_digest
    met = threading.Barrier(2, timeout=10)

    def recording(parts):
        threads.add(threading.current_thread().name)
        if len(threads) < 2:
            met.wait()  # until another thread digests as well
        elif met.n_waiting:
            met.wait()
        return digest(parts)

    monkeypatch.setattr(slices.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(codec, "blob_digest", recording)
    array = np.arange(1 << 16).reshape(8, -1)
    found = digests(DataSet(array), slice_size=1)
    assert len(threads) == 2 and threading.current_thread().name not in threads
    monkeypatch.undo()
    assert found == [DataSet(row[None]).plan(1, 1)[0].digest for row in array]


def test_arrays_are_not_copied():
    array = np.zeros((4, 1 << 16))
    part = DataSet(array).plan(1, 1)[2].parts()[-1]
    assert np.shares_memory(np.frombuffer(part), array)


def test_whether_a_slice_needs_numpy():
    assert not DataSet([1, 2]).plan(1)[0].needs_numpy
    assert DataSet([np.zeros(3)]).plan(1)[0].needs_numpy


# --- arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("order, axis", [("row", 0), ("column", 1)])
def test_rows_and_columns(layout, order, axis):
    matrix = np.asarray(np.arange(20).reshape(4, 5), order=layout)
    got = values(NumpyMatrixDataSet(matrix, order), slice_size=2)
    assert np.array_equal(np.concatenate(got, axis=axis), matrix)
    assert [part.shape[axis] for part in got] == [2, 2, 1][: 2 + axis]


def test_any_axis_of_any_array():
    cube = np.arange(60).reshape(3, 4, 5)
    for axis in (0, 1, 2, -1):
        got = values(NumpyMatrixDataSet(cube, axis=axis), slice_size=2)
        assert np.array_equal(np.concatenate(got, axis=axis), cube)


def test_matrices_and_masked_arrays_stay_what_they_are():
    got = values(DataSet(np.ones((2, 2)).view(np.matrix)), slice_size=1)
    assert isinstance(got[0], np.matrix) and got[0].shape == (1, 2)
    got = values(DataSet(np.ma.array([1, 2], mask=[True, False])), slice_size=2)
    assert got[0].mask.tolist() == [True, False]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: NumpyMatrixDataSet(np.float64(3)), "single value"),
        (
            lambda: NumpyMatrixDataSet(np.zeros((0, 3))).plan(1),
            r"empty: an array of shape \(0, 3\)",
        ),
        (lambda: NumpyMatrixDataSet([[1], [1, 2]]), "no array"),
        (lambda: NumpyMatrixDataSet(np.zeros(3), "column"), r"axis 1: .* shape \(3,\)"),
        (lambda: NumpyMatrixDataSet(np.zeros(3), "diagonal"), "'diagonal'"),
        (lambda: ListDataSet([]).plan(1), "empty"),
        (lambda: ListDataSet({1: 2}), "cannot cut data of type dict"),
        (lambda: ListDataSet([1], slice_size=0), "slice_size 0"),
        (lambda: ListDataSet([1]).plan(1, 2.5), r"slice_size 2\.5"),
        (lambda: ListDataSet([1]).slice(1), "no slice 1: it has 1"),
        (lambda: ListDataSet([1]).slice(-1), "no slice -1"),
        (lambda: DataSet(7), "cannot cut data of type int"),
        (lambda: DataSet({1, 2}), "cannot cut data of type set"),
        (lambda: DataSet(x for x in "ab"), "cannot cut data of type generator"),
        (lambda: DataSet(b"ab"), "cannot cut data of type bytes"),
        (lambda: DataSet(ListDataSet([1]), slice_size=2), "^ListDataSet takes no more options"),
        (lambda: TextLinesDataSet([]), "no files"),
    ],
)
def test_what_cannot_be_cut(make, words):
    with pytest.raises(DataSetError, match=words):
        make()


# --- the user's own ----------------------------------------------------------------------------


class Squares(BaseDataSet):
    def __init__(self, count=3):
        self.count = count  # and no call of ours

    def chunks(self):
        return self.count

    def slice(self, index):
        return [index * index]


def test_a_dataset_of_ones_own():
    assert values(Squares(), workers=100) == [[0], [1], [4]]
    Squares().changed()


def test_a_dataset_of_ones_own_is_asked_anew_unless_it_promises_not_to_change(counted):
    class Frozen(Squares):
        frozen = True

    for dataset, expected in ((Squares(), 6), (Frozen(), 3)):
        counted[0] = 0
        digests(dataset)
        digests(dataset)
        assert counted[0] == expected


@pytest.mark.parametrize(
    "dataset, words",
    [
        (Squares(0), "empty: chunks"),
        (Squares("3"), "returned '3'"),
        (type("Broken", (Squares,), {"chunks": lambda self: 1 / 0})(), "ZeroDivisionError"),
    ],
)
def test_a_dataset_of_ones_own_that_makes_no_sense(dataset, words):
    with pytest.raises(DataSetError, match=words):
        dataset.plan(1)


def test_a_dataset_of_ones_own_that_raises_names_the_slice():
    broken = type("Broken", (Squares,), {"slice": lambda self, index: 1 // (1 - index)})()
    refs = broken.plan(1)
    assert value(refs[0]) == 1
    with pytest.raises(DataSetError, match=r"Broken.slice\(1\) raised ZeroDivisionError"):
        refs[1].digest  # noqa: B018


def test_a_dataset_of_ones_own_that_is_not_steady():
    fickle = type("Fickle", (Squares,), {"slice": lambda self, index: os.urandom(8)})()
    (ref, *_) = fickle.plan(1)
    assert len(ref.digest) == 64
    with pytest.raises(DataSetError, match=r"slice 0 .* not what it was"):
        ref.parts()


def test_a_dataset_of_ones_own_takes_no_slice_size():
    with pytest.raises(DataSetError, match="slice_size"):
        Squares().plan(1, 5)


# --- files -------------------------------------------------------------------------------------


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_a_npy_file_is_cut_into_rows(tmp_path):
    array = np.arange(60).reshape(10, 2, 3)
    for order in "CF":
        np.save(tmp_path / "a.npy", np.asarray(array, order=order))
        got = values(NpyFileDataSet(tmp_path / "a.npy"), slice_size=3)
        assert [len(part) for part in got] == [3, 3, 3, 1]
        assert np.array_equal(np.concatenate(got), array)


def test_a_npy_file_has_the_digests_of_its_array(tmp_path):
    array = np.arange(100.0)
    np.save(tmp_path / "a.npy", array)
    assert digests(DataSet(str(tmp_path / "a.npy")), 4, 10) == digests(DataSet(array), 4, 10)


def test_a_npy_file_is_not_read_whole(tmp_path):
    sparse = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", float, (1 << 20, 1 << 12))
    del sparse  # 32 GiB, none of them on disk
    refs = NpyFileDataSet(tmp_path / "a.npy").plan(4, 1)
    assert len(refs) == 1 << 20 and value(refs[12345]).shape == (1, 1 << 12)


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "No such file"),
        (b"", "cannot be used as an array"),
        (b"rubbish", "cannot be used as an array"),
        (np.array([{}], object), "cannot be used as an array"),
        (np.array(3), "nothing that can be cut"),
    ],
)
def test_a_npy_file_that_is_none(tmp_path, content, words):
    path = tmp_path / "a.npy"
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataSetError, match=words) as info:
        NpyFileDataSet(path)
    assert str(path) in str(info.value)


def test_a_matrix_in_a_text_file(tmp_path):
    matrix = np.array([[1, 2.5], [3, -4e9], [5, 6]])
    table = write(tmp_path / "a.txt", "1 2.5\n3 -4e9\n5 6\n")
    comma = write(tmp_path / "a.csv", "# x,y\n1,2.5\n3,-4e9\n5,6\n")
    headed = write(tmp_path / "b.csv", "x,y\n1,2.5\n3,-4e9\n5,6\n")
    for dataset in (
        NumpyMatrixFileDataSet(table),
        NumpyMatrixFileDataSet(comma),
        NumpyMatrixFileDataSet(headed, skiprows=1),
    ):
        assert np.array_equal(np.concatenate(values(dataset, slice_size=1)), matrix)
    (columns,) = values(NumpyMatrixFileDataSet(table, "column"), slice_size=2)
    assert columns.shape == (3, 2)
    with pytest.raises(DataSetError, match=r"b\.csv holds no matrix") as info:
        NumpyMatrixFileDataSet(headed)
    assert "skiprows=1" in info.value.hint
    with pytest.raises(DataSetError, match="is empty"):
        NumpyMatrixFileDataSet(write(tmp_path / "c.txt", "\n"))
    with pytest.raises(DataSetError, match="No such file"):
        NumpyMatrixFileDataSet(tmp_path / "missing")


lines_of_text = st.lists(st.sampled_from(["", "a", "bc\r", "Grüße", "\x0c\u2028x", "long " * 20]))
texts = st.lists(st.tuples(lines_of_text, st.booleans()), min_size=1, max_size=4)


@given(texts, st.integers(1, 5), st.none() | st.integers(1, 6), st.sampled_from([1, 7, 1 << 20]))
def test_text_is_cut_at_line_ends(tmp_path_factory, files, workers, size, piece):
    folder = tmp_path_factory.mktemp("text")
    paths, lines = [], []
    for number, (content, ended) in enumerate(files):
        text = "\n".join(content) + ("\n" if ended and content else "")
        paths.append(write(folder / str(number), text))
        with open(paths[-1], encoding="utf-8", newline="\n") as handle:
            lines += list(handle)
    dataset = TextLinesDataSet(paths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filesets, "_READ", piece)
        patch.setattr(slices, "SMALLEST", 8)
        if not lines:
            with pytest.raises(DataSetError, match="no lines"):
                dataset.plan(workers, size)
            return
        got = values(dataset, workers, size)
    assert [line for part in got for line in part] == lines
    assert all(got)
    if size is not None:
        assert {len(part) for part in got[:-1]} <= {size} and len(got[-1]) <= size


def test_text_that_is_not_utf_8_survives(tmp_path):
    path = write(tmp_path / "a.txt", b"caf\xe9\n\xff")
    (lines,) = values(DataSet(path))
    assert "".join(lines).encode("utf-8", "surrogateescape") == b"caf\xe9\n\xff"


def test_files(tmp_path):
    paths = [write(tmp_path / name, name * 3) for name in ("a", "b", "c")]
    assert values(FilesDataSet(paths), slice_size=2) == [
        [(paths[0], b"aaa"), (paths[1], b"bbb")],
        [(paths[2], b"ccc")],
    ]
    with pytest.raises(DataSetError, match="missing"):
        FilesDataSet([*paths, tmp_path / "missing"])
    with pytest.raises(DataSetError, match="is a folder"):
        FilesDataSet([tmp_path])


def test_files_that_changed_are_read_again(tmp_path, counted):
    paths = [write(tmp_path / name, name * 3) for name in ("a", "b")]
    dataset = FilesDataSet(paths)
    before = digests(dataset, slice_size=1)
    assert digests(dataset, slice_size=1) == before and counted[0] == 2
    write(tmp_path / "b", "other")
    after = digests(dataset, slice_size=1)
    assert after[0] == before[0] and after[1] != before[1]


def test_a_file_that_changes_during_a_run_is_an_error(tmp_path):
    paths = [write(tmp_path / name, name * 3) for name in ("a", "b")]
    np.save(tmp_path / "c.npy", np.zeros(10))
    for dataset, changed in (
        (FilesDataSet(paths), paths[0]),
        (TextLinesDataSet(paths), paths[0]),
        (NpyFileDataSet(tmp_path / "c.npy"), str(tmp_path / "c.npy")),
    ):
        ref = dataset.plan(1)[0]
        write(tmp_path / os.path.basename(changed), "something else")
        with pytest.raises(DataSetError, match="changed while it was being read"):
            ref.digest  # noqa: B018


# --- DataSet -----------------------------------------------------------------------------------


def test_the_type_is_picked(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    text, table = write(tmp_path / "a.txt", "x"), write(tmp_path / "a.csv", "1,2")
    other = write(tmp_path / "a.jpg", "x")
    write(tmp_path / "b.txt", "y")
    for data, kind in [
        ([1], ListDataSet), ((1,), ListDataSet), (range(3), ListDataSet),
        (np.zeros(3), NumpyMatrixDataSet), (np.ones((1, 2)).view(np.matrix), NumpyMatrixDataSet),
        (tmp_path / "a.npy", NpyFileDataSet), (table, NumpyMatrixFileDataSet),
        (text, TextLinesDataSet), (other, FilesDataSet),
        (str(tmp_path / "*.txt"), TextLinesDataSet), (str(tmp_path / "*"), FilesDataSet),
    ]:  # fmt: skip
        assert type(DataSet(data)) is type(as_dataset(data)) is kind
        assert isinstance(DataSet(data), DataSet)
    assert not isinstance([1], DataSet)
    dataset = Squares()
    assert DataSet(dataset) is as_dataset(dataset) is dataset
    with pytest.raises(DataSetError, match="no file matches"):
        DataSet(str(tmp_path / "*.missing"))
    assert DataSet([1, 2, 3], slice_size=2).chunks() == 2


def test_an_index_out_of_range_ends_a_loop():
    refs = DataSet([1, 2]).plan(1, 1)
    assert [ref.index for ref in refs] == [0, 1] and refs[-1].index == 1
    with pytest.raises(IndexError):
        refs[2]
