"""A task that costs nothing."""


def mapfunc(params, items):
    return items[0] * 2


def double(item):
    return item * 2


def reduce(a, b):
    return a + b
