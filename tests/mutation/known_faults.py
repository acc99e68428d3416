"""Faults of the prover and of the search for an order that the tests have to see; each with its tests."""

import ast
import os
import textwrap

from attrs import frozen

from tests.mutation.child_run import CPU_LIMIT, KILLED, PACKAGE, TIMEOUT, TestSelection, outcome, run_forked, run_tests

ORDER, APPLY = "runtime/apply/step_order.py", "runtime/apply/transaction.py"
LEMMAS, NO_LEAK, DNS = "proof/lemmas.py", "proof/no_leak.py", "proof/dns_isolation.py"
PATHS, WALK = "model/symbolic/chain_paths.py", "model/symbolic/chain_walk.py"
RULESET = "model/symbolic/symbolic_ruleset.py"
TEST_ORDER, TEST_LEMMAS = "tests/unit/test_safe_order.py", "tests/unit/test_lemmas.py"
TEST_SPEC, TEST_DNS = "tests/unit/test_spec_exactness.py", "tests/unit/test_dns_isolation.py"
TEST_REGIONS, TEST_BYPASS = "tests/unit/test_spec_regions.py", "tests/unit/test_bypass.py"


@frozen
class Fault:
    """A change of one function: `old`, which occurs in it, becomes `new`; without `old`, its whole body.

    `tests` are FILE::TEST; at least one of them has to fail.
    """

    path: str
    function: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path} {self.function}: {self.old or 'body'} -> {self.new or 'nothing'}"

    def tree(self) -> ast.Module:
        """Return the changed module.

        Raises:
            LookupError: the function or `old` is not there.
        """
        source = (PACKAGE / self.path).read_text()
        node = _function(ast.parse(source), self.function)
        lines = source.splitlines(keepends=True)
        text = "".join(lines[node.lineno - 1 : node.end_lineno])
        if not self.old:
            text = "".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
            changed = text + textwrap.indent(self.new, " " * node.body[0].col_offset) + "\n"
        elif self.old in text:
            changed = text.replace(self.old, self.new)
        else:
            raise LookupError(f"{self}: the function does not have this text; write the fault anew")
        return ast.parse("".join([*lines[: node.lineno - 1], changed, *lines[node.end_lineno :]]))


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    nodes: list[ast.stmt] = tree.body
    *classes, function = name.split(".")
    for each in classes:
        nodes = next(node.body for node in nodes if isinstance(node, ast.ClassDef) and node.name == each)
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return node
    raise LookupError(f"there is no function {name}; write the fault anew")


def tests(file: str, *names: str) -> tuple[str, ...]:
    """Return the tests of one file."""
    return tuple(f"{file}::{name}" for name in names)


_LEAKING_ORDER = tests(TEST_ORDER, "test_order_with_leaking_middle_state_is_refused")
_FOREIGN_LEAK = tests(TEST_ORDER, "test_foreign_table_that_marks_packets_is_refused")
_FRAMES = tests(TEST_ORDER, "test_frames_are_part_of_each_state")
_LINK_GUARD = tests(TEST_SPEC, "test_uplink_without_link_guard_is_refuted_for_frames_only")
_BRIDGE_PORTS = tests(TEST_SPEC, "test_each_port_of_a_bridge_needs_a_link_guard")
_HALVES = tests(TEST_LEMMAS, "test_address_that_changes_between_two_halves_is_not_proved")
_LEGACY_HALVES = tests(TEST_BYPASS, "test_legacy_rewrite_between_halves_of_guard_is_unknown")
_BEFORE_CONNTRACK = tests(TEST_LEMMAS, "test_connection_differs_for_chains_before_conntrack")
_BYPASS = tests(TEST_LEMMAS, "test_statement_that_bypasses_the_guard_is_unknown")
_WRITES = tests(TEST_LEMMAS, "test_rule_that_gives_the_mark_is_refuted")
_CALLED_WRITE = tests(TEST_LEMMAS, "test_write_in_a_called_chain_is_refuted")
_NO_CHAIN = tests(TEST_LEMMAS, "test_jump_to_no_chain_is_unknown")
_NO_CHAIN_WRITES = tests(TEST_LEMMAS, "test_jump_to_no_chain_beside_a_write_is_unknown")
_REGIONS = tests(TEST_REGIONS, "test_region_with_ports_or_types_holds_no_fragments")

FAULTS = (
    # The search for a safe order.
    Fault(ORDER, "_is_safe", "", "return True", _LEAKING_ORDER),
    Fault(ORDER, "_is_safe", "order.full_verdict != REFUTED", "True", _FOREIGN_LEAK),
    Fault(ORDER, "_is_safe", "ignore_foreign or", "", tests(TEST_ORDER, "test_foreign_leak_is_accepted_on_request_and_named")),
    Fault(ORDER, "spec_on_host", "frames=host.has_egress_hook", "frames=False", _FRAMES),
    Fault(ORDER, "_plans", "if block:", "if not block:", tests(TEST_ORDER, "test_order_via_block_has_the_block_in_all_middle_states")),
    Fault(ORDER, "_prove_order", "number < plan.switch", "number <= plan.switch", tests(TEST_ORDER, "test_first_apply_puts_the_guard_first")),
    Fault(ORDER, "_with_own", "and table.name not in object_names.AUXILIARY_TABLES", "", tests(TEST_ORDER, "test_auxiliary_table_does_not_count_for_the_proof")),
    Fault(ORDER, "_spec_in_force", "", "return None", tests(TEST_ORDER, "test_change_is_proved_by_each_policy_on_its_side")),
    Fault(ORDER, "foreign_findings", "", "yield from ()", tests(TEST_ORDER, "test_foreign_table_that_is_unknown_is_accepted_and_named")),
    Fault(APPLY, "PolicyApplier.check", "if proof.verdict != PROVED", "if False", tests(TEST_ORDER, "test_policy_that_is_not_proved_is_not_planned")),
    Fault(APPLY, "PolicyApplier._safe_order", "if self.options.via_block", "if False", tests(TEST_ORDER, "test_apply_via_block_blocks_during_the_change_only")),
    Fault(APPLY, "PolicyApplier._unblock", "", "pass", tests(TEST_ORDER, "test_block_of_an_earlier_process_is_removed")),
    Fault("proof/transition_proof.py", "_proof_of_equal_state", "known.named_spec is named_spec and", "", tests(TEST_ORDER, "test_proof_of_an_equal_state_is_used_for_its_spec_only")),
    Fault("proof/transition_proof.py", "_proof_of_equal_state", " and _guard_inputs(known.state) == _guard_inputs(state)", "", tests(TEST_ORDER, "test_each_state_is_proved_by_itself")),
    Fault("proof/transition_proof.py", "_guard_inputs", "state.looks, sysctls", "state.looks", tests(TEST_ORDER, "test_state_with_another_sysctl_is_proved_by_itself")),
    # The lemmas.
    Fault(LEMMAS, "integrity_violations", "", "return []", _WRITES),
    Fault(LEMMAS, "hook_bypasses", "", "return []", _BYPASS),
    Fault(LEMMAS, "unstable_fields", "if has_nat else ()", "if False else ()", _HALVES),
    Fault(LEMMAS, "unstable_fields", "else _REWRITTEN", "else ()", _LEGACY_HALVES),
    Fault(LEMMAS, "guard_violation", "if not context.header_may_change_after(family, base_chain)", "", tests(TEST_LEMMAS, "test_header_that_a_later_chain_writes_is_not_final")),
    Fault("proof/context.py", "runs_before_conntrack", "", "return False", _BEFORE_CONNTRACK),
    Fault("proof/context.py", "_certainly_hooked", 'hook.type == "nat" or', "", tests(TEST_LEMMAS, "test_chain_of_type_nat_guards_nothing")),
    Fault("proof/context.py", "ProofContext.all_chains", "chain.hook is not None", "chain.hook is None", _WRITES),
    # P1 and P2.
    Fault(NO_LEAK, "_frame_violations", "if not spec.frames:", "if True:", _LINK_GUARD),
    Fault(NO_LEAK, "_frame_violations", "spec.frame_devices(uplink)", "uplink.devices", _BRIDGE_PORTS),
    Fault(NO_LEAK, "_other_ethertypes", "violations.append(violation)", "pass", _LINK_GUARD),
    Fault(NO_LEAK, "_mark_entitlement", "violations.append(violation)", "pass", tests(TEST_SPEC, "test_more_than_entitled_packets_is_not_proved")),
    Fault(NO_LEAK, "check_unnamed_devices", "violations.append(violation)", "pass", tests(TEST_SPEC, "test_packets_by_an_unnamed_device_are_not_proved")),
    Fault("proof/prover.py", "prove_guard", "findings += check_unnamed_devices(context, spec)", "pass", tests(TEST_SPEC, "test_packets_by_an_unnamed_device_are_not_proved")),
    Fault("proof/mark_confinement.py", "check_mark_confinement", "violations.append(violation)", "pass", tests(TEST_SPEC, "test_marked_packets_by_an_inside_device_are_refuted")),
    Fault("proof/policy_spec.py", "_upstream", ', "fragment": points(0)', "", _REGIONS),
    Fault("proof/policy_spec.py", "_resets", '"fragment": points(0), ', "", _REGIONS),
    Fault("proof/policy_spec.py", "_ports", '"fragment": points(0), ', "", _REGIONS),
    Fault("proof/exemption_spec.py", "_udp", '"fragment": points(0), ', "", _REGIONS),
    # P5.
    Fault(DNS, "check_dns_isolation", "from_outside += _arriving_queries(context, resolver, family)", "pass", tests(TEST_DNS, "test_queries_from_outside_are_not_proved")),
    Fault(DNS, "check_dns_isolation", "foreign_clients += _foreign_clients(context, uplink, resolver, owners, family)", "pass", tests(TEST_DNS, "test_clients_of_no_service_are_not_proved")),
    Fault(DNS, "check_dns_isolation", "bypasses += _bypasses(context, spec, uplink, resolver, owners, family)", "pass", tests(TEST_DNS, "test_queries_of_a_service_to_another_server_are_not_proved")),
    Fault(DNS, "check_dns_isolation", "redirected += _wrong_redirects(context, family, queries, resolver)", "pass", tests(TEST_DNS, "test_redirection_to_another_address_is_not_proved")),
    # Rulesets applied to sets of packets.
    Fault(PATHS, "follow_paths", 'yield _event("accept", base_chain, branch.part({field: points(1)}))', "pass", tests(TEST_LEMMAS, "test_chain_with_too_many_paths_is_unknown")),
    Fault(PATHS, "apply_effect", "return PathStep(path if kind == \"unsupported\" else remaining, [event])", "return PathStep(remaining)", _NO_CHAIN_WRITES),
    Fault(PATHS, "apply_effect", "[_event(each, base_chain, part, rule, statement) for each in kinds]", "[]", tests(TEST_LEMMAS, "test_accept_behind_a_write_is_refuted")),
    Fault(PATHS, "apply_effect", "return PathStep(remaining, branches=[evolve(part, stack=callers)])", "return PathStep(remaining)", tests(TEST_LEMMAS, "test_return_behind_a_write_is_refuted")),
    Fault(WALK, "apply_effect", 'return leave_early(state) if kind == "goto" else continue_rule(state), [event]', "return continue_rule(state), ()", _NO_CHAIN),
    Fault(RULESET, "SymbolicRuleset.can_write", "for target in called", "for target in ()", _CALLED_WRITE),
    Fault("model/symbolic/ruleset_scan.py", "_scan_statement", "scan.unsupported.append(", "str(", _BYPASS),
)  # fmt: skip


def check(jobs: int) -> int:
    """Print the faults that no test of theirs sees; return 1 if there is one."""
    running: dict[int, Fault] = {}
    waiting = list(reversed(FAULTS))
    unseen = 0
    while waiting or running:
        while waiting and len(running) < jobs:
            fault = waiting.pop()
            tree, files = fault.tree(), tuple(dict.fromkeys(test.split("::")[0] for test in fault.tests))
            selection = TestSelection(files, dict.fromkeys(fault.tests, CPU_LIMIT / 10))

            def work(fault: Fault = fault, tree: ast.Module = tree, selection: TestSelection = selection) -> int:
                return run_tests([selection], PACKAGE / fault.path, tree)

            running[run_forked(work, CPU_LIMIT)] = fault
        pid, status = os.wait()
        fault, result = running.pop(pid), outcome(status)
        if result not in (KILLED, TIMEOUT):
            unseen += 1
            print(f"{result}: {fault}", flush=True)
    print(f"{len(FAULTS) - unseen} of {len(FAULTS)} known faults seen")
    return 1 if unseen else 0
