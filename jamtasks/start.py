"""The program `jam`: Ctrl-C is provided for first, then the rest is loaded."""

import sys


def main() -> None:
    """The command `jam`: the tasks of `cli`, wherever one is."""
    try:
        from . import interrupts

        interrupts.end_at_once()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    from .cli import program

    program().run()
