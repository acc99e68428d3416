# SPDX-License-Identifier: BSD-2-Clause
"""File tree for a router: path -> text, the same for the same policy."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from itertools import takewhile

from attrs import evolve, frozen

from ...compiler import object_names
from ...compiler.block import minimal_block_table
from ...compiler.compile import compile_policy
from ...compiler.sysctls import required_sysctls
from ...exceptions import NftpolicyError
from ...generated_text import CheckedText, CheckedValue, comment, device_name, fill, fill_marks, join, sysctl_path, word
from ...netstate.formats import nft_text
from ...netstate.nft import Table
from ...netstate.routing import RTPROT_NFTPOLICY, SYSCTL_SEPARATORS
from ...policy.objects import Policy
from . import uci, uci_lint
from .flush_filter import EXPANSION
from .router_plan import router_plan

CHECKSUMS_PATH = "usr/share/nftpolicy/files"  # checksums of all other files, in the form of sha256sum(1)
GUARD_PATH = "usr/share/nftables.d/ruleset-post/nftpolicy.nft"
LINK_PATH, BLOCK_PATH = "usr/share/nftpolicy/link.nft", "usr/share/nftpolicy/block.nft"
PLAN_PATH, SECTIONS_PATH = "usr/share/nftpolicy/plan", "usr/share/nftpolicy/network.uci"
KEEP_PATH = "lib/upgrade/keep.d/nftpolicy"  # files that sysupgrade keeps
RUNNER_PATH, DEFAULTS_PATH = "usr/sbin/nftpolicy", "etc/uci-defaults/95-nftpolicy"

_SCRIPTS = {  # path -> template in this directory
    RUNNER_PATH: "runner.sh",
    DEFAULTS_PATH: "defaults.sh",
    "etc/init.d/nftpolicy": "init.sh",
    "etc/hotplug.d/iface/30-nftpolicy": "hotplug.sh",
}

_ENABLE_LINKS = ("etc/rc.d/S18nftpolicy",)  # by "enable" of the init script
_OMITTED = re.compile(r"\s*(#(?! shellcheck )|$)")  # comments and empty lines
_HEAD = "# nftpolicy: {title}\n# Generated from the policy.\n\n"


class UciLintError(NftpolicyError, ValueError):
    """UCI section that netifd or fw4 would not apply as written."""


@frozen
class TreeFile:
    """Text and permission of one file."""

    text: CheckedText
    executable: bool = False


def build_tree(policy: Policy, link_guard: bool = True) -> dict[str, TreeFile]:
    """Return all files, by path without the leading slash.

    Raises:
        UciLintError: netifd would leave a section out, or apply it differently.
        ValueError: a name cannot be written in one of the files.
    """
    guard, link = compile_policy(policy).tables
    network = uci.network_sections(policy)
    for section in network:
        for fault in uci_lint.section_faults(section):
            raise UciLintError(f"{section.config}.{section.name}: {fault}")
    shared = evolve(link, chains=tuple(chain for chain in link.chains if chain.hook is None))
    files_by_path = {
        GUARD_PATH: _nft("guard of the IP layer. fw4 loads it with its own tables in one transaction.", guard),
        BLOCK_PATH: _nft(
            "drops all packets to the uplinks; loaded if the guard cannot be loaded.", minimal_block_table(policy)
        ),
        PLAN_PATH: TreeFile(router_plan(policy, link_guard)),
        SECTIONS_PATH: TreeFile(
            _with_head("sections that etc/uci-defaults adds to /etc/config/network.", uci.render_config(network))
        ),
        "etc/sysctl.d/50-nftpolicy.conf": TreeFile(_sysctls(policy)),
    }
    if link_guard:
        files_by_path[LINK_PATH] = _nft("guard of the link layer; the script adds the chains of the devices.", shared)
    marks: dict[str, CheckedValue] = {
        "PROTOCOL": RTPROT_NFTPOLICY,
        "TABLE": word(object_names.TABLE),
        "POLICY": word(policy.name),
        "EXPANSION": EXPANSION,
        "BATCH": uci.render_batch(network),
        "TABLES": join("\n\t", map(_case_line, uci.uplink_attachments(policy))),
    }
    files_by_path |= {
        path: TreeFile(fill_marks(_template(name), marks), executable=True) for path, name in _SCRIPTS.items()
    }
    kept_paths = sorted([*files_by_path, KEEP_PATH, CHECKSUMS_PATH, *_ENABLE_LINKS])
    files_by_path[KEEP_PATH] = TreeFile(join("", (fill("/{path}\n", path=word(path)) for path in kept_paths)))
    return dict(sorted({**files_by_path, CHECKSUMS_PATH: TreeFile(checksum_list(files_by_path))}.items()))


def snapshot_script() -> str:
    """Return the script that writes a snapshot on a machine without Python."""
    return fill_marks(_template("snapshot.sh"), {})


def checksum_list(files_by_path: dict[str, TreeFile]) -> CheckedText:
    """Return the checksum list, for `sha256sum -c` on the router.

    The list also identifies files that nftpolicy generated.
    """
    digests = {path: hashlib.sha256(file.text.encode()).hexdigest() for path, file in files_by_path.items()}
    lines = (
        fill("{digest}  {path}\n", digest=word(digest), path=word(path)) for path, digest in sorted(digests.items())
    )
    return join("", lines)


def _nft(title: str, table: Table) -> TreeFile:
    # Without indentation: flash is scarce on a router.
    return TreeFile(_with_head(title, nft_text.unindented_table_text(table)))


def _with_head(title: str, text: CheckedText) -> CheckedText:
    return join("", (fill(_HEAD, title=comment(title)), text))


def _template(name: str) -> str:
    """Return a script, without indentation and the comments below its head: flash is scarce on a router."""
    lines = (files(__package__) / name).read_text(encoding="utf-8").splitlines(keepends=True)
    head = list(takewhile(lambda line: line.startswith("#"), lines))
    return "".join(head + [line.lstrip("\t") for line in lines[len(head) :] if not _OMITTED.match(line)])


def _case_line(attachment: uci.UplinkAttachment) -> CheckedText:
    """Return a line of a `case`."""
    return fill(
        "{devices}) echo {table} ;;", devices=join(" | ", map(device_name, attachment.devices)), table=attachment.table
    )


def _sysctls(policy: Policy) -> CheckedText:
    """Return the sysctls with dots, the form that OpenWrt's hotplug script looks a device up by.

    A dot in a device name becomes a slash.
    """
    lines = [
        fill(
            "{path}={value}\n",
            path=word(sysctl_path(sysctl.path).translate(SYSCTL_SEPARATORS)),
            value=int(sysctl.value),
        )
        for sysctl in required_sysctls(policy)
    ]
    return _with_head("for boot; the nftpolicy script writes the same values.", join("", lines))
