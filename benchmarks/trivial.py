"""The map function of the rounds benchmark: as little as there is to do."""


def mapfunc(params, _slice):
    return params + 1


def reduce(a, b):
    return a + b


def reduce_one(value):
    return value + 1
