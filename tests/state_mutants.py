"""Mutants of a state: one object is deleted, negated or moved."""

from collections.abc import Iterator

from attrs import evolve, frozen

from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import nft_text
from nftpolicy.netstate.state import NetState

NEGATED = {"==": "!=", "!=": "==", "in": "!", "!": "in", "&": "!", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
TURNED = {"accept": "drop", "drop": "accept"}


@frozen
class Mutant:
    """State with one change. `kind` names the change, `where` and `what` name the object."""

    kind: str
    where: str
    what: str | nft.Rule | tuple[nft.Rule, nft.Statement]
    state: NetState

    def __str__(self) -> str:
        what = self.what
        if isinstance(what, tuple):
            what = f"{nft_text.display_text(what[0])} [{nft_text.display_text(what[1])}]"
        elif isinstance(what, nft.Rule):
            what = nft_text.display_text(what)
        return f"{self.kind}: {self.where}: {what}"


def mutants(state: NetState) -> Iterator[Mutant]:
    """Yield all mutants in a fixed order."""
    yield from _of_tables(state)
    for at, rule in enumerate(state.rules):
        rest = state.rules[:at] + state.rules[at + 1 :]
        yield Mutant("ip rule gone", f"IPv{rule.family}", str(rule.priority), evolve(state, rules=rest))
        if rule.mask:
            changed = (*state.rules[:at], evolve(rule, mark=rule.mark ^ rule.mask), *state.rules[at + 1 :])
            name = f"{rule.priority} {rule.action}"
            yield Mutant("ip rule with another mark", f"IPv{rule.family}", name, evolve(state, rules=changed))
    for at, route in enumerate(state.routes):
        rest = state.routes[:at] + state.routes[at + 1 :]
        name = f"{route.kind} {route.destination} {route.gateway or ''}"
        yield Mutant("route gone", f"IPv{route.family} table {route.table}", name, evolve(state, routes=rest))
    for at, sysctl in enumerate(state.sysctls):
        rest = state.sysctls[:at] + state.sysctls[at + 1 :]
        yield Mutant("sysctl gone", sysctl.path, sysctl.value, evolve(state, sysctls=rest))


def _of_tables(state: NetState) -> Iterator[Mutant]:
    for at, table in enumerate(state.tables):

        def put(*tables: nft.Table, at: int = at) -> NetState:
            return evolve(state, tables=(*state.tables[:at], *tables, *state.tables[at + 1 :]))

        name = f"{table.family} {table.name}"
        yield Mutant("table gone", name, "", put())
        for which, chain in enumerate(table.chains):

            def with_chain(*chains: nft.Chain, which: int = which, table: nft.Table = table, put=put) -> NetState:
                return put(evolve(table, chains=(*table.chains[:which], *chains, *table.chains[which + 1 :])))

            where = f"{name} {chain.name}"
            if chain.hook is not None:
                hook = chain.hook
                yield Mutant("base chain gone", where, "", with_chain())
                turned = evolve(chain, hook=evolve(hook, policy=TURNED[hook.policy]))
                yield Mutant("policy turned", where, hook.policy, with_chain(turned))
                if hook.type != "filter":
                    yield Mutant(
                        "type changed", where, hook.type, with_chain(evolve(chain, hook=evolve(hook, type="filter")))
                    )
            if chain.rules:
                yield Mutant("rules gone", where, "", with_chain(evolve(chain, rules=())))
            for kind, what, rules in _of_rules(chain.rules):
                yield Mutant(kind, where, what, with_chain(evolve(chain, rules=rules)))
        for which, one in enumerate(table.sets):
            for element in sorted(one.elements, key=repr):
                rest = evolve(one, elements=one.elements - {element})
                sets = (*table.sets[:which], rest, *table.sets[which + 1 :])
                yield Mutant("element gone", f"{name} @{one.name}", repr(element), put(evolve(table, sets=sets)))


def _of_rules(
    rules: tuple[nft.Rule, ...],
) -> Iterator[tuple[str, nft.Rule | tuple[nft.Rule, nft.Statement], tuple[nft.Rule, ...]]]:
    for at, rule in enumerate(rules):
        yield "rule gone", rule, rules[:at] + rules[at + 1 :]
        for which, statement in enumerate(rule.statements):
            for kind, others in _of_statement(statement):
                changed = evolve(rule, statements=(*rule.statements[:which], *others, *rule.statements[which + 1 :]))
                yield kind, (rule, statement), (*rules[:at], changed, *rules[at + 1 :])


def _of_statement(statement: nft.Statement) -> Iterator[tuple[str, tuple[nft.Statement, ...]]]:
    match statement:
        case nft.Match(_, right, op):
            yield "match negated", (evolve(statement, op=NEGATED[op]),)
            yield "match gone", ()
            if isinstance(right, nft.AnonymousSet) and len(right.elements) > 1:
                for element in sorted(right.elements, key=repr):
                    smaller = nft.AnonymousSet(right.elements - {element})
                    yield f"value {element!r} gone", (evolve(statement, right=smaller),)
        case nft.Verdict("accept" | "drop" as kind):
            yield "verdict turned", (nft.Verdict(TURNED[kind]),)
        case nft.Verdict("jump" | "goto" as kind):
            yield "verdict turned", (nft.ACCEPT,)
            yield "verdict turned", (nft.DROP,)
        case nft.VerdictMap(_, entries):
            for entry in sorted(entries, key=repr):
                yield f"entry {entry[0]!r} gone", (evolve(statement, entries=entries - {entry}),)
                accepts = entries - {entry} | {(entry[0], nft.ACCEPT)}
                if accepts != entries:
                    yield f"entry {entry[0]!r} accepts", (evolve(statement, entries=accepts),)
        case nft.CounterRef():
            yield "count gone", ()
        case _:
            yield "statement gone", ()
