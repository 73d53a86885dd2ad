"""Settings all tests share."""

from hypothesis import settings

# The same examples on every machine and in every run: a failure in one place can be repeated in another.
settings.register_profile("greencc", derandomize=True, deadline=None, database=None)
settings.load_profile("greencc")
