# SPDX-License-Identifier: BSD-2-Clause
"""Model of netifd: the ip rules and routes that it makes of UCI's `network`, even unintended ones.

netifd silently ignores sections that it cannot parse; each one is a UciWarning here. The origin of
an object is the position of its section, (FILE, LINE).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from ...netstate.routing import IpRule, Route
from .interfaces import NAMED_TABLES, NetworkConfig
from .netifd_routes import netifd_routes
from .netifd_rules import netifd_rules
from .rule_warnings import UciWarning
from .uci_parser import ParsedSection


@frozen
class NetifdState:
    """Policy-routing rules and routes of netifd, and the warnings about its configuration."""

    rules: tuple[IpRule, ...]
    routes: tuple[Route, ...]
    warnings: tuple[UciWarning, ...]


def netifd_state(
    sections: Sequence[ParsedSection], network: NetworkConfig, names: Mapping[str, int] = NAMED_TABLES
) -> NetifdState:
    """Return all ip rules and routes of netifd, with every interface up."""
    warnings: list[UciWarning] = []
    rules = netifd_rules(sections, network, names, warnings)
    routes = netifd_routes(sections, network, names, warnings)
    return NetifdState(tuple(rules), routes, tuple(warnings))
