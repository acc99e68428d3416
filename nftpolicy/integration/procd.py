# SPDX-License-Identifier: BSD-2-Clause
"""Text of the init scripts for OpenWrt.

rc.common runs them under busybox ash, procd runs the daemons. As with the systemd units, stopping a
script changes nothing in the kernel. The guard's script needs no Python. Only functions of rc.common
and procd.sh are used that OpenWrt's own scripts of 22.03 and later use.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from ..generated_text import CheckedText, fill, fill_marks, join, word
from .systemd_units import POLICY_PATH, path_values

INIT_DIR = "/etc/init.d"
_GUARD, _SERVICE = SCRIPT_NAMES = ("nftpolicy-guard", "nftpolicy")
# The firewall starts at 19 and the network at 20.
_START = {_GUARD: 18, _SERVICE: 21}
_TEMPLATES = {_GUARD: "procd-guard.sh", _SERVICE: "procd-service.sh"}

# Links that rc.common's "enable" creates: path -> target.
ENABLE_LINKS: Mapping[str, str] = {f"/etc/rc.d/S{_START[name]}{name}": f"../init.d/{name}" for name in SCRIPT_NAMES}

# Files that sysupgrade keeps. Python packages are not among them: the guard works without them.
_KEPT_PATHS = (
    "/etc/nftpolicy/",
    f"{INIT_DIR}/{_GUARD}",
    f"/etc/rc.d/S{_START[_GUARD]}{_GUARD}",
)
SYSUPGRADE_KEEP = {
    "/lib/upgrade/keep.d/nftpolicy": join("", (fill("{path}\n", path=word(path)) for path in _KEPT_PATHS))
}


def render_scripts(program: str, nft: str, policy: str = POLICY_PATH) -> dict[str, CheckedText]:
    """Return name -> text of every script, for the paths of nftpolicy, nft and the policy.

    Raises:
        ValueError: a path has a character with a special meaning in sh.
    """
    values = {name.upper(): path for name, path in path_values(program, nft, policy).items()}
    return {name: fill_marks(_template(name), {**values, "START": _START[name]}) for name in SCRIPT_NAMES}


def _template(name: str) -> str:
    return (files(__package__) / _TEMPLATES[name]).read_text(encoding="utf-8")
