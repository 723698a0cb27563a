"""Datasets whose data stays in files: arrays, lines of text, whole files."""

from __future__ import annotations

import itertools
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from worker_payload.shared import Part, Piece, Stamp, lines_of, stamp

from .errors import DataSetError
from .slices import Bounds, Cut, even_bounds, slice_count

Path = str | os.PathLike[str]

_READ = 1 << 20


class _OfFiles(Cut):
    """A dataset whose data stays in files. A file that has changed since the last run is read
    again; one that changes during a run is an error."""

    _steady = True  # because _check looks
    _kind = ""  # of shared.Part

    def __init__(
        self,
        paths: Path | Iterable[Path],
        *,
        slice_size: int | None = None,
        shared: bool = False,
    ):
        super().__init__(slice_size)
        given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
        self._paths = [os.fspath(path) for path in given]
        if not self._paths:
            raise DataSetError("the dataset is empty: no files")
        self._stamps = [_stamp(path) for path in self._paths]
        self._shared = shared
        self._seals: dict[int, Stamp] = {}

    def _part(self, places: Iterable[tuple[int, int, int]]) -> Part:
        """(number of a file, start, stop) each, to be read by the hosts themselves."""
        return Part(
            self._kind,
            tuple(
                Piece(os.path.realpath(self._paths[number]), *self._seal(number), start, stop)
                for number, start, stop in places
            ),
        )

    def _seal(self, number: int) -> Stamp:
        """By what the hosts know the file."""
        if number not in self._seals:
            try:
                self._seals[number] = stamp(self._paths[number])
            except OSError as error:
                raise DataSetError(f"cannot read {self._paths[number]}: {error.strerror}") from None
        self._check(number)
        return self._seals[number]

    def _refresh(self) -> None:
        stamps = [_stamp(path) for path in self._paths]
        if stamps != self._stamps:
            self._stamps = stamps
            self._seals.clear()
            self.changed()

    def _check(self, number: int) -> None:
        path = self._paths[number]
        if _stamp(path) != self._stamps[number]:
            raise DataSetError(f"{path} changed while it was being read")

    def _read(self, number: int, start: int, stop: int) -> bytes:
        """Bytes of a file. Raises DataSetError."""
        path = self._paths[number]
        try:
            with open(path, "rb") as handle:
                handle.seek(start)
                data = handle.read(stop - start)
        except OSError as error:
            raise DataSetError(f"cannot read {path}: {error.strerror}") from error
        self._check(number)
        return data


class NpyFileDataSet(_OfFiles):
    """An array in a .npy file, cut into rows; a slice is an array. The file is never read whole.

    slice_size: rows per slice. shared: the hosts see the file under the same path, and map their
    rows of it themselves; nothing is sent."""

    _needs_numpy = True
    _kind = "npy"

    def __init__(self, path: Path, *, slice_size: int | None = None, shared: bool = False):
        super().__init__(path, slice_size=slice_size, shared=shared)
        self._map()

    def _map(self) -> None:
        import numpy as np

        path = self._paths[0]
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataSetError(f"{path} cannot be used as an array: {error}") from error
        if not isinstance(array, np.ndarray) or not array.ndim:
            raise DataSetError(f"{path} holds nothing that can be cut into rows")
        self._array = array

    def _refresh(self) -> None:
        before = self._stamps
        super()._refresh()
        if self._stamps != before:
            self._map()

    def _bounds(self, workers: int, slice_size: int | None) -> Bounds:
        return even_bounds(
            len(self._array), f"the array in {self._paths[0]}", workers, slice_size,
            self._array.nbytes,
        )  # fmt: skip

    def _take(self, start: int, stop: int) -> Any:
        import numpy as np

        if self._shared:
            return self._part([(0, start, stop)])
        self._check(0)  # a file cut short under a mapping would kill us, not raise
        return np.asarray(self._array[start:stop])

    def _large(self, bounds: Bounds) -> bool:
        return self._array.nbytes // len(bounds) >= 64 << 10


class TextLinesDataSet(_OfFiles):
    """The lines of text files (UTF-8; other bytes as surrogate escapes), one file after another.

    A slice is a list of lines with their ends, as reading a file gives them. Files are cut by
    bytes and never read whole; slice_size (lines per slice) takes one look at all of them. shared:
    the hosts see the files under the same paths, and read their lines themselves."""

    _kind = "lines"

    def _starts(self) -> list[int]:
        """Where each file begins, and where the last one ends, with all of them in a row."""
        starts = [0]
        for size, _, _ in self._stamps:
            starts.append(starts[-1] + size)
        return starts

    def _bounds(self, workers: int, slice_size: int | None) -> Bounds:
        starts = self._starts()
        total = starts[-1]
        if not total:
            raise DataSetError(f"the dataset is empty: no lines in {_some(self._paths)}")
        if slice_size is not None:
            cuts = sorted({0, total, *self._every(slice_size)})
        else:
            count = slice_count(total, workers, total)
            cuts = sorted({0, total, *(self._line_from(i * total // count) for i in range(count))})
        return list(itertools.pairwise(cuts))

    def _line_from(self, position: int) -> int:
        """The first position at or after this one where a line begins."""
        starts = self._starts()
        number = bisect_right(starts, position) - 1
        local = position - starts[number]
        if not local:
            return position
        for at, data in self._pieces(number, local - 1):
            found = data.find(b"\n")
            if found >= 0:
                return starts[number] + at + found + 1
        return starts[number + 1]

    def _every(self, lines: int) -> Iterator[int]:
        """Where every so many lines end."""
        starts, missing = self._starts(), lines
        for number, start in enumerate(starts[:-1]):
            size = starts[number + 1] - start
            ended = True  # whether the last byte so far ended a line
            for at, data in self._pieces(number, 0):
                ended = data.endswith(b"\n")
                position, left = 0, data.count(b"\n")
                while missing <= left:
                    for _ in range(missing):
                        position = data.index(b"\n", position) + 1
                    left -= missing
                    yield start + at + position
                    missing = lines
                missing -= left
            if not ended:  # the end of the file ends its last line
                missing -= 1
                if not missing:
                    yield start + size
                    missing = lines

    def _pieces(self, number: int, position: int) -> Iterator[tuple[int, bytes]]:
        size = self._stamps[number][0]
        while position < size:
            data = self._read(number, position, min(position + _READ, size))
            yield position, data
            position += len(data)

    def _take(self, start: int, stop: int) -> list[str] | Part:
        places = list(self._places(start, stop))
        if self._shared:
            return self._part(places)
        lines: list[str] = []
        for place in places:
            lines += lines_of(self._read(*place))
        return lines

    def _places(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(number of a file, its first, its last byte) between two positions."""
        starts = self._starts()
        number = bisect_right(starts, start) - 1
        while number < len(self._paths) and starts[number] < stop:
            first = max(start, starts[number]) - starts[number]
            last = min(stop, starts[number + 1]) - starts[number]
            if first < last:
                yield number, first, last
            number += 1


class FilesDataSet(_OfFiles):
    """Whole files; a slice is a list of (name, bytes). slice_size: files per slice. shared: the
    hosts see the files under the same paths, which then are absolute, and read them themselves."""

    _kind = "files"

    def _bounds(self, workers: int, slice_size: int | None) -> Bounds:
        return even_bounds(len(self._paths), "the list of files", workers, slice_size)

    def _take(self, start: int, stop: int) -> list[tuple[str, bytes]] | Part:
        if self._shared:
            return self._part((n, 0, self._stamps[n][0]) for n in range(start, stop))
        return [
            (self._paths[number], self._read(number, 0, self._stamps[number][0]))
            for number in range(start, stop)
        ]

    def _large(self, bounds: Bounds) -> bool:
        return True


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def file_stat(path: str) -> os.stat_result:
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataSetError(f"cannot read {path}: {error.strerror}") from None
    if not os.access(path, os.R_OK):
        raise DataSetError(f"cannot read {path}: Permission denied")
    if os.path.isdir(path):
        raise DataSetError(f"{path} is a folder", f"name its files: {os.path.join(path, '*')}")
    return found


def _stamp(path: str) -> tuple[int, int, int]:
    """Size first; another stamp is another content."""
    found = file_stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ino
