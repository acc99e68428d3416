"""Profiles of Hypothesis: `ci` tries the same examples in each run, `long` tries others each time.

HYPOTHESIS_PROFILE or pytest's --hypothesis-profile names another one than `ci`.
"""

import os

from hypothesis import HealthCheck, Phase, settings

DEFAULT = "ci"

settings.register_profile(
    "long",
    deadline=None,
    derandomize=False,
    max_examples=20,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("ci", settings.get_profile("long"), derandomize=True, database=None)


def load(name: str | None = None) -> None:
    """Load a profile, by default that of the environment, and derive `first` from it.

    `first` only reports that something is wrong, without a minimal example: for tests of the tests.
    """
    settings.load_profile(name or os.environ.get("HYPOTHESIS_PROFILE") or DEFAULT)
    settings.register_profile("first", phases=[Phase.explicit, Phase.generate], database=None)


load()
