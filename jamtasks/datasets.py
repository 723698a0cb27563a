"""Datasets: what a map call is cut from. `DataSet(x)` picks the type for x.

A DataSet is frozen when it is made: its array becomes read-only, and the digest of a slice is made
once and remembered, so that a second call need not even look at the data. Whoever changes the data
all the same (through another view of an array, say) says so with `changed()`. Data that is handed
to `Master.run` as it is gets digested anew in each call.
"""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from worker_payload import codec

from .errors import DataSetError
from .filesets import FilesDataSet, NpyFileDataSet, Path, TextLinesDataSet, file_stat
from .slices import BaseDataSet, Bounds, Cut, SliceRef, Slices, even_bounds, type_name

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "BaseDataSet",
    "DataSet",
    "FilesDataSet",
    "ListDataSet",
    "NpyFileDataSet",
    "NumpyMatrixDataSet",
    "NumpyMatrixFileDataSet",
    "SliceRef",
    "Slices",
    "TextLinesDataSet",
    "as_dataset",
]

_TEXT = (".txt", ".log", ".md", ".text")


# --- in memory ---------------------------------------------------------------------------------


class ListDataSet(Cut):
    """The items of a list, tuple or other sequence; a slice is a list (tuple, range) of items.

    It has a copy of the sequence, not of its items. slice_size: items per slice."""

    def __init__(self, items: Sequence[Any], *, slice_size: int | None = None):
        super().__init__(slice_size)
        if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
            raise DataSetError(
                f"cannot cut data of type {type_name(items)} into items", "give a list or tuple"
            )
        self._items = items if isinstance(items, (tuple, range)) else list(items)

    def _bounds(self, workers: int, slice_size: int | None) -> Bounds:
        return even_bounds(len(self._items), "the list", workers, slice_size)

    def _take(self, start: int, stop: int) -> Any:
        return self._items[start:stop]

    def _blame(self, start: int, stop: int, reason: str) -> str:
        for position in range(start, stop):
            try:
                codec.encode(self._items[position])
            except codec.EncodeError as error:
                return f"item {position}: {error}"
        return reason


class NumpyMatrixDataSet(Cut):
    """An array of any dimension, cut into rows or columns; a slice is an array.

    order: "row" or "column"; axis: any other axis to cut. slice_size: rows (columns) per slice.
    The array becomes read-only: to change it, make it writeable again, and call `changed()`."""

    _steady = True
    _needs_numpy = True

    def __init__(
        self,
        matrix: Any,
        order: str = "row",
        *,
        axis: int | None = None,
        slice_size: int | None = None,
    ):
        super().__init__(slice_size)
        self._array: np.ndarray[Any, Any] = _array(matrix)
        self._axis = _axis(self._array, order, axis)
        self._word = {0: "rows", 1: "columns"}.get(self._axis, f"items along axis {self._axis}")
        self._array.flags.writeable = False

    def _bounds(self, workers: int, slice_size: int | None) -> Bounds:
        items = self._array.shape[self._axis]
        if not items:
            raise DataSetError(f"the dataset is empty: an array of shape {self._array.shape}")
        return even_bounds(items, "", workers, slice_size, self._array.nbytes)

    def _take(self, start: int, stop: int) -> Any:
        index = (slice(None),) * self._axis + (slice(start, stop),)
        return self._array[index]

    def _large(self, bounds: Bounds) -> bool:
        return self._array.nbytes // len(bounds) >= 64 << 10


class NumpyMatrixFileDataSet(NumpyMatrixDataSet):
    """A matrix of numbers in a text file, as `numpy.loadtxt` reads it, cut into rows or columns.

    delimiter: default is a comma for names ending in .csv, white space otherwise.
    skiprows: lines at the top that hold no numbers. dtype: of the matrix."""

    def __init__(
        self,
        path: Path,
        order: str = "row",
        *,
        axis: int | None = None,
        slice_size: int | None = None,
        delimiter: str | None = None,
        skiprows: int = 0,
        dtype: Any = float,
    ):
        import numpy as np

        self.path = os.fspath(path)
        file_stat(self.path)
        if delimiter is None and self.path.lower().endswith(".csv"):
            delimiter = ","
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a file is empty is said below
                matrix = np.loadtxt(
                    self.path, dtype, delimiter=delimiter, skiprows=skiprows, ndmin=2
                )
        except (ValueError, OSError) as error:
            hint = None if skiprows else "a heading? NumpyMatrixFileDataSet(name, skiprows=1)"
            raise DataSetError(f"{self.path} holds no matrix: {error}", hint) from error
        if not matrix.size:
            raise DataSetError(f"{self.path} is empty")
        super().__init__(matrix, order, axis=axis, slice_size=slice_size)


# --- the right type for something ----------------------------------------------------------------


class _Picker(type):
    def __call__(cls, data: Any, **options: Any) -> Any:
        return _pick(data, options)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, BaseDataSet)


if TYPE_CHECKING:

    class DataSet(BaseDataSet):
        """What `DataSet(x)` is to a type checker."""

        def __init__(self, data: Any, **options: Any) -> None:
            raise NotImplementedError

        def chunks(self) -> int:
            raise NotImplementedError

        def slice(self, index: int) -> Any:
            raise NotImplementedError

else:

    class DataSet(metaclass=_Picker):
        """`DataSet(x)` is the dataset for x: of the items of a sequence, of the rows of an array.

        The name of a file: .npy and .csv are arrays, .txt (.log, .md) is lines, others are files;
        a name with `*` or `?` is all files that match. Options go to the type that is picked. A
        dataset is returned as it is. Raises DataSetError for what cannot be cut."""


def as_dataset(data: Any, *, shared: bool = False) -> BaseDataSet:
    """As DataSet(data), but what is not yet a dataset is neither frozen nor remembered.

    shared: data names files that the hosts see under the same paths."""
    if shared:
        return _shared(data)
    if isinstance(data, BaseDataSet):
        return data
    # a view of an array: the array itself stays writeable
    dataset: BaseDataSet = _pick(data[...] if _is_array(data) else data, {})
    dataset.frozen = False
    return dataset


def _shared(data: Any) -> BaseDataSet:
    kinds = (NpyFileDataSet, TextLinesDataSet, FilesDataSet)
    try:
        if isinstance(data, (str, os.PathLike)):
            found = _pick_files(os.fspath(data), {"shared": True})
            if isinstance(found, kinds):
                return found
    except TypeError:  # of a dataset that knows no `shared`
        pass
    raise DataSetError(
        f"{data if isinstance(data, str) else type_name(data)} cannot be read by the hosts",
        "shared data are .npy files, text files, or lists of files, by name",
    )


def _pick(data: Any, options: dict[str, Any]) -> Any:
    if isinstance(data, BaseDataSet):
        if options:
            raise DataSetError(f"{type_name(data)} takes no more options")
        return data
    if _is_array(data):
        return NumpyMatrixDataSet(data, **options)
    if isinstance(data, (str, os.PathLike)):
        return _pick_files(os.fspath(data), options)
    if isinstance(data, Sequence) and not isinstance(data, (bytes, bytearray)):
        return ListDataSet(data, **options)
    if isinstance(data, (Iterator, set, frozenset, dict)):
        hint = "give list(x): it has no order of its own, or none that lasts"
    else:
        hint = "give a list, an array, the name of a file, or a subclass of BaseDataSet"
    raise DataSetError(f"cannot cut data of type {type_name(data)} into slices", hint)


def _pick_files(name: str, options: dict[str, Any]) -> BaseDataSet:
    names = [name]
    if not os.path.exists(name) and glob.has_magic(name):
        names = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
        if not names:
            raise DataSetError(f"no file matches {name!r}")
    suffixes = {os.path.splitext(path)[1].lower() for path in names}
    if len(names) == 1 and suffixes == {".npy"}:
        return NpyFileDataSet(names[0], **options)
    if len(names) == 1 and suffixes == {".csv"}:
        return NumpyMatrixFileDataSet(names[0], **options)
    if suffixes <= set(_TEXT):
        return TextLinesDataSet(names, **options)
    return FilesDataSet(names, **options)


# --- details -----------------------------------------------------------------------------------


def _is_array(data: Any) -> bool:
    import sys

    np = sys.modules.get("numpy")  # who has an array has imported it
    return np is not None and isinstance(data, np.ndarray)


def _array(matrix: Any) -> Any:
    import numpy as np

    try:
        array = np.asanyarray(matrix)
    except ValueError as error:
        raise DataSetError(f"data of type {type_name(matrix)} that is no array: {error}") from error
    if not array.ndim:
        raise DataSetError(f"cannot cut a single value ({type_name(matrix)}) into slices")
    return array


def _axis(array: Any, order: str, axis: int | None) -> int:
    if axis is None:
        if order not in ("row", "column"):
            raise DataSetError(f'order is "row" or "column", not {order!r}')
        axis = 0 if order == "row" else 1
    if not -array.ndim <= axis < array.ndim:
        raise DataSetError(f"cannot cut along axis {axis}: the array has shape {array.shape}")
    return axis % int(array.ndim)
