"""The Invoke tasks of this checkout: `inv --list` shows them."""

from jamtasks.cli import namespace  # noqa: F401
