# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy compile FILE [--to FORM] [DIR]"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..compiler.compile import HostFacts, compile_policy
from ..netstate.formats import ip_text, nft_json_encode, nft_text
from ..netstate.state import NetState
from ..policy.objects import Policy
from .common import EXIT_BAD_INPUT, Failure, read_policy, warn
from .parameters import argument, option
from .plain_output import json_line, print_json

if TYPE_CHECKING:
    from ..policy.errors import PolicyText


class Form(StrEnum):
    """Output formats of a compiled policy."""

    json = "json"
    nft = "nft"
    ip4 = "ip4"
    ip6 = "ip6"
    summary = "summary"
    openwrt = "openwrt"
    openwisp = "openwisp"


def _json_text(_: Policy, state: NetState) -> str:
    return json_line(nft_json_encode.encode_ruleset(state.tables), indent=1) + "\n"


def _summary_text(policy: Policy, state: NetState) -> str:
    from ..compiler.describe import describe_policy

    return describe_policy(policy, state)


_PRINTED_FORMS: dict[Form, Callable[[Policy, NetState], str]] = {
    Form.json: _json_text,
    Form.nft: lambda _, state: "\n".join(map(nft_text.table_text, state.tables)),
    Form.ip4: lambda _, state: ip_text.batch_text(state.rules, state.routes, 4),
    Form.ip6: lambda _, state: ip_text.batch_text(state.rules, state.routes, 6),
    Form.summary: _summary_text,
}


def command(
    file: Annotated[Path, argument(metavar="FILE", help="Policy file (TOML). - reads standard input.")],
    dir: Annotated[
        Path | None,
        argument(metavar="[DIR]", help="Directory for the files of --to openwrt: the root of an image."),
    ] = None,
    to: Annotated[Form, option(help="Output format.")] = Form.summary,
    ports: Annotated[
        list[str] | None,
        option(help="BRIDGE=PORT: a port of an uplink that is a bridge; may be repeated."),
    ] = None,
    link_guard: Annotated[
        bool,
        option(help="Include the table at netdev egress, which old kernels do not support."),
    ] = True,
    force: Annotated[
        bool,
        option(
            "--force",
            help="Replace files in DIR that were changed, or that nftpolicy did not write.",
        ),
    ] = False,
) -> None:
    """Print what a policy compiles to, or write it for a router.

    Needs no root.
    """
    policy, source = read_policy(file)
    if to in (Form.openwrt, Form.openwisp) and ports:
        raise Failure(
            f"--ports cannot be used with --to {to}: the router finds the ports of its bridges",
            EXIT_BAD_INPUT,
        )
    if to is Form.openwrt:
        if dir is None:
            raise Failure("--to openwrt writes files: name the directory, as in --to openwrt DIR", EXIT_BAD_INPUT)
        _write_tree(policy, source, dir, link_guard, force)
        return
    if dir is not None or force:
        raise Failure(f"--to {to} prints: DIR and --force are for --to openwrt", EXIT_BAD_INPUT)
    if to is Form.openwisp:
        _print_template(policy, source, link_guard)
        return
    bridge_ports: dict[str, list[str]] = {}
    for item in ports or []:
        bridge, equals, port = item.partition("=")
        if not equals or not port:
            raise Failure(f"--ports takes BRIDGE=PORT, got {item!r}", EXIT_BAD_INPUT)
        bridge_ports.setdefault(bridge, []).append(port)
    print(
        _PRINTED_FORMS[to](policy, compile_policy(policy, HostFacts(bridge_ports, link_guard))),
        end="",
    )


def _write_tree(policy: Policy, source: PolicyText, root: Path, link_guard: bool, force: bool) -> None:
    """Write the files of a router below `root`, if the policy is proved."""
    from ..integration.openwrt.tree import CHECKSUMS_PATH, build_tree
    from ..runtime.install.file_tree import install_tree
    from .install_common import install_errors_as_failure, print_written, require_directory

    require_directory("--to openwrt", root)
    _require_proofs(policy, source)
    try:
        files = build_tree(policy, link_guard)
    except ValueError as error:
        raise Failure(f"{source.name}: cannot be expressed on OpenWrt: {error}", EXIT_BAD_INPUT) from None
    executable = frozenset(path for path, file in files.items() if file.executable)
    contents = {path: file.text.encode() for path, file in files.items()}
    with install_errors_as_failure():
        installed = install_tree(root, contents, executable, CHECKSUMS_PATH, force)
    _warn_of_limits(policy, source)
    written = [f"wrote {path}" for path in installed.written]
    print_written([*written, *(f"removed {path}" for path in installed.removed)])


def _print_template(policy: Policy, source: PolicyText, link_guard: bool) -> None:
    """Print a template for OpenWISP, with warnings for what it cannot express."""
    from ..integration.openwrt.openwisp import MANUAL_STEPS, template

    _require_proofs(policy, source)
    try:
        document = template(policy, link_guard)
    except ValueError as error:
        raise Failure(f"{source.name}: cannot be expressed in an OpenWISP template: {error}", EXIT_BAD_INPUT) from None
    _warn_of_limits(policy, source)
    _validate_template(document)
    for reason, command in MANUAL_STEPS:
        warn(f"not in the template: {reason}; run on each device: {command}")
    print_json(document)


def _require_proofs(policy: Policy, source: PolicyText) -> None:
    """Check that the policy is proved, and the guard alone, which a router loads at boot."""
    from .proving import proved_boot_tables, require_proof

    require_proof(policy, source)
    proved_boot_tables(policy, source)


def _warn_of_limits(policy: Policy, source: PolicyText) -> None:
    """Warn of numeric IDs of this host, and of policy features that a router does not support."""
    from ..integration.openwrt.unsupported import unsupported_features
    from .findings_text import warning_lines
    from .install_common import warn_of_numeric_ids

    warn_of_numeric_ids(policy)
    for line in warning_lines(source, unsupported_features(policy)):
        warn(line)


def _validate_template(document: dict[str, object]) -> None:
    """Validate the template by netjsonconfig; warn if that is not installed.

    Raises:
        Failure: netjsonconfig rejects it.
    """
    try:
        from netjsonconfig import OpenWrt  # type: ignore[import-untyped]
        from netjsonconfig.exceptions import ValidationError  # type: ignore[import-untyped]
    except ImportError:
        warn("template not validated against its schema: install netjsonconfig (pip install nftpolicy[openwrt])")
        return
    from copy import deepcopy

    try:
        OpenWrt(deepcopy(document)).validate()
    except ValidationError as error:
        raise Failure(f"netjsonconfig rejects the template: {str(error).splitlines()[0]}") from None
