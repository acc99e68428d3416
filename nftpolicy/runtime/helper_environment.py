# SPDX-License-Identifier: BSD-2-Clause
"""Environment of the programs that daemons start for themselves: dnsmasq, busctl, ubus."""

from __future__ import annotations

import os


def helper_environment() -> dict[str, str]:
    """Return the search path of this process and the C locale: helpers need nothing else."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
