"""Policies and what they compile to, kept as files: tests/golden/NN-topic/.

After a change that is meant: `python -m tests.golden --write`, then read the difference before it is committed.
"""

from pathlib import Path

from nftpolicy.compiler.compile import Machine, compile_policy
from nftpolicy.compiler.summary import summary
from nftpolicy.netstate import iproute, text
from nftpolicy.policy.load import load
from nftpolicy.settings.programs import PROGRAMS, settings, shown

HERE = Path(__file__).parent
SETTINGS = "03-two-uplinks"  # whose settings for other programs are kept, too
# Bridges of the machine that the policies are compiled for.
MACHINE = Machine(ports={"br-wan": ("eth0", "eth1")})


def topics():
    """The folders."""
    return sorted(path.parent for path in HERE.glob("*/policy.toml"))


def compiled(folder):
    """Name of each file -> what should be in it."""
    policy, _ = load((folder / "policy.toml").read_bytes(), "policy.toml")
    state = compile_policy(policy, MACHINE)
    programs = PROGRAMS if folder.name == SETTINGS else ()
    return {
        **{f"settings/{one}.txt": shown(settings(policy, one)) for one in programs},
        "ruleset.nft": "\n".join(map(text.table, state.tables)),
        "ip4.batch": iproute.batch(state.rules, state.routes, 4),
        "ip6.batch": iproute.batch(state.rules, state.routes, 6),
        "summary.txt": summary(policy, state),
    }
