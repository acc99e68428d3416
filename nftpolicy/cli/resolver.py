# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy resolver [FILE]"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Annotated, Any

from .common import (
    EXIT_BAD_INPUT,
    EXIT_UNAVAILABLE,
    Failure,
    installed_policies,
    last_policy,
    read_policy,
    this_kernel,
    warn,
)
from .options import PolicyFile
from .parameters import option
from .plain_output import print_json

if TYPE_CHECKING:
    from ..policy.objects import Policy
    from ..runtime.resolver.discovery import ServerDiscovery

_RA_TIMEOUT = 2.0  # seconds that --show waits for a router advertisement
_POLL_INTERVAL = 0.05  # seconds


def command(
    file: PolicyFile = None,
    uplink: Annotated[str | None, option(help="Uplink, if more than one has a resolver.")] = None,
    list_: Annotated[bool, option("--list", help="Print the uplinks that have a resolver, and exit.")] = False,
    show: Annotated[
        bool,
        option("--show", help="Print the DNS servers it would query, with their source, and exit."),
    ] = False,
    as_json: Annotated[bool, option("--json", help="Print JSON, with --show.")] = False,
) -> None:
    """Run the DNS resolver of an uplink in the foreground.

    It is meant for a service manager. Exits on SIGTERM.
    """
    is_named = file is not None or installed_policies()
    policy, source = read_policy(file) if is_named else last_policy("nftpolicy resolver FILE")
    choices = [name for name, value in policy.uplink.items() if value.resolver]
    if as_json and not show:
        raise Failure("--json needs --show", EXIT_BAD_INPUT)
    if list_:
        print("".join(f"{name}\n" for name in choices), end="")
        return
    if show and uplink is None and choices:
        _show_servers(policy, choices, as_json)
        return
    name = uplink or (choices[0] if len(choices) == 1 else None)
    if name is None or name not in choices:
        problem = f"uplink {uplink!r} has no resolver" if uplink else "choose an uplink with --uplink"
        raise Failure(f"{problem}; with a resolver: {', '.join(choices) or 'none'}", EXIT_BAD_INPUT)
    if show:
        _show_servers(policy, [name], as_json)
        return
    _run_resolver(policy, name, source.name)


def _run_resolver(policy: Policy, name: str, file: str) -> None:
    kernel = this_kernel()
    from ..kernel.errors import Unavailable
    from ..runtime.apply.executor import plan_change
    from ..runtime.apply.state_dir import current_state_dir
    from ..runtime.resolver import dnsmasq, servers_file
    from ..runtime.status import read_status

    state_dir = current_state_dir()
    if not read_status(kernel, policy, plan_change(kernel, policy, state_dir)).has_guard_and_rules:
        command = f"nftpolicy apply {file}"
        raise Failure(f"{policy.name} is not in force, since guard or ip rules differ: run '{command}' first")
    uplink = policy.uplink[name]
    assert uplink.resolver is not None
    gc.enable()
    job = dnsmasq.ResolverJob(
        name, uplink, uplink.resolver, servers_file.resolver_directory(state_dir.directory, name), warn
    )
    try:
        dnsmasq.run_resolver(job)
    except dnsmasq.ResolverError as error:
        raise Failure(str(error)) from None
    except Unavailable as error:
        raise Failure(str(error), EXIT_UNAVAILABLE) from None


def _show_servers(policy: Policy, uplinks: list[str], as_json: bool) -> None:
    """Print the servers of each uplink, after up to _RA_TIMEOUT seconds."""
    from ..runtime.resolver.discovery import DiscoveryTarget, ServerDiscovery

    servers = {}
    for name in uplinks:
        uplink = policy.uplink[name]
        assert uplink.resolver is not None
        try:
            with ServerDiscovery(DiscoveryTarget(name, uplink, uplink.resolver), lambda _: None) as discovery:
                _await_advertisement(discovery)
                servers[name] = _servers_json(discovery)
        except OSError as error:
            raise Failure(
                f"cannot read devices and addresses from the kernel: {error.strerror}", EXIT_UNAVAILABLE
            ) from None
    if as_json:
        print_json(servers)
        return
    for name, facts in servers.items():
        print(f"uplink {name}: {', '.join(facts['servers']) or 'no server, so queries are refused'}")
        for domain, only in facts["domains"].items():
            print(f"  names in {domain}: {', '.join(only) or 'no server, so they do not exist'}")
        for source, reading in facts["sources"].items():
            addresses = ", ".join(dict.fromkeys(reading["words"])) or "nothing"
            error_note = f" ({reading['trouble']})" if reading["trouble"] else ""
            print(f"  {source:<15} {addresses}{error_note}")
        for address, reason in facts["left_out"].items():
            print(f"  not used        {address}: {reason}")


def _await_advertisement(discovery: ServerDiscovery) -> None:
    """Wait up to _RA_TIMEOUT seconds for servers in a router advertisement, if that is a source."""
    from ..runtime.resolver.sources.registry import SOURCE_RA

    deadline = time.monotonic() + _RA_TIMEOUT
    discovery.refresh()
    while SOURCE_RA in discovery.sources and not discovery.readings[SOURCE_RA].entries and time.monotonic() < deadline:
        if discovery.readings[SOURCE_RA].error:
            break
        time.sleep(_POLL_INTERVAL)
        discovery.refresh()


def _servers_json(discovery: ServerDiscovery) -> dict[str, Any]:
    configured = list(map(str, discovery.target.resolver.servers))
    sources = {}
    for source in discovery.sources:
        reading = discovery.readings.get(source)
        words = [word for _, word in reading.entries] if reading else configured
        sources[source] = {"words": words, "trouble": reading.error if reading else ""}
    choice = discovery.server_list
    return {
        "servers": list(map(str, choice.servers)),
        "domains": {domain: list(map(str, servers)) for domain, servers in discovery.domains.items()},
        "sources": sources,
        "left_out": dict(choice.rejected),
    }
