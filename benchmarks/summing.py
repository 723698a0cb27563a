"""The map function of the push benchmark: reads all of the data, does little with it."""

import os
import time


def mapfunc(linger, rows):
    """The sum of the rows. linger: seconds to hold on to them, so that memory can be looked at.

    Without rows it says which process this is."""
    if rows is None:
        return [os.getpid()]
    total = float(rows.sum())
    if linger:
        time.sleep(linger)
    return total


def reduce(a, b):
    return a + b
