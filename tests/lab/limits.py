"""Time limits of labs and tests, in seconds, times NFTPOLICY_TEST_PATIENCE (default 1)."""

import os

GENEROUS = 20.0
PATIENCE = float(os.environ.get("NFTPOLICY_TEST_PATIENCE") or 1)


def limit(seconds: float) -> float:
    """Return the time limit of a wait that ends early when its event happens.

    A wait of a second or more is for an event that must happen: it lasts at least 20 seconds, as only a failing test
    needs them. A shorter wait is for an event that may not happen, such as the arrival of a packet that a rule drops.
    """
    return brief(max(seconds, GENEROUS) if seconds >= 1 else seconds)


def brief(seconds: float) -> float:
    """Return the time limit of a wait that passing tests may spend in full."""
    return seconds * PATIENCE
