# SPDX-License-Identifier: BSD-2-Clause
"""Two lemmas that make a proof without any model of routing.

Integrity: if a packet's socket did not set an uplink's mark, and the packet did not arrive by the
uplink, no rule gives it the mark, unless it is a reply in a flow that began at the uplink. Guard:
whatever happened before, packets about to leave by the uplink without its mark are dropped, except
the exemptions. Together: packets that leave were sent with the mark, or are replies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen

from ..model.packet import TCP
from ..model.symbolic import mark_bits
from ..model.symbolic.box import Box, find_uncovered, intersect_boxes, points
from ..model.symbolic.box_index import BoxIndex
from ..model.symbolic.chain_event import BaseChain, ChainEvent
from ..model.symbolic.header_space import HeaderSpace
from ..model.symbolic.mark_writes import written_groups
from ..model.symbolic.ruleset_scan import mark_kind
from ..netstate import nft
from ..netstate.formats import nft_text
from ..netstate.nft.symbols import CT_DIRECTIONS
from .context import ProofContext, runs_before_conntrack, unsupported_in
from .entitlement import arriving_regions, tunnel_regions
from .spec import IP_FAMILIES, MarkTest, Region, UplinkSpec

# Fields that targets of legacy iptables rewrite: TTL, HL, DSCP, TCPMSS. The header space has no field for
# the last two; "?" are its unsupported constructs.
_REWRITTEN = ("ttl", "?")


# Hooks of packets that have arrived, and do not leave if the machine forwards none.
ARRIVAL_HOOKS = ("prerouting", "input")
_NO_INPUT_DEVICE: Box = {"iif": points(0)}  # packets without an input device


@frozen
class Violation:
    """Violation of a lemma: part of the region, and the base chain or rule that causes it.

    `unsupported` are the constructs that the result depends on.
    """

    family: int
    box: Box
    location: str
    unsupported: tuple[str, ...]


def guard_violation(
    context: ProofContext, family: int, chains: Sequence[BaseChain], region: Region, allowed: Sequence[Region] = ()
) -> Violation | None:
    """Return a part of `region` that all base chains accept and no region of `allowed` holds.

    None if there is none. One chain alone can suffice for the proof if no later chain changes the
    header of what it accepts.
    """
    transfer = context.chain_transfer(family)
    space = transfer.space
    exempt = BoxIndex((box for exempt_region in allowed for box in exempt_region.boxes(space)), space.max_values)
    unstable_names = unstable_fields(context, chains)
    header_final = [base_chain for base_chain in chains if not context.header_may_change_after(family, base_chain)]
    writes = any(transfer.can_write(table, chain.name) for table, chain in chains)
    if writes or len(header_final) < len(chains):
        chains = context.in_kernel_order(chains)
    if writes:
        unstable_names += context.fields_written_in_unknown_order(family, chains)
    # A packet is exempt by the header with which it leaves: only a chain after which it stays can judge that.
    exempt_at_end = exempt if header_final else BoxIndex()
    for start in region.readable_boxes(space):
        if any(transfer.find_accepted((base_chain,), start, exempt) is None for base_chain in header_final):
            continue
        accepted = transfer.find_accepted(chains, start, exempt_at_end, unstable_fields=unstable_names)
        if accepted is not None:
            return Violation(family, accepted, "", unsupported_in(accepted, space))
    return None


def unstable_fields(context: ProofContext, chains: Sequence[BaseChain]) -> tuple[str, ...]:
    """Return the fields that may differ from chain to chain, whatever the rules do.

    These are the fields that NAT translates, those that legacy iptables can rewrite, and the
    connection, which chains before connection tracking do not see.
    """
    has_nat = context.has_nat or any(write.is_nat for write in context.legacy_writes)
    addresses = ("saddr", "daddr", "sport", "dport") if has_nat else ()
    rewritten = () if all(write.is_nat for write in context.legacy_writes) else _REWRITTEN
    connection = ("ct.", "ctmark:") if any(map(runs_before_conntrack, chains)) else ()
    return (*addresses, *rewritten, *connection)


def integrity_violations(
    context: ProofContext, family: int, uplink: UplinkSpec, hook: str | None = None, skipped: Sequence[BaseChain] = ()
) -> list[Violation]:
    """Return the rules that may give the uplink's mark to a packet not entitled to it.

    With `hook`, only rules of that hook; none of the chains `skipped`. Induction over all writes: a
    packet that did not arrive by the uplink and does not carry the mark before a write does not carry
    it after, whatever the mark of its flow. Entitled are users that the specification allows to send
    without a mark, and replies in marked flows, if only flows that began at the uplink can have the
    mark.
    """
    if not _may_mark(context, family, uplink, "mark"):
        return []
    unmarked_packets = Region(marks=(uplink.lacks_mark,), not_iifname=uplink.devices)
    chains = [
        base_chain
        for base_chain in writing_chains(context, family)
        if hook in (None, base_chain[1].hook and base_chain[1].hook.hook) and base_chain not in skipped
    ]
    # Users that need no mark may get it, but a write into the flow would pass it to other packets.
    entitled = []
    if uplink.unmarked_uids and hook is None:
        entitled.append(Region({"socket": points(1), "uid": points(*uplink.unmarked_uids)}))
    if hook is None:
        entitled += [*arriving_regions(uplink, family), *tunnel_regions(uplink, family)]
    marking_events = list(_marking_events(context, family, chains, [unmarked_packets], uplink, "mark"))
    replies = Region({"ct.direction": points(CT_DIRECTIONS["reply"])}, (uplink.flow_has_mark,))
    remaining = list(_violations(context, family, marking_events, [*entitled, replies]))
    if remaining:
        return remaining
    if not marking_events:
        return []
    flows = flow_violations(context, family, uplink)
    writes = list(_violations(context, family, marking_events, entitled)) if flows else []
    return [*flows, *writes] if writes else []


def flow_violations(context: ProofContext, family: int, uplink: UplinkSpec) -> list[Violation]:
    """Return the rules that may give the uplink's mark to a flow that did not begin at the uplink.

    A flow is its addresses and ports: it keeps its mark whatever socket uses them, and packets in
    its direction may arrive by any device. So only the first packet of a flow shows where it began,
    and an earlier mark of the packet shows nothing about the next sender. Flows that carry the mark
    without such a rule began before these rules.
    """
    if not _may_mark(context, family, uplink, "ctmark"):
        if not uplink.marked_flows:
            return []
        carry = count_marked(uplink.marked_flows, "flow", uplink)
        return [Violation(family, {}, f"{carry}, and no rule of this ruleset gave it to them", ())]
    began_at_uplink = Region(
        {"ct.direction": points(CT_DIRECTIONS["original"]), "ct.confirmed": points(0)}, iifname=uplink.devices
    )
    chains, flows = writing_chains(context, family), [Region(marks=(_flow_unmarked(uplink),))]
    return list(_mark_assignments(context, family, chains, flows, uplink, "ctmark", [began_at_uplink]))


def count_marked(number: int | None, noun: str, uplink: UplinkSpec) -> str:
    """Return how many flows or sockets carry the uplink's mark, as text; `noun` is "flow" or "socket"."""
    return f"{number} {f'{noun} carries' if number == 1 else f'{noun}s carry'} the mark of uplink {uplink.name}"


def marks_replies(context: ProofContext, family: int, uplink: UplinkSpec) -> bool:
    """Return True if a rule gives the uplink's mark to packets of marked flows that did not arrive by the uplink."""
    if not _may_mark(context, family, uplink, "mark"):
        return False
    packets = Region(marks=(uplink.lacks_mark, uplink.flow_has_mark), not_iifname=uplink.devices)
    writes = _mark_assignments(context, family, writing_chains(context, family), [packets], uplink, "mark")
    return next(writes, None) is not None


def marks_arriving_tcp(context: ProofContext, family: int, uplink: UplinkSpec) -> list[Violation]:
    """Return the rules that give the uplink's mark to TCP packets that arrive by the uplink."""
    if not _may_mark(context, family, uplink, "mark"):
        return []
    packets = Region({"protocol": points(TCP)}, (uplink.lacks_mark,), iifname=uplink.devices)
    chains = writing_chains(context, family, ("ingress", *ARRIVAL_HOOKS))
    return list(_mark_assignments(context, family, chains, [packets], uplink, "mark"))


def _may_mark(context: ProofContext, family: int, uplink: UplinkSpec, kind: str) -> bool:
    """Return True if any rule may set the uplink's mark on a packet ("mark") or a flow ("ctmark")."""
    return any(
        mark_kind(statement.key) == kind and may_set_mark(context, family, statement, uplink)
        for statement in context.ruleset_scan.mangles
    )


def writing_chains(context: ProofContext, family: int, hooks: Sequence[str] = ()) -> list[BaseChain]:
    """Return the base chains, of these hooks or of all, that may change a mark or a header."""
    transfer = context.chain_transfer(family)
    return [
        base_chain
        for base_chain in context.all_chains(family)
        if transfer.can_write(base_chain[0], base_chain[1].name)
        and (not hooks or (base_chain[1].hook is not None and base_chain[1].hook.hook in hooks))
    ]


def chains_before_reset(context: ProofContext, family: int, uplink: UplinkSpec) -> list[BaseChain]:
    """Return the chains at prerouting whose marks do not last.

    A later chain there takes the uplink's mark from each packet, whatever marks it has, unless the packet is entitled
    to it or has arrived by lo, where the kernel forwards nothing.
    """
    writers = writing_chains(context, family, ("prerouting",))
    certain = context.filter_chains(family, "prerouting")
    return [
        writer
        for writer in writers
        if any(
            not context.is_at_or_after(writer, later)
            and later in certain
            and _takes_mark(context, family, later, uplink)
            for later in writers
        )
    ]


def _takes_mark(context: ProofContext, family: int, base_chain: BaseChain, uplink: UplinkSpec) -> bool:
    """Return True if only entitled packets have the uplink's mark behind a chain at prerouting."""
    transfer = context.chain_transfer(family)
    space = transfer.space
    entitled = [box for region in arriving_regions(uplink, family) for box in region.boxes(space)]
    arriving = Region(not_iifname=("lo", *uplink.devices))
    return not any(
        find_uncovered(box, [*event.excluded, *entitled], space.max_values) is not None
        for start in arriving.boxes(space)
        for event in transfer.events(base_chain, start)
        if event.kind == "accept" and (box := _with_mark(space, event.box, event.written, uplink, "mark")) is not None
    )


def hook_bypasses(context: ProofContext) -> list[Violation]:
    """Return the statements that may bypass postrouting (queue, dup, fwd, unsupported ones)."""
    return [
        Violation(family, {}, statement, (statement,))
        for statement in context.ruleset_scan.unsupported
        for family in IP_FAMILIES
    ]


def final_chains(
    context: ProofContext, family: int, chains: Sequence[BaseChain], uplink: UplinkSpec
) -> list[BaseChain]:
    """Return the chains after which no rule can set the mark on packets that leave elsewhere.

    Elsewhere: by another device than the uplink's or lo.
    """
    writing_tables = {
        table.key
        for table in context.ruleset.tables
        if any(may_set_mark(context, family, statement, uplink) for statement in context.mark_writes(table))
    }
    transfer = context.chain_transfer(family)
    writers = [
        base_chain
        for base_chain in context.all_chains(family)
        if base_chain[0].key in writing_tables and transfer.can_write(base_chain[0], base_chain[1].name)
    ]
    elsewhere = Region(not_oifname=(*uplink.devices, "lo"))
    writers_elsewhere = [
        writer
        for writer in writers
        if next(_mark_assignments(context, family, [writer], [elsewhere], uplink, "mark"), None) is not None
    ]
    return [
        base_chain
        for base_chain in chains
        if not any(context.is_at_or_after(writer, base_chain) for writer in writers_elsewhere)
    ]


def may_set_mark(context: ProofContext, family: int, statement: nft.Mangle, uplink: UplinkSpec) -> bool:
    """Return True if the write can set a bit of the uplink's mark, for any packet."""
    if mark_kind(statement.key) is None:
        return False
    transfer = context.chain_transfer(family)
    kind = str(mark_kind(statement.key))
    marks = written_groups(transfer.space, statement, {})
    changed = False
    for group in transfer.space.partition:
        if not group & uplink.mask:
            continue
        field = mark_bits.field_name(kind, group)
        after = marks.get(field, field)
        if isinstance(after, int) and after != mark_bits.pack_bits(uplink.value, group):
            return False
        changed = changed or after != field
    return changed


def _flow_unmarked(uplink: UplinkSpec) -> MarkTest:
    return MarkTest(uplink.value, uplink.mask, equal=False, field="ctmark")


def _mark_assignments(
    context: ProofContext,
    family: int,
    chains: Sequence[BaseChain],
    regions: Sequence[Region],
    uplink: UplinkSpec,
    kind: str,
    excluded: Sequence[Region] = (),
) -> Iterator[Violation]:
    """Yield the writes that give the mark to packets of `regions`, except those of `excluded`."""
    events = _marking_events(context, family, chains, regions, uplink, kind)
    return _violations(context, family, events, excluded)


def _marking_events(
    context: ProofContext,
    family: int,
    chains: Sequence[BaseChain],
    regions: Sequence[Region],
    uplink: UplinkSpec,
    kind: str,
) -> Iterator[tuple[ChainEvent, Box]]:
    """Yield the writes that may give the mark to packets of `regions`, and those packets."""
    transfer = context.chain_transfer(family)
    for base_chain in chains:
        for start in (box for region in regions for box in region.boxes(transfer.space)):
            box_in_hook = intersect_boxes(start, _NO_INPUT_DEVICE) if _is_output(base_chain) else start
            for event in transfer.mark_writes(base_chain, box_in_hook) if box_in_hook is not None else ():
                box = _marked_after(context, family, event, uplink, kind)
                if box is not None:
                    yield event, box


def _is_output(base_chain: BaseChain) -> bool:
    """Return True for the output hook of IP, in which packets have no input device (__ip_local_out)."""
    table, chain = base_chain
    return table.family in ("ip", "ip6", "inet") and chain.hook is not None and chain.hook.hook == "output"


def _violations(
    context: ProofContext, family: int, events: Iterable[tuple[ChainEvent, Box]], excluded: Sequence[Region]
) -> Iterator[Violation]:
    """Yield the writes that give the mark to a packet outside `excluded`."""
    space = context.chain_transfer(family).space
    excluded_boxes = [box for region in excluded for box in region.boxes(space)]
    for event, box in events:
        remaining = find_uncovered(box, [*event.excluded, *excluded_boxes], space.max_values)
        if remaining is not None:
            yield Violation(family, remaining, _location(event), unsupported_in(remaining, space))


def _marked_after(context: ProofContext, family: int, event: ChainEvent, uplink: UplinkSpec, kind: str) -> Box | None:
    """Return the packets that carry the uplink's mark after a write; None if there are none."""
    transfer = context.chain_transfer(family)
    space = transfer.space
    statement = event.statement
    if isinstance(statement, nft.Notrack):
        return None  # changes the visible connection state, not a mark
    if not isinstance(statement, nft.Mangle):
        return {**event.box, space.unsupported_field(f"{_location(event)} may have any effect"): ((1, 1),)}
    if mark_kind(statement.key) != kind or not may_set_mark(context, family, statement, uplink):
        return None
    return _with_mark(space, event.box, written_groups(space, statement, {}), uplink, kind)


def _with_mark(
    space: HeaderSpace, packets: Box, written: Mapping[str, int | str], uplink: UplinkSpec, kind: str
) -> Box | None:
    """Return the part of `packets` that has the uplink's mark where `written` are the fields with other values."""
    box: Box | None = packets
    for group in space.partition:
        if not group & uplink.mask:
            continue
        field = mark_bits.field_name(kind, group)
        after, required = written.get(field, field), mark_bits.pack_bits(uplink.value, group)
        if isinstance(after, int):
            if after != required:
                return None
        elif box is not None:
            box = intersect_boxes(box, {after: ((required, required),)})
    return box


def _location(event: ChainEvent) -> str:
    table, chain = event.base_chain
    rule = "its policy" if event.rule is None else f"'{nft_text.display_text(event.rule)}'"
    statement, reason = event.statement, ""
    if isinstance(statement, nft.Mangle) and mark_kind(statement.key) == "ctmark":
        reason = " (the flow may have begun elsewhere)"
    return f"{table.family} {table.name} {chain.name}: {rule}{reason}"
