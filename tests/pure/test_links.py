"""Frames between processes of one host."""

from __future__ import annotations

import random

import pytest

from worker_payload import links


def cut(data, most, seed):
    """The same bytes in pieces of 1 to `most` bytes."""
    numbers, position, pieces = random.Random(seed), 0, []
    while position < len(data):
        size = numbers.randint(1, most)
        pieces.append(data[position : position + size])
        position += size
    return pieces


@pytest.mark.parametrize("most", [1, 3, 7, 40, 1000, 10**6])
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_frames_come_out_as_they_went_in_whatever_the_pieces(most, kind):
    values = [1, None, (), b"x" * 5000, ["a", b"b", 2.5], [], b"", list(range(300))]
    reader = links.Reader()
    for seed in range(20):
        found = []
        for piece in cut(b"".join(map(links.frame, values)), most, seed):
            found += reader.feed(kind(piece), [])
        assert found == [(value, []) for value in values]


@pytest.mark.parametrize("most", [1, 5, 50, 10**6])
def test_descriptors_belong_to_the_frame_that_says_so(most):
    """They come with its first byte, or earlier ones'."""
    frames = [("a", [7]), ("b", []), ("c", [3, 9, 4]), ("d", [])]
    reader = links.Reader()
    found = []
    for value, fds in frames:
        given = list(fds)
        for piece in cut(links.frame(value, len(fds)), most, 1):
            found += reader.feed(piece, given)
            given = []
    assert found == frames


def test_a_buffer_that_is_used_again_is_of_no_consequence():
    data = links.frame(list(range(50)))
    buffer = bytearray(16)
    reader, found = links.Reader(), []
    for start in range(0, len(data), 16):
        piece = data[start : start + 16]
        buffer[: len(piece)] = piece
        found += reader.feed(memoryview(buffer)[: len(piece)], [])
        buffer[:] = b"\xff" * 16
    assert found == [(list(range(50)), [])]


def test_what_came_of_a_large_frame_is_not_copied_again_with_each_piece():
    value = bytes(range(256)) * 4096
    pieces = cut(links.frame(value), 9000, 1)
    reader = links.Reader()
    for number, piece in enumerate(pieces[:-1], 1):
        assert reader.feed(piece, []) == []
        assert len(reader._pieces) == number and reader._pieces[-1] is piece
    assert reader.feed(pieces[-1], []) == [(value, [])]
    assert not reader._pieces
