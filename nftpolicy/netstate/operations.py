# SPDX-License-Identifier: BSD-2-Clause
"""Operations on a network state: nft operations, and the steps of a plan."""

from __future__ import annotations

from attrs import evolve, frozen

from .nft import Chain, Element, NamedCounter, Rule, Set, Table
from .routing import IpRule, Route, Sysctl


@frozen
class SetElements:
    """Elements of an existing set; `nft_set` has the set's data types, which their text needs."""

    nft_set: Set
    elements: frozenset[Element]


@frozen
class ChainRules:
    """Rules to append to an existing chain."""

    chain: Chain
    rules: tuple[Rule, ...]


@frozen
class NftOperation:
    """Operation of a transaction: `verb` is add, delete or flush (chains and sets).

    The addition of a chain or set adds no rules or elements; these are separate operations.
    """

    verb: str
    family: str
    table: str
    object: Table | NamedCounter | Set | SetElements | Chain | ChainRules


@frozen
class NftTransaction:
    """Operations that the kernel applies atomically, and the operations that undo them."""

    operations: tuple[NftOperation, ...]
    undo: tuple[NftOperation, ...]

    def inverse(self) -> NftTransaction:
        """Return the step that undoes this one."""
        return NftTransaction(self.undo, self.operations)


@frozen
class IpRuleChange:
    """Addition or deletion of one ip rule."""

    verb: str
    rule: IpRule

    def inverse(self) -> IpRuleChange:
        """Return the step that undoes this one."""
        return evolve(self, verb=_OPPOSITE[self.verb])


@frozen
class RouteChange:
    """Addition or deletion of one route."""

    verb: str
    route: Route

    def inverse(self) -> RouteChange:
        """Return the step that undoes this one."""
        return evolve(self, verb=_OPPOSITE[self.verb])


@frozen
class RouteReplacement:
    """Replacement of a route (`old`) by another one to the same destination with the same metric."""

    old: Route
    route: Route

    def inverse(self) -> RouteReplacement:
        """Return the step that undoes this one."""
        return RouteReplacement(self.route, self.old)


@frozen
class SysctlChange:
    """Write of one sysctl; `old` is the value before."""

    old: str
    new: Sysctl

    def inverse(self) -> SysctlChange:
        """Return the step that undoes this one."""
        return SysctlChange(self.new.value, evolve(self.new, value=self.old))


Step = NftTransaction | IpRuleChange | RouteChange | RouteReplacement | SysctlChange

_OPPOSITE = {"add": "delete", "delete": "add"}
