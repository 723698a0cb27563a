"""A job: which number between `first` and `last` takes most steps of the Collatz rule to reach 1?

It is called with the path of its job file, reads its own section of it, and writes the answer into
the log file that the job file names; so it could be run by hand as well.
"""

import configparser
import os
import sys


def steps(number):
    """
    >>> steps(1), steps(27)
    (0, 111)
    """
    count = 0
    while number != 1:
        number = number // 2 if number % 2 == 0 else 3 * number + 1
        count += 1
    return count


def longest(first, last):
    """(number, its steps); the smallest of those that take most."""
    best = max(range(first, last + 1), key=lambda number: (steps(number), -number))
    return best, steps(best)


def main(path):
    job = configparser.ConfigParser(interpolation=None)
    with open(path) as handle:
        job.read_file(handle)
    first, last = job.getint("search", "first"), job.getint("search", "last")
    logfile = job.get("control", "logfile")
    os.makedirs(os.path.dirname(logfile) or ".", exist_ok=True)
    with open(logfile, "w") as handle:
        handle.write(
            "of %d to %d, %d takes most: %d steps\n" % (first, last, *longest(first, last))
        )


if __name__ == "__main__":
    main(sys.argv[1])
