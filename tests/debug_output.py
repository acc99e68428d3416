"""Compare two readings of one ruleset: where one of them claims more than the other."""

from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

import attrs

from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import nft_text

_UNKNOWN = (nft.UnknownStatement, nft.UnknownExpression, nft.UnmodelledMatch)


def has_unknown(value: object) -> bool:
    """Return True if a part of a rule is not understood."""
    if isinstance(value, _UNKNOWN):
        return True
    if isinstance(value, tuple | frozenset):
        return any(map(has_unknown, value))
    return attrs.has(type(value)) and any(has_unknown(getattr(value, name)) for name in attrs.fields_dict(type(value)))


def is_no_more_known(executed: nft.Rule, shown: nft.Rule) -> bool:
    """Return True if each difference of the second rule from the first one is a part that it does not understand."""
    for one, other in zip_longest(executed.statements, shown.statements):
        if one == other:
            continue
        if other is None or not has_unknown(other):
            return False
        if isinstance(other, nft.UnknownStatement):
            return True  # it may do anything
    return True


def more_known(executed: Iterable[nft.Table], shown: Iterable[nft.Table]) -> list[str]:
    """Return what the second reading of a ruleset has and the first one has not, or has otherwise."""
    found: list[str] = []
    by_key = {table.key: table for table in shown}
    for table in executed:
        other = by_key.pop(table.key, None)
        if other is None or other.flags != table.flags:
            found.append(f"table {table.key}")
            continue
        found += _named_parts(table, other)
        chains = {chain.name: chain for chain in other.chains}
        for chain in table.chains:
            if chain.name not in chains:  # an anonymous chain, which nft does not list by name
                found += [] if any(chain.name in text for text in other.unknown) else [f"chain {chain.name}"]
                continue
            found += _chain(chain, chains.pop(chain.name))
        found += [f"chain {name}" for name in chains]
    return [*found, *map(str, by_key)]


def _chain(executed: nft.Chain, shown: nft.Chain) -> list[str]:
    if executed.hook != shown.hook:
        return [f"{executed.name}: {executed.hook} {shown.hook}"]
    if shown.rules and isinstance(shown.rules[0].statements[0], nft.UnknownStatement):
        return []  # rules of this chain are not shown
    if len(executed.rules) != len(shown.rules):
        return [f"{executed.name}: {len(executed.rules)} rules, {len(shown.rules)} shown"]
    pairs = zip(executed.rules, shown.rules, strict=True)
    texts = [(nft_text.display_text(one), nft_text.display_text(other)) for one, other in pairs
             if not is_no_more_known(one, other)]  # fmt: skip
    return [f"{one} | {other}" for one, other in texts]


def _named_parts(executed: nft.Table, shown: nft.Table) -> list[str]:
    found: list[str] = []
    for kind in ("sets", "maps", "counters", "objects", "flowtables"):
        ours: tuple[Any, ...] = getattr(executed, kind)
        theirs: tuple[Any, ...] = getattr(shown, kind)
        found += [f"{kind}: {each}" for each in theirs if each not in ours]
        missing = [each.name for each in ours if each not in theirs]
        found += [f"{kind}: {name}" for name in missing if not any(name in text for text in shown.unknown)]
    if len(executed.unknown) > len(shown.unknown):
        found.append(f"unsupported: {executed.unknown} {shown.unknown}")
    return found
