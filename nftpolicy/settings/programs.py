# SPDX-License-Identifier: BSD-2-Clause
"""The programs that there are settings for, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..policy.objects import Policy
from . import dhclient, dhcpcd, ifupdown, netifd, networkd, networkmanager
from .file import PLAIN, File

# Name -> what makes the files, and what to do when they are in place.
PROGRAMS: Mapping[str, tuple[Callable[[Policy], tuple[File, ...]], str]] = {
    "networkd": (networkd.files, "networkctl reload"),
    "networkmanager": (networkmanager.files, "nmcli general reload, then nmcli connection reload"),
    "ifupdown": (ifupdown.files, "ifdown and ifup the device"),
    "dhclient": (dhclient.files, "nothing; they are read at the next lease"),
    "dhcpcd": (dhcpcd.files, "nothing; they are read at the next lease"),
    "netifd": (netifd.files, "reboot"),
}


def settings(policy: Policy, program: str) -> tuple[File, ...]:
    """The files for a program. KeyError for an unknown one."""
    return PROGRAMS[program][0](policy)


def shown(files: tuple[File, ...]) -> str:
    """All of them one below the other, for a person."""
    modes = ["" if one.mode == PLAIN else f", mode {one.mode:o}" for one in files]
    return "\n".join(f"# --- {one.path}{mode}\n{one.text}" for one, mode in zip(files, modes, strict=True))
