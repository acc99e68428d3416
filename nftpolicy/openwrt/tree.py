# SPDX-License-Identifier: BSD-2-Clause
"""The tree of files for a router: path -> text, the same for the same policy."""

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

LIST = "usr/share/nftpolicy/files"  # in the form of sha256sum(1), of all other files
GUARD = "usr/share/nftables.d/ruleset-post/nftpolicy.nft"
LINK, BLOCK = "usr/share/nftpolicy/link.nft", "usr/share/nftpolicy/block.nft"
PLAN, SECTIONS = "usr/share/nftpolicy/plan", "usr/share/nftpolicy/network.uci"
RUNNER, DEFAULTS = "usr/sbin/nftpolicy", "etc/uci-defaults/95-nftpolicy"

_SCRIPTS = {  # path -> the template beside this module
    RUNNER: "runner.sh",
    DEFAULTS: "defaults.sh",
    "etc/init.d/nftpolicy": "init.sh",
    "etc/hotplug.d/iface/30-nftpolicy": "hotplug.sh",
}

_HEAD = "# nftpolicy: {what}\n# Compiled; to be changed in the policy, not here.\n\n"


class Trap(ValueError):
    """netifd or fw4 would not do what the section says."""


@frozen
class File:
    """One file of the tree."""

    text: str
    executable: bool = False


def tree(policy: Policy, link_guard: bool = True) -> dict[str, File]:
    """All files, by path without the leading slash.

    Raises:
        Trap: a section that would be left out, or would mean something else.
        ValueError: a name that one of the files can't carry.
    """
    guard, link = compile_policy(policy).tables
    network = uci.sections(policy)
    for section in network:
        for fault in traps.faults(section):
            raise Trap(f"{section.config}.{section.name}: {fault}")
    shared = evolve(link, chains=tuple(chain for chain in link.chains if chain.hook is None))
    found = {
        GUARD: _nft("the guard of the IP layer. fw4 loads it with its own tables, as one transaction.", guard),
        BLOCK: _nft("nothing leaves by an uplink; in force if the guard can't be loaded.", least(policy)),
        PLAN: File(plan(policy, link_guard)),
        SECTIONS: File(
            _HEAD.format(what="what etc/uci-defaults adds to /etc/config/network.") + uci.as_config(network)
        ),
        "etc/sysctl.d/50-nftpolicy.conf": File(_sysctls(policy)),
    }
    if link_guard:
        found[LINK] = _nft("the guard of the link layer; the chains of the devices are added there.", shared)
    words = {
        "@PROTOCOL@": str(PROTOCOL),
        "@TABLE@": names.TABLE,
        "@POLICY@": policy.name,
        "@BATCH@": uci.as_batch(network),
        "@TABLES@": "\n\t".join(_case(one) for one in uci.attachments(policy)),
    }
    found |= {path: File(_filled(name, words), executable=True) for path, name in _SCRIPTS.items()}
    return dict(sorted({**found, LIST: File(listing(found))}.items()))


def listing(found: dict[str, File]) -> str:
    """The list of files, by which what was written is known again; `sha256sum -c` on the router reads it."""
    digests = {path: hashlib.sha256(file.text.encode()).hexdigest() for path, file in found.items()}
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items()))


def _nft(what: str, table: Table) -> File:
    return File(_HEAD.format(what=what) + text.replacing(table))


def _filled(name: str, words: dict[str, str]) -> str:
    script = (files(__package__) / name).read_text(encoding="utf-8")
    for word, meaning in words.items():
        script = script.replace(word, meaning)
    return script


def _case(one: uci.Attachment) -> str:
    """A line of a `case`. A device's name is made of letters that the shell takes as they are."""
    return f"{' | '.join(one.devices)}) echo {one.table} ;;"


def _sysctls(policy: Policy) -> str:
    """With dots, as the hotplug script of OpenWrt looks for a device's; a dot in its name becomes a slash."""
    lines = [
        f"{one.path.replace('.', chr(0)).replace('/', '.').replace(chr(0), '/')}={one.value}" for one in sysctls(policy)
    ]
    return _HEAD.format(what="for the start; the runner writes the same.") + "".join(f"{line}\n" for line in lines)
