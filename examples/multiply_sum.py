"""Params and default reduction: multiply every number by a factor and add them all up.

    inv map examples.multiply_sum
    inv map examples.multiply_sum --params 2.5

The dataset is a plain list, so the hosts need nothing but Python.
"""

params = 3  # sent in full with every call
dataset = list(range(1, 10001))  # sent once per host, then known there by its content


def mapfunc(factor, numbers):
    """The sum of factor * x. Without a `reduce`, results are added with +."""
    return sum(factor * x for x in numbers)


def report(result):
    print("sum of factor * x for x in 1 ... %d: %s" % (len(dataset), result))
