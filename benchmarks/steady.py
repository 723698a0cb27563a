"""A task of 5 ms that says how long it took, by its worker's clock."""

import time


def work(_item):
    began = time.perf_counter()
    time.sleep(0.005)
    return time.perf_counter() - began
