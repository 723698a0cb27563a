"""Sums of many progressions at once: results are lists, which the default reduction adds
element by element.

    inv map examples.progressions
    inv map examples.progressions --params '{"terms": 50}'

Each item (first, step) stands for an arithmetic progression first, first + step, ... and for a
geometric one first, first * step, ... A slice is a list of such items.
"""

params = {"terms": 20}
dataset = [(first, step) for first in range(1, 41) for step in range(2, 12)]


def mapfunc(params, items):
    """[sum over all terms of the arithmetic progressions, the same of the geometric ones]."""
    arithmetic = geometric = 0
    for first, step in items:
        for k in range(params["terms"]):
            arithmetic += first + k * step
            geometric += first * step**k
    return [arithmetic, geometric]


def expected(terms):
    """The same by the closed forms: n a + d n (n - 1) / 2 and a (q^n - 1) / (q - 1)."""
    arithmetic = sum(terms * a + d * terms * (terms - 1) // 2 for a, d in dataset)
    geometric = sum(a * (q**terms - 1) // (q - 1) for a, q in dataset)
    return [arithmetic, geometric]


def report(result):
    arithmetic, geometric = result
    print("%d progressions of each kind" % len(dataset))
    print("arithmetic %d" % arithmetic)
    print("geometric  %d" % geometric)
