"""Wrong options and arguments of every command: one line that names the option, status 2."""

import pytest

from nftpolicy.cli.main import COMMANDS
from tests.unit.command_line import run_here

FILE = "rulesets/gluon-fastd.toml"
PACKET = f"explain {FILE} --to 192.0.2.1"
FORWARD = f"{PACKET} --from 192.0.2.2"
UPLINK = "verify --live --uplink wan=eth0"
SECONDS = "expected a number from 0 to 31536000, got"
DEVICE = "is not a device name: 1 to 15 bytes, no '/', ':' or space"
LONG = "a" * 16

# Command line -> the line on standard error, without "nftpolicy: ", and without "; type 'nftpolicy COMMAND -h'".
WRONG = {
    "nosuch": "there is no command 'nosuch'",
    "chek": "there is no command 'chek' (did you mean 'check'?)",
    "./check": "there is no command './check' (did you mean 'check'?)",
    "--nosuch": "--nosuch: no such option",
    "--versoin": "--versoin: no such option (did you mean --version?)",
    "--version=1": "--version: takes no value",
    f"check {FILE} --liv": "--liv: no such option",
    f"check {FILE} x": "more arguments than the command takes: 'x'",
    "check /absent": "/absent: cannot be read: No such file or directory",
    "check /": "/: cannot be read: Is a directory",
    "check ": "FILE: expected the name of a file, got ''",
    "verify --snapshot ": "--snapshot: expected the name of a file, got ''",
    "snapshot ": "FILE: expected the name of a file, got ''",
    "verify --jsn": "--jsn: no such option (did you mean --json?)",
    "verify --json=yes": "--json: takes no value",
    **{f"wait {FILE} --timeout {text}": f"--timeout: {SECONDS} {value}" for text, value in (
        ("nan", "nan"), ("inf", "inf"), ("-inf", "-inf"), ("-1", "-1.0"), ("1e999", "inf"), ("abc", "'abc'"),
    )},
    **{f"{command} --wait nan": f"--wait: {SECONDS} nan" for command in ("apply", "release", "recover")},
    f"wait {FILE} --uplink wan --service fastd": "--uplink and --service exclude each other: give one of them",
    **{f"apply {FILE} --confirm {text}": f"--confirm: expected a whole number from 0 to 86400, got {value}" for text, value in (
        ("-1", "-1"), ("86401", "86401"), ("nan", "'nan'"), ("1.5", "'1.5'"), ("1e3", "'1e3'"),
    )},
    "apply --confirm": "--confirm: its value is missing",
    # explain
    "explain": "--to: missing: give the destination address, or --pid N for a process's sockets",
    f"{PACKET}/24": "--to: '192.0.2.1/24' is not an IPv4 or IPv6 address; resolve a host name first",
    f"explain {FILE} --to vpn.example": "--to: 'vpn.example' is not an IPv4 or IPv6 address; resolve a host name first",
    f"explain {FILE} --to fe80::1%{LONG}": f"--to: '{LONG}' {DEVICE}",
    **{f"{PACKET} --dev {name}": f"--dev: {name!r} {DEVICE}" for name in (LONG, "a/b", "eth0:1", ".", "..", "\u00e9" * 8, "")},
    **{f"{FORWARD} --forward {name}": f"--forward: {name!r} {DEVICE}" for name in (LONG, "a/b", "")},
    f"{PACKET} --field x": "--field: expected HEADER.NAME=NUMBER such as icmpv6.type=135, got 'x'",
    f"{PACKET} --field tpc.flags=1": "--field: there is no header 'tpc' (did you mean 'tcp'?); known are ether, arp, ip,",
    f"{PACKET} --field tcp.flag=1": "--field: there is no field of tcp 'flag' (did you mean 'flags'?); known are sport,",
    f"{PACKET} --field tcp.flags=256": "--field: 256 is not from 0 to 0xff",
    f"{PACKET} --field ip.ttl=300": "--field: 300 is not from 0 to 0xff",
    f"{PACKET} --dport 70000": "--dport: expected a whole number from 0 to 65535, got 70000",
    f"{PACKET} --dport https": "--dport: expected a whole number from 0 to 65535, got 'https'",
    f"{PACKET} --dport": "--dport: its value is missing",
    f"{PACKET} --sport -1": "--sport: expected a whole number from 0 to 65535, got -1",
    f"{PACKET} --uid -1": "--uid: there is no user '-1' on this machine",
    f"{PACKET} --uid no-such-user-1": "--uid: there is no user 'no-such-user-1' on this machine",
    f"{PACKET} --uid \u00b2": "--uid: there is no user '\u00b2' on this machine",
    f"{PACKET} --uid 4294967295": "--uid: expected the number of a user (0 to 4294967294), got a number ('4294967295')",
    f"{PACKET} --gid roott": "--gid: there is no group 'roott' on this machine (did you mean 'root'?)",
    f"{PACKET} --mark 1/1": "--mark: expected a number such as 1 or 0x1, got '1/1'",
    f"{PACKET} --mark 0x1ffffffff": "--mark: 0x1ffffffff is not from 0 to 0xffffffff",
    f"{PACKET} --ct-mark q": "--ct-mark: expected a number such as 1 or 0x1, got 'q'",
    f"{PACKET} --proto tpc": "--proto: 'tpc' is neither a number nor one of icmp, igmp, tcp, udp, gre, esp, ipv6-icmp, sctp, icmpv6",
    f"{PACKET} --proto 256": "--proto: 256 is not from 0 to 0xff",
    f"{PACKET} --proto icmpv6": "--proto: ipv6-icmp is for IPv6; use icmp",
    f"{PACKET} --state New": "--state: 'New' is not one of new, established, related, invalid, untracked (did you mean 'new'?)",
    f"{PACKET} --from ::1": "--from: ::1 is IPv6, and --to 192.0.2.1 is IPv4",
    f"{PACKET} --reply": "--reply: a new connection has no replies: add --state established",
    f"{PACKET} --frame": "--frame: an AF_PACKET socket sends on a device: name it with --dev",
    f"{PACKET} --forward eth0": "--forward: the packet has its source address already: give it with --from",
    f"{PACKET} --kernel --uid 0": "--uid: cannot be used with --kernel: the packet has no socket",
    f"{PACKET} --pid 0": "--pid: expected a whole number from 1 up, got 0",
    # verify and probe
    "verify": "name a policy, or with --live or --ruleset the uplinks and their mark: nftpolicy verify --live --uplink",
    "verify --uplink wan=eth0 --mark 1/1": "--uplink: names no state to verify; add --live, --snapshot FILE or --ruleset FILE",
    "verify --live --uplink wan": "--uplink: expected NAME=DEVICE such as wan=eth0, got 'wan'",
    "verify --live --uplink wan=a/b --mark 1": "--uplink: 'a/b' is not a valid device name; use up to 15 letters",
    "verify --live --uplink wan=lo --mark 1": "--uplink: packets to 'lo' never leave this machine: it cannot be an uplink",
    UPLINK: "--mark: missing; give one mark for all, or one for each in their order",
    f"{UPLINK} --mark x": '--mark: expected a mark such as "0x1/0x1", got \'x\'',
    f"{UPLINK} --mark 1 --mark 2": "--mark: 2 for 1 uplinks; give one mark for all, or one for each in their order",
    f"{UPLINK} --mark 1 --exempt dhcp": "--exempt: 'dhcp' is not an exemption; known are arp, dhcpv4, dhcpv4-unicast,",
    "verify --mark 1": "--mark: is for an uplink that no policy describes; name it with --uplink",
    f"verify {FILE} --live --ruleset x": "--live is this kernel: it excludes --ruleset, --rules and --routes",
    f"verify {FILE} --rules x": "--ruleset is missing, and only tables can drop: save them with 'nft -j list ruleset > FILE'",
    f"verify {FILE} --chain-device x": "--chain-device completes --ruleset, which is missing",
    "verify - --ruleset -": "standard input (-) can be only one of the files",
    "verify --json --script -": "--script -: standard output is taken by --json",
    "probe --uplink wan": "--uplink: expected NAME=DEVICE such as wan=eth0, got 'wan'",
    # the other commands
    "compile": "FILE: missing",
    f"compile {FILE} --to nf": "--to: 'nf' is not one of json, nft, ip4, ip6, summary, openwrt, openwisp (did you mean 'nft'?)",
    f"compile {FILE} --to": "--to: its value is missing",
    f"compile {FILE} --ports x": "--ports takes BRIDGE=PORT, got 'x'",
    f"netconfig {FILE}": "--for: missing; give one of networkd, networkmanager, ifupdown, dhclient, dhcpcd, netifd",
    f"netconfig {FILE} --for network": "--for: 'network' is not one of networkd, networkmanager, ifupdown, dhclient, dhcpcd, netifd (did",
    f"units {FILE} --unit q": "--unit takes SERVICE=UNIT, got 'q'",
    "install --unitdir rel": "--unitdir takes an absolute path, got 'rel'",
    "completion": "SHELL: missing; give one of bash, zsh, fish",
    "completion fsh": "SHELL: 'fsh' is not one of bash, zsh, fish (did you mean 'fish'?)",
    "import openwt": "there is no command 'openwt' (did you mean 'openwrt'?)",
    "import ./router": "there is no command './router'",
    "import openwrt": "DIR: missing",
    "import openwrt /dev/zero": "/dev/zero: not a directory; give a directory that has etc/config, or a copy of /etc/config",
    "rollback x": "N: expected a whole number, got 'x'",
    "run": "SERVICE: missing",
    "run --": "SERVICE: missing",
    "run x": "name the program to start: nftpolicy run SERVICE -- PROGRAM",
    "demo --rounds 0": "--rounds: expected a whole number from 1 to 50, got 0",
    "snapshot -x": "-x: no such option",
    **{f"{command} x": "more arguments than the command takes: 'x'" for command in ("recover", "confirm")},
    "history x": "there is no command 'x'",
    "history sho 1": "there is no command 'sho' (did you mean 'show'?)",
    "history show x": "NUMBER: expected a whole number, got 'x'",
}  # fmt: skip


@pytest.mark.parametrize("line", WRONG)
def test_wrong_option_is_one_clear_line(line):
    arguments = line.split(" ")
    status, output, errors = run_here(*arguments)
    assert (status, output) == (2, ""), errors
    assert errors.startswith(f"nftpolicy: {WRONG[line]}"), errors
    assert errors.count("\n") == 1 and "  " not in errors


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_option_names_the_help_of_the_command(command):
    assert run_here(command, "--nonsense-x") == (
        2, "", f"nftpolicy: --nonsense-x: no such option; type 'nftpolicy {command} -h'\n",
    )  # fmt: skip
