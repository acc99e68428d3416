# SPDX-License-Identifier: BSD-2-Clause
"""Description of a compiled policy as text: permitted traffic and the policy keys that permit it."""

from __future__ import annotations

from ..netstate.formats import ip_text
from ..netstate.state import NetState
from ..phrases import name_some
from ..policy import vocabulary
from ..policy.objects import Forward, Lan, Policy, Service, Uplink, lease_file
from ..policy.validate import account_selectors
from . import exemptions, forwards, lans, replies, service_sets


def describe_policy(policy: Policy, state: NetState) -> str:
    """Return the description, several lines."""
    inside = ", ".join(("lo", *policy.inside))
    lines = [f"policy {policy.name}", f"inside: {inside}; every other device counts as an uplink"]
    for name, uplink in policy.uplink.items():
        lines += ["", *_uplink(name, uplink, policy, state)]
    lines += ["", "ip rules (IPv4 and IPv6 unless noted)"]
    for rule in sorted(state.rules, key=lambda rule: (rule.priority, rule.family)):
        text = ip_text.rule_text(rule)
        in_both = any(other.family != rule.family and ip_text.rule_text(other) == text for other in state.rules)
        if not in_both:
            lines.append(f"  {text}  (IPv{rule.family})")
        elif rule.family == 4:
            lines.append(f"  {text}")
    rules = sum(len(chain.rules) for table in state.tables for chain in table.chains)
    elements = sum(len(nft_set.elements) for table in state.tables for nft_set in table.sets)
    lines.append("")
    lines.append(
        f"size: {rules} nft rules, {elements} set elements, {len(state.rules)} ip rules, "
        f"{len(state.routes)} routes, {len(state.sysctls)} sysctls"
    )
    return "\n".join(lines) + "\n"


def _uplink(name: str, uplink: Uplink, policy: Policy, state: NetState) -> list[str]:
    lines = [f"uplink {name}: {', '.join(uplink.devices)}, mark {uplink.mark}, table {uplink.table}"]
    for service_name, service in service_sets.uplink_services(name, policy).items():
        marked = "" if service.unmarked or service.by_destination else " with the mark"
        lines.append(f"  service {service_name}: {_senders(service)}{marked} may send {_destinations(service)}")
    for key, forward in forwards.uplink_forwards(policy, name).items():
        lines.append(f"  forward {key}: packets that arrive by {_forwarded(forward)}")
    for key, publish in forwards.uplink_publishes(policy, name).items():
        lines.append(f"  publish {key}: replies from {publish.port}, forwarded from {publish.to}")
    lines += [f"  exempt {word}: {vocabulary.EXEMPTIONS[word]}" for word in uplink.exempt]
    bpdus = set(exemptions.bpdu_rules(name))
    if any(bpdus <= set(chain.rules) for table in state.tables for chain in table.chains):
        lines.append("  exempt BPDUs of its bridges: a loop of the network is noticed (stp)")
    for key, lan in lans.uplink_lans(policy, name).items():
        from_ports = f" from {name_some(lan.sport)}" if lan.sport else ""
        senders = _senders(lan) if account_selectors(lan) else "any program"
        lines.append(f"  exempt lan {key}: {senders} may send {_destinations(lan)}{from_ports}")
    lines += [f"  learns {word}: {vocabulary.LEARN_SOURCES[word]}" for word in uplink.learn]
    if uplink.addresses:
        lines.append(f"  is known by {name_some(uplink.addresses)}, too")
    if uplink.clat:
        lines.append(
            f"  clat {uplink.clat.device}: IPv4 packets with the mark may leave as IPv6 to {uplink.clat.prefix}"
        )
    for answer in uplink.answer:
        port = f" ({answer.port})" if answer.port else ""
        source = f" from {name_some(answer.source)}" if answer.source else ""
        alone = ", by the uplink's routes" if answer.exclusive else ""
        lines.append(f"  answers {answer.name}{port}{source}{alone}")
    if replies.refuses_closed_ports(uplink):
        lines.append("  refuses closed TCP ports with a RST")
    if uplink.resolver:
        learned = ", ".join(uplink.resolver.sources) or lease_file(name, uplink.resolver)
        servers = ", ".join(map(str, uplink.resolver.servers)) or f"from {learned}"
        listening = ", ".join(map(str, uplink.resolver.listen))
        lines.append(f"  resolver {listening}, as user {uplink.resolver.user.name}, servers {servers}")
        for domain, only in uplink.resolver.domains.items():
            lines.append(f"    names in {domain}: servers {', '.join(map(str, only))}")
    lines.append("  all other packets are counted and dropped")
    return lines


def _senders(service: Service | Lan) -> str:
    if isinstance(service, Service) and service.by_destination:
        kinds = {"TCP that no process owns" if port.protocol == "tcp" else "tunnels" for port in service.ports}
        return f"the kernel's {' and '.join(sorted(kinds))}"
    if isinstance(service, Service) and service.kernel:
        ports = f" on {name_some(service.sport)}" if service.sport else ""
        return f"UDP of the kernel's own sockets{ports}"
    if isinstance(service, Service) and service.of_root:
        return f"root's sockets of the cgroup {service.cgroup}" if service.cgroup else "root's sockets of its cgroup"
    return " or ".join(f"sockets of {key} {account.name}" for key, account in account_selectors(service))


def _forwarded(forward: Forward) -> str:
    source = f" from {name_some(forward.source)}" if forward.source else ""
    masquerade = ", with the uplink's address" if forward.masquerade else ""
    return f"{name_some(forward.devices)}{source} may be sent {_destinations(forward)}{masquerade}"


def _destinations(service: Service | Forward | Lan) -> str:
    to = f"to {name_some(service.to)}" if service.to else "anywhere"
    return f"{to} on {name_some(service.ports)}" if service.ports else to
