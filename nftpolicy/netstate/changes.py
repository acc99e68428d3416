# SPDX-License-Identifier: BSD-2-Clause
"""What can be done to a kernel's state: nft operations, and the steps that a plan is made of."""

from __future__ import annotations

from attrs import evolve, frozen

from .nft import Chain, Element, NamedCounter, Rule, Set, Table
from .routing import IpRule, Route, Sysctl


@frozen
class Elements:
    """Some elements of an existing set (its type travels along, to write them)."""

    of: Set
    elements: frozenset[Element]


@frozen
class Rules:
    """Rules at the end of an existing chain."""

    chain: Chain
    rules: tuple[Rule, ...]


@frozen
class NftOperation:
    """One operation of a transaction: `verb` is add, delete or flush (chains and sets).

    Adding a chain or set adds it without rules or elements; those are operations of their own.
    """

    verb: str
    family: str
    table: str
    object: Table | NamedCounter | Set | Elements | Chain | Rules


@frozen
class NftTransaction:
    """Operations that the kernel carries out as one, and those that take them back."""

    operations: tuple[NftOperation, ...]
    undo: tuple[NftOperation, ...]

    def inverse(self) -> NftTransaction:
        """The step that takes this one back."""
        return NftTransaction(self.undo, self.operations)


@frozen
class RuleChange:
    """Add or delete one ip rule."""

    verb: str
    rule: IpRule

    def inverse(self) -> RuleChange:
        """The step that takes this one back."""
        return evolve(self, verb=_OPPOSITE[self.verb])


@frozen
class RouteChange:
    """Add or delete one route."""

    verb: str
    route: Route

    def inverse(self) -> RouteChange:
        """The step that takes this one back."""
        return evolve(self, verb=_OPPOSITE[self.verb])


@frozen
class RouteReplacement:
    """Put a route in the place of another one to the same destination, with the same metric."""

    old: Route
    route: Route

    def inverse(self) -> RouteReplacement:
        """The step that takes this one back."""
        return RouteReplacement(self.route, self.old)


@frozen
class SysctlChange:
    """Write one sysctl; `old` is the value before."""

    old: str
    new: Sysctl

    def inverse(self) -> SysctlChange:
        """The step that takes this one back."""
        return SysctlChange(self.new.value, evolve(self.new, value=self.old))


Step = NftTransaction | RuleChange | RouteChange | RouteReplacement | SysctlChange

_OPPOSITE = {"add": "delete", "delete": "add"}
