# SPDX-License-Identifier: BSD-2-Clause
"""Foreign ip rules that keep packets from an uplink's table, or get no packet since ours decide first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from attrs import evolve, frozen

from ..compiler import object_names
from ..compiler.ip_rules import ip_rules
from ..netstate.formats import ip_text
from ..netstate.nft import FULL_MASK
from ..netstate.routing import RTPROT_NFTPOLICY, TABLE_LOCAL, TABLE_MAIN, IpRule
from ..policy.objects import Policy

STARVES, SELECTS_SOME, SHADOWED = "starves", "selects-some", "shadowed"
_MOST_RULES = 1000  # examined; on a router with more, the first ones show the kind


@frozen
class ForeignRule:
    """Foreign ip rule and its conflict with a policy.

    `effect`: STARVES (it decides for all packets of services), SELECTS_SOME (for those that its
    selectors match) or SHADOWED (it selects a mark whose packets never reach it). `owner` is the
    program that makes such rules, as far as its form tells.
    """

    rule: IpRule
    families: tuple[int, ...]
    effect: str
    subject: str
    owner: str
    remedy: str

    def __str__(self) -> str:
        families = " and ".join(f"IPv{family}" for family in self.families)
        text = f"ip rule {ip_text.display_text(self.rule)} ({families}, {self.owner})"
        return f"{text} {_EFFECT_TEXTS[self.effect].format(self.subject)}; {self.remedy}"

    def as_json(self) -> dict[str, object]:
        """Return the fields for JSON that is printed."""
        return {
            "rule": ip_text.display_text(self.rule),
            "priority": self.rule.priority,
            "table": self.rule.table,
            "families": list(self.families),
            "effect": self.effect,
            "subject": self.subject,
            "owner": self.owner,
            "remedy": self.remedy,
        }


_EFFECT_TEXTS = {
    STARVES: "decides for all packets of {} before the uplink's own rule, so they cannot use the uplink",
    SELECTS_SOME: "decides for the packets of {} that it matches, so these cannot use the uplink",
    SHADOWED: "never gets a packet of {}, since the uplink's rules decide before it",
}


def foreign_rules(rules: Iterable[IpRule], policy: Policy) -> tuple[ForeignRule, ...]:
    """Return the conflicts between the ip rules of a machine and those of a policy, in their order.

    `rules`: all ip rules, in the order in which the kernel asks them.
    """
    own = {_normalized(rule) for rule in ip_rules(policy)}
    subjects = tuple(_subjects(policy))
    conflicts: dict[tuple[object, ...], ForeignRule] = {}
    listed = list(rules)
    for family in (4, 6):
        foreign = [
            rule
            for rule in listed
            if rule.family == family and rule.protocol != RTPROT_NFTPOLICY and _normalized(rule) not in own
        ]
        for conflict in _conflicts(foreign[:_MOST_RULES], subjects):
            key = (evolve(conflict.rule, family=4), conflict.effect, conflict.subject)
            earlier = conflicts.get(key)
            conflicts[key] = evolve(conflict, families=(*earlier.families, family)) if earlier else conflict
    return tuple(conflicts.values())


def _normalized(rule: IpRule) -> IpRule:
    """Return the rule as nftpolicy would make it: netifd, which applies UCI, uses another protocol."""
    return evolve(rule, protocol=RTPROT_NFTPOLICY)


# --- what a rule does to the packets of an uplink ------------------------------------------------


@frozen
class _Subject:
    """Packets that ip rules of a policy select: by a mark, or by a user (`uid`) without a mark."""

    text: str
    table: int
    first: int  # priority of the first rule of the subject
    last: int
    mark: int
    uid: int | None = None


def _subjects(policy: Policy) -> Iterator[_Subject]:
    for index, (name, uplink) in enumerate(policy.uplink.items()):
        first = object_names.mark_rule_priority(index)
        last = first + object_names.UNREACHABLE_OFFSET
        text = f"mark {uplink.mark} (uplink {name})"
        yield _Subject(text, uplink.table, first, last, uplink.mark.value)
    for name, service in policy.service.items():
        if service.unmarked and service.user:
            yield _Subject(
                f"user {service.user.number} (service {name})",
                policy.uplink[service.uplink].table,
                object_names.USER_RULE_PRIORITY,
                object_names.USER_UNREACHABLE_PRIORITY,
                0,
                service.user.number,
            )


def _conflicts(foreign: Sequence[IpRule], subjects: Sequence[_Subject]) -> Iterator[ForeignRule]:
    for rule in foreign:
        for subject in subjects:
            effect = _effect(rule, subject)
            if effect:
                owner, remedy = _owner_and_remedy(rule, effect, subject)
                yield ForeignRule(rule, (rule.family,), effect, subject.text, owner, remedy)


def _effect(rule: IpRule, subject: _Subject) -> str:
    """Return the effect of a foreign rule on the packets of a subject, "" without one."""
    is_harmless_table = rule.action == "lookup" and rule.table in (TABLE_LOCAL, subject.table)
    if rule.action == "nop" or is_harmless_table or rule.l3mdev or rule.iif not in (None, "lo"):
        return ""
    matches = _match(rule, subject)
    if rule.priority < subject.first:
        if rule.action == "goto" and (rule.goto or 0) <= subject.first:
            return ""
        if matches == "always" and (rule.suppress_prefix, rule.suppress_group) == (None, None):
            return STARVES
        return SELECTS_SOME if matches != "never" else ""
    selects_subject = bool(rule.mark) if subject.uid is None else rule.uids == (subject.uid, subject.uid)
    is_shadowed = rule.priority > subject.last and rule.action == "lookup" and selects_subject and not rule.invert
    return SHADOWED if is_shadowed and matches != "never" else ""


def _match(rule: IpRule, subject: _Subject) -> str:
    """Return how a rule matches the packets of a subject: always, never, or sometimes."""
    # Sockets of services have the mark and no other bits, and packets of users without marks have none.
    mark_match = "always" if subject.mark & rule.mask == rule.mark else "never"
    uid_match = _uid_match(rule, subject)
    selectors = (rule.source, rule.destination, rule.oif, rule.l4proto, rule.sports, rule.dports)
    has_more = any(value is not None for value in selectors) or bool(rule.tos or rule.unknown)
    parts = (mark_match, uid_match, "sometimes" if has_more else "always")
    together = "never" if "never" in parts else "always" if set(parts) == {"always"} else "sometimes"
    return {"always": "never", "never": "always"}.get(together, together) if rule.invert else together


def _uid_match(rule: IpRule, subject: _Subject) -> str:
    if rule.uids is None:
        return "always"
    if subject.uid is None:
        return "sometimes"
    return "always" if rule.uids[0] <= subject.uid <= rule.uids[1] else "never"


# --- whose rule it is ----------------------------------------------------------------------------

_WG_QUICK = "wg-quick"
# Forms of well-known programs; the first that fits.
_OWNER_FORMS: tuple[tuple[str, Callable[[IpRule], bool]], ...] = (
    (_WG_QUICK, lambda rule: rule.invert and rule.mask == FULL_MASK and rule.mark == rule.table),
    (_WG_QUICK, lambda rule: rule.suppress_prefix == 0 and rule.table == TABLE_MAIN),
    ("Tailscale", lambda rule: 5200 <= rule.priority < 5300),
    ("mwan3", lambda rule: rule.mask == 0x3F00 or 1000 < rule.priority < 4000),
    ("pbr", lambda rule: rule.mask == 0xFF0000),
)
# Routing protocols (linux/rtnetlink.h) and the programs that use them for ip rules.
_PROTOCOL_OWNERS = {
    0: "of an unnamed program",
    2: "of the kernel",
    3: "made by hand or a script",
    4: "of systemd-networkd, netplan or NetworkManager",
    11: "of FRR",
    16: "of a DHCP client",
}


def _owner_and_remedy(rule: IpRule, effect: str, subject: _Subject) -> tuple[str, str]:
    form = next((name for name, fits in _OWNER_FORMS if fits(rule)), "")
    owner = f"as {form} makes it" if form else _PROTOCOL_OWNERS.get(rule.protocol, f"protocol {rule.protocol}")
    if effect == SHADOWED:
        return owner, f"put its routes into table {subject.table}, or use another mark for it"
    if form == _WG_QUICK and rule.invert:
        return owner, f"give the tunnel the uplink's mark (FwMark = {subject.mark:#x}), so that the rule leaves it out"
    if form == _WG_QUICK:
        return (
            owner,
            "this concerns only networks that table main has routes for; start wg-quick first, and it comes last",
        )
    return owner, f"give it a priority above {subject.last}, or a condition that leaves these packets out"
