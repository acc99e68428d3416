# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy compile FILE --to FORM"""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import typer

from ..compiler.compile import Machine, compile_policy
from ..netstate import iproute, json_out, text
from ..netstate.state import NetState
from ..policy.objects import Policy
from .common import BAD_INPUT, Failure, read_policy


class Form(StrEnum):
    """What a compiled policy can be written as."""

    json = "json"
    nft = "nft"
    ip4 = "ip4"
    ip6 = "ip6"
    summary = "summary"


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
    to: Form = typer.Option(Form.summary, help="The form to print."),
    ports: list[str] = typer.Option([], help="BRIDGE=PORT: a port of an uplink that is a bridge; may be repeated."),
    link_guard: bool = typer.Option(True, help="Write the table at netdev egress, which old kernels do not take."),
) -> None:
    """Print what a policy compiles to. Needs no root and changes nothing."""
    policy, _ = read_policy(file)
    carried: dict[str, list[str]] = {}
    for item in ports:
        bridge, equals, port = item.partition("=")
        if not equals or not port:
            raise Failure(f"--ports takes BRIDGE=PORT, got {item!r}", BAD_INPUT)
        carried.setdefault(bridge, []).append(port)
    print(_FORMS[to](policy, compile_policy(policy, Machine(carried, link_guard))), end="")
