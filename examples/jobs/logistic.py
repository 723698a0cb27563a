"""A parameter sweep: into which cycle does x -> r x (1 - x) settle?

    inv dispatch --exe 'python3 examples/jobs/logistic.py {r} {x}' \\
        --grid r=2.5,3.2,3.5,3.55,3.9 --grid x=0.1,0.4 --reduce examples.jobs.logistic --hire 2

As a program this file is the job: it prints its answer as JSON. As a module it is what folds the
answers of all jobs, in their order, into one.
"""

import json
import sys

LONGEST = 64  # a longer cycle counts as chaos: 0


def period(r, x):
    """The length of the cycle that x ends in, 0 if there is none up to LONGEST.

    >>> period(2.5, 0.1), period(3.2, 0.1), period(3.9, 0.1)
    (1, 2, 0)
    """
    for _ in range(100000):
        x = r * x * (1 - x)
    start = x
    for length in range(1, LONGEST + 1):
        x = r * x * (1 - x)
        if abs(x - start) < 1e-9:
            return length
    return 0


def reduce(a, b):
    """Answers by r: {"2.5": [1, 1], ...}, in the order of the jobs."""
    return {r: a.get(r, []) + b.get(r, []) for r in [*a, *(r for r in b if r not in a)]}


def report(result):
    for r, found in result.items():
        print("r = %-5s %s" % (r, " ".join(str(length or "chaos") for length in found)))


if __name__ == "__main__":
    given_r, given_x = sys.argv[1:]
    print(json.dumps({given_r: [period(float(given_r), float(given_x))]}))
