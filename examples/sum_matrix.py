"""Sum of all elements of a matrix: `inv map examples.sum_matrix`.

The matrix holds 0, 1, 2, ... in int64, so the sum is known without adding: n (n - 1) / 2 for n
elements. The hosts need numpy, because slices of an array arrive as arrays.
"""

ROWS, COLUMNS = 1000, 1000


def dataset():
    """The matrix: ROWS x COLUMNS, int64, 8 MB. It is cut by rows."""
    import numpy

    return numpy.arange(ROWS * COLUMNS, dtype=numpy.int64).reshape(ROWS, COLUMNS)


def mapfunc(params, rows):
    """Runs on the hosts: the sum of these rows. params is not used."""
    return int(rows.sum())


def reduce(a, b):
    """Runs here, on results in the order of the slices. (The default would do just this.)"""
    return a + b


def expected():
    count = ROWS * COLUMNS
    return count * (count - 1) // 2


def report(result):
    """What `inv map` prints instead of the bare result."""
    print("expected %d" % expected())
    print("computed %d" % result)
    print("equal" if result == expected() else "NOT EQUAL")
