"""Inner product of two vectors that are the columns of one matrix, sliced by rows.

    inv map examples.inner_product

Row i holds (x_i, y_i); so whoever has some rows has matching pieces of both vectors. With integers
the result is exact whatever the slicing: x = 0, 1, ... and y = 1, 2, ... give n (n^2 - 1) / 3.
"""

LENGTH = 100000


def dataset():
    """LENGTH x 2, int64."""
    import numpy

    x = numpy.arange(LENGTH, dtype=numpy.int64)
    return numpy.column_stack([x, x + 1])


def mapfunc(params, pairs):
    return int(pairs[:, 0].dot(pairs[:, 1]))


def expected():
    return LENGTH * (LENGTH * LENGTH - 1) // 3


def report(result):
    print("expected %d" % expected())
    print("computed %d" % result)
