"""Text for modules whose functions do what they should not, once."""

ONCE = """
import os, signal, stat, sys, time
import numpy

def first(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
"""
