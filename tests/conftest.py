"""What every test runs under: hypothesis without deadlines, and with many more examples for `make fuzz`."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile(
    "fuzz", parent=settings.get_profile("default"), max_examples=int(os.environ.get("STREAMKIT_FUZZ_EXAMPLES", "20000"))
)
settings.load_profile(os.environ.get("STREAMKIT_HYPOTHESIS_PROFILE", "default"))
