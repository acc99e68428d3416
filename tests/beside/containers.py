"""Scenarios of programs that forward for containers and guests.

One network has the uplink alone ([forward]), the other the tunnel alone. Both containers send to the internet without a
pause; of the second, nothing may arrive by the uplink, whether the tunnel is there or not.
"""

from collections.abc import Mapping
from typing import Any

from . import tunnel
from .scenario import Check, Scenario
from .tunnel import by_uplink, fetch, in_tunnel

_POLICY = (
    tunnel.POLICY
    + """
[forward.up]
uplink = "wan"
from = ["{up}"]
source = ["10.89.1.0/24", "fd89:1::/64"]
masquerade = true
"""
)
_PUBLISH = """
[publish.up]
uplink = "wan"
port = "tcp/8080"
to = "br-up"

[publish.tunnelled]
uplink = "wan"
port = "tcp/8082"
to = "br-tun"
"""
_KEEPS = {
    r"\bveth": "`veth` devices may differ: a container has another one at each start",
    r"^route 6 fd89:": "`fd89:` routes may differ: a restart adds another route to each network",
}
_EVENTS = {"restored": "the policy's sysctl of a bridge that is new"}
_SENDS = {"container with the tunnel": 21_002}


def _works(up: str, tun: str) -> tuple[Check, ...]:
    """Return the checks of two networks; `up` and `tun` are the beginnings of commands inside."""
    return (*in_tunnel(), *in_tunnel(tun), *by_uplink(up))


_PUBLISHED = (
    Check(fetch("192.0.2.10:8080"), "^seen ", internet=True),
    Check(fetch("192.0.2.10:8082"), "^seen ", internet=True),
    Check(fetch("192.0.2.10:8081"), "^seen ", internet=True, guarded=False),
    Check(fetch("192.0.2.10:8081"), tunnel.NO_ANSWER, internet=True, guarded=True),
    Check(fetch("'[2001:db8:1::10]:8080'"), "^seen ", internet=True),
    Check(fetch("10.77.0.2:8080"), "^seen ", internet=True),
    Check(fetch("10.77.0.2:8081"), "^seen ", internet=True),
    Check(fetch("192.168.50.1:8081"), "^seen ", lan=True),
)
# The container sees the machine's programs and files.
_RUN = "-v /:/host:ro image /bin/busybox chroot /host env PYTHONPATH=/opt/share python3 -m tests.beside.container"
_IMAGE = "mkdir -p /tmp/image/bin /tmp/image/host && cp /bin/busybox /tmp/image/bin && tar -C /tmp/image -c . |"
_TMPFS = "mkdir -p {0} && mount -t tmpfs tmpfs {0}"


# conmon of podman stays in the control group of the command that starts it, for whose end the runner would wait.
_FORKING = "systemd-run -q -p Type=forking"


def _start(program: str, network: str, ports: str, name: str, port: int) -> str:
    run = f"{program} run -d --restart always --name {name} --network {network} {ports} {_RUN} {port}"
    return f"{_FORKING if program == 'podman' else ''} {run} >/dev/null"


def _containers(program: str) -> str:
    """Return the commands that start both containers."""
    image = f"{_IMAGE} {program} import - image >/dev/null"
    up = _start(program, "up", "-p 8080:80", "up", 21_001)
    return f"{image} && {up} && {_start(program, 'tun', '-p 8081:80 -p 8082:80', 'tun', 21_002)}"


def _scenario(program: str, packages: tuple[str, ...], files: Mapping[str, str], before: str, **more: Any) -> Scenario:
    inside = f"{program} exec {{}} /bin/busybox chroot /host"
    return Scenario(
        name=program,
        packages=(*packages, *tunnel.PACKAGES, "busybox-static", "iptables"),
        policy=_POLICY.format(up="br-up") + _PUBLISH,
        serve=tunnel.serve,
        files={**tunnel.FILES, **files},
        start=f"{before} && {tunnel.START} && {_containers(program)}",
        stop=f"{tunnel.CUT}; {program} stop -t 0 up tun",
        works=(*_works(inside.format("up"), inside.format("tun")), *_PUBLISHED),
        containers=_SENDS,
        keeps=_KEEPS,
        events=_EVENTS,
        **more,
    )


DOCKER = _scenario(
    "docker",
    ("docker.io",),
    {
        "etc/docker/daemon.json": '{"ip6tables": true, "experimental": true, "live-restore": true,'
        ' "storage-driver": "vfs", "exec-opts": ["native.cgroupdriver=cgroupfs"]}'
    },
    " && ".join(
        (
            _TMPFS.format("/var/lib/docker"),
            "systemctl start docker",
            *(
                f"docker network create --ipv6 --subnet 10.89.{number}.0/24 --subnet fd89:{number}::/64"
                f" -o com.docker.network.bridge.name=br-{name} {name}"
                for number, name in enumerate(("up", "tun"), 1)
            ),
        )
    ),
    reload="systemctl reload docker",
    restart=f"{tunnel.CUT}; systemctl restart docker && sleep 1 && {tunnel.START}",
)
_NETWORK = """podman network create --disable-dns --ipv6 --subnet 10.89.{number}.0/24 --subnet fd89:{number}::/64 {name} &&
sed -i 's/"podman[0-9]*"/"br-{name}"/' /etc/containers/networks/{name}.json"""
PODMAN = _scenario(
    "podman",
    ("podman", "netavark", "runc", "conmon"),
    {
        "etc/containers/storage.conf": '[storage]\ndriver="vfs"\nrunroot="/run/containers/storage"\n'
        'graphroot="/var/lib/containers/storage"\n',
        "etc/containers/containers.conf": '[network]\nnetwork_backend="netavark"\n[engine]\nruntime="runc"\n'
        'cgroup_manager="cgroupfs"\nevents_logger="file"\n[containers]\nlog_driver="k8s-file"\npids_limit=0\n',
        "etc/containers/policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}',
    },
    " && ".join(
        (
            _TMPFS.format("/var/lib/containers"),
            *(_NETWORK.format(number=number, name=name) for number, name in enumerate(("up", "tun"), 1)),
        )
    ),
    reload="podman network reload -a",
    restart=f"{tunnel.CUT}; {_FORKING} podman restart -t 0 -a && {tunnel.START}",
)


def _guest(number: int, name: str) -> str:
    """Return the commands that plug a network namespace into a network of libvirt, as a guest."""
    run = f"ip netns exec {name}"
    return f"""ip netns add {name} && ip link add vnet{number} type veth peer name eth0 netns {name} &&
ip link set vnet{number} master virbr{number} up && {run} ip link set lo up && {run} ip link set eth0 up &&
{run} ip addr add 10.89.{number}.2/24 dev eth0 && {run} ip addr add fd89:{number}::2/64 dev eth0 nodad &&
{run} ip route add default via 10.89.{number}.1 && {run} ip -6 route add default via fd89:{number}::1 &&
systemd-run -q --unit=guest{number} -p NetworkNamespacePath=/run/netns/{name} -E PYTHONPATH=/opt/share \\
    python3 -m tests.beside.container {21_000 + number}"""


_LIBVIRT_NETWORK = """<network><name>{name}</name><forward mode="nat"><nat ipv6="yes"/></forward>
<bridge name="virbr{number}"/>
<ip address="10.89.{number}.1" netmask="255.255.255.0"><dhcp><range start="10.89.{number}.10" end="10.89.{number}.99"/></dhcp></ip>
<ip family="ipv6" address="fd89:{number}::1" prefix="64"/></network>"""
_GUESTS = {1: "up", 2: "tun"}
LIBVIRT = Scenario(
    name="libvirt",
    packages=("libvirt-daemon-system", "libvirt-clients", "libvirt-daemon-driver-qemu", "iptables", "busybox-static")
    + tunnel.PACKAGES,
    policy=_POLICY.format(up="virbr1"),
    serve=tunnel.serve,
    files={
        **tunnel.FILES,
        **{f"opt/{name}.xml": _LIBVIRT_NETWORK.format(name=name, number=number) for number, name in _GUESTS.items()},
    },
    start=" && ".join(
        (
            f"systemctl start dbus virtlogd.socket libvirtd && {tunnel.START}",
            *(f"virsh net-define /opt/{name}.xml && virsh net-start {name}" for name in _GUESTS.values()),
            *(_guest(number, name) for number, name in _GUESTS.items()),
        )
    ),
    reload="systemctl reload libvirtd",
    restart=f"{tunnel.CUT}; systemctl restart libvirtd && virsh net-list && sleep 2 && {tunnel.START}",
    stop=f"{tunnel.CUT}; systemctl stop libvirtd",
    works=(
        *_works("ip netns exec up", "ip netns exec tun"),
        Check("ip netns exec tun busybox udhcpc -i eth0 -n -q -t 4 -s /bin/true", r"lease of 10\.89\.2\."),
    ),
    containers=_SENDS,
    events=_EVENTS,
)
