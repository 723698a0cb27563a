"""The map functions of the benchmark of large answers."""

import time

import numpy

_made = {}


def mapfunc(size, item):
    """An array of `size` bytes, made once per worker. item: [seconds to wait before], or None."""
    if item is not None and item[0]:
        time.sleep(item[0])
    if size not in _made:
        _made[size] = numpy.random.default_rng(size).random(size // 8)
    return _made[size]


def reduce(a, b):
    """In place: the sum and one more answer are all that is needed."""
    a += b
    return a
