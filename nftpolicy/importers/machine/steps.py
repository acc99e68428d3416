# SPDX-License-Identifier: BSD-2-Clause
"""Steps from a drafted policy to one that is in force, in their order."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from .devices import default_routes
from .draft import PolicyDraft
from .facts import MachineFacts
from .services import listen_ports

_TRIAL = 60  # seconds of apply --confirm


def next_steps(facts: MachineFacts, draft: PolicyDraft, file: str) -> Iterator[str]:
    """Yield what to do with the policy in `file`, each step a sentence or a command with its reason."""
    policy = shlex.quote(file)
    yield from _settings(draft)
    yield f"nftpolicy check {policy}    # again after each change of the file"
    if facts.manager is not None:
        tables = ", ".join(str(uplink.table) for uplink in draft.uplinks)
        yield f"nftpolicy netconfig {policy} --for {facts.manager} --to /    # routes of the uplink: table {tables}"
    else:
        yield from (f"{command}    # 'watch' keeps it later" for command in _route_commands(facts, draft))
    has_resolver = any(service.looks_up_names for service in draft.services)
    if has_resolver:
        yield f"nftpolicy resolver {policy} --show    # its name servers; none: write servers in the policy"
    yield f"nftpolicy apply {policy} --confirm {_TRIAL}    # undone after {_TRIAL} s; test, then: nftpolicy confirm"
    if has_resolver:
        yield f"nftpolicy resolver {policy}    # in another terminal, until 'install': names for the services"
    started = [command for each in draft.services for command in each.start]
    for command in started:
        # wg-quick ends when the tunnel is there; the others stay in the foreground, or have the tunnel until their end.
        end = "" if "wg-quick" in command else "; end it before 'install'"
        yield f"{command}    # start it anew like this, before 'nftpolicy confirm'{end}"
    if not started and draft.tunnels:
        yield f"start anew, so that the settings above are in force: {', '.join(each.name for each in draft.tunnels)}"
    units = [f"--unit {each.name}={shlex.quote(each.unit)}" for each in draft.services if each.unit is not None]
    if units:
        yield from (
            f"groupadd --gid {each.group} {shlex.quote(f'nftpolicy-{each.name}')}    # systemd needs its name"
            for each in draft.services
            if each.unit is not None and each.group is not None
        )
        yield f"nftpolicy units {policy} {' '.join(units)} --to /etc/systemd/system    # groups of the services"
    yield f"nftpolicy install {policy} --enable    # in force from boot"
    names = " ".join(shlex.quote(each.unit) for each in draft.services if each.unit is not None)
    if names:
        yield f"systemctl daemon-reload && systemctl restart {names}"
    yield "nftpolicy status    # counts what was stopped; 'nftpolicy release' opens the uplink again"


def _route_commands(facts: MachineFacts, draft: PolicyDraft) -> Iterator[str]:
    """Yield the commands that copy the default routes into the uplinks' tables; 'apply' copies connected ones."""
    for uplink in draft.uplinks:
        for route in default_routes(facts):
            for hop in route.all_nexthops:
                if hop.device in uplink.devices and hop.gateway not in uplink.gateways:
                    via = f"via {hop.gateway} " if hop.gateway else ""
                    yield f"ip -{route.family} route add default {via}dev {hop.device} table {uplink.table}"


def _settings(draft: PolicyDraft) -> Iterator[str]:
    """Yield the lines that configuration files of VPN programs need."""
    mark = draft.uplinks[0].mark.value
    ports = listen_ports([tunnel for tunnel in draft.tunnels if not tunnel.user_space])
    files: dict[str, list[str]] = {}  # by the lines that they need
    for tunnel in draft.tunnels:
        lines = []
        if ports.get(tunnel.name, tunnel.listen_port) != tunnel.listen_port:
            lines.append(f"ListenPort = {ports[tunnel.name]}")
        if tunnel.fwmark != mark:
            # Also if it is the mark that wg-quick chooses: it sets that one after the first handshake.
            lines.append(f"FwMark = {mark:#x}")
        if lines and tunnel.file is not None:
            files.setdefault(", and ".join(lines), []).append(tunnel.file)
        elif lines:
            yield f"wg set {shlex.quote(tunnel.name)} {_wg_arguments(lines)}    # and where its program configures it"
    yield from (f"write into [Interface] of {' and '.join(names)}: {text}" for text, names in files.items())
    for vpn in draft.vpns:
        if vpn.mark != mark and vpn.file:
            line = f"packet mark {mark};" if vpn.program == "fastd" else f"mark {mark}"
            yield f"write into {vpn.file}: {line}"


def _wg_arguments(lines: list[str]) -> str:
    return " ".join(line.lower().replace(" = ", " ").replace("listenport", "listen-port") for line in lines)
