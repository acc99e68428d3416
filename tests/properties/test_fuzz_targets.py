"""A few examples of every fuzz target; script/fuzz runs more."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import kernel_listings, written_text
from fuzz.__main__ import RoundFailed, run_target
from fuzz.targets import TARGETS

pytestmark = pytest.mark.slow

EXAMPLES = 30
KERNEL_EXAMPLES = 8  # each of them runs a command in a namespace
PARAMETERS = [
    pytest.param(target, id=target.name, marks=pytest.mark.kernel if target.name == "kernel" else ())
    for target in TARGETS
]
# For each target, something that would be a fault: where, and what is put there.
FAULTS = {
    "policy-bytes": ("load", KeyError),
    "policy-edited": ("load", KeyError),
    "policy-layout": ("load", KeyError),
    "lines-bytes": ("PolicyText", KeyError),
    "lines-edited": ("PolicyText", KeyError),
    "lines-layout": ("PolicyText", KeyError),
    "listing-json": ("nft_json_decode.decode_ruleset", TypeError),
    "listing-like": ("nft_json_decode.decode_ruleset", TypeError),
    "ip-json": ("ip_json_decode.decode_rules", AttributeError),
    "desk": ("state_from_files", TypeError),
    "judged": ("prove", RecursionError),
    "odd": ("prove", None),
    "uci-bytes": ("parse_uci", KeyError),
    "uci-edited": ("parse_uci", KeyError),
    "uci-made-up": ("parse_uci", KeyError),
    **dict.fromkeys(written_text.WRITERS, ("with_text", TypeError)),
    "commands": ("run_command", TypeError),
    "kernel": ("run_command", TypeError),
    "scenes": ("leaks", RecursionError),
    "proofs": ("prove", RecursionError),
    "policies": ("prove", RecursionError),
}


@pytest.mark.parametrize("target", PARAMETERS)
def test_fuzz_target_finds_no_fault(target, capsys):
    ran = 0
    examples = KERNEL_EXAMPLES if target.name == "kernel" else EXAMPLES

    @settings(max_examples=examples)
    @given(target.inputs)
    def one(value):
        nonlocal ran
        ran += 1
        target.check(value)

    one()
    with capsys.disabled():
        print(f"\n{target.name}: {ran} examples")
    assert ran >= examples


@given(st.data())
def test_fuzz_inputs_have_good_and_bad_policies(data):
    target = data.draw(st.sampled_from(TARGETS))
    data.draw(target.inputs)


def test_most_host_listings_can_be_decoded():
    """Decode mutated listings: enough of them stay supported."""
    read = []

    @settings(max_examples=EXAMPLES, database=None)
    @given(kernel_listings.host_listings())
    def one(listings):
        read.append(kernel_listings.decode_state(listings) is not None)

    one()
    assert sum(read) > len(read) / 3


@pytest.mark.parametrize("target", PARAMETERS)
def test_fuzz_target_finds_an_injected_fault(monkeypatch, target):
    name, error = FAULTS[target.name]
    module = sys.modules[target.check.__module__]
    if error is None:  # a prover that says yes to what it doesn't understand
        right = kernel_listings.prove(
            kernel_listings.compile_file(kernel_listings.POLICIES[0]),
            kernel_listings.build_spec(kernel_listings.load_policy(kernel_listings.POLICIES[0])),
        )
        monkeypatch.setattr(kernel_listings, "prove", lambda *_: right)
    else:

        def broken(*_):
            raise error("a fault")

        monkeypatch.setattr(f"{module.__name__}.{name}", broken)
    for _ in range(2):
        with pytest.raises(RoundFailed, match=rf"script/fuzz --replay {target.name} 5"):
            run_target(target, 200, 5, shrink=False)


# A gate that lets everything through, by the target that must find it.
OPEN_GATES = {
    "text-tables": "nftpolicy.netstate.formats.nft_text_values._NAME",
    "text-state": "nftpolicy.netstate.formats.ip_text._WORD",
    "text-script": "nftpolicy.netstate.formats.ip_text._WORD",
    "text-netconfig": "nftpolicy.generated_text._WORD",
    "text-units": "nftpolicy.generated_text._WORD",
    "text-router": "nftpolicy.generated_text._WORD",
    "text-compiled": "nftpolicy.netstate.formats.nft_text_values._NAME",
    "text-paths": "nftpolicy.integration.systemd_units._SAFE_PATH",
    "text-servers": "nftpolicy.generated_text._WORD",
}


@pytest.mark.parametrize("name", OPEN_GATES)
def test_fuzz_target_finds_an_open_gate(monkeypatch, name):
    monkeypatch.setattr(OPEN_GATES[name], re.compile(".*", re.DOTALL))
    monkeypatch.setattr("nftpolicy.generated_text._WORD", re.compile(".*", re.DOTALL))
    (target,) = (each for each in TARGETS if each.name == name)
    with pytest.raises(RoundFailed) as failure:
        run_target(target, 300, 5, shrink=False)
    assert isinstance(failure.value.__cause__, AssertionError)


def test_fuzz_script_replays_a_round():
    said = subprocess.run(
        [sys.executable, "-m", "fuzz", "--replay", "lines-bytes", "7"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.splitlines() == ["lines-bytes: 100 examples, nothing found"]
