"""Questions of the prover for z3: chains as one formula over the fields of any packet."""

from collections.abc import Sequence
from itertools import count

import z3
from attrs import evolve, field, frozen, mutable

from nftpolicy.netstate import nft
from nftpolicy.proof.spec import MarkTest, Region

from .z3_fields import FALSE, STATES, TRUE, Bool, Changing, Packet, Reader, Vector, either, vector, worn

Place = tuple[nft.Table, nft.Chain]
_QUIET = (nft.Counter, nft.CounterRef, nft.Log)
_SOMETIMES = (nft.Limit, nft.Quota, nft.CtCount)


# --- chains ----------------------------------------------------------------------------


@frozen
class End:
    """Exit of packets: its condition, and the values written by then."""

    when: Bool
    now: Changing


@frozen
class Outcome:
    """Result of a chain: the exits that accept, and the other exits."""

    accepted: list[End]
    out: list[End]


def _joined(ends: Sequence[End], otherwise: Changing) -> End:
    """Return one exit for several that exclude each other."""
    now = otherwise
    for one in ends:
        now = now.written(one.when, one.now)
    return End(z3.Or(*(one.when for one in ends)), now)


@mutable
class Engine:
    """Formulas of the chains of tables, for one packet."""

    packet: Packet
    fresh: "count[int]" = field(factory=count)

    def base(self, place: Place, here: Bool, now: Changing) -> End:
        """Return the exit of packets that pass a base chain."""
        table, chain = place
        assert chain.hook is not None
        asked = here
        if chain.hook.type == "nat":  # asked about the first packet of a flow only
            first = z3.And(self.packet.state == STATES["new"], z3.Not(self.packet.reply))
            asked = z3.And(here, first)
        found = self._chain(Reader(self.packet, table, chain.hook, self.fresh), chain, asked, now)
        ends = [*found.accepted, *(found.out if chain.hook.policy != "drop" else ())]
        if asked is not here:
            ends.append(End(z3.And(here, z3.Not(first)), now))
        return _joined(ends, now)

    def _chain(self, reader: Reader, chain: nft.Chain, here: Bool, now: Changing) -> Outcome:
        accepted: list[End] = []
        out: list[End] = []
        for rule in chain.rules:
            ends, alive, now = self._rule(reader, rule, here, now)
            left = []
            for verdict, end in ends:
                left.append(end.when)
                if verdict.kind == "accept":
                    accepted.append(end)
                elif verdict.kind == "return":
                    out.append(end)
                elif verdict.kind in ("jump", "goto"):
                    target = next(one for one in reader.table.chains if one.name == verdict.target)
                    found = self._chain(reader, target, end.when, end.now)
                    accepted += found.accepted
                    if verdict.kind == "goto":
                        out += found.out
                    else:
                        back = _joined(found.out, end.now)
                        alive, now = z3.Or(alive, back.when), now.written(back.when, back.now)
            here = alive
        return Outcome(accepted, [*out, End(here, now)])

    def _rule(
        self, reader: Reader, rule: nft.Rule, here: Bool, now: Changing
    ) -> tuple[list[tuple[nft.Verdict, End]], Bool, Changing]:
        """Verdicts with the packets that they are for; who goes on to the next rule; what is written by then."""
        ends: list[tuple[nft.Verdict, End]] = []
        when = here
        for statement in rule.statements:
            match statement:
                case nft.Match():
                    when = z3.And(when, reader.holds(statement, now))
                case nft.Verdict("continue"):
                    pass
                case nft.Verdict():
                    ends.append((statement, End(when, now)))
                    when = FALSE
                    break
                case nft.VerdictMap() | nft.VerdictMapRef():
                    found, when = self._looked_up(reader, statement, when, now)
                    ends += found
                case nft.Mangle(key, value):
                    when, now = self._written(reader, key, value, when, now)
                case nft.Queue():  # a program accepts, or drops
                    accepted = reader.doubt()
                    ends.append((nft.ACCEPT, End(z3.And(when, accepted), now)))
                    ends.append((nft.DROP, End(z3.And(when, z3.Not(accepted)), now)))
                    when = FALSE
                    break
                case nft.Reject(kind):
                    other = {"icmp": 4, "icmpv6": 6}.get(kind, self.packet.family) != self.packet.family
                    if not other:
                        ends.append((nft.DROP, End(when, now)))
                    when = FALSE
                    break
                case nft.SetUpdate(op, _, key):
                    parts = key.parts if isinstance(key, nft.Concat) else (key,)
                    there = [one.there for part in parts if (one := reader.read(part, now)) is not None]
                    when = z3.And(when, *there, *(() if op == "delete" else (reader.doubt(),)))
                case nft.Notrack():  # for packets that connection tracking has not seen
                    if reader.untracked:
                        now = evolve(now, notrack=z3.Or(now.notrack, when))
                case _ if isinstance(statement, _QUIET):
                    pass
                case _ if isinstance(statement, _SOMETIMES):
                    when = z3.And(when, reader.doubt())
                case nft.ObjectRef("limit" | "quota"):
                    when = z3.And(when, reader.doubt())
                case _:  # it may let the packet out; who asks about marks must ask for it too
                    ends.append((nft.ACCEPT, End(z3.And(when, reader.doubt()), now)))
        gone = [end.when for _, end in ends]
        return ends, z3.And(here, z3.Not(z3.Or(*gone))) if gone else here, now

    def _looked_up(
        self, reader: Reader, statement: nft.VerdictMap | nft.VerdictMapRef, when: Bool, now: Changing
    ) -> tuple[list[tuple[nft.Verdict, End]], Bool]:
        """Return the verdicts of a map. Without an entry the rule ends."""
        if isinstance(statement, nft.VerdictMapRef):
            entries = next(one.elements for one in reader.table.maps if one.name == statement.name)
        else:
            entries = statement.entries
        ends, onward = [], []
        for element, verdict in entries:
            mine = z3.And(when, reader.holds(nft.Match(statement.key, nft.AnonymousSet(frozenset({element}))), now))
            if verdict.kind == "continue":
                onward.append(mine)
            else:
                ends.append((verdict, End(mine, now)))
        return ends, z3.Or(*onward)

    def _written(
        self, reader: Reader, key: nft.Expression, value: nft.Expression | nft.Value, when: Bool, now: Changing
    ) -> tuple[Bool, Changing]:
        new, there = self._value(reader, value, now)
        when = z3.And(when, there)
        if key == nft.Meta("mark"):
            return when, evolve(now, mark=either(when, new, now.mark))
        if key == nft.Ct("mark"):  # without a connection there is nothing to write on
            tracked = FALSE if reader.untracked else z3.And(self.packet.tracked, z3.Not(now.notrack))
            return when, evolve(now, ctmark=either(z3.And(when, tracked), new, now.ctmark))
        return when, now

    def _value(self, reader: Reader, value: nft.Expression | nft.Value, now: Changing) -> tuple[Vector, Bool]:
        if isinstance(value, int):
            return z3.BitVecVal(value, 32), TRUE
        if isinstance(value, nft.Lookup) and isinstance(value.data, frozenset):
            found = vector(f"map{next(self.fresh)}", 32)
            told = []
            for element, data in value.data:
                is_it = reader.holds(nft.Match(value.key, nft.AnonymousSet(frozenset({element}))), now)
                told.append(is_it)
                found = z3.If(is_it, z3.BitVecVal(data, 32), found)
            return found, z3.Or(*told)
        read = None if isinstance(value, str) else reader.read(value, now)
        if read is None or read.value.size() > 32:
            return vector(f"any{next(self.fresh)}", 32), reader.doubt()
        narrow = 32 - read.value.size()
        return (z3.ZeroExt(narrow, read.value) if narrow else read.value), read.there


# --- questions -------------------------------------------------------------------------


def first_through(
    family: int, places: Sequence[Place], region: Region, allowed: Sequence[Region] = (), seconds: float | None = None
) -> bool | None:
    """Return True if a packet of `region` outside of `allowed` passes all base chains; None: no answer in time."""
    engine = Engine(Packet(family))
    packet = engine.packet
    here = z3.And(packet.possible, packet.within(region), *(z3.Not(packet.within(one)) for one in allowed))
    end = End(here, packet.start)
    for place in places:
        end = engine.base(place, end.when, end.now)
    return _satisfiable(end.when, seconds)


def integrity(
    family: int, places: Sequence[Place], value: int, mask: int, uplinks: Sequence[str], seconds: float | None = None
) -> bool | None:
    """Return True if no chain can set the mark on an unmarked packet, but for replies in flows that began at an uplink.

    Induction: an invariant before each base chain holds after it.
    """
    unmarked, unmarked_flow = (MarkTest(value, mask, False, of) for of in ("mark", "ctmark"))
    sent = Region(marks=(unmarked,), not_iifname=tuple(uplinks))
    replies = Region({"ct.direction": ((1, 1),)}, (MarkTest(value, mask, field="ctmark"),))
    given = _given(family, places, sent, MarkTest(value, mask), seconds, [replies])
    if given is not False:
        return None if given is None else False
    began = Region({"ct.direction": ((0, 0),), "ct.confirmed": ((0, 0),)}, iifname=tuple(uplinks))
    unmarked_flows, marked = Region(marks=(unmarked_flow,)), MarkTest(value, mask, field="ctmark")
    flows = _given(family, places, unmarked_flows, marked, seconds, [began])
    if flows is not True:
        return None if flows is None else True
    given = _given(family, places, sent, MarkTest(value, mask), seconds)
    return None if given is None else not given


def _given(
    family: int,
    places: Sequence[Place],
    region: Region,
    test: MarkTest,
    seconds: float | None,
    excluded: Sequence[Region] = (),
) -> bool | None:
    for place in places:
        engine = Engine(Packet(family))
        packet = engine.packet
        start = z3.And(packet.possible, packet.within(region), *(z3.Not(packet.within(one)) for one in excluded))
        end = engine.base(place, start, packet.start)
        found = _satisfiable(z3.And(end.when, worn(test, end.now)), seconds)
        if found is not False:
            return found
    return False


def _satisfiable(formula: Bool, seconds: float | None) -> bool | None:
    solver = z3.SolverFor("QF_BV")
    if seconds is not None:
        solver.set("timeout", int(seconds * 1000))
    solver.add(formula)
    answer = solver.check()
    return None if answer == z3.unknown else answer == z3.sat
