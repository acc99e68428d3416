# SPDX-License-Identifier: BSD-2-Clause
"""Policies for the use of uplinks, compiled to nftables, ip rules and routes.

The public Python API; docs/api.md has an example. `load` reads a policy, `compile` makes the desired
state of the kernel, `prove` checks it, `plan` lists the steps to it. No function here reads or
changes the kernel. Names are imported when they are first used, since a short command would wait
for imports that it does not need.

PROVED, REFUTED and UNKNOWN are the verdicts of a proof ("proved", "refuted", "unknown").
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, which would be a slow import
if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from .compiler.compile import HostFacts
    from .exceptions import NftpolicyError
    from .netstate.state import NetState
    from .netstate.transition import StepRejected
    from .planner.plan import Plan, plan
    from .policy.errors import PolicyError
    from .policy.mark import Mark
    from .policy.objects import (
        Account,
        Answer,
        Clat,
        Forward,
        Lan,
        Listen,
        Policy,
        Port,
        Publish,
        Resolver,
        Server,
        Service,
        Uplink,
    )
    from .proof.verdict import (
        PROVED,
        REFUTED,
        UNKNOWN,
        Counterexample,
        Finding,
        Proof,
        describe_packet,
    )
    from .runtime.apply.step_text import plan_lines

__version__ = "0.2.0"

__all__ = [
    "PROVED",
    "REFUTED",
    "UNKNOWN",
    "Account",
    "Answer",
    "Clat",
    "Counterexample",
    "Finding",
    "Forward",
    "HostFacts",
    "Lan",
    "Listen",
    "Mark",
    "NetState",
    "NftpolicyError",
    "Plan",
    "Policy",
    "PolicyError",
    "Port",
    "Proof",
    "Publish",
    "Resolver",
    "Server",
    "Service",
    "StepRejected",
    "Uplink",
    "__version__",
    "compile",
    "describe_packet",
    "ip_batch",
    "load",
    "loads",
    "nft_text",
    "plan",
    "plan_lines",
    "prove",
]

# Module -> the names that it defines, imported at their first use.
_EXPORTS = {
    "compiler.compile": ("HostFacts",),
    "exceptions": ("NftpolicyError",),
    "netstate.state": ("NetState",),
    "netstate.transition": ("StepRejected",),
    "planner.plan": ("Plan", "plan"),
    "policy.errors": ("PolicyError",),
    "policy.mark": ("Mark",),
    "policy.objects": (
        "Account",
        "Answer",
        "Clat",
        "Forward",
        "Lan",
        "Listen",
        "Policy",
        "Port",
        "Publish",
        "Resolver",
        "Server",
        "Service",
        "Uplink",
    ),
    "proof.verdict": ("PROVED", "REFUTED", "UNKNOWN", "Counterexample", "Finding", "Proof", "describe_packet"),
    "runtime.apply.step_text": ("plan_lines",),
}

if not TYPE_CHECKING:  # a type checker would accept every name

    def __getattr__(name: str) -> object:
        """Import a public name at its first use (PEP 562)."""
        for module, names in _EXPORTS.items():
            if name in names:
                from importlib import import_module

                item = getattr(import_module(f".{module}", __name__), name)
                globals()[name] = item
                return item
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(file: str | PathLike[str], accounts: Callable[[str, object], Account] | None = None) -> Policy:
    """Return the policy in a TOML file; nftpolicy.toml(5) documents the format.

    `accounts` resolves users and groups: it is called with "user" or "group" and the value in the
    file. None: the accounts of this machine.

    Raises:
        PolicyError: the policy is invalid; the message has the file, the line and the key.
        OSError: the file cannot be read.
    """
    from os import fspath

    with open(file, "rb") as policy_file:  # noqa: PTH123 -- pathlib would be a slow import
        return loads(policy_file.read(), fspath(file), accounts)


def loads(text: str | bytes, name: str = "policy", accounts: Callable[[str, object], Account] | None = None) -> Policy:
    """Return the policy in a TOML text (bytes: UTF-8).

    `name` is the source in error messages. `accounts` is as in `load`.

    Raises:
        PolicyError: the policy is invalid; the message has the name, the line and the key.
    """
    from .policy.load import load as decode

    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    return decode(data, name, accounts or _host_account)[0]


def _host_account(kind: str, item: object) -> Account:
    """Return a user or group of this machine, by name or number. Raises ValueError."""
    from .policy.load import numeric_account
    from .policy.objects import Account

    if not isinstance(item, str):
        return numeric_account(kind, item)
    if item.isdigit():
        return numeric_account(kind, int(item))
    from .kernel.accounts import account_number

    number = account_number(kind, item)
    if number is None:
        raise ValueError(f"there is no {kind} {item!r} on this machine; create it, or write a number")
    return Account(item, number)


def compile(policy: Policy, host: HostFacts | None = None) -> NetState:
    """Return the desired state of the kernel: tables, ip rules, routes and sysctls of the policy.

    `host` has the facts about the machine that the state depends on; None: no bridge is an uplink,
    and the kernel has the egress hook of netdev (Linux 5.16).

    Raises:
        PolicyError: the policy is invalid, for example two uplinks have overlapping marks. A policy
            that `load` returned is valid.
    """
    from .compiler.compile import HostFacts, compile_policy
    from .policy.errors import PolicyError
    from .policy.validate import find_faults

    for path, message in find_faults(policy):
        raise PolicyError(message, path, policy.name)
    return compile_policy(policy, host if host is not None else HostFacts())


def prove(state: NetState, policy: Policy, host: HostFacts | None = None, *, usability: bool = True) -> Proof:
    """Return the proof that a state satisfies a policy, for all packets of IPv4 and IPv6.

    `state` may be a compiled state, or one with further tables, rules and routes. `host` has the
    facts about its machine, as in `compile`. Without `usability`, the properties P3 (usable) and
    P4 (IPv4/IPv6 parity) are left out, which is faster.

    The verdict of the result is PROVED, REFUTED (its findings have counterexamples) or UNKNOWN (its
    findings name the unsupported constructs). Its assumptions are facts that the proof does not check.
    """
    from attrs import evolve

    from .compiler.compile import HostFacts
    from .proof.policy_spec import build_spec
    from .proof.prover import prove as prove_spec

    facts = host if host is not None else HostFacts()
    spec = build_spec(policy, facts.bridge_ports)
    spec = evolve(spec, frames=facts.has_egress_hook, absent_devices=facts.unhookable_devices)
    spec = evolve(spec, loopback_families=facts.loopback_families)
    return prove_spec(state, spec, usability=usability)


def nft_text(state: NetState) -> str:
    """Return the tables of a state as text for `nft -f`; "" without tables."""
    from .netstate.formats.nft_text import table_text

    return "\n".join(map(table_text, state.tables))


def ip_batch(state: NetState, family: int) -> str:
    """Return the ip rules and routes of a family (4 or 6) as text for `ip -4 -batch` or `ip -6 -batch`."""
    from .netstate.formats.ip_text import batch_text

    return batch_text(state.rules, state.routes, family)
