# SPDX-License-Identifier: BSD-2-Clause
"""Router plan: the target state for the script on the router, in lines that a shell can compare.

Rules and routes have the form of `ip -N rule show` and `ip -N route show table all proto 78`, so that
the target and the kernel's state can be compared as text. `ip -N` prints numbers instead of names,
since a router may have its own table names.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from ...compiler import guard
from ...compiler.compile import policy_ip_rules, policy_routes
from ...compiler.sysctls import required_sysctls
from ...generated_text import CheckedText, device_name, fill, join, scoped_address, sysctl_path, word
from ...netstate.formats import nft_text
from ...netstate.nft import FULL_MASK, Chain
from ...netstate.routing import ROUTE_TYPES, IpRule, Route
from ...policy.objects import DNS_PORT, Policy, Uplink
from ..dnsmasq_servers import domain_values, server_value
from .flush_filter import bpdu_filter, drop_filter, pass_filter, vlan_filter

_ROUTE_TYPES = {name: number for number, name in ROUTE_TYPES.items()}
_PORT = "/"  # placeholder for a bridge port; not valid in a device name


def router_plan(policy: Policy, link_guard: bool = True) -> CheckedText:
    """Return the text of the plan file."""
    lines = [fill("policy {name}", name=word(policy.name))]
    # Not in UCI: netifd before 2025 reads neither ipproto nor dport, and would route all packets so.
    for rule in policy_ip_rules(policy):
        lines.append(fill("rule{family} {rule}", family=rule.family, rule=_rule(rule)))
    for route in policy_routes(policy):
        lines.append(fill("route{family} {route}", family=route.family, route=_route(route)))
    for sysctl in required_sysctls(policy):
        lines.append(fill("sysctl {path} {value}", path=sysctl_path(sysctl.path), value=int(sysctl.value)))
    if link_guard:
        lines += [line for uplink in policy.uplink.values() for line in _egress_chains(policy, uplink)]
        lines += [line for name in policy.uplink for line in _flush_filters(policy, name)]
        lines += _vlan_filters(policy)
    lines += [line for name, uplink in policy.uplink.items() for line in _resolver(name, uplink)]
    for name, uplink in policy.uplink.items():
        devices = join(" ", map(device_name, uplink.devices))
        lines.append(fill("uplink {name} {table} {devices}", name=word(name), table=uplink.table, devices=devices))
    return join("", (fill("{line}\n", line=line) for line in lines))


def require_expressible(rule: IpRule, *more: str) -> IpRule:
    """Return the rule, if UCI sections can express it, and plan lines the selectors `more` too.

    Raises:
        ValueError: the rule has another selector; without it, it would match too many packets.
    """
    expressible = IpRule(
        rule.family, rule.priority, rule.action, rule.table, rule.mark, rule.mask, destination=rule.destination,
        uids=rule.uids,
    )  # fmt: skip
    expressible = evolve(expressible, **{key: getattr(rule, key) for key in more})
    if expressible != rule or rule.unknown:
        raise ValueError(f"ip rule with a selector that the router plan does not support: {rule}")
    return rule


def _rule(item: IpRule) -> CheckedText:
    rule = require_expressible(item, "iif", "oif", "l4proto", "dports", "sports", "suppress_prefix")
    parts = [fill("{priority}: from all", priority=rule.priority)]
    if rule.destination:
        # ip prints an address without its length.
        prefix = rule.destination.removesuffix("/128" if rule.family == 6 else "/32")
        parts.append(fill("to {prefix}", prefix=word(prefix)))
    if rule.mask:
        template = "fwmark {mark:#x}/{mask:#x}" if rule.mask != FULL_MASK else "fwmark {mark:#x}"
        parts.append(fill(template, mark=rule.mark, mask=rule.mask))
    if rule.iif:
        parts.append(fill("iif {device}", device=device_name(rule.iif)))
    if rule.oif:
        parts.append(fill("oif {device}", device=device_name(rule.oif)))
    if rule.uids:
        parts.append(fill("uidrange {low}-{high}", low=rule.uids[0], high=rule.uids[1]))
    if rule.l4proto:
        parts.append(fill("ipproto ipproto-{protocol}", protocol=rule.l4proto))
    for selector, ports in (("sport", rule.sports), ("dport", rule.dports)):
        if ports:
            low, high = ports
            template = "{selector} {low}-{high}" if low != high else "{selector} {low}"
            parts.append(fill(template, selector=word(selector), low=low, high=high))
    if rule.action == "lookup":
        parts.append(fill("lookup {table}", table=rule.table))
        if rule.suppress_prefix is not None:
            parts.append(fill("suppress_prefixlength {length}", length=rule.suppress_prefix))
    else:
        parts.append(fill("{type}", type=_ROUTE_TYPES[rule.action]))
    return join(" ", parts)


def _route(route: Route) -> CheckedText:
    parts = [word(route.destination)]
    if route.kind != "unicast":
        parts.insert(0, word(route.kind))
    if route.gateway:
        parts.append(fill("via {gateway}", gateway=word(route.gateway)))
    if route.device:
        parts.append(fill("dev {device}", device=device_name(route.device)))
    parts.append(fill("table {table}", table=route.table))
    if route.prefsrc:
        # The kernel gives an IPv4 route without a gateway the scope of the link.
        source = "scope 253 src {source}" if route.family == 4 else "src {source}"
        parts.append(fill(source, source=word(route.prefsrc)))
    parts.append(fill("metric {metric}", metric=route.metric))
    if route.onlink:
        parts.append(word("onlink"))
    return join(" ", parts)


def _egress_chains(policy: Policy, uplink: Uplink) -> Iterator[CheckedText]:
    """Yield the egress chain of each device: own, and port if the device is a bridge."""
    for device in uplink.devices:
        for chain in guard.link_chains(policy, {device: (_PORT,)}):
            if chain.hook and chain.hook.device in (device, _PORT):
                keyword = word("own" if chain.hook.device == device else "port")
                yield join(" ", [keyword, device_name(device), _chain_body(chain)])


def _flush_filters(policy: Policy, name: str) -> Iterator[CheckedText]:
    """Yield the filters of an uplink: where (its devices, the ports of bridges, both), preference, program, devices."""
    uplink = policy.uplink[name]
    exempt = pass_filter(policy, name)
    if exempt is None:
        return
    filters = [
        ("both", 71, exempt),
        ("own", 73, drop_filter(uplink.mark)),
        ("port", 73, drop_filter(uplink.mark, True)),
    ]
    if uplink.stp:
        filters.append(("port", 72, bpdu_filter(name)))
    devices = join(" ", map(device_name, uplink.devices))
    for place, preference, program in filters:
        yield fill(
            "flush {place} {pref} {program} {devices}",
            place=word(place),
            pref=preference,
            program=program,
            devices=devices,
        )


def _vlan_filters(policy: Policy) -> Iterator[CheckedText]:
    """Yield the filter of each device below uplinks that are named DEVICE.VLAN, as OpenWrt names them."""
    devices = {device for uplink in policy.uplink.values() for device in uplink.devices}
    numbers: dict[str, list[int]] = {}
    for device in sorted(devices):
        below, _, number = device.rpartition(".")
        if below and below not in devices and number.isdecimal() and 0 < int(number) < 4095:
            numbers.setdefault(below, []).append(int(number))
    for below, tags in numbers.items():
        yield fill("flush own 73 {program} {device}", program=vlan_filter(tags), device=device_name(below))


def _chain_body(chain: Chain) -> CheckedText:
    assert chain.hook
    return fill(
        "priority {priority}; policy {policy}; {rules}",
        priority=int(chain.hook.priority),
        policy=word(chain.hook.policy),
        rules=join("; ", map(nft_text.rule_text, chain.rules)),
    )


def _resolver(name: str, uplink: Uplink) -> Iterator[CheckedText]:
    """Yield how the dnsmasq of an uplink is started, and the source of its servers."""
    resolver = uplink.resolver
    if resolver is None or resolver.uses_tls:  # unsupported.py refuses TLS
        return
    # runner.sh writes servers in the form of resolv.conf(5), which has neither ports nor domains.
    with_port = (server_value(server) for server in resolver.servers if server.port != DNS_PORT)
    options = [fill("--listen-address={address}", address=word(str(listen.address))) for listen in resolver.listen]
    options += [fill("--server={value}", value=value) for value in (*with_port, *domain_values(resolver.domains))]
    yield fill(
        "resolver {name} {mark} {user} {port} {options}",
        name=word(name),
        mark=uplink.mark.value,
        user=resolver.user.number,
        port=resolver.listen[0].port,
        options=join(" ", options),
    )
    if resolver.servers:
        in_file = (server for server in resolver.servers if server.port == DNS_PORT)
        servers = join(" ", (scoped_address(str(server.address), server.zone) for server in in_file))
        yield fill("servers {name} fixed {servers}", name=word(name), servers=servers)
    else:
        yield fill(
            "servers {name} learned {devices}", name=word(name), devices=join(" ", map(device_name, uplink.devices))
        )
