"""Table of the programs that run beside nftpolicy.

To add one: append a Scenario (scenario.py has its fields) to SCENARIOS. Name the Debian packages; write the files that
its user would write; give the commands that start, reload, restart and stop it, and the policy; in `works`, list the
commands that show that it does its job, and how their output begins. "curl http://web.example/" prints "seen ADDRESS":
by which way it went. Nothing of a package starts by itself, so `start` starts all that the scenario needs.

The machine (machine.py): eth0 is the uplink, 192.0.2.10 and 2001:db8:1::10, unless `static` is False; eth1 is the LAN,
192.168.50.1, with the host 192.168.50.2 behind it; forwarding is on. The outside (outside.py): DHCP, RA and DNS from
192.0.2.1, web.example, and vpn.example for servers that `serve` starts. 851 is the group "service".

    script/beside --only NAME        runs it, and prints what is wrong below each row
"""

from .containers import DOCKER, LIBVIRT, PODMAN
from .firewalls import FIREWALLD, FRR, UFW
from .network_managers import DHCPCD, IFUPDOWN, NETWORK_MANAGER, NETWORKD
from .scenario import Scenario
from .vpn import OPENVPN, WG_QUICK

SCENARIOS: tuple[Scenario, ...] = (WG_QUICK, OPENVPN, NETWORK_MANAGER, NETWORKD, DHCPCD, IFUPDOWN)
SCENARIOS += (DOCKER, PODMAN, LIBVIRT, FIREWALLD, UFW, FRR)
