# SPDX-License-Identifier: BSD-2-Clause
"""A compiled policy in sentences: what may leave, and by what right."""

from __future__ import annotations

from ..netstate import iproute
from ..netstate.state import NetState
from ..policy import words
from ..policy.checks import accounts
from ..policy.objects import Policy, Service, Uplink, lease_of
from . import answers, members


def summary(policy: Policy, state: NetState) -> str:
    """Several lines for a person."""
    inside = ", ".join(("lo", *policy.inside))
    lines = [f"policy {policy.name}", f"inside: {inside}; every other device counts as an uplink"]
    for name, uplink in policy.uplink.items():
        lines += ["", *_uplink(name, uplink, policy)]
    lines += ["", "ladder (both families unless said)"]
    for rule in sorted(state.rules, key=lambda one: (one.priority, one.family)):
        twin = any(other.family != rule.family and _same(other, rule) for other in state.rules)
        if rule.family == 6 and twin:
            continue
        lines.append(f"  {iproute.rule(rule)}{'' if twin else '  (IPv6)' if rule.family == 6 else '  (IPv4)'}")
    rules = sum(len(chain.rules) for table in state.tables for chain in table.chains)
    elements = sum(len(one.elements) for table in state.tables for one in table.sets)
    lines += ["", f"size: {rules} nft rules, {elements} set elements, {len(state.rules)} ip rules, "
              f"{len(state.routes)} routes, {len(state.sysctls)} sysctls"]  # fmt: skip
    return "\n".join(lines) + "\n"


def _same(one, other) -> bool:  # type: ignore[no-untyped-def]
    return iproute.rule(one) == iproute.rule(other)


def _uplink(name: str, uplink: Uplink, policy: Policy) -> list[str]:
    lines = [f"uplink {name}: {', '.join(uplink.devices)}, mark {uplink.mark}, table {uplink.table}"]
    lines += [
        f"  service {service}: {_who(value)}{'' if value.unmarked else ' with the mark'} may send {_where(value)}"
        for service, value in members.services(name, policy).items()
    ]
    lines += [f"  exempt {word}: {words.EXEMPTIONS[word]}" for word in uplink.exempt]
    lines += [f"  learns {word}: {words.LEARNED[word]}" for word in uplink.learn]
    lines += [f"  answers {answer.name}{f' ({answer.port})' if answer.port else ''}" for answer in uplink.answer]
    if answers.resets(uplink):
        lines.append("  refuses other TCP ports that are closed, with a RST")
    if uplink.resolver:
        learned = ", ".join(uplink.resolver.sources) or lease_of(name, uplink.resolver)
        servers = ", ".join(map(str, uplink.resolver.servers)) or f"from {learned}"
        listening = ", ".join(map(str, uplink.resolver.listen))
        lines.append(f"  resolver {listening}, as user {uplink.resolver.user.name}, servers {servers}")
    lines.append("  all else is dropped and counted")
    return lines


def _who(service: Service) -> str:
    if service.kernel:
        return "UDP of the kernel's own sockets" + (f" on {_some(service.sport)}" if service.sport else "")
    return " or ".join(f"sockets of {key} {account.name}" for key, account in accounts(service))


def _where(service: Service) -> str:
    to = f"to {_some(service.to)}" if service.to else "anywhere"
    return f"{to} on {_some(service.ports)}" if service.ports else to


def _some(items: tuple[object, ...]) -> str:
    shown = ", ".join(map(str, items[:4]))
    return f"{shown} and {len(items) - 4} more" if len(items) > 4 else shown
