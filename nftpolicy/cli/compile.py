# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy compile FILE --to FORM [DIR]"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

from ..compiler.compile import Machine, compile_policy
from ..netstate import iproute, json_out, text
from ..netstate.state import NetState
from ..policy.objects import Policy
from .common import BAD_INPUT, Failure, read_policy, warn

if TYPE_CHECKING:
    from ..policy.errors import Source


class Form(StrEnum):
    """What a compiled policy can be written as."""

    json = "json"
    nft = "nft"
    ip4 = "ip4"
    ip6 = "ip6"
    summary = "summary"
    openwrt = "openwrt"
    openwisp = "openwisp"


def _json(_: Policy, state: NetState) -> str:
    import json

    return json.dumps(json_out.ruleset(state.tables), indent=1) + "\n"


def _summary(policy: Policy, state: NetState) -> str:
    from ..compiler.summary import summary

    return summary(policy, state)


_FORMS: dict[Form, Callable[[Policy, NetState], str]] = {
    Form.json: _json,
    Form.nft: lambda _, state: "\n".join(map(text.table, state.tables)),
    Form.ip4: lambda _, state: iproute.batch(state.rules, state.routes, 4),
    Form.ip6: lambda _, state: iproute.batch(state.rules, state.routes, 6),
    Form.summary: _summary,
}


def command(
    file: Path = typer.Argument(help="The policy, TOML. - reads standard input."),
    dir: Optional[Path] = typer.Argument(None, help="Where the files of --to openwrt go: an image's root."),  # noqa: UP045
    to: Form = typer.Option(Form.summary, help="The form to print."),
    ports: list[str] = typer.Option([], help="BRIDGE=PORT: a port of an uplink that is a bridge; may be repeated."),
    link_guard: bool = typer.Option(True, help="Write the table at netdev egress, which old kernels do not take."),
    force: bool = typer.Option(False, "--force", help="Replace files in DIR that were changed, or are not of this."),
) -> None:
    """Print what a policy compiles to, or write it as files for a router. Needs no root."""
    policy, source = read_policy(file)
    if to is Form.openwrt:
        if dir is None:
            raise Failure("--to openwrt writes files: say into which folder, as in --to openwrt DIR", BAD_INPUT)
        if ports:
            raise Failure(
                "--ports is not for --to openwrt: the router finds the ports of its bridges itself", BAD_INPUT
            )
        _write(policy, source, dir, link_guard, force)
        return
    if dir is not None or force:
        raise Failure(f"--to {to} prints: DIR and --force are for --to openwrt", BAD_INPUT)
    if to is Form.openwisp:
        if ports:
            raise Failure("--ports is not for --to openwisp: the router finds the ports of its bridges", BAD_INPUT)
        _template(policy, source, link_guard)
        return
    carried: dict[str, list[str]] = {}
    for item in ports:
        bridge, equals, port = item.partition("=")
        if not equals or not port:
            raise Failure(f"--ports takes BRIDGE=PORT, got {item!r}", BAD_INPUT)
        carried.setdefault(bridge, []).append(port)
    print(_FORMS[to](policy, compile_policy(policy, Machine(carried, link_guard))), end="")


def _write(policy: Policy, source: Source, root: Path, link_guard: bool, force: bool) -> None:
    """The tree of a router below `root`. Nothing is written of a policy that is not proved."""
    from ..openwrt.tree import LIST, tree
    from ..runtime.place.tree import lay
    from .guard import proved
    from .install import prove, told_in_words

    if root.exists() and not root.is_dir():
        raise Failure(f"--to openwrt takes a folder, and {root} is none", BAD_INPUT)
    prove(policy, source)
    proved(policy, source)  # the guard alone, and the block
    try:
        found = tree(policy, link_guard)
    except ValueError as error:
        raise Failure(f"{source.name}: can't be said on OpenWrt: {error}", BAD_INPUT) from None
    executable = frozenset(path for path, one in found.items() if one.executable)
    with told_in_words():
        laid = lay(root, {path: one.text.encode() for path, one in found.items()}, executable, LIST, force)
    _warn(policy, source)
    lines = [*(f"wrote {path}" for path in laid.written), *(f"removed {path}" for path in laid.removed)]
    print("\n".join(lines or ["everything is in place already"]))


def _template(policy: Policy, source: Source, link_guard: bool) -> None:
    """A template for OpenWISP on standard output. What it can't say is said on standard error."""
    import json

    from ..openwrt.openwisp import BESIDE, template
    from .guard import proved
    from .install import prove

    prove(policy, source)
    proved(policy, source)
    try:
        found = template(policy, link_guard)
    except ValueError as error:
        raise Failure(f"{source.name}: can't be said in a template of OpenWISP: {error}", BAD_INPUT) from None
    _warn(policy, source)
    _held_against_the_schema(found)
    for why, command in BESIDE:
        warn(f"not in the template: {why}; on each device: {command}")
    print(json.dumps(found, indent=1))


def _warn(policy: Policy, source: Source) -> None:
    """Say what is of this machine, and what a router does not do."""
    from ..openwrt.undone import undone
    from .install import warn_of_names
    from .told import noted

    warn_of_names(policy)
    for note in noted(source, undone(policy)):
        warn(note)


def _held_against_the_schema(found: dict[str, object]) -> None:
    """Failure if netjsonconfig would refuse the template. Without netjsonconfig that is only said."""
    try:
        from netjsonconfig import OpenWrt
        from netjsonconfig.exceptions import ValidationError
    except ImportError:
        warn("the template was not held against its schema: netjsonconfig is missing (pip install nftpolicy[openwrt])")
        return
    from copy import deepcopy

    try:
        OpenWrt(deepcopy(found)).validate()
    except ValidationError as error:
        raise Failure(f"netjsonconfig refuses the template: {str(error).splitlines()[0]}") from None
