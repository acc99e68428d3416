# SPDX-License-Identifier: BSD-2-Clause
"""Programs that nftpolicy generates configuration files for, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ...generated_text import CheckedText, fill, join, own_text
from ...policy.objects import Policy
from . import dhclient, dhcpcd, ifupdown, netifd, networkd, networkmanager
from .generated_file import MODE_FILE, GeneratedFile

# Name -> generator of the files, and the command or step that puts them into effect.
PROGRAMS: Mapping[str, tuple[Callable[[Policy], tuple[GeneratedFile, ...]], str]] = {
    "networkd": (networkd.files, "systemctl restart systemd-networkd    # it reads networkd.conf when it starts"),
    "networkmanager": (networkmanager.files, "nmcli general reload, then nmcli connection reload"),
    "ifupdown": (ifupdown.files, "ifdown and ifup the device"),
    "dhclient": (dhclient.files, "nothing; they are read at the next lease"),
    "dhcpcd": (dhcpcd.files, "nothing; they are read at the next lease"),
    "netifd": (netifd.files, "reboot"),
}
# Directory of files -> the step after their removal, which puts the uplink's routes into table main again.
_STEPS_BACK = {
    "/etc/systemd/networkd.conf.d/": "systemctl restart systemd-networkd",
    "/etc/NetworkManager/conf.d/": "systemctl restart NetworkManager",
    "/etc/network/": "ifdown and ifup the device",
    "/etc/dhcp/": "start dhclient anew",
    "/etc/dhcpcd": "start dhcpcd anew",
}


def step_back(paths: Iterable[str]) -> str | None:
    """Return the step after the removal of files, None if no program of PROGRAMS has read them."""
    removed = tuple(paths)
    return next((step for begin, step in _STEPS_BACK.items() if any(path.startswith(begin) for path in removed)), None)


def netconfig_files(
    policy: Policy, program: str, present: Mapping[str, str] | None = None
) -> tuple[GeneratedFile, ...]:
    """Return the files for a program.

    `present`: path -> text of the files that configure networkd on the system; the others need none.

    Raises:
        KeyError: the program is not in PROGRAMS.
        SharedNetworkFile, Unwritable: as networkd.files.
    """
    if program == "networkd":
        return networkd.files(policy, present)
    return PROGRAMS[program][0](policy)


def render_files(files: tuple[GeneratedFile, ...]) -> CheckedText:
    """Return all files as one text for display."""
    modes = [own_text("") if file.mode == MODE_FILE else fill(", mode {mode:o}", mode=file.mode) for file in files]
    texts = (
        fill("# --- {path}{mode}\n{text}", path=file.path, mode=mode, text=file.text)
        for file, mode in zip(files, modes, strict=True)
    )
    return join("\n", texts)
