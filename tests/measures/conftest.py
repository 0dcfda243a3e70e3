"""Property-based tests here are pure arithmetic: no deadline on a shared machine, the same examples every run."""

from hypothesis import settings

settings.register_profile("measures", deadline=None, derandomize=True)
settings.load_profile("measures")
