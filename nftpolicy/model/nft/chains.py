# SPDX-License-Identifier: BSD-2-Clause
"""Evaluation of nftables base chains for one packet: rules in order, as nft_do_chain() does it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attrs import field, frozen, mutable

from ...netstate import nft
from ...netstate.formats import nft_text
from ...netstate.nft import Chain, Table
from ..branching import Choices
from ..packet_view import PacketView
from ..trace_step import TraceLog, TraceStep
from .match import EvalContext, NamedSets
from .readers import HookPoint
from .statements import CompiledStatement, compile_statement
from .transformed import name_transformed

ACCEPT, DROP = "accept", "drop"
# Priorities at which nat chains run, whatever their own (include/uapi/linux/netfilter_ipv4.h).
NAT_PRIORITIES = {"prerouting": -100, "output": -100, "postrouting": 100, "input": 100}
_FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}
_DEPTH = 16  # NFT_JUMP_STACK_SIZE
_KNOWN_FLAGS = frozenset({"dormant", "owner", "persist"})
_END = nft.Verdict("return")  # the end of a chain has the same effect


@mutable(eq=False)
class _Rule:
    """A rule, compiled as far as a packet has come in it: in most rules the first match decides."""

    rule: nft.Rule
    _remaining: Iterator[CompiledStatement]
    _compiled: list[CompiledStatement] = field(factory=list)
    _text: str | None = None

    def evaluate(self, run: EvalContext) -> bool | nft.Verdict:
        """Return the verdict of the rule, or True if it matches without one, or False."""
        for execute in self._compiled:
            result = execute(run)
            if result is not True:
                return result
        for execute in self._remaining:
            self._compiled.append(execute)
            result = execute(run)
            if result is not True:
                return result
        return True

    @property
    def text(self) -> str:
        if self._text is None:
            self._text = nft_text.display_text(self.rule)
        return self._text


@frozen(eq=False)
class _Prepared:
    """The chains of one table at one hook point, compiled at their first use."""

    table: Table
    sets: NamedSets
    point: HookPoint
    title: str
    _chains: dict[str, Chain]
    _rules: dict[str, list[_Rule]] = field(factory=dict)
    _matches: dict[nft.Match, CompiledStatement] = field(factory=dict)  # many rules have the same ones

    def chain(self, name: str) -> Chain | None:
        return self._chains.get(name)

    def rules(self, name: str) -> list[_Rule]:
        rules = self._rules.get(name)
        if rules is None:
            rules = [_Rule(rule, self._steps(rule)) for rule in self._chains[name].rules]
            self._rules[name] = rules
        return rules

    def _steps(self, rule: nft.Rule) -> Iterator[CompiledStatement]:
        for statement in rule.statements:
            compiled = self._matches.get(statement) if isinstance(statement, nft.Match) else None
            if compiled is None:
                compiled = compile_statement(statement, self.sets, self.point)
                if isinstance(statement, nft.Match) and compiled is not None:
                    self._matches[statement] = compiled
            if compiled is not None:
                yield compiled


@frozen(eq=False)
class PreparedBaseChain:
    """A base chain ready for evaluation.

    `conditions`: open questions; the chain is hooked if all are true.
    """

    chain: Chain
    hook: nft.Hook
    prepared_table: _Prepared
    evaluation_priority: int  # the priority that determines the order of evaluation
    conditions: tuple[str, ...]

    @classmethod
    def prepare(cls, chain: Chain, hook: nft.Hook, prepared: _Prepared) -> PreparedBaseChain:
        """Prepare a base chain of a table."""
        priority = NAT_PRIORITIES.get(hook.hook, hook.priority) if hook.type == "nat" else hook.priority
        conditions: list[str] = []
        if not prepared.table.flags <= _KNOWN_FLAGS:
            conditions.append(f"{prepared.title} is not dormant")
        if hook.needs_device:
            conditions.append(f"chain {chain.name} of {prepared.title} is on this device")
        return cls(chain, hook, prepared, priority, tuple(conditions))

    def evaluate(self, run: EvalContext) -> str:
        """Return "accept" (for this chain only) or "drop" (final).

        Rules write into the context's view.
        """
        for condition in self.conditions:
            if not run.choices.branch_on(condition):
                return ACCEPT
        log, chain = run.log, self.chain
        if log is not None:
            log.append(_chain_step(self.prepared_table, chain))
        verdict = _evaluate_rules(self.prepared_table, chain.name, run)
        if verdict is not None:
            return verdict
        policy = self.hook.policy
        if log is not None:
            text = f"policy {policy} of chain {chain.name}"
            log.append(TraceStep("chain", text, chain, chain.origin, policy))
        return DROP if policy == DROP else ACCEPT


class Ruleset:
    """Tables of a kernel, indexed once."""

    def __init__(self, tables: Iterable[Table]) -> None:
        self.tables = tuple(map(name_transformed, tables))
        self._met: dict[tuple[int, str, str | None], list[PreparedBaseChain]] = {}
        self._bases: dict[tuple[str, str, str], PreparedBaseChain] = {}
        self._hooked: dict[tuple[int, str, str | None], list[tuple[Table, Chain]]] = {}
        self._sets: dict[tuple[str, str], NamedSets] = {}
        self._prepared: dict[tuple[tuple[str, str], HookPoint], _Prepared] = {}

    def base_chains(self, family: int, hook: str, device: str | None = None) -> list[tuple[Table, Chain]]:
        """Return the base chains at a hook in the order of their priorities.

        `family` is 4 or 6 (0: neither; only netdev chains get such frames), `device` that of an
        ingress or egress hook. The chains of a dormant table are not hooked.
        """
        key = (family, hook, device)
        if key not in self._hooked:
            chains = [
                (own.priority, table, chain)
                for own, table, chain in self._candidates(family, device)
                if own.hook == hook
            ]
            # Of chains with the same priority the kernel evaluates the newest first.
            chains.reverse()
            chains.sort(key=lambda item: item[0])
            self._hooked[key] = [(table, chain) for _, table, chain in chains]
        return list(self._hooked[key])

    def _candidates(self, family: int, device: str | None) -> Iterator[tuple[nft.Hook, Table, Chain]]:
        for table in self.tables:
            if "dormant" in table.flags:
                continue
            for chain in table.chains:
                if chain.hook is None:
                    continue
                if chain.hook.hook in ("ingress", "egress"):
                    is_hooked = table.family in ("netdev", "inet")
                    if is_hooked and device is not None and _is_for(chain.hook, device):
                        yield chain.hook, table, chain
                elif device is None and table.family in _FAMILIES.get(family, ()):
                    yield chain.hook, table, chain

    def evaluation_order(self, family: int, hook: str, device: str | None = None) -> Sequence[PreparedBaseChain]:
        """Return the base chains at a hook in evaluation order.

        All nat chains of a hook have one priority.
        """
        key = (family, hook, device)
        chains = self._met.get(key)
        if chains is None:
            prepared = [self.prepare(table, chain) for table, chain in self.base_chains(*key)]
            chains = self._met[key] = sorted(prepared, key=lambda base: base.evaluation_priority)
        return chains

    def prepare(self, table: Table, chain: Chain) -> PreparedBaseChain:
        """Return a base chain ready for evaluation.

        Raises: ValueError for a chain without hook.
        """
        name = (table.family, table.name, chain.name)
        base = self._bases.get(name)
        if base is None:
            if chain.hook is None:
                raise ValueError(f"{chain.name} is not a base chain")
            base = PreparedBaseChain.prepare(chain, chain.hook, self._prepare_table(table, chain.hook))
            self._bases[name] = base
        return base

    def _prepare_table(self, table: Table, hook: nft.Hook) -> _Prepared:
        """Return the chains of a table as its base chains at a hook point use them."""
        point = HookPoint(table.family, hook.hook, hook.priority)
        key = (table.key, point)
        if key not in self._prepared:
            if table.key not in self._sets:
                self._sets[table.key] = NamedSets.from_table(table)
            title = f"table {table.family} {table.name}"
            chains = {chain.name: chain for chain in table.chains}
            self._prepared[key] = _Prepared(table, self._sets[table.key], point, title, chains)
        return self._prepared[key]


def _is_for(hook: nft.Hook, device: str) -> bool:
    names = hook.devices or ({hook.device} if hook.device else set())
    # A chain that is listed without a device may be on any. A trailing asterisk is a wildcard.
    return not names or any(device == name or (name.endswith("*") and device.startswith(name[:-1])) for name in names)


def evaluate_chain(
    ruleset: Ruleset,
    table: Table,
    chain: Chain,
    view: PacketView,
    choices: Choices,
    log: TraceLog | None = None,
) -> str:
    """Evaluate one base chain for a packet; see PreparedBaseChain.evaluate.

    Raises: ValueError for a chain without hook.
    """
    return ruleset.prepare(table, chain).evaluate(EvalContext(view, choices, log))


def _evaluate_rules(prepared: _Prepared, name: str, run: EvalContext) -> str | None:
    """Return accept, drop, or None at the end of the base chain."""
    stack: list[Iterator[_Rule]] = []
    rules, log = iter(prepared.rules(name)), run.log
    while True:
        verdict = _END
        for rule in rules:
            result = rule.evaluate(run) if log is None else _evaluate_logged(rule, run, log)
            if result is not True and result is not False:
                verdict = result
                break
        kind = verdict.kind
        if kind in (ACCEPT, DROP):
            return kind
        if kind in ("jump", "goto"):
            target = None if verdict.target is None else prepared.chain(verdict.target)
            if target is None:
                run.choices.mark_unsupported(
                    f"chain {verdict.target} of {prepared.title}, which the ruleset does not contain"
                )
                continue
            if kind == "jump":
                stack.append(rules)
            if len(stack) > _DEPTH:
                return DROP
            if log is not None:
                log.append(_chain_step(prepared, target))
            rules = iter(prepared.rules(target.name))
        else:
            if not stack:
                return None
            rules = stack.pop()


def _evaluate_logged(rule: _Rule, run: EvalContext, log: TraceLog) -> bool | nft.Verdict:
    """Evaluate a rule and log its effects."""
    run.effects = []
    result = rule.evaluate(run)
    if result or run.effects:
        verdict = [] if isinstance(result, bool) else [_verdict_text(result)]
        effect = ", ".join([*run.effects, *verdict]) or "continue"
        log.append(TraceStep("rule", rule.text, rule.rule, rule.rule.origin, effect))
    return result


def _chain_step(prepared: _Prepared, chain: Chain) -> TraceStep:
    return TraceStep("chain", f"{prepared.title}, chain {chain.name}", chain, chain.origin)


def _verdict_text(verdict: nft.Verdict) -> str:
    return verdict.kind if verdict.target is None else f"{verdict.kind} {verdict.target}"


__all__ = ["ACCEPT", "DROP", "NAT_PRIORITIES", "PacketView", "PreparedBaseChain", "Ruleset", "evaluate_chain"]
