from __future__ import annotations

import os

from hypothesis import settings

# The same examples in every run, and no wall clock. USBPLUGIN_HYPOTHESIS=explore looks further.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=5_000, deadline=None)
settings.load_profile(os.environ.get("USBPLUGIN_HYPOTHESIS", "repeatable"))
