"""How often does each character occur in some text files?

    inv map examples.char_count
    inv map examples.char_count --dataset 'texts/*.txt'

Slices are lists of lines; large files are cut at line ends without being read here. The hosts need
nothing but Python. The result is a plain dict: a Counter would come back only if its class had
been shipped with this module.
"""

import os


def dataset():
    """The lines of the texts that lie beside this file."""
    import glob

    from jamtasks import TextLinesDataSet

    here = os.path.dirname(os.path.abspath(__file__))
    return TextLinesDataSet(sorted(glob.glob(os.path.join(here, "texts", "*.txt"))))


def mapfunc(params, lines):
    """{character: how often}, line ends not counted."""
    counts = {}
    for line in lines:
        for character in line.rstrip("\r\n"):
            counts[character] = counts.get(character, 0) + 1
    return counts


def reduce(a, b):
    """Sums by character. Returns a new dict."""
    total = dict(a)
    for character, count in b.items():
        total[character] = total.get(character, 0) + count
    return total


def report(result):
    """The twenty most frequent, with bars; equal counts in the order of the alphabet."""
    total = sum(result.values())
    print("%d characters, %d different" % (total, len(result)))
    ordered = sorted(result.items(), key=lambda pair: (-pair[1], pair[0]))
    for character, count in ordered[:20]:
        share = count / total
        print("%-7r %8d %5.1f %% %s" % (character, count, 100 * share, "#" * int(200 * share)))
