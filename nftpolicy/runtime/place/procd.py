# SPDX-License-Identifier: BSD-2-Clause
"""The init scripts of OpenWrt, as text: /etc/rc.common runs them under busybox's ash, procd what they name.

As with systemd's units (units.py), nothing that stops takes anything out of the kernel. The guard needs no Python.
What is asked of rc.common and procd.sh is what OpenWrt's own scripts of 22.03 and later ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from .boot import GUARD, block, link
from .units import POLICY, checked

FOLDER = "/etc/init.d"
_GUARD, _SERVICE = NAMES = ("nftpolicy-guard", "nftpolicy")
# The firewall starts at 19 and the network at 20.
_START = {_GUARD: 18, _SERVICE: 21}
_TEMPLATES = {_GUARD: "procd-guard.sh", _SERVICE: "procd-service.sh"}

# How rc.common's "enable" does it: a link -> where it leads.
LINKS: Mapping[str, str] = {f"/etc/rc.d/S{_START[name]}{name}": f"../init.d/{name}" for name in NAMES}

# What sysupgrade takes along. Python packages are not in it: the guard stands without them.
KEEP = {
    "/lib/upgrade/keep.d/nftpolicy": f"/etc/nftpolicy/\n{FOLDER}/{_GUARD}\n/etc/rc.d/S{_START[_GUARD]}{_GUARD}\n",
}


def scripts(program: str, nft: str, policy: str = POLICY) -> dict[str, str]:
    """Name -> text of every script, for these two programs.

    Raises:
        ValueError: a path that would mean something else in a script.
    """
    words = {"PROGRAM": program, "NFT": nft, "POLICY": policy}
    for path in words.values():
        checked(path)
    words |= {"GUARD": str(GUARD), "BLOCK": str(block(GUARD)), "LINK": str(link(GUARD))}
    return {name: _filled(_TEMPLATES[name], {**words, "START": str(_START[name])}) for name in NAMES}


def _filled(template: str, words: Mapping[str, str]) -> str:
    text = (files(__package__) / template).read_text(encoding="utf-8")
    for word, meaning in words.items():
        text = text.replace(f"@{word}@", meaning)
    return text
