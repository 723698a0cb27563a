"""The Invoke tasks of this checkout: `inv --list` shows them."""

import sys

# Invoke switches byte code off; then each command would compile all of jam, which takes 0.1 s
sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)

from jamtasks import interrupts  # noqa: E402

interrupts.end_at_once()  # all tasks here are jam's, which take it back while they run

from jamtasks.cli import namespace  # noqa: E402, F401
