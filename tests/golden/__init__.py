"""Golden files: policies and the files that they compile to, in tests/golden/NN-topic/.

After an intended change: `python -m tests.golden --write`, then read the difference before the commit.
"""

from pathlib import Path

from nftpolicy.compiler.compile import HostFacts, compile_policy
from nftpolicy.compiler.describe import describe_policy
from nftpolicy.integration.netconfig.registry import PROGRAMS, netconfig_files, render_files
from nftpolicy.netstate.formats import ip_text, nft_text
from nftpolicy.policy.load import load

GOLDEN_DIRECTORY = Path(__file__).parent
SETTINGS = "03-two-uplinks"  # whose settings for other programs are kept, too
# Bridges of the machine that the policies are compiled for.
MACHINE = HostFacts(bridge_ports={"br-wan": ("eth0", "eth1")})


def topics():
    """Return the directories."""
    return sorted(path.parent for path in GOLDEN_DIRECTORY.glob("*/policy.toml"))


def expected_files(folder):
    """Return the expected content of each file, by file name."""
    policy, _ = load((folder / "policy.toml").read_bytes(), "policy.toml")
    state = compile_policy(policy, MACHINE)
    programs = PROGRAMS if folder.name == SETTINGS else ()
    return {
        **{f"settings/{one}.txt": render_files(netconfig_files(policy, one)) for one in programs},
        "ruleset.nft": "\n".join(map(nft_text.table_text, state.tables)),
        "ip4.batch": ip_text.batch_text(state.rules, state.routes, 4),
        "ip6.batch": ip_text.batch_text(state.rules, state.routes, 6),
        "summary.txt": describe_policy(policy, state),
    }
