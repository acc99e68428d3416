# SPDX-License-Identifier: BSD-2-Clause
"""Filters and actions of tc(8) on all devices, and their effects on packets.

Sources: include/uapi/linux/rtnetlink.h, pkt_sched.h, pkt_cls.h, tc_act/*.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping

from attrs import frozen

from ...netstate.bypass import ANY_EFFECT, TC, Actor, Effect, HeaderWrite, Look, MarkWrite, Move, Stop, only_drops
from ...netstate.nft.expressions import FULL_MASK
from .attributes import attribute, attributes, decode_text, native_integer, nested_attributes
from .socket import NetlinkSocket

RTM_GETQDISC, RTM_GETTCLASS, RTM_GETTFILTER = 38, 42, 46
_TCMSG = struct.Struct("=BxxxiIII")  # family, device index, handle, parent, info
_TCA_KIND, _TCA_OPTIONS, _TCA_DUMP_INVISIBLE = 1, 2, 10
_TC_H_ROOT = 0xFFFFFFFF
_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS), ..._EGRESS
_MAJOR = 0xFFFF0000
# Qdiscs that no filter can be attached to: tcf_block in their Qdisc_class_ops is NULL, or they have no classes.
_WITHOUT_FILTERS = frozenset(
    ("bfifo", "codel", "etf", "fq", "gred", "mq", "mqprio", "noqueue", "pfifo", "pfifo_fast", "pfifo_head_drop",
     "pie", "plug", "red", "skbprio", "taprio", "tbf")
)  # fmt: skip
# Qdiscs whose classes have filters of their own. The classes of an unknown qdisc are dumped as well.
_ONE_BLOCK = frozenset(
    ("cake", "choke", "clsact", "drr", "ets", "fq_codel", "fq_pie", "hhf", "ingress", "multiq", "prio", "qfq", "sfb",
     "sfq")
)  # fmt: skip
# Attribute of the actions, and of the old form of police, in the options of each kind of filter.
_ACTIONS_OF_FILTER = {
    "basic": 3,
    "bpf": 1,
    "cgroup": 1,
    "flow": 9,
    "flower": 3,
    "fw": 4,
    "matchall": 2,
    "route": 6,
    "u32": 7,
}
_BPF_OPS, _BPF_NAME, _BPF_ID = 5, 7, 11  # TCA_BPF_*; classic BPF has OPS and no ID
_TEQL = "teql"  # begin of the name of a qdisc and of its device
_RED_BLOCKS = (5, 6)  # TCA_RED_EARLY_DROP_BLOCK, TCA_RED_MARK_BLOCK
_BPF_FLAGS, _BPF_DIRECT_ACTION = 8, 1  # TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT
_SOCK_FILTER = struct.Struct("=H2sI")  # operation, jumps, constant (include/uapi/linux/filter.h)
_ACT_KIND, _ACT_OPTIONS = 1, 2  # TCA_ACT_*
_MIRRED_PARMS, _MIRRED_BLOCK_ID = 2, 4
_MIRRED = struct.Struct("=IIiiiiI")  # tc_gen: index, capab, action, refcnt, bindcnt; eaction, ifindex
_SKBEDIT_MARK, _SKBEDIT_MASK = 5, 10
_SKBEDIT_PTYPE = 8
_HARMLESS_ACTIONS = frozenset(("csum", "sample", "simple"))
_STOPPING_ACTIONS = frozenset(("gact", "police", "gate"))
_GACT_PARMS, _GACT_PROB, _PASSING_VERDICTS = 2, 3, (-1, 0, 3)  # TCA_GACT_*; TC_ACT_UNSPEC, TC_ACT_OK, TC_ACT_PIPE
_HEADER_ACTIONS = frozenset(("nat", "pedit", "skbmod", "vlan", "mpls"))


@frozen
class Qdisc:
    """A qdisc: index of its device, handle, parent, kind, and its options by attribute."""

    index: int
    handle: int
    parent: int
    kind: str
    options: Mapping[int, bytes]


def look_at_tc(netlink: NetlinkSocket, names: Mapping[int, str]) -> Look:
    """Return the tc filters that have an effect on packets. `names` are the devices by index."""
    qdiscs = list(_qdiscs(netlink))
    actors = [actor for qdisc in qdiscs for actor in qdisc_actors(qdisc, names.get(qdisc.index, str(qdisc.index)))]
    count = 0
    missing: list[str] = []
    for index, parent, kind in (part for qdisc in qdiscs for part in _filter_parents(netlink, qdisc)):
        device = names.get(index, str(index))
        try:
            filters = _dump(netlink, RTM_GETTFILTER, index, parent)
        except OSError as error:
            missing.append(f"filters of {kind} on {device}: {error.strerror}")
            continue
        for values in filters:
            count += 1
            actors += filter_actors(values, device, _direction(kind, parent), names)
    contents = f"{count} filters" if count else ""
    return Look(TC, tuple(dict.fromkeys(actors)), contents, "; ".join(missing))


def _direction(kind: str, parent: int) -> str:
    return "ingress" if kind == "ingress" or parent == _INGRESS else "egress"


def qdisc_actors(qdisc: Qdisc, device: str) -> Iterator[Actor]:
    """Yield what a qdisc does besides its filters.

    A red runs filters when it drops or marks packets (qevents). The device of a teql passes its packets to the
    drivers of the devices that have this qdisc, without their egress hook (teql_master_xmit).
    """
    if qdisc.kind == "red" and any(native_integer(qdisc.options.get(kind)) for kind in _RED_BLOCKS):
        yield Actor(f"tc filters of qdisc red on {device} (qevent)", ANY_EFFECT)
    if qdisc.kind.startswith(_TEQL):
        location = f"qdisc {qdisc.kind} on {device}: packets of the device {qdisc.kind}"
        yield Actor(location, (Move(qdisc.kind, device),))


def _qdiscs(netlink: NetlinkSocket) -> Iterator[Qdisc]:
    body = _TCMSG.pack(0, 0, 0, 0, 0) + attribute(_TCA_DUMP_INVISIBLE, b"")
    for raw, start, end in netlink.dump(RTM_GETQDISC, body):
        _, index, handle, parent, _ = _TCMSG.unpack_from(raw, start)
        values = dict(attributes(raw, start + _TCMSG.size, end))
        yield Qdisc(
            index, handle, parent, decode_text(values.get(_TCA_KIND)), nested_attributes(values.get(_TCA_OPTIONS))
        )


def _filter_parents(netlink: NetlinkSocket, qdisc: Qdisc) -> Iterator[tuple[int, int, str]]:
    """Yield device index, parent and kind of qdisc for each list of filters of a qdisc."""
    index, handle, kind = qdisc.index, qdisc.handle, qdisc.kind
    if kind == "clsact":
        yield from ((index, hook, kind) for hook in (_INGRESS, _EGRESS))
    elif kind not in _WITHOUT_FILTERS and (handle or qdisc.parent == _TC_H_ROOT):
        # Without a handle, only the root qdisc can be named, by parent 0.
        yield index, handle & _MAJOR, kind
        if kind not in _ONE_BLOCK and handle:
            for raw, start, _ in netlink.dump(RTM_GETTCLASS, _TCMSG.pack(0, index, 0, handle, 0)):
                class_id = _TCMSG.unpack_from(raw, start)[2]
                if class_id & _MAJOR == handle & _MAJOR and class_id != handle:
                    yield index, class_id, kind


def _dump(netlink: NetlinkSocket, message_type: int, index: int, parent: int) -> list[dict[int, bytes]]:
    try:
        messages = netlink.dump(message_type, _TCMSG.pack(0, index, 0, parent, 0))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV, errno.ENOENT):
            return []  # no classes, or the qdisc or device is gone
        raise
    return [dict(attributes(raw, start + _TCMSG.size, end)) for raw, start, end in messages]


def filter_actors(
    values: Mapping[int, bytes], device: str, direction: str, names: Mapping[int, str]
) -> Iterator[Actor]:
    """Yield the program and the actions of one filter (its attributes) that have an effect."""
    kind = decode_text(values.get(_TCA_KIND))
    options = nested_attributes(values.get(_TCA_OPTIONS))
    location = f"tc filter at the {direction} of {device}"
    if kind not in _ACTIONS_OF_FILTER:
        yield Actor(f"{location}: {kind}", ANY_EFFECT)
        return
    if kind == "bpf" and (effects := _program_effects(options, device, direction)):
        yield Actor(f"{location}: bpf {decode_text(options.get(_BPF_NAME))}".rstrip(), effects)
    nested = options.get(_ACTIONS_OF_FILTER[kind], b"")
    for _, action in attributes(nested, 0, len(nested)):
        parts = nested_attributes(action)
        name = decode_text(parts.get(_ACT_KIND))
        effects = action_effects(name, nested_attributes(parts.get(_ACT_OPTIONS)), device, direction, names)
        if effects:
            yield Actor(f"{location}: {_describe(name, effects)}", effects)


def _program_effects(options: Mapping[int, bytes], device: str, direction: str) -> tuple[Effect, ...]:
    """Return what the program of a filter can do. Classic BPF only classifies, or returns a verdict."""
    if not options:
        return ()  # the head of the list of filters with one preference
    if _BPF_ID in options or _BPF_OPS not in options:
        return ANY_EFFECT
    if not native_integer(options.get(_BPF_FLAGS)) & _BPF_DIRECT_ACTION:
        return ()
    instructions = _SOCK_FILTER.iter_unpack(options[_BPF_OPS])
    if only_drops((operation, value) for operation, _, value in instructions):
        return (Stop(device=device, at_ingress=direction == "ingress"),)
    return ANY_EFFECT


def _describe(name: str, effects: Iterable[Effect]) -> str:
    targets = [effect.target for effect in effects if isinstance(effect, Move) and effect.target]
    return f"{name} to {targets[0]}" if targets else name


def action_effects(
    kind: str, options: Mapping[int, bytes], device: str, direction: str, names: Mapping[int, str]
) -> tuple[Effect, ...]:
    """Return what one tc action on packets of `device` can do."""
    if kind in _HARMLESS_ACTIONS or (kind == "gact" and _passes(options)):
        return ()
    if kind in _STOPPING_ACTIONS:
        return (Stop(device=device, at_ingress=direction == "ingress"),)
    if kind in _HEADER_ACTIONS:
        return (HeaderWrite(device=device),) if direction == "egress" else ()
    decoder = _ACTIONS.get(kind)
    return ANY_EFFECT if decoder is None else decoder(options, device, names)


def _passes(options: Mapping[int, bytes]) -> bool:
    """Decode struct tc_gact: index, capab, action, ...; and struct tc_gact_p: what happens to some packets."""
    parameters, some = options.get(_GACT_PARMS, b""), options.get(_GACT_PROB, b"")
    verdicts = [struct.unpack_from("=IIi", parameters)[2]] if len(parameters) >= 12 else [None]
    if some:
        verdicts.append(struct.unpack_from("=HHi", some)[2] if len(some) >= 8 else None)
    return all(verdict in _PASSING_VERDICTS for verdict in verdicts)


def _mirred(options: Mapping[int, bytes], device: str, names: Mapping[int, str]) -> tuple[Effect, ...]:
    parameters = options.get(_MIRRED_PARMS, b"")
    if len(parameters) < _MIRRED.size or _MIRRED_BLOCK_ID in options:
        return (Move(device),)
    *_, action, index = _MIRRED.unpack_from(parameters)
    return (Move(device, names.get(index, str(index)), action in (3, 4)),)  # TCA_INGRESS_REDIR, TCA_INGRESS_MIRROR


def _skbedit(options: Mapping[int, bytes], device: str, _: Mapping[int, str]) -> tuple[Effect, ...]:
    effects: list[Effect] = []
    if _SKBEDIT_MARK in options:
        mask = native_integer(options[_SKBEDIT_MASK]) if _SKBEDIT_MASK in options else FULL_MASK
        effects.append(MarkWrite(mask, native_integer(options[_SKBEDIT_MARK]) & mask, 0))
    if _SKBEDIT_PTYPE in options:
        effects.append(Move(device))  # the packet type decides who gets the packet
    return tuple(effects)


def _any_mark(*_: object) -> tuple[Effect, ...]:
    return (MarkWrite(),)


_ACTIONS: Mapping[str, Callable[[Mapping[int, bytes], str, Mapping[int, str]], tuple[Effect, ...]]] = {
    "mirred": _mirred,
    "skbedit": _skbedit,
    "connmark": _any_mark,
    "ctinfo": _any_mark,
    "ife": lambda *_: ANY_EFFECT,  # a frame that it decodes brings its mark, and a new type
}
