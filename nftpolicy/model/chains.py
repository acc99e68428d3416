# SPDX-License-Identifier: BSD-2-Clause
"""What a base chain of nftables does with one packet: rules in order, as nft_do_chain() walks them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attrs import field, frozen, mutable

from ..netstate import nft, text
from ..netstate.nft import Chain, Table
from .decision import Decision
from .effects import Step, step
from .matching import Run, Tables
from .reading import Place
from .unknown import Doubts
from .view import View

ACCEPT, DROP = "accept", "drop"
# Where nat chains are asked, whatever their priority says (include/uapi/linux/netfilter_ipv4.h).
NAT = {"prerouting": -100, "output": -100, "postrouting": 100, "input": 100}
_FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}
_DEPTH = 16  # NFT_JUMP_STACK_SIZE
_KNOWN_FLAGS = frozenset({"dormant", "owner", "persist"})
_END = nft.Verdict("return")  # what the end of a chain amounts to


@mutable(eq=False)
class _Rule:
    """A rule, made ready to be carried out as far as a packet has come in it: of most rules the first match decides."""

    rule: nft.Rule
    _rest: Iterator[Step]
    ready: list[Step] = field(factory=list)
    _text: str | None = None

    def carried_out(self, run: Run) -> bool | nft.Verdict:
        """The verdict of a rule that has one; of others, whether the rule matches."""
        for one in self.ready:
            found = one(run)
            if found is not True:
                return found
        for made in self._rest:
            self.ready.append(made)
            found = made(run)
            if found is not True:
                return found
        return True

    @property
    def text(self) -> str:
        if self._text is None:
            self._text = text.shown(self.rule)
        return self._text


@frozen(eq=False)
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
        found = self._rules.get(name)
        if found is None:
            found = self._rules[name] = [_Rule(rule, self._steps(rule)) for rule in self._chains[name].rules]
        return found

    def _steps(self, rule: nft.Rule) -> Iterator[Step]:
        for statement in rule.statements:
            made = step(statement, self.sets, self.place)
            if made is not None:
                yield made


@frozen(eq=False)
class Base:
    """A base chain as packets meet it. `doubts`: what it takes for it to be met at all, where that is not known."""

    chain: Chain
    hook: nft.Hook
    prepared: _Prepared
    place: int  # in the order in which chains are asked
    doubts: tuple[str, ...]

    @classmethod
    def of(cls, chain: Chain, hook: nft.Hook, prepared: _Prepared) -> Base:
        place = NAT.get(hook.hook, hook.priority) if hook.type == "nat" else hook.priority
        doubts = [] if prepared.table.flags <= _KNOWN_FLAGS else [f"{prepared.where} is not dormant"]
        if hook.hook in ("ingress", "egress") and not (hook.device or hook.devices):
            doubts.append(f"chain {chain.name} of {prepared.where} is on this device")
        return cls(chain, hook, prepared, place, tuple(doubts))

    def evaluate(self, run: Run) -> str:
        """ "accept" (this chain's word only) or "drop" (final). What the rules write is changed in the run's view."""
        for doubt in self.doubts:
            if not run.doubts.ask(doubt):
                return ACCEPT
        log, chain = run.log, self.chain
        if log is not None:
            log.append(Decision("chain", f"{self.prepared.where}, chain {chain.name}", chain, chain.origin))
        verdict = _walk(self.prepared, chain.name, run)
        if verdict is not None:
            return verdict
        policy = self.hook.policy
        if log is not None:
            log.append(Decision("chain", f"policy {policy} of chain {chain.name}", chain, chain.origin, policy))
        return DROP if policy == DROP else ACCEPT


class Ruleset:
    """All tables of a kernel, indexed once."""

    def __init__(self, tables: Iterable[Table]) -> None:
        self.tables = tuple(tables)
        self._met: dict[tuple[int, str, str | None], list[Base]] = {}
        self._bases: dict[tuple[str, str, str], Base] = {}
        self._hooked: dict[tuple[int, str, str | None], list[tuple[Table, Chain]]] = {}
        self._sets: dict[tuple[str, str], Tables] = {}
        self._prepared: dict[tuple[tuple[str, str], Place], _Prepared] = {}

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

    def met(self, family: int, hook: str, device: str | None = None) -> Sequence[Base]:
        """The same in the order in which they are asked: all nat chains of a hook have one place."""
        key = (family, hook, device)
        found = self._met.get(key)
        if found is None:
            met = [self.base(table, chain) for table, chain in self.hooked(*key)]
            found = self._met[key] = sorted(met, key=lambda one: one.place)
        return found

    def base(self, table: Table, chain: Chain) -> Base:
        """A base chain made ready. ValueError if it is none."""
        name = (table.family, table.name, chain.name)
        found = self._bases.get(name)
        if found is None:
            if chain.hook is None:
                raise ValueError(f"{chain.name} is no base chain")
            found = self._bases[name] = Base.of(chain, chain.hook, self._at(table, chain.hook))
        return found

    def _at(self, table: Table, hook: nft.Hook) -> _Prepared:
        """The chains of a table as its base chains at a place use them."""
        place = Place(table.family, hook.hook, hook.priority)
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
    """What one base chain says of a packet: see Base.evaluate. ValueError if it is none."""
    return ruleset.base(table, chain).evaluate(Run(view, doubts, log))


def _walk(prepared: _Prepared, name: str, run: Run) -> str | None:
    """accept, drop, or None where the base chain's end was met."""
    stack: list[Iterator[_Rule]] = []
    rules, log = iter(prepared.rules(name)), run.log
    while True:
        verdict = _END
        for rule in rules:
            found = rule.carried_out(run) if log is None else _told(rule, run, log)
            if found is not True and found is not False:
                verdict = found
                break
        kind = verdict.kind
        if kind in (ACCEPT, DROP):
            return kind
        if kind in ("jump", "goto"):
            target = None if verdict.target is None else prepared.chain(verdict.target)
            if target is None:
                run.doubts.note(f"chain {verdict.target} of {prepared.where}, which the listing lacks")
                continue
            if kind == "jump":
                stack.append(rules)
            if len(stack) > _DEPTH:
                return DROP
            if log is not None:
                log.append(Decision("chain", f"{prepared.where}, chain {target.name}", target, target.origin))
            rules = iter(prepared.rules(target.name))
        else:
            if not stack:
                return None
            rules = stack.pop()


def _told(rule: _Rule, run: Run, log: list[Decision]) -> bool | nft.Verdict:
    """The same with what the rule did, for a person."""
    run.effects = []
    found = rule.carried_out(run)
    if found or run.effects:
        words = [] if isinstance(found, bool) else [_named(found)]
        effect = ", ".join([*run.effects, *words]) or "goes on"
        log.append(Decision("rule", rule.text, rule.rule, rule.rule.origin, effect))
    return found


def _named(verdict: nft.Verdict) -> str:
    return verdict.kind if verdict.target is None else f"{verdict.kind} {verdict.target}"


__all__ = ["ACCEPT", "DROP", "NAT", "Base", "Ruleset", "View", "evaluate"]
