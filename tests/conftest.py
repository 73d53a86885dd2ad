"""Settings all tests share."""

import os
from pathlib import Path

from hypothesis import settings

# Nothing is kept between tests, nor in the user's cache folder.
os.environ["GREENCC_CACHE"] = ""
# Nor are the user's own device profiles read.
os.environ["XDG_DATA_HOME"] = str(Path(__file__).parent / "no-such-folder")

# The same examples on every machine and in every run: a failure in one place can be repeated in another.
settings.register_profile("greencc", derandomize=True, deadline=None, database=None)
settings.load_profile("greencc")
