"""Square root by Newton's method from many starting points at once.

    python examples/newton_sqrt.py 123456789 [host ...]
    inv map examples.newton_sqrt --params 2

Newton's iteration x -> (x + n/x) / 2 is sequential; what can be shared out is the choice of the
starting point. Every slice holds some, follows each until x no longer changes, and keeps the one
that took the fewest steps. The program maps itself: `__main__` travels as its file.
"""

import sys

params = 123456789.0
dataset = [2.0**exponent for exponent in range(-16, 49)]


def mapfunc(number, starts):
    """(steps, starting point, root) of the quickest of these starting points."""
    return min((len(path), start, path[-1]) for start, path in
               ((start, newton(number, start)) for start in starts))  # fmt: skip


def newton(number, start):
    """The points of the iteration after `start`, until it stands still or swings between
    neighbours. number: above 0 and below 1e300; start: at least 2**-16."""
    path = [start]
    while len(path) < 5000:
        x = path[-1]
        path.append((x + number / x) / 2)
        if path[-1] == x or path[-1] in path[-3:-1]:
            break
    return path[1:]


def reduce(a, b):
    """The quicker one; of equals the smaller starting point."""
    return min(a, b)


def report(result):
    steps, start, root = result
    print("root  %.17g" % root)
    print(
        "found in %d steps from %g, the best of %d starting points" % (steps, start, len(dataset))
    )


def main(arguments):
    """arguments: the number, then hosts; without hosts those of hosts.yaml, else this machine."""
    import os

    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from jamtasks import JamError, Master

    if not arguments:
        print("usage: python examples/newton_sqrt.py NUMBER [host ...]", file=sys.stderr)
        return 2
    try:
        number = float(arguments[0])
        if not 0 < number < 1e300:  # beyond, number / start overflows
            raise ValueError
    except ValueError:
        print("not a number above 0 and below 1e300: %s" % arguments[0], file=sys.stderr)
        return 2
    try:
        with Master(arguments[1:] or None) as master:
            report(master.run(sys.modules[__name__], number, dataset))
    except JamError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
