"""Ip rules of other programs beside a policy: they go on working, nothing leaks, and what starves services is named."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.exposure_lab import Watched
from tests.guarded_lab import POLICY, Guarded, guarded_lab, run_probes, watching
from tests.lab import addresses as at
from tests.lab import inbound_clients
from tests.leaks.test_race_windows import FLOOD, flooding

TABLE = 51820
# Rules as programs make them, without a priority where they give none: the kernel then puts them before all others.
FORMS = {
    "wg-quick": ("rule add not fwmark 1 table {}", "rule add table main suppress_prefixlength 0"),
    "tailscale": ("rule add pref 5210 fwmark 0x80000/0xff0000 table main", "rule add pref 5270 table {}"),
    "networkd": ("rule add pref 30000 table {} protocol static",),
    "two-routers": ("rule add pref 1001 iif lo fwmark 0/1 table {}",),
}


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with guarded_lab() as found:
        yield found


@contextmanager
def rules_of(made: Guarded, form: str) -> Iterator[None]:
    """The form's rules and their table, which alone has a default route to the mesh."""
    node, families = made.lab.node, [(family, rule.format(TABLE)) for family in (4, 6) for rule in FORMS[form]]
    made.lab.mesh_default(False)
    for family in at.FAMILIES:
        node.ip(f"-{family} route add default via {at.GATEWAY[family]} dev {at.MESH} table {TABLE}")
    node.ip(*(f"-{family} {rule}" for family, rule in families))
    try:
        yield
    finally:
        node.ip(*(f"-{family} {rule.replace(' add ', ' del ')}" for family, rule in families))
        node.ip(*(f"-{family} route flush table {TABLE}" for family in at.FAMILIES))
        made.lab.mesh_default(True)


def assert_all_works(made: Guarded) -> None:
    """What the foreign rules route arrives, marked packets leave by the WAN, and nothing else does."""
    lab = made.lab
    with flooding(lab), watching(lab) as watch:
        run = run_probes(lab)
        for family in at.FAMILIES:
            lab.mesh_sniffer.drain()
            lab.node.call(inbound_clients.udp, at.SERVER[family], at.ECHO_PORT, b"by the table", 0.1)
            assert any(b"by the table" in frame.payload for frame in lab.mesh_sniffer.frames()), (
                "the rule has no effect"
            )
        assert (watch.unmarked, watch.stray) == (0, 0)
    marked = {str(sent.probe) for sent in run.sents if sent.probe.marked}
    assert {str(sent.probe) for sent in run.wan} == marked
    assert not any(FLOOD in frame.payload for frame in run.frames)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("first", ["policy", "rules"])
def test_foreign_rules_work_beside_policy(made: Guarded, form: str, first: str) -> None:
    if first == "rules":
        made.release()
    with rules_of(made, form):
        if first == "rules":
            made.apply()
        assert_all_works(made)
        status = made.nftpolicy("status", check=False)
        assert (status.returncode, "starved" in status.stdout) == (0, False), status.stderr
        proof = made.nftpolicy("verify", "--live", POLICY, check=False)
        assert "refuted" not in proof.stdout, proof.stdout
    made.apply()


def test_unmarked_packets_leave_by_wan_without_policy(made: Guarded) -> None:
    """Positive control: the same probes, the same rules."""
    with rules_of(made, "wg-quick"), made.off():
        run = run_probes(made.lab)
        assert run.unmarked()


def test_packet_without_route_fails_at_once(made: Guarded) -> None:
    """The last rule gives the error that a program without a network expects."""
    made.lab.mesh_default(False)
    try:
        for address in at.SERVER.values():
            done = made.lab.node.run(["ip", "route", "get", address], check=False)
            assert "unreachable" in done.stderr, done.stderr
    finally:
        made.lab.mesh_default(True)


STARVING = {
    "all packets": ("pref 100 table {}", "decides for all packets of mark 0x1/0x1 (uplink wan)"),
    "an error": ("pref 100 prohibit", "decides for all packets of mark 0x1/0x1 (uplink wan)"),
    "wg-quick with another mark": ("not fwmark 0xca6c table {}", "FwMark = 0x1"),
}


@pytest.mark.parametrize("name", STARVING)
def test_starving_rule_is_named_everywhere(made: Guarded, name: str) -> None:
    rule, text = STARVING[name]
    rule = rule.format(TABLE)
    node = made.lab.node
    with Watched(made) as watched:
        watched.wait_until_right()
        node.ip(f"route add default via {at.GATEWAY[4]} dev {at.MESH} table {TABLE}", f"rule add {rule}")
        try:
            event = watched.wait_for("foreign-rule")
            assert text in event["what"]
            assert not watched.events("blocked")
            for command, status in (("status", 1), ("check", 0), ("apply", 0)):
                done = made.nftpolicy(command, *([] if command == "status" else [POLICY]), check=False)
                assert (done.returncode, text in done.stderr) == (status, True), done.stderr
            assert "starved by foreign ip rules" in made.nftpolicy("status", check=False).stdout
            proof = made.nftpolicy("verify", "--live", POLICY, check=False)
            assert proof.returncode == 1
            assert "since ip rule" in proof.stdout
            with watching(made.lab) as watch:
                run = run_probes(made.lab)
                assert (watch.unmarked, watch.stray) == (0, 0)
            assert run.unmarked() == []
        finally:
            node.ip(f"rule del {rule}", f"route flush table {TABLE}")
        watched.wait_until_right()
