"""Examples: each is a module for `inv map examples.NAME`; some are programs too."""
