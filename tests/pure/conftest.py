"""Hypothesis for all pure tests: nothing here says how fast this machine is."""

from hypothesis import settings

settings.register_profile("jam", deadline=None)
settings.load_profile("jam")
