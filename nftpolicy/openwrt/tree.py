# SPDX-License-Identifier: BSD-2-Clause
"""File tree for a router: path -> text, the same for the same policy."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from attrs import evolve, frozen

from ..compiler import names
from ..compiler.block import least
from ..compiler.compile import compile_policy
from ..compiler.sysctls import sysctls
from ..netstate import text
from ..netstate.nft import Table
from ..netstate.routing import PROTOCOL
from ..policy.objects import Policy
from . import traps, uci
from .plan import plan

LIST = "usr/share/nftpolicy/files"  # checksums of all other files, in the form of sha256sum(1)
GUARD = "usr/share/nftables.d/ruleset-post/nftpolicy.nft"
LINK, BLOCK = "usr/share/nftpolicy/link.nft", "usr/share/nftpolicy/block.nft"
PLAN, SECTIONS = "usr/share/nftpolicy/plan", "usr/share/nftpolicy/network.uci"
RUNNER, DEFAULTS = "usr/sbin/nftpolicy", "etc/uci-defaults/95-nftpolicy"

_SCRIPTS = {  # path -> template in this directory
    RUNNER: "runner.sh",
    DEFAULTS: "defaults.sh",
    "etc/init.d/nftpolicy": "init.sh",
    "etc/hotplug.d/iface/30-nftpolicy": "hotplug.sh",
}

_HEAD = "# nftpolicy: {title}\n# Generated; change the policy, not this file.\n\n"


class Trap(ValueError):
    """UCI section that netifd or fw4 would not apply as written."""


@frozen
class File:
    """Text and permission of one file."""

    text: str
    executable: bool = False


def tree(policy: Policy, link_guard: bool = True) -> dict[str, File]:
    """Return all files, by path without the leading slash.

    Raises:
        Trap: netifd would leave a section out, or apply it differently.
        ValueError: a name cannot be written in one of the files.
    """
    guard, link = compile_policy(policy).tables
    network = uci.sections(policy)
    for section in network:
        for fault in traps.faults(section):
            raise Trap(f"{section.config}.{section.name}: {fault}")
    shared = evolve(link, chains=tuple(chain for chain in link.chains if chain.hook is None))
    files_by_path = {
        GUARD: _nft("guard of the IP layer. fw4 loads it with its own tables in one transaction.", guard),
        BLOCK: _nft("drops all packets to the uplinks; loaded if the guard cannot be loaded.", least(policy)),
        PLAN: File(plan(policy, link_guard)),
        SECTIONS: File(
            _HEAD.format(title="sections that etc/uci-defaults adds to /etc/config/network.") + uci.as_config(network)
        ),
        "etc/sysctl.d/50-nftpolicy.conf": File(_sysctls(policy)),
    }
    if link_guard:
        files_by_path[LINK] = _nft("guard of the link layer; the script adds the chains of the devices.", shared)
    placeholders = {
        "@PROTOCOL@": str(PROTOCOL),
        "@TABLE@": names.TABLE,
        "@POLICY@": policy.name,
        "@BATCH@": uci.as_batch(network),
        "@TABLES@": "\n\t".join(_case_line(attachment) for attachment in uci.attachments(policy)),
    }
    files_by_path |= {
        path: File(_fill_template(name, placeholders), executable=True) for path, name in _SCRIPTS.items()
    }
    return dict(sorted({**files_by_path, LIST: File(listing(files_by_path))}.items()))


def listing(files_by_path: dict[str, File]) -> str:
    """Return the checksum list, for `sha256sum -c` on the router.

    The list also identifies files that nftpolicy generated.
    """
    digests = {path: hashlib.sha256(file.text.encode()).hexdigest() for path, file in files_by_path.items()}
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items()))


def _nft(title: str, table: Table) -> File:
    return File(_HEAD.format(title=title) + text.replacing(table))


def _fill_template(name: str, placeholders: dict[str, str]) -> str:
    script = (files(__package__) / name).read_text(encoding="utf-8")
    for placeholder, value in placeholders.items():
        script = script.replace(placeholder, value)
    return script


def _case_line(attachment: uci.Attachment) -> str:
    """Return a line of a `case`. The shell interprets no character of a device name."""
    return f"{' | '.join(attachment.devices)}) echo {attachment.table} ;;"


def _sysctls(policy: Policy) -> str:
    """Return the sysctls with dots, the form that OpenWrt's hotplug script looks a device up by.

    A dot in a device name becomes a slash.
    """
    lines = [
        f"{sysctl.path.replace('.', chr(0)).replace('/', '.').replace(chr(0), '/')}={sysctl.value}"
        for sysctl in sysctls(policy)
    ]
    return _HEAD.format(title="for boot; the nftpolicy script writes the same values.") + "".join(
        f"{line}\n" for line in lines
    )
