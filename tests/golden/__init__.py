"""Golden files: policies and the files that they compile to, in tests/golden/NN-topic/.

After an intended change: `python -m tests.golden --write`, then read the difference before the commit.
"""

from pathlib import Path

from nftpolicy.compiler.compile import HostFacts, compile_policy
from nftpolicy.compiler.describe import describe_policy
from nftpolicy.integration.netconfig.registry import PROGRAMS, netconfig_files, render_files
from nftpolicy.netstate.formats import ip_text, nft_text
from nftpolicy.policy.load import load
from nftpolicy.proof.assumptions import add_assumed_environment
from nftpolicy.proof.context import ProofContext
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.usability_cases import usability_cases
from nftpolicy.proof.verdict import describe_packet

GOLDEN_DIRECTORY = Path(__file__).parent
SETTINGS = "03-two-uplinks"  # whose settings for other programs are kept, too
# Topics whose proofs and packets are kept, too: together they have each kind of policy entry.
PROVED = (
    SETTINGS, "04-kernel-service", "09-dual-uplink", "11-uid-rule", "12-forward", "14-tunnels", "16-root-services", "17-clat"
)  # fmt: skip
# Bridges of the machine that the policies are compiled for.
MACHINE = HostFacts(bridge_ports={"br-wan": ("eth0", "eth1")})


def topics():
    """Return the directories."""
    return sorted(path.parent for path in GOLDEN_DIRECTORY.glob("*/policy.toml"))


def proof_text(state, spec):
    """Return what is proved, which exemptions are left out of it, and what it assumes."""
    proof = prove(state, spec)
    findings = [
        f"{one.property} {one.uplink}: {one.subject}: {one.verdict}" + ("" if one.deciding else " (does not decide)")
        for one in proof.findings
    ]
    parts = (findings, [f"exempt: {one}" for one in proof.exemptions], [f"assumed: {one}" for one in proof.assumptions])
    return "".join(f"{line}\n" for part in parts for line in part)


def packets_text(state, spec):
    """Return the packets that use the entries of the policy, each with what must become of it."""
    context = ProofContext(add_assumed_environment(state, spec)[0], spec.devices, spec.masks)
    return "".join(f"{case_text(case)}\n" for case in usability_cases(context, spec))


def case_text(case):
    """Return a packet and its required outcome as one line."""
    outcome = {
        "by": case.device,
        "not by": case.must_not_leave_by,
        "mark": case.mark and "{:#x}/{:#x}".format(*case.mark),
        "flow mark": case.flow_mark and "{:#x}/{:#x}".format(*case.flow_mark),
        "to": case.endpoint and "{:#x} port {}".format(*case.endpoint),
        "or as": "without the mark" if case.may_equal_unmarked else None,
        "or dropped by": "another firewall" if case.may_be_firewalled else None,
    }
    words = " ".join([case.outcome, *(f"{name} {value}" for name, value in outcome.items() if value is not None)])
    entry = " ".join((case.property, case.uplink, case.entry, f"({'.'.join(case.origin)})"))
    return f"{entry}: {describe_packet(case.packet, with_details=True)}: {words}"


def expected_files(folder):
    """Return the expected content of each file, by file name."""
    policy, _ = load((folder / "policy.toml").read_bytes(), "policy.toml")
    state = compile_policy(policy, MACHINE)
    programs = PROGRAMS if folder.name == SETTINGS else ()
    spec = build_spec(policy, MACHINE.bridge_ports)
    proved = {"proof.txt": proof_text(state, spec), "packets.txt": packets_text(state, spec)}
    return {
        **(proved if folder.name in PROVED else {}),
        **{f"settings/{one}.txt": render_files(netconfig_files(policy, one)) for one in programs},
        "ruleset.nft": "\n".join(map(nft_text.table_text, state.tables)),
        "ip4.batch": ip_text.batch_text(state.rules, state.routes, 4),
        "ip6.batch": ip_text.batch_text(state.rules, state.routes, 6),
        "summary.txt": describe_policy(policy, state),
    }
