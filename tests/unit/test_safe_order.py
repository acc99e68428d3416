"""Search for a safe step order: which orders are refused, with our objects alone and with foreign tables."""

import pytest
from attrs import evolve

from nftpolicy.compiler import object_names
from nftpolicy.compiler.block import block_tables
from nftpolicy.compiler.compile import HostFacts, compile_policy
from nftpolicy.kernel.errors import StepRefused
from nftpolicy.kernel.fake import FakeKernel
from nftpolicy.netstate.nft import ACCEPT, DROP, Chain, Fwd, Hook, Mangle, Match, Meta, Payload, Rule, Table
from nftpolicy.netstate.operations import NftTransaction
from nftpolicy.netstate.routing import IpRule, Route, Sysctl
from nftpolicy.netstate.state import NetState
from nftpolicy.planner.plan import plan
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.transition_proof import NamedSpec, ProvedState, StateProof, prove_states, worst_state_verdict
from nftpolicy.proof.verdict import Counterexample, Finding, Proof, Refuted, Unknown
from nftpolicy.runtime.apply.errors import NoSafeOrder, PolicyNotProved
from nftpolicy.runtime.apply.executor import PlannedChange
from nftpolicy.runtime.apply.proved_order import ProvedOrder
from nftpolicy.runtime.apply.state_dir import StateDir
from nftpolicy.runtime.apply.step_order import find_safe_order, foreign_findings, prove_desired
from nftpolicy.runtime.apply.transaction import ChangeOptions, PolicyApplier, TargetPolicy, first_failures

TEXT = """\
name = "p"
inside = ["lan"]
[uplink.wan]
devices = ["wan"]
mark = "0x1/0xff"
table = 7
exempt = ["arp"]
[service.vpn]
uplink = "wan"
group = 800
marks = "itself"
"""
OTHER_TEXT = TEXT.replace('"p"', '"q"').replace("800", "900").replace("table = 7", "table = 8")
WIDER_TEXT = TEXT.replace('"arp"', '"arp", "dhcpv4"')
OUTPUT, POSTROUTING = Hook("filter", "output", 0), Hook("filter", "postrouting", 0)
MARKS_ALL = Table("inet", "vpn", (Chain("out", (Rule((Mangle(Meta("mark"), 1),)),), OUTPUT),))
DROPS_ALL = (Chain("all", (Rule((DROP,)),), evolve(POSTROUTING, priority=30000)),)
BYPASSES = Table("inet", "fast", (Chain("pre", (Rule((Fwd("wan"),)),), Hook("filter", "prerouting", 0)),))


def policy(text=TEXT):
    return load(text.encode())[0]


def source(text=TEXT):
    return ("p.toml", text.encode())


def change(desired, observed=None):
    """Return a change from one compiled state to another."""
    observed = NetState() if observed is None else observed
    observed = evolve(observed, sysctls=desired.sysctls)
    return PlannedChange(observed, desired, plan(observed, desired))


def kernel_of(planned, *foreign):
    return FakeKernel(evolve(planned.observed, tables=(*planned.observed.tables, *foreign)))


def search(planned, before=(), after=TEXT, foreign=(), block=(), ignore_foreign=False):
    target = policy(after) if after else None
    return find_safe_order(kernel_of(planned, *foreign), planned, before, target, tuple(block), ignore_foreign)


def verdicts(proofs):
    return [proof.verdict for proof in proofs]


FIRST = change(compile_policy(policy()))
CHANGED = change(compile_policy(policy(OTHER_TEXT)), compile_policy(policy()))


def test_first_apply_puts_the_guard_first():
    order = search(FIRST)
    assert order.plan.order == "guard first"
    assert order.plan.switch == 1
    assert verdicts(order.own_proofs) == ["", *["proved"] * len(order.plan.steps)]
    assert verdicts(order.full_proofs) == verdicts(order.own_proofs)
    assert {proof.named_spec.name for proof in order.own_proofs[1:]} == {"p, as it will be"}


def test_change_is_proved_by_each_policy_on_its_side():
    order = search(CHANGED, [policy(OTHER_TEXT), policy()], OTHER_TEXT)
    assert order.plan.order == "make before break"
    switch = order.plan.switch
    assert 1 < switch < len(order.plan.steps)
    names = [proof.named_spec.name for proof in order.own_proofs]
    assert names == ["p, as it is"] * switch + ["q, as it will be"] * (len(order.plan.steps) + 1 - switch)
    assert (order.verdict, order.full_verdict) == ("proved", "proved")


def test_policy_not_in_force_is_no_spec_of_the_old_state():
    order = search(CHANGED, [policy(OTHER_TEXT)], OTHER_TEXT)
    assert verdicts(order.own_proofs[: order.plan.switch]) == [""] * order.plan.switch


def test_desired_state_that_leaks_is_refused_in_each_order():
    with pytest.raises(NoSafeOrder) as refused:
        search(change(compile_policy(policy(WIDER_TEXT)), compile_policy(policy())), [policy()])
    orders = refused.value.orders
    assert [order.plan.order for order in orders] == ["make before break", "guard first"]
    for order in orders:
        own = verdicts(order.own_proofs)
        assert own[: order.plan.switch] == ["proved"] * order.plan.switch
        assert set(own[order.plan.switch :]) == {"refuted"}
    failures = list(first_failures(orders))
    assert [(order, number) for order, number, _ in failures] == [(order, order.plan.switch) for order in orders]
    assert all(state.verdict == "refuted" for _, _, state in failures)


def test_order_with_leaking_middle_state_is_refused():
    # The first and the last state are proved: the leak lasts as long as the tables of the block.
    with pytest.raises(NoSafeOrder) as refused:
        search(CHANGED, [policy()], OTHER_TEXT, block=(MARKS_ALL,))
    (order,) = refused.value.orders
    own = verdicts(order.own_proofs)
    assert (own[0], own[-1]) == ("proved", "proved")
    assert set(own[1:-1]) == {"refuted"}
    assert order.verdict == "refuted"
    ((_, number, state),) = first_failures(refused.value.orders)
    assert (number, state.verdict) == (1, "refuted")
    assert search(CHANGED, [policy()], OTHER_TEXT, block=(Table("inet", "vpn"),)).plan.order == "via block"


def test_unknown_middle_state_is_refused():
    with pytest.raises(NoSafeOrder) as refused:
        search(CHANGED, [policy()], OTHER_TEXT, block=(BYPASSES,))
    assert refused.value.orders[0].verdict == "unknown"


def test_foreign_table_that_marks_packets_is_refused():
    with pytest.raises(NoSafeOrder) as refused:
        search(FIRST, foreign=(MARKS_ALL,))
    (order,) = refused.value.orders
    assert (order.verdict, order.full_verdict) == ("proved", "refuted")
    ((_, number, state),) = first_failures(refused.value.orders)
    assert number == order.plan.switch
    assert state is order.full_proofs[number]
    with pytest.raises(NoSafeOrder):  # also without a word about foreign tables
        find_safe_order(kernel_of(FIRST, MARKS_ALL), FIRST, (), policy())
    assert search(FIRST, foreign=(evolve(MARKS_ALL, chains=()),)).full_verdict == "proved"


def test_foreign_leak_is_accepted_on_request_and_named():
    order = search(FIRST, foreign=(MARKS_ALL,), ignore_foreign=True)
    lines = list(foreign_findings(order))
    assert any(line.startswith("P1 wan: refuted: sockets: packets without the mark") for line in lines)
    assert len(lines) == len(set(lines))
    assert list(foreign_findings(search(FIRST))) == []


def test_own_leak_is_refused_also_if_foreign_leaks_are_accepted():
    with pytest.raises(NoSafeOrder):
        search(change(compile_policy(policy(WIDER_TEXT))), ignore_foreign=True)


def test_foreign_table_that_is_unknown_is_accepted_and_named():
    order = search(FIRST, foreign=(BYPASSES,))
    assert order.full_verdict == "unknown"
    lines = list(foreign_findings(order))
    assert lines
    assert all(": unknown: " in line and "fwd" in line for line in lines)


def foreign_order(*results):
    """Return an order that is proved with our objects alone; with foreign ones, one state for each result."""
    states = [StateProof(SPEC, Proof((Finding("P1", "wan", "sockets", result),), (), ())) for result in results]
    return ProvedOrder(plan(NetState(), NetState()), (StateProof(SPEC, Proof((), (), ())),), tuple(states))


def test_foreign_findings_are_of_all_refuted_states():
    leaks = [Refuted(Counterexample(None, None, "wan", reason)) for reason in ("routed", "bound", "routed")]
    line = "P1 wan: refuted: sockets: "
    assert list(foreign_findings(foreign_order(*leaks, Unknown("later", ("fwd",))))) == [
        *(f"{line}routed", f"{line}bound"),
        "P1 wan: unknown: sockets: fwd",
    ]


def test_foreign_findings_are_of_the_last_unknown_state():
    order = foreign_order(Unknown("first"), Unknown("last"))
    assert list(foreign_findings(order)) == ["P1 wan: unknown: sockets: last"]
    assert list(foreign_findings(evolve(order, own_proofs=order.full_proofs))) == []
    order = foreign_order(Unknown("first"), Unknown("last", ("fwd", "dup")))
    assert list(foreign_findings(order)) == ["P1 wan: unknown: sockets: fwd; dup"]


def test_first_failure_of_an_order_is_of_our_own_objects():
    foreign = foreign_order(Unknown("foreign"))
    assert list(first_failures([foreign])) == [(foreign, 0, foreign.full_proofs[0])]
    own = evolve(foreign, own_proofs=(*foreign.own_proofs, *foreign_order(Unknown("own")).full_proofs))
    assert list(first_failures([own])) == [(own, 1, own.own_proofs[1])]
    assert list(first_failures([foreign_order()])) == []


def test_foreign_leak_of_the_old_policy_ends_at_the_switch():
    # A packet of group 800 that a foreign table marks: the new policy is as good as before.
    order = search(CHANGED, [policy()], OTHER_TEXT, foreign=(MARKS_ALL,), ignore_foreign=True)
    switch = order.plan.switch
    assert verdicts(order.own_proofs[:switch]) == ["proved"] * switch
    assert verdicts(order.full_proofs[:switch]) == [""] * switch
    assert set(verdicts(order.full_proofs[switch:])) == {"refuted"}


@pytest.mark.parametrize("name", object_names.AUXILIARY_TABLES)
def test_auxiliary_table_does_not_count_for_the_proof(name):
    foreign = (MARKS_ALL, Table("inet", name, DROPS_ALL))
    with pytest.raises(NoSafeOrder):
        search(FIRST, foreign=foreign)
    kept = (MARKS_ALL, Table("inet", "admin", DROPS_ALL))
    assert search(FIRST, foreign=kept).full_verdict == "unknown"  # no packet gets past such a table


def test_own_tables_of_the_proof_are_the_observed_ones():
    # The kernel has changed since the plan was made; the proof is about the plan.
    kernel = kernel_of(FIRST, evolve(MARKS_ALL, name=object_names.TABLE))
    planned = evolve(FIRST, observed=evolve(FIRST.observed, tables=(Table("inet", object_names.TABLE),)))
    assert find_safe_order(kernel, planned, (), policy()).full_verdict == "proved"


def test_own_tables_that_changed_since_do_not_count():
    kernel = FakeKernel(evolve(CHANGED.observed, tables=(evolve(MARKS_ALL, name=object_names.TABLE),)))
    order = find_safe_order(kernel, CHANGED, [policy()], policy(OTHER_TEXT))
    assert set(verdicts(order.full_proofs)) == {"proved"}


def test_findings_of_our_own_tables_are_not_foreign():
    with pytest.raises(NoSafeOrder) as refused:
        search(change(compile_policy(policy(WIDER_TEXT))), foreign=(MARKS_ALL,))
    assert [line for order in refused.value.orders for line in foreign_findings(order)] == []


def test_foreign_route_in_the_way_leaves_the_own_proof():
    route = next(route for route in FIRST.desired.routes if route.family == 4)
    kernel = FakeKernel(evolve(FIRST.observed, routes=(evolve(route, protocol=4),)))
    order = find_safe_order(kernel, FIRST, (), policy())
    assert (order.verdict, order.full_proofs, order.full_verdict) == ("proved", (), worst_state_verdict(()))
    assert list(foreign_findings(order)) == []


def without_link_guard(planned):
    tables = tuple(table for table in planned.desired.tables if table.family != "netdev")
    return change(evolve(planned.desired, tables=tables))


def test_frames_are_part_of_each_state():
    with pytest.raises(NoSafeOrder) as refused:
        search(without_link_guard(FIRST))
    failures = [one for *_, state in first_failures(refused.value.orders) for one in state.failures()]
    assert failures
    assert all("AF_PACKET" in one.subject or "frames" in one.subject for one in failures)
    proof = prove_desired(without_link_guard(FIRST), policy(), FakeKernel())
    assert proof.verdict == "refuted"


def test_frames_are_an_assumption_without_egress_hook():
    planned = evolve(without_link_guard(FIRST), host=HostFacts(has_egress_hook=False))
    order = search(planned)
    assert order.verdict == "proved"
    assert any("AF_PACKET" in one and "wan" in one for one in order.own_proofs[-1].proof.assumptions)
    assert prove_desired(planned, policy(), FakeKernel()).verdict == "proved"


def test_frames_are_part_of_the_old_policys_states():
    # Without frames, the state in force would count as proved.
    old = without_link_guard(FIRST).desired
    order = search(change(compile_policy(policy(OTHER_TEXT)), old), [policy()], OTHER_TEXT)
    assert verdicts(order.own_proofs)[0] == ""


def test_bridge_ports_are_part_of_each_state():
    ports = {"wan": ("port0", "port1")}
    whole = evolve(change(compile_policy(policy(), HostFacts(ports))), host=HostFacts(ports))
    assert search(whole).verdict == "proved"
    without_ports = evolve(change(compile_policy(policy())), host=HostFacts(ports))
    with pytest.raises(NoSafeOrder):
        search(without_ports)
    assert prove_desired(without_ports, policy(), FakeKernel()).verdict == "refuted"


def test_desired_state_is_proved_for_the_families_of_the_machine():
    rules = tuple(rule for rule in FIRST.desired.rules if rule.family == 4)
    only4 = change(evolve(FIRST.desired, rules=rules))
    assert prove_desired(only4, policy(), FakeKernel(families=(4,))).verdict == "proved"
    assert not any(one.property in ("P3", "P4") for one in prove_desired(FIRST, policy(), FakeKernel()).findings)


# --- via block ------------------------------------------------------------------------------


def test_order_via_block_has_the_block_in_all_middle_states():
    block = block_tables([policy(), policy(OTHER_TEXT)])
    order = search(CHANGED, [policy()], OTHER_TEXT, block=block)
    assert order.plan.order == "via block"
    states = order.plan.states(CHANGED.observed)
    names = [{table.name for table in state.tables} for state in states]
    assert all(object_names.BLOCK_TABLE in each for each in names[1:-1])
    assert object_names.BLOCK_TABLE not in names[0] | names[-1]
    assert set(verdicts(order.own_proofs)) == {"proved"}
    assert order.plan.switch == 2
    assert states[order.plan.switch - 1].table("inet", object_names.TABLE) == CHANGED.observed.table(
        "inet", "nftpolicy"
    )
    assert states[order.plan.switch].table("inet", object_names.TABLE) == CHANGED.desired.table("inet", "nftpolicy")
    first, last = order.plan.steps[0], order.plan.steps[-1]
    assert isinstance(first, NftTransaction)
    assert (first.undo, last.undo) == (last.operations, first.operations)


def applier(kernel, path, **options):
    return PolicyApplier(kernel, StateDir(path), lambda each: load(each[1], each[0])[0], ChangeOptions(**options))


def apply(kernel, path, text=TEXT, **options):
    """Return the plan that was executed; None if nothing had to be done."""
    changer, target = applier(kernel, path, **options), TargetPolicy(policy(text), source(text))
    with changer.locked():
        checked = changer.check(target)
        changer.apply(checked, target)
    return checked.order and checked.order.plan


def machine(*tables, unhooked=()):
    paths = {sysctl.path for each in (TEXT, OTHER_TEXT) for sysctl in compile_policy(policy(each)).sysctls}
    state = NetState(tables, sysctls=tuple(Sysctl(path, "9") for path in sorted(paths)))
    present = {"wan", "lan"} - set(unhooked)  # a kernel before 6.18 hooks no chain at an absent device
    return FakeKernel(state, present, without_egress_hook=unhooked)


@pytest.fixture(autouse=True)
def history_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("NFTPOLICY_LIB", str(tmp_path / "history"))


def test_apply_via_block_blocks_during_the_change_only(tmp_path):
    kernel = machine()
    assert apply(kernel, tmp_path).order == "guard first"
    assert apply(kernel, tmp_path, OTHER_TEXT, via_block=True).order == "via block"
    assert {name for _, name in kernel.table_names()} == {object_names.TABLE}


def test_apply_via_block_without_change_does_nothing(tmp_path):
    kernel = machine()
    apply(kernel, tmp_path)
    before = kernel.generation
    assert apply(kernel, tmp_path, via_block=True) is None
    assert kernel.generation == before


def test_block_of_an_earlier_process_is_removed(tmp_path):
    kernel = machine()
    apply(kernel, tmp_path)
    for table in block_tables([policy()]):
        kernel.tables[table.key] = table
    plan = apply(kernel, tmp_path)
    assert plan is not None
    assert plan.steps == ()
    assert {name for _, name in kernel.table_names()} == {object_names.TABLE}


def test_devices_of_both_policies_are_blocked(tmp_path):
    kernel = machine()
    apply(kernel, tmp_path)
    changer = applier(kernel, tmp_path, via_block=True)
    moved = OTHER_TEXT.replace('"wan"]', '"wan2"]')
    checked = changer.check(TargetPolicy(policy(moved), source(moved)))
    first = checked.order.plan.states(checked.planned.observed)[1]
    chains = first.table("netdev", object_names.BLOCK_TABLE).chains
    devices = {chain.hook.device for chain in chains if chain.hook is not None}
    assert devices == {"wan", "wan2"}


@pytest.mark.parametrize("hooked", [True, False])
def test_block_has_the_hooks_of_the_guard(tmp_path, hooked):
    kernel = machine(unhooked=() if hooked else ("lo", "wan"))
    apply(kernel, tmp_path)
    plan = apply(kernel, tmp_path, OTHER_TEXT, via_block=True)
    assert {operation.family for operation in plan.steps[0].operations} == ({"inet", "netdev"} if hooked else {"inet"})


def test_apply_beside_a_foreign_leak_needs_the_option(tmp_path):
    kernel = machine(MARKS_ALL)
    with pytest.raises(NoSafeOrder):
        apply(kernel, tmp_path)
    assert kernel.generation == 0
    assert apply(kernel, tmp_path, ignore_foreign=True).order == "guard first"


def test_policy_that_is_not_proved_is_not_planned(tmp_path, monkeypatch):
    kernel = machine()
    leaky = compile_policy(policy(WIDER_TEXT))
    monkeypatch.setattr("nftpolicy.runtime.apply.executor.compile_policy", lambda *_: leaky)
    with pytest.raises(PolicyNotProved) as refused:
        apply(kernel, tmp_path, ignore_foreign=True)
    assert refused.value.proof.verdict == "refuted"
    assert kernel.generation == 0


def test_release_puts_the_guard_last_and_ignores_foreign_leaks(tmp_path):
    kernel = machine(MARKS_ALL)
    apply(kernel, tmp_path, ignore_foreign=True)
    changer = applier(kernel, tmp_path)
    checked = changer.check(None)
    order = checked.order
    assert order.plan.order == "guard last"
    assert isinstance(order.plan.steps[-1], NftTransaction)
    own = verdicts(order.own_proofs)
    assert own == ["proved"] * (len(own) - 1) + [""]
    with changer.locked():
        changer.apply(checked, None)
    assert kernel.table_names() == {MARKS_ALL.key}
    assert not [rule for rule in kernel.rules if rule.priority > 0 and rule.protocol == 78]


@pytest.mark.parametrize("number", [0, 3, 20, 27])
def test_release_goes_on_after_a_refused_step(tmp_path, number):
    kernel = machine()
    apply(kernel, tmp_path)
    changer = applier(kernel, tmp_path)
    with changer.locked():
        checked = changer.check(None)
        kernel.refuse_at = kernel.steps_taken + number
        report = changer.apply(checked, None)
    assert kernel.steps_taken > kernel.refuse_at, "inconclusive"
    assert (kernel.table_names(), kernel.rules, kernel.routes, report.warnings) == (set(), [], [], ())
    assert changer.state_dir.policy() is None


def test_release_names_objects_that_the_kernel_keeps(tmp_path, monkeypatch):
    kernel = machine()
    apply(kernel, tmp_path)
    changer = applier(kernel, tmp_path)

    def refuse_transactions(step):
        if isinstance(step, NftTransaction):
            raise StepRefused(step, "Operation not permitted")
        FakeKernel.apply_step(kernel, step)

    monkeypatch.setattr(kernel, "apply_step", refuse_transactions)
    with changer.locked():
        report = changer.apply(changer.check(None), None)
    assert kernel.rules == []
    assert "the kernel refused: delete table inet nftpolicy" in report.warnings


def test_release_without_a_safe_order_is_planned(tmp_path, monkeypatch):
    kernel = machine()
    apply(kernel, tmp_path)
    changer = applier(kernel, tmp_path)

    def refuse(*_):
        raise NoSafeOrder([])

    monkeypatch.setattr(PolicyApplier, "_safe_order", refuse)
    checked = changer.check(None)
    assert checked.order is None
    assert checked.step_count
    with pytest.raises(NoSafeOrder):
        changer.check(TargetPolicy(policy(OTHER_TEXT), source(OTHER_TEXT)))
    with changer.locked():
        changer.apply(checked, None)
    assert kernel.table_names() == set()


def test_release_via_block_removes_the_block_too(tmp_path):
    kernel = machine()
    apply(kernel, tmp_path)
    changer = applier(kernel, tmp_path, via_block=True)
    with changer.locked():
        checked = changer.check(None)
        changer.apply(checked, None)
    assert checked.order.plan.order == "via block"
    assert kernel.table_names() == set()


# --- proofs of several states ---------------------------------------------------------------

SPEC = NamedSpec("p", build_spec(policy()))
GUARDED = compile_policy(policy())
LEAKING = evolve(GUARDED, tables=(*GUARDED.tables, MARKS_ALL))


def test_each_state_is_proved_by_itself():
    states = [GUARDED, LEAKING, GUARDED]
    assert verdicts(prove_states(states, [SPEC] * 3)) == ["proved", "refuted", "proved"]
    assert verdicts(prove_states(states, [SPEC, None, SPEC])) == ["proved", "", "proved"]
    assert worst_state_verdict(prove_states(states, [SPEC] * 3)) == "refuted"


def test_proof_of_an_equal_state_is_used_for_its_spec_only():
    stricter = NamedSpec("q", build_spec(policy(TEXT.replace("800", "801"))))
    proofs = prove_states([GUARDED, GUARDED], [SPEC, stricter])
    assert verdicts(proofs) == ["proved", "refuted"]
    routed = evolve(GUARDED, rules=(IpRule(4, 5, table=9),), routes=(Route(4, 9, device="wan"),))
    first, second = prove_states([GUARDED, routed], [SPEC, SPEC])
    assert second.proof is first.proof


def test_known_proof_is_used_for_an_equal_state_only():
    known: list[ProvedState] = []
    (first,) = prove_states([GUARDED], [SPEC], known)
    again, leaking = prove_states([GUARDED, LEAKING], [SPEC, SPEC], known)
    assert again.proof is first.proof
    assert (leaking.verdict, len(known)) == ("refuted", 1)


@pytest.mark.parametrize(
    "path",
    [
        "net/ipv4/tcp_fwmark_accept",
        "net/ipv4/ip_forward",
        "net/ipv4/conf/wan/forwarding",
        "net/ipv4/conf/wan/bc_forwarding",
        "net/ipv4/conf/all/mc_forwarding",
        "net/ipv6/conf/all/forwarding",
        "net/ipv6/conf/wan/force_forwarding",
        "net/ipv6/conf/wan/disable_ipv6",
        "net/bridge/bridge-nf-call-iptables",
    ],
)
def test_state_with_another_sysctl_is_proved_by_itself(path):
    off, on, filtered = (
        evolve(GUARDED, sysctls=(*GUARDED.sysctls, *more))
        for more in (
            [Sysctl(path, "0")],
            [Sysctl(path, "1")],
            [Sysctl(path, "0"), Sysctl("net/ipv4/conf/x/rp_filter", "1")],
        )
    )
    first, second, third = prove_states([off, on, filtered], [SPEC] * 3)
    assert second.proof is not first.proof
    assert third.proof is first.proof


def test_failures_of_a_state_are_its_deciding_findings():
    proved, refuted = prove_states([GUARDED, LEAKING], [SPEC, SPEC])
    assert list(proved.failures()) == []
    failures = list(refuted.failures())
    assert "refuted" in {one.verdict for one in failures} <= {"refuted", "unknown"}
    assert failures == [one for one in refuted.proof.findings if one.deciding and one.verdict != "proved"]


def test_failures_leave_out_findings_that_do_not_decide():
    def unknown(deciding):
        return Finding("P2", "wan", "x", Unknown("reason"), deciding=deciding)

    state = StateProof(SPEC, Proof((unknown(True), unknown(False)), (), ()))
    assert list(state.failures()) == [unknown(True)]
    assert list(StateProof(None, None).failures()) == []


def test_exempt_packets_do_not_hide_a_leak_in_an_order():
    wide = Rule((Match(Payload("udp", "dport"), 67), ACCEPT))
    tables = tuple(
        evolve(table, chains=tuple(evolve(chain, rules=(wide, *chain.rules)) for chain in table.chains))
        for table in GUARDED.tables
    )
    with pytest.raises(NoSafeOrder):
        search(change(evolve(GUARDED, tables=tables)))
