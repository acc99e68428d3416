"""Scenarios of firewalls, and of a routing daemon, on a router whose LAN goes by the tunnel."""

from . import tunnel
from .scenario import Check, Scenario
from .tunnel import fetch, in_tunnel

_LISTING = "Directory listing"
_SERVE = "systemd-run -q --unit=serve{0} python3 -m http.server {0}"
# Port 22 is answered by policy and firewall, port 8088 by the firewall alone.
_SERVERS = " && ".join(map(_SERVE.format, (22, 8088)))
_WORKS = (
    *in_tunnel(),
    *in_tunnel(lan=True),
    Check(fetch("192.168.50.2"), r"^seen 192\.168\.50\.1$"),
    Check(fetch("192.0.2.10:22"), _LISTING, internet=True),
    Check(fetch("192.0.2.10:8088"), _LISTING, internet=True, guarded=False),
    Check(fetch("192.0.2.10:8088"), tunnel.NO_ANSWER, internet=True, guarded=True),
)

FIREWALLD = Scenario(
    name="firewalld",
    packages=("firewalld", *tunnel.PACKAGES),
    policy=tunnel.POLICY,
    serve=tunnel.serve,
    files=tunnel.FILES,
    start=f"""systemctl start dbus && {_SERVERS} && {tunnel.START} &&
for pair in external:eth0 internal:eth1 trusted:wg0; do
    firewall-offline-cmd --zone=${{pair%:*}} --add-interface=${{pair#*:}}
done &&
firewall-offline-cmd --zone=external --add-port=8088/tcp && firewall-offline-cmd --zone=trusted --add-masquerade &&
firewall-offline-cmd --zone=trusted --add-rich-rule='rule family=ipv6 masquerade' &&
firewall-offline-cmd --new-policy=lan && firewall-offline-cmd --policy=lan --add-ingress-zone=internal &&
firewall-offline-cmd --policy=lan --add-egress-zone=trusted && firewall-offline-cmd --policy=lan --set-target=ACCEPT &&
systemctl start firewalld""",
    reload="firewall-cmd --reload && firewall-cmd --complete-reload",
    restart=f"{tunnel.CUT}; systemctl restart firewalld && {tunnel.START}",
    stop=f"{tunnel.CUT}; systemctl stop firewalld",
    works=(*_WORKS, Check("firewall-cmd --state", "^running")),
)
_NAT = r"*nat\n:POSTROUTING ACCEPT [0:0]\n-F POSTROUTING\n-A POSTROUTING -o wg0 -j MASQUERADE\nCOMMIT"
UFW = Scenario(
    name="ufw",
    packages=("ufw", "iptables", *tunnel.PACKAGES),
    policy=tunnel.POLICY,
    serve=tunnel.serve,
    files=tunnel.FILES,
    start=f"""{_SERVERS} && {tunnel.START} && sed -i '1i {_NAT}' /etc/ufw/before.rules /etc/ufw/before6.rules &&
ufw allow 22/tcp && ufw allow 8088/tcp && ufw route allow in on eth1 out on wg0 && ufw --force enable""",
    reload="ufw reload",
    restart=f"{tunnel.CUT}; ufw disable && ufw --force enable && {tunnel.START}",
    stop=f"{tunnel.CUT}; ufw disable",
    works=(*_WORKS, Check("ufw status", "^Status: active")),
    keeps={
        r"conf\.wg0\.accept_redirects": "`accept_redirects` of `wg0` may differ: ufw sets the values of devices that are new"
    },
)
FRR = Scenario(
    name="frr",
    packages=("frr", "frr-pythontools", *tunnel.PACKAGES),
    policy=tunnel.POLICY,
    serve=tunnel.serve,
    files={
        **tunnel.FILES,
        "etc/frr/frr.conf": "ip route 198.18.0.0/24 192.0.2.1\nip route 198.18.1.0/24 192.168.50.2\n",
    },
    prepare="chmod 644 etc/frr/frr.conf\n",
    start=f"{tunnel.START} && systemctl start frr",
    reload="systemctl reload frr",
    restart=f"{tunnel.CUT}; systemctl restart frr && {tunnel.START}",
    stop=f"{tunnel.CUT}; systemctl stop frr",
    works=(
        *in_tunnel(),
        Check("ip route show 198.18.1.0/24", r"via 192\.168\.50\.2 dev eth1"),
        Check("ip route show 198.18.0.0/24 table 51", r"via 192\.0\.2\.1 dev eth0", guarded=True),
        Check("ip route show 198.18.0.0/24", r"via 192\.0\.2\.1 dev eth0", guarded=False),
    ),
    keeps={r"^route 4 198\.18\.": "`198.18` routes may differ: zebra numbers its nexthops anew"},
    events={
        "routes-left": "zebra adds a route again when it is moved",
        "conflict": "as above, until the route is left",
    },
)
