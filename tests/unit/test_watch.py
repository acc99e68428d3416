"""What the watch decides, on the kernel in memory and on messages written by hand."""

import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler import names
from nftpolicy.compiler.block import block
from nftpolicy.compiler.compile import Machine, compile_policy
from nftpolicy.compiler.second import second
from nftpolicy.kernel.fake import Fake
from nftpolicy.kernel.monitor import Author, News
from nftpolicy.kernel.notify import Manager
from nftpolicy.netstate import text
from nftpolicy.netstate.changes import RouteChange, RuleChange, SysctlChange
from nftpolicy.netstate.routing import IpRule
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.promise import claim
from nftpolicy.proof.prover import guards
from nftpolicy.runtime.changes.apply import apply, prospect
from nftpolicy.runtime.changes.change import Changer
from nftpolicy.runtime.changes.memory import Memory
from nftpolicy.runtime.rate_limiter import RateLimiter
from nftpolicy.runtime.watch import decisions as watching
from nftpolicy.runtime.watch.decisions import Exposure, Fights, Held
from nftpolicy.runtime.watch.errand import Errand
from nftpolicy.runtime.watch.loop import Watch
from nftpolicy.runtime.watch.world import World

RULESETS = sorted((Path(__file__).parents[2] / "rulesets").glob("*.toml"))
TOML = b"""
name   = "small"
inside = ["bat0"]
[uplink.wan]
devices = ["br-wan"]
mark    = "0x1/0x1"
table   = 1
exempt  = ["arp"]
answer  = ["ssh"]
[service.vpn]
uplink = "wan"
group  = 800
"""
POLICY = load(TOML)[0]
STATE = compile_policy(POLICY)
HELD = Held(STATE)


# What lies ready


def test_nothing_is_put_back_for_news_of_others() -> None:
    assert not HELD.remedy(News(foreign=3, ladder=True, links=True, addresses=True), {})


def test_a_table_that_is_gone_comes_back_whole_and_others_are_not_touched() -> None:
    remedy = HELD.remedy(News(gone={"inet", "ip"}), {})
    assert remedy.nft.startswith("table inet nftpolicy\ndelete table inet nftpolicy\n")
    assert text.table(STATE.tables[0]) in remedy.nft
    assert "netdev" not in remedy.nft
    assert remedy.what == ("table:inet",)


def test_a_chain_that_was_changed_gets_its_own_rules_alone() -> None:
    remedy = HELD.remedy(News(chains={("inet", "guard"), ("inet", "somebody's")}), {})
    lines = remedy.nft.splitlines()
    assert lines[0].startswith("add chain inet nftpolicy guard { type filter hook postrouting")
    assert lines[0].endswith("policy drop; }")
    assert lines[1] == "flush chain inet nftpolicy guard"
    assert len(lines) == 2 + len(next(one for one in STATE.tables[0].chains if one.name == "guard").rules)
    assert remedy.what == ("chain:guard",)


def test_a_chain_of_a_table_that_is_gone_comes_with_the_table() -> None:
    assert HELD.remedy(News(gone={"inet"}, chains={("inet", "guard")}), {}).what == ("table:inet",)


def test_rules_routes_and_sysctls_that_are_ours_come_back_and_no_others() -> None:
    ours, others = STATE.rules[0], IpRule(4, 77, table=9, protocol=78)
    news = News(rules=[ours, others], routes=[STATE.routes[0]])
    path = STATE.sysctls[0].path
    remedy = HELD.remedy(news, {path: "7", "net/ipv4/tcp_syncookies": "0"})
    assert remedy.changes == (
        SysctlChange("7", STATE.sysctls[0]),
        RouteChange("add", STATE.routes[0]),
        RuleChange("add", ours),
    )
    assert remedy.what == (f"sysctl:{path}", "routes:1", "rules:1")


# The rate limiter, and conflicts


def test_the_first_run_is_at_once_and_the_next_ones_wait_in_proportion() -> None:
    limiter = RateLimiter(pause=0.2, cost_factor=4)
    assert limiter.due() is None
    limiter.request()
    assert limiter.due() == 0
    limiter.begin()
    assert limiter.due() is None
    for _ in range(1000):
        limiter.request()
    limiter.end(10, 0.01)
    assert limiter.due() == pytest.approx(10.2)
    limiter.begin()
    limiter.request()
    limiter.end(20, 1)
    assert limiter.due() == pytest.approx(24)


def test_with_a_period_runs_come_without_a_request_and_sooner_with_one() -> None:
    limiter = RateLimiter(pause=0.1, period=5)
    assert limiter.due() == 0
    assert limiter.begin_if_due(100)
    assert limiter.due() == 105
    assert not limiter.begin_if_due(104)
    limiter.request()
    assert limiter.due() == pytest.approx(100.1)
    assert not limiter.begin_if_due(100.05)
    assert limiter.begin_if_due(101)
    assert limiter.due() == 106


def test_a_few_repairs_are_told_one_by_one_and_a_fight_now_and_then() -> None:
    fights = Fights(most=5, within=3, every=5)
    assert [fights.repaired(at) for at in (0, 0.1, 0.2, 0.3, 0.4)] == [True] * 5
    assert fights.word(0.4) == 0
    assert fights.repaired(0.5) is False
    assert fights.word(0.5) == 1
    for at in range(1000):
        assert fights.repaired(0.6 + at / 1000) is False
    assert fights.word(1.7) == 0
    assert fights.due() == 5.5
    assert fights.word(5.5) == 1000
    assert fights.due() is None
    assert len(fights._times) <= 6
    assert fights.repaired(20) is True


# Lines


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a"b', '"a\\"b"'),
        ("a\nevent=b", '"a\\u000aevent=b"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        (["a", "b"], "a,b"),
        (["a b", "c"], '"a b; c"'),
        (3, "3"),
    ],
)
def test_a_value_can_not_pretend_to_be_another_field(value: object, shown: str) -> None:
    assert watching.line({"key": value}) == f"key={shown}"


def test_an_exposure_says_only_what_is_known() -> None:
    assert Exposure(0.00123, passed=4).facts() == {"ms": 1.2, "passed": 4}
    assert Exposure(1, stopped=2).facts() == {"ms": 1000.0, "stopped": 2}
    assert watching.stopped({"wan.dropped": 1, "unknown-device": 2, "wan.exempt.arp": 4, "wan.answer.ssh": 8}) == 3


@pytest.mark.parametrize(
    ("verdict", "also_unknown", "blocks"),
    [
        ("proved", True, False),
        ("refuted", False, True),
        ("unknown", False, False),
        ("unknown", True, True),
        ("", True, False),
    ],
)
def test_what_blocks(verdict: str, also_unknown: bool, blocks: bool) -> None:
    assert watching.blocks(verdict, also_unknown) is blocks


# The block


@pytest.mark.parametrize("file", RULESETS, ids=lambda file: file.stem)
def test_the_block_alone_keeps_what_the_policy_promises(file: Path) -> None:
    policy = load(file.read_bytes(), str(file), lambda kind, item: load_account(item))[0]
    proof = guards(NetState(block([policy])), claim(policy))
    assert [one for one in proof.findings if one.deciding and one.verdict != "proved"] == []


def load_account(item: object):  # type: ignore[no-untyped-def]
    from nftpolicy.policy.objects import Account

    return Account(str(item), item if isinstance(item, int) else 4242)


def test_a_block_without_its_last_word_would_be_refuted() -> None:
    """The control of the test above."""
    ip, link = block([POLICY])
    opened = tuple(
        evolve(one, rules=tuple(rule for rule in one.rules if "stopped" not in str(rule)))
        if one.name == "block"
        else one
        for one in ip.chains
    )
    opened = tuple(evolve(one, hook=evolve(one.hook, policy="accept")) if one.hook else one for one in opened)
    assert guards(NetState((evolve(ip, chains=opened), link)), claim(POLICY)).verdict == "refuted"


def test_the_block_of_two_policies_stops_the_devices_of_both() -> None:
    other = evolve(POLICY, inside=("br-wan",), uplink={"wan": evolve(POLICY.uplink["wan"], devices=("bat0",))})
    tables = block([POLICY, other], Machine({"br-wan": ("port",)}))
    chains = {one.name: one for one in tables[0].chains}
    base = [text.rule(rule) for rule in chains["block"].rules]
    stops = [base.index(f'meta oifname "{device}" counter name "stopped" drop') for device in ("br-wan", "bat0")]
    assert max(stops) < min(base.index(f'meta oifname "{device}" accept') for device in ("br-wan", "bat0"))
    assert {"wan.passes", "wan.1.passes"} <= chains.keys()
    assert {one.name for one in tables[1].chains} >= {"device-br-wan", "device-bat0", "device-port"}


def test_without_the_egress_hook_the_block_is_of_the_ip_layer() -> None:
    assert [one.family for one in block([POLICY], Machine(link_guard=False))] == ["inet"]
    tables = block([POLICY], Machine(unhooked=frozenset({"br-wan"})))
    assert [one.name for one in tables[1].chains] == ["wan.passes"]


# The second guard


@pytest.mark.parametrize("file", RULESETS, ids=lambda file: file.stem)
def test_the_second_guard_alone_keeps_what_the_policy_promises(file: Path) -> None:
    policy = load(file.read_bytes(), str(file), lambda kind, item: load_account(item))[0]
    copy = second(compile_policy(policy))
    assert guards(NetState(copy), claim(policy)).verdict == "proved"
    assert {table.name for table in copy} == {names.SECOND_TABLE}
    assert all(chain.hook is None or chain.hook.policy == "drop" for table in copy for chain in table.chains)


def test_the_second_guard_marks_nothing_and_turns_nothing_away() -> None:
    """So that both together do what the first one does alone."""
    told = "".join(text.table(table) for table in second(STATE))
    assert "mark set" not in told
    assert "redirect" not in told
    assert "mark set" in text.table(STATE.tables[0])


# The service manager


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    place = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(place)
        manager = Manager({"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())})
        manager.tell(READY=1, STATUS="two\nlines")
        assert heard.recv(100) == b"READY=1\nSTATUS=two lines"
        assert manager.watchdog == 1.5
    manager.tell(WATCHDOG=1)  # nobody listens any more


@pytest.mark.parametrize("environment", [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}])
def test_without_a_service_manager_nothing_is_sent(environment: dict[str, str]) -> None:
    manager = Manager(environment)
    assert manager.watchdog is None
    manager.tell(READY=1)


# The child


def test_a_childs_answer_comes_by_its_descriptor() -> None:
    errand = Errand(lambda: {"long": "x" * 300_000})
    while not errand.ended():
        select.select([errand.descriptor], [], [], 5)
    assert len(errand.answer()["long"]) == 300_000


def test_a_child_that_fails_or_hangs_is_an_error_and_leaves_nothing() -> None:
    errand = Errand(lambda: 1 / 0)
    while not errand.ended():
        select.select([errand.descriptor], [], [], 5)
    with pytest.raises(ValueError, match="ZeroDivisionError: division by zero"):
        errand.answer()
    hanging = Errand(lambda: select.select([], [], [], 60))
    assert not hanging.ended()
    hanging.cancel()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


# The whole of it, on the kernel in memory


class Ears:
    def __init__(self, kernel: Fake) -> None:
        self.kernel, self.next, self.paths = kernel, News(), ()
        self.descriptors: tuple[int, ...] = ()

    def read(self) -> News:
        news, self.next = self.next, News()
        return news

    def watch_sysctls(self, paths) -> None:  # type: ignore[no-untyped-def]
        self.paths = tuple(paths)

    def watch_folder(self, folder: Path) -> None:
        assert folder.is_dir()

    def sysctls(self) -> dict[str, str]:
        return {path: self.kernel.sysctls[path] for path in self.paths}

    def leave_out(self, ports) -> None:  # type: ignore[no-untyped-def]
        pass


class Stage:
    """A watch with everything in memory; `pass_time` lets it do what is due."""

    def __init__(self, folder: Path, block_unknown: bool = False, owns: bool = False) -> None:
        self.kernel = Fake(NetState(sysctls=STATE.sysctls))
        self.memory = Memory(folder)
        self.memory.folder.mkdir()
        self.ears, self.clock = Ears(self.kernel), 100.0
        self.said: list[tuple[str, dict[str, object]]] = []
        self.owned: list[str] = []
        changer = Changer(self.kernel, self.memory, lambda one: load(one[1], one[0])[0])
        world = World(
            changer,
            lambda: self.kernel,
            self.ears,
            self.load,
            lambda event, facts: self.said.append((event, facts)),
            lambda devices: 0,
            lambda table: {"wan.dropped": 0},
            manager=Manager({}),
            now=lambda: self.clock,
            block_unknown=block_unknown,
            owns=owns,
        )
        self.watch = Watch(world)

    def load(self, told: str, check: bool) -> str | None:
        """Understands the few shapes of text that the watch loads."""
        if "flags owner" in told:
            assert not check
            self.owned.append(told)
        elif not check:
            for wanted in (*STATE.tables, *block([POLICY])):
                if watching.anew(wanted) in told:
                    self.kernel.tables[wanted.key] = wanted
                elif f"delete table {wanted.family} {wanted.name}\n" in told:
                    del self.kernel.tables[wanted.key]
        return None

    def apply(self, toml: bytes = TOML, name: str = "small.toml") -> None:
        policy = load(toml)[0]
        apply(self.kernel, prospect(self.kernel, policy, self.memory), self.memory)
        self.memory.remember_policy(name, toml)

    def hear(self, **news) -> None:  # type: ignore[no-untyped-def]
        self.ears.next = News(**news)
        self.watch.turn()

    def pass_time(self, seconds: float = 1) -> None:
        for _ in range(20):
            self.clock += seconds / 20
            self.watch.turn()
            if errand := self.watch._checks.worker:
                select.select([errand.descriptor], [], [], 10)
                self.watch.turn()

    def events(self) -> list[str]:
        events = [event for event, _ in self.said]
        self.said.clear()
        return events

    @property
    def right(self) -> bool:
        return not prospect(self.kernel, POLICY, self.memory).plan.steps


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "memory")
    yield made
    if made.watch._checks.worker:
        made.watch._checks.worker.cancel()


@pytest.fixture
def holding(stage: Stage) -> Stage:
    stage.apply()
    stage.watch.begin()
    stage.pass_time()
    assert stage.events() == ["enforcing", "proof"]
    return stage


def test_with_nothing_applied_it_waits_and_then_follows(stage: Stage) -> None:
    stage.watch.begin()
    assert stage.events() == ["waiting"]
    stage.apply()
    stage.hear(files=True)
    stage.pass_time()
    assert stage.events() == ["enforcing", "proof"]


def test_what_was_remembered_and_is_missing_is_put_in_order_at_the_start(stage: Stage) -> None:
    stage.memory.remember_policy("small.toml", TOML)
    stage.watch.begin()
    assert stage.right
    assert stage.events() == ["enforcing", "restored"]


def test_a_lost_table_is_back_within_the_same_turn_and_the_open_time_is_counted(holding: Stage) -> None:
    del holding.kernel.tables["inet", "nftpolicy"]
    holding.hear(ours=True, gone={"inet"}, author=Author("nft", 7))
    assert holding.right
    event, facts = holding.said[0]
    assert (event, facts["by"], facts["pid"], facts["what"], facts["passed"]) == (
        "restored",
        "nft",
        7,
        ["table:inet"],
        0,
    )


def test_what_no_message_names_is_found_by_the_look(holding: Stage) -> None:
    table = holding.kernel.tables["inet", "nftpolicy"]
    holding.kernel.tables["inet", "nftpolicy"] = evolve(table, sets=(evolve(table.sets[0], elements=frozenset()),))
    holding.hear(ours=True, author=Author("nft", 7))
    holding.pass_time()
    assert holding.right
    assert holding.said[0][1]["by"] == "nft"


def test_lost_messages_mean_a_look_at_everything(holding: Stage) -> None:
    holding.kernel.rules.clear()
    holding.hear(lost=True)
    holding.pass_time()
    assert holding.right
    assert holding.events()[:2] == ["notifications-lost", "restored"]


def test_a_sysctl_that_nobody_told_of_is_found_by_comparing(holding: Stage) -> None:
    path = STATE.sysctls[0].path
    holding.kernel.sysctls[path] = "9"
    holding.pass_time(2)
    assert not holding.right
    holding.pass_time(5)
    assert holding.right


def test_while_somebody_else_changes_things_it_waits(holding: Stage) -> None:
    with holding.memory.alone():
        holding.kernel.tables.clear()
        holding.hear(ours=True, gone={"inet", "netdev"})
        holding.pass_time()
        assert holding.kernel.tables == {}
    holding.pass_time()
    assert holding.right


def test_another_policy_is_followed_and_not_fought(holding: Stage) -> None:
    other = TOML.replace(b"800", b"801").replace(b"small", b"other")
    with holding.memory.alone():
        holding.apply(other, "other.toml")
    holding.hear(ours=True, files=True, chains={("inet", "wan.identity")})
    holding.pass_time()
    assert holding.events()[:1] == ["enforcing"]
    assert holding.watch.policy == load(other)[0]
    assert not prospect(holding.kernel, load(other)[0], holding.memory).plan.steps


def test_a_release_is_followed_and_the_block_goes_with_it(holding: Stage) -> None:
    holding.watch._block()
    assert ("inet", names.BLOCK_TABLE) in holding.kernel.tables
    for table in STATE.tables:
        del holding.kernel.tables[table.key]
    holding.kernel.rules.clear(), holding.kernel.routes.clear()
    holding.memory.forget()
    holding.hear(ours=True, files=True, gone={"inet", "netdev"})
    holding.pass_time()
    assert holding.kernel.tables == {}
    assert holding.events() == ["unblocked", "released"]
    assert holding.watch.held is None


def test_a_memory_that_is_gone_is_no_release_as_long_as_the_guard_stands(holding: Stage) -> None:
    holding.memory.forget()
    holding.hear(files=True)
    holding.pass_time()
    assert holding.memory.policy() == ("small.toml", TOML)
    assert holding.right
    assert holding.events()[:1] == ["policy-restored"]


def test_a_policy_that_can_not_be_read_is_said_and_nothing_is_held(holding: Stage) -> None:
    holding.memory.remember_policy("broken.toml", b"name = ")
    holding.hear(files=True)
    assert holding.events() == ["failed"]
    holding.kernel.tables.clear()
    holding.hear(ours=True, gone={"inet"})
    holding.pass_time()
    assert holding.kernel.tables == {}


def evil() -> NetState:
    """A table of others that puts the mark on whatever is sent, for those who may be let out with it."""
    from nftpolicy.netstate.nft import Chain, Hook, Mangle, Meta, Rule, Table

    rules = (Rule((Mangle(Meta("mark"), 1),)),)
    hook = Hook("route", "output", 20, "accept")
    frames = Chain("frames", rules, Hook("filter", "egress", 0, "accept", "br-wan"))
    return NetState((Table("inet", "evil", (Chain("out", rules, hook),)), Table("netdev", "evil", (frames,))))


def test_a_proof_that_fails_blocks_and_one_that_holds_again_lifts(holding: Stage) -> None:
    for table in evil().tables:
        holding.kernel.tables[table.key] = table
    holding.hear(foreign=2)
    holding.pass_time()
    assert holding.events() == ["proof", "blocked"]
    assert {("inet", names.BLOCK_TABLE), ("netdev", names.BLOCK_TABLE)} <= holding.kernel.tables.keys()
    del holding.kernel.tables["inet", names.BLOCK_TABLE]  # somebody takes the block away
    holding.hear(aside=True)
    assert ("inet", names.BLOCK_TABLE) in holding.kernel.tables
    for table in evil().tables:
        del holding.kernel.tables[table.key]
    holding.hear(foreign=2)
    holding.pass_time(3)
    assert holding.events() == ["proof", "unblocked"]
    assert holding.kernel.tables.keys() == {table.key for table in STATE.tables}


def test_a_block_that_is_found_at_the_start_is_lifted_once_the_proof_holds(stage: Stage) -> None:
    stage.apply()
    for table in block([POLICY]):
        stage.kernel.tables[table.key] = table
    stage.watch.begin()
    stage.pass_time()
    assert stage.events() == ["blocked", "enforcing", "proof", "unblocked"]
    assert stage.kernel.tables.keys() == {table.key for table in STATE.tables}


def test_nothing_is_proved_again_for_a_state_that_is_known(holding: Stage) -> None:
    before = holding.watch._proved_state
    holding.hear(foreign=1)
    holding.pass_time(3)
    assert holding.events() == []
    assert holding.watch._proved_state == before


def test_the_second_guard_follows_the_policy_and_goes_with_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "memory", owns=True)
    stage.apply()
    stage.watch.begin()
    assert [watching.owned(table) in stage.owned[0] for table in second(STATE)] == [True, True]
    assert "delete table" not in stage.owned[0], "nothing of it was there"
    other = TOML.replace(b"800", b"801")
    stage.apply(other, "other.toml")
    stage.hear(files=True)
    wanted = second(compile_policy(load(other)[0]))
    assert stage.owned[1] == "".join([*map(watching.away, second(STATE)), *map(watching.owned, wanted)])
    released = []
    stage.watch._tables._environment = evolve(stage.watch.world, load=lambda told, check: released.append(told))
    stage.kernel.tables.clear()
    stage.memory.forget()
    stage.hear(files=True)
    assert released == ["".join(map(watching.away, wanted))]


def test_where_the_kernel_knows_no_owner_there_is_no_second_guard(holding: Stage) -> None:
    assert holding.owned == []


# Messages as the kernel writes them


def message(kind: int, body: bytes, port: int = 9, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, port) + body + bytes(-len(body) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nft(kind: int, *attributes: bytes, family: int = 1, port: int = 9) -> bytes:
    return message(10 << 8 | kind, struct.pack("=BBH", family, 0, 0) + b"".join(attributes), port)


@pytest.fixture
def deaf():  # type: ignore[no-untyped-def]
    from nftpolicy.kernel.monitor import Monitor

    made = Monitor.__new__(Monitor)
    from nftpolicy.kernel import monitor

    made._ours, made._aside = monitor._table(names.TABLE), monitor._table(names.BLOCK_TABLE)
    made._protocol, made._mine, made._links, made._touched = 78, frozenset({5}), {}, False
    return made


OURS, ASIDE, OTHERS = (attribute(1, name) for name in (b"nftpolicy\0", b"nftpolicy-block\0", b"nftpolicy2\0"))
GENERATION = nft(
    15, attribute(1, b"\0\0\0\7"), attribute(2, struct.pack("!I", 4242)), attribute(3, b"evil\0"), family=0
)


def test_our_tables_are_told_from_others_and_the_author_is_named(deaf) -> None:  # type: ignore[no-untyped-def]
    news = News()
    deaf._of_nft(nft(2, OTHERS) + nft(2, OURS, family=5) + nft(8, OURS, attribute(2, b"guard\0")) + GENERATION, news)
    assert (news.gone, news.chains, news.foreign) == ({"netdev"}, {("inet", "guard")}, 1)
    assert news.author == Author("evil", 4242)


def test_who_changes_only_others_tables_is_not_named(deaf) -> None:  # type: ignore[no-untyped-def]
    news = News()
    deaf._of_nft(nft(2, OTHERS) + GENERATION, news)
    assert news == News(foreign=1)


def test_what_this_process_changes_is_no_news(deaf) -> None:  # type: ignore[no-untyped-def]
    news = News()
    deaf._of_nft(nft(2, OURS, port=5) + nft(2, ASIDE, port=5) + GENERATION, news)
    assert news == News()


def test_the_tables_beside_ours_are_told_apart(deaf) -> None:  # type: ignore[no-untyped-def]
    news = News()
    deaf._of_nft(nft(2, ASIDE), news)
    assert (news.aside, news.ours, news.foreign) == (True, False, 0)


def test_an_author_comes_also_with_a_later_datagram(deaf) -> None:  # type: ignore[no-untyped-def]
    first, second = News(), News()
    deaf._of_nft(nft(2, OURS), first)
    deaf._of_nft(GENERATION, second)
    assert (first.author.pid, second.author.pid) == (None, 4242)


@pytest.mark.parametrize(
    ("kind", "table", "port", "told"),
    [
        (1, 254, 9, True),
        (1, 77, 0, True),
        (1, 255, 0, False),
        (2, 255, 0, False),
        (7, 254, 9, False),
        (1, 254, 5, False),
    ],
)
def test_a_route_that_leads_out_is_news_unless_it_is_ours(deaf, kind, table, port, told) -> None:  # type: ignore[no-untyped-def]
    news = News()
    deaf._of_routing(message(24, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, table, 3, 0, kind, 0), port), news)
    assert news == News(routed=told)


@pytest.mark.parametrize("cut", range(0, 60, 4))
def test_a_message_that_is_cut_off_does_no_harm(deaf, cut: int) -> None:  # type: ignore[no-untyped-def]
    deaf._of_nft(nft(8, OURS, attribute(2, b"guard\0"))[:cut], News())
