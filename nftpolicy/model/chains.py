# SPDX-License-Identifier: BSD-2-Clause
"""What a base chain of nftables does with one packet: rules in order, as nft_do_chain() walks them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from attrs import field, frozen, mutable

from ..netstate import nft, text
from ..netstate.nft import Chain, Table
from .decision import Decision, Untold
from .effects import Step, step
from .matching import Run, Tables
from .reading import Place
from .unknown import Doubts
from .view import View

ACCEPT, DROP = "accept", "drop"
_FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}
_DEPTH = 16  # NFT_JUMP_STACK_SIZE
_KNOWN_FLAGS = frozenset({"dormant", "owner", "persist"})
_END = nft.Verdict("return")  # what the end of a chain amounts to


@mutable
class _Rule:
    """A rule, made ready to be carried out as far as a packet has come in it: of most rules the first match decides."""

    rule: nft.Rule
    _rest: Iterator[Step]
    ready: list[Step] = field(factory=list)
    _text: str | None = None

    def one_more(self) -> Step | None:
        """The next step that was not ready yet, or None behind the last."""
        made = next(self._rest, None)
        if made is not None:
            self.ready.append(made)
        return made

    @property
    def text(self) -> str:
        if self._text is None:
            self._text = text.shown(self.rule)
        return self._text


@frozen
class _Prepared:
    """The chains of one table as they are at one place, prepared when first entered."""

    table: Table
    sets: Tables
    place: Place
    where: str  # for a person
    _chains: dict[str, Chain]
    _rules: dict[str, list[_Rule]] = field(factory=dict)

    def chain(self, name: str) -> Chain | None:
        return self._chains.get(name)

    def rules(self, name: str) -> list[_Rule]:
        if name not in self._rules:
            self._rules[name] = [_Rule(rule, self._steps(rule)) for rule in self._chains[name].rules]
        return self._rules[name]

    def _steps(self, rule: nft.Rule) -> Iterator[Step]:
        for statement in rule.statements:
            made = step(statement, self.sets, self.place)
            if made is not None:
                yield made


class Ruleset:
    """All tables of a kernel, indexed once."""

    def __init__(self, tables: Iterable[Table]) -> None:
        self.tables = tuple(tables)
        self.placed: dict[tuple[int, str, str | None], list[Any]] = {}  # what model/hooks.py works out, once
        self._hooked: dict[tuple[int, str, str | None], list[tuple[Table, Chain]]] = {}
        self._sets: dict[tuple[str, str], Tables] = {}
        self._prepared: dict[tuple[tuple[str, str], Place], _Prepared] = {}
        self._of_chain: dict[tuple[str, str, str], _Prepared] = {}  # the same, by the base chain

    def hooked(self, family: int, hook: str, device: str | None = None) -> list[tuple[Table, Chain]]:
        """The base chains that a packet meets at a hook, in order.

        `family` is 4 or 6 (0: neither; only netdev chains see such frames), `device` that of an
        ingress or egress hook. A dormant table hooks nowhere.
        """
        key = (family, hook, device)
        if key not in self._hooked:
            found = [(table, chain) for table, chain in self._all(family, device) if chain.hook.hook == hook]  # type: ignore[union-attr]
            # Of chains with one priority the kernel asks the youngest first.
            found.reverse()
            found.sort(key=lambda item: item[1].hook.priority)  # type: ignore[union-attr]
            self._hooked[key] = found
        return list(self._hooked[key])

    def _all(self, family: int, device: str | None) -> Iterator[tuple[Table, Chain]]:
        for table in self.tables:
            if "dormant" in table.flags:
                continue
            for chain in table.chains:
                if chain.hook is None:
                    continue
                if chain.hook.hook in ("ingress", "egress"):
                    of_family = table.family in ("netdev", "inet")
                    if of_family and device is not None and _is_for(chain.hook, device):
                        yield table, chain
                elif device is None and table.family in _FAMILIES.get(family, ()):
                    yield table, chain

    def prepared(self, table: Table, chain: Chain) -> _Prepared:
        """The chains of a table as the base chain `chain` uses them."""
        name = (table.family, table.name, chain.name)
        found = self._of_chain.get(name)
        if found is None:
            found = self._of_chain[name] = self._at(table, chain)
        return found

    def _at(self, table: Table, chain: Chain) -> _Prepared:
        assert chain.hook is not None
        place = Place(table.family, chain.hook.hook, chain.hook.priority)
        key = (table.key, place)
        if key not in self._prepared:
            if table.key not in self._sets:
                self._sets[table.key] = Tables.of(table)
            where = f"table {table.family} {table.name}"
            chains = {one.name: one for one in table.chains}
            self._prepared[key] = _Prepared(table, self._sets[table.key], place, where, chains)
        return self._prepared[key]


def _is_for(hook: nft.Hook, device: str) -> bool:
    names = hook.devices or ({hook.device} if hook.device else set())
    # A chain whose device the listing does not tell may be on any. An asterisk at the end stands for the rest.
    return not names or any(device == one or (one.endswith("*") and device.startswith(one[:-1])) for one in names)


def evaluate(
    ruleset: Ruleset, table: Table, chain: Chain, view: View, doubts: Doubts, log: list[Decision] | None = None
) -> str:
    """ "accept" (this chain's word only) or "drop" (final). What the rules write is changed in `view`."""
    hook = chain.hook
    if hook is None:
        raise ValueError(f"{chain.name} is no base chain")
    prepared = ruleset.prepared(table, chain)
    run = Run(view, doubts, log, Untold())
    where = prepared.where
    if not table.flags <= _KNOWN_FLAGS and not doubts.ask(f"{where} is not dormant"):
        return ACCEPT
    if (
        hook.hook in ("ingress", "egress")
        and not (hook.device or hook.devices)
        and not doubts.ask(f"chain {chain.name} of {where} is on this device")
    ):
        return ACCEPT
    if log is not None:
        log.append(Decision("chain", f"{where}, chain {chain.name}", chain, chain.origin))
    verdict = _walk(prepared, chain, run)
    if verdict is not None:
        return verdict
    if log is not None:
        log.append(Decision("chain", f"policy {hook.policy} of chain {chain.name}", chain, chain.origin, hook.policy))
    return DROP if hook.policy == "drop" else ACCEPT


def _walk(prepared: _Prepared, chain: Chain, run: Run) -> str | None:
    """accept, drop, or None where the base chain's end was met."""
    stack: list[Iterator[_Rule]] = []
    rules = iter(prepared.rules(chain.name))
    while True:
        verdict = _END
        for rule in rules:
            found = _carry_out(rule, run) if run.log is None else _told(rule, run, run.log)
            if not isinstance(found, bool):
                verdict = found
                break
        match verdict.kind:
            case "accept" | "drop":
                return verdict.kind
            case "jump" | "goto":
                target = None if verdict.target is None else prepared.chain(verdict.target)
                if target is None:
                    run.doubts.note(f"chain {verdict.target} of {prepared.where}, which the listing lacks")
                    continue
                if verdict.kind == "jump":
                    stack.append(rules)
                if len(stack) > _DEPTH:
                    return DROP
                if run.log is not None:
                    run.log.append(Decision("chain", f"{prepared.where}, chain {target.name}", target, target.origin))
                rules = iter(prepared.rules(target.name))
            case _:
                if not stack:
                    return None
                rules = stack.pop()


def _told(rule: _Rule, run: Run, log: list[Decision]) -> bool | nft.Verdict:
    """The same with what the rule did, for a person."""
    run.effects = []
    found = _carry_out(rule, run)
    if found or run.effects:
        words = [] if isinstance(found, bool) else [_named(found)]
        effect = ", ".join([*run.effects, *words]) or "goes on"
        log.append(Decision("rule", rule.text, rule.rule, rule.rule.origin, effect))
    return found


def _carry_out(rule: _Rule, run: Run) -> bool | nft.Verdict:
    """The verdict of a rule that has one; of others, whether the rule matches."""
    for one in rule.ready:
        found = one(run)
        if found is not True:
            return found
    while (more := rule.one_more()) is not None:
        found = more(run)
        if found is not True:
            return found
    return True


def _named(verdict: nft.Verdict) -> str:
    return verdict.kind if verdict.target is None else f"{verdict.kind} {verdict.target}"


__all__ = ["ACCEPT", "DROP", "Ruleset", "View", "evaluate"]
