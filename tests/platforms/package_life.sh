# The Debian package from its installation to its purge, in a network namespace; prints a line for each fact.
# "$1" is the directory with the package. The network of the namespace: eth0 and wlan0.
set -eu
policy=/usr/share/nftpolicy/rulesets/vpn-killswitch.toml

files() {
    find / -xdev -not -path '/opt/*' -not -path '/tmp/*' -not -path '/var/cache/*' -not -path '/var/log/*' | sort
}

# Run a command: fail unless its exit status is $2 and its output has $3.
fact() {
    name=$1 status=$2 wanted=$3
    shift 3
    code=0
    output=$("$@" 2>&1) || code=$?
    if [ "$code" = "$status" ] && echo "$output" | grep -q "$wanted"; then
        echo "fact: $name"
    else
        echo "FAILED: $name: exit status $code: $output"
        exit 1
    fi
}

routing() {
    for family in -4 -6; do
        ip -N "$family" rule
        ip -N "$family" route show table all
    done
}

rest() {
    nft list ruleset
    routing
    sysctl -a 2>/dev/null | grep '^net\.' | grep -v -e nf_conntrack_count -e stable_secret -e fastopen_key
}

{ apt-get -q update && apt-get -q -y install "$1"/nftpolicy_*.deb; } >/tmp/apt 2>&1 || {
    cat /tmp/apt
    exit 1
}
dpkg-query -W -f '${Package}\n' | sort >/tmp/packages
files | grep -v nftpolicy >/tmp/before
cat >/tmp/life.sh <<'LIFE'
ip link set lo up
for device in eth0 wlan0; do
    ip link add "$device" type veth peer name "far-$device"
    ip link set "$device" up
    ip link set "far-$device" up
done
ip addr add 192.0.2.10/24 dev eth0
sleep 3 # until the link-local addresses are valid
rest >/tmp/rest-before
routing >/tmp/routing-before
cd /
fact "the program starts" 0 ^nftpolicy nftpolicy --version
fact "check" 0 proved nftpolicy check "$policy"
fact "apply" 0 "applied in" nftpolicy apply "$policy"
fact "status" 0 "" nftpolicy status
fact "verify --live" 0 ^proved nftpolicy verify --live
fact "a second apply changes nothing" 0 "nothing to change" nftpolicy apply "$policy"
fact "release" 0 "uplinks are open" nftpolicy release
rest >/tmp/rest-after
fact "release leaves nothing" 0 "" diff /tmp/rest-before /tmp/rest-after
fact "apply again" 0 "applied in" nftpolicy apply "$policy"
fact "install" 0 "wrote /etc/systemd/system/nftpolicy-guard.service" nftpolicy install "$policy"
routing >/tmp/routing-applied
rest >/tmp/rest-applied
fact "removal says that the guard stays" 0 "the policy stays in force" apt-get -q -y remove nftpolicy
fact "the guard stays" 0 "table inet nftpolicy" nft list tables
fact "no unit stays" 1 "" grep -rl nftpolicy /etc/systemd/system
fact "purge opens the uplinks" 0 "no longer guards" dpkg --purge nftpolicy
nft list tables >/tmp/tables
fact "purge leaves no table" 1 "" grep . /tmp/tables
routing >/tmp/routing-after
fact "purge leaves no ip rule and no route" 0 "" diff /tmp/routing-before /tmp/routing-after
fact "a copied route was there before" 0 "dev eth0 table 51" cat /tmp/routing-applied
rest >/tmp/rest-purged
fact "purge leaves no sysctl" 0 "" diff /tmp/rest-before /tmp/rest-purged
fact "a sysctl was set before" 1 "fwmark_reflect = 1" diff /tmp/rest-before /tmp/rest-applied
LIFE
{
    sed -n '/^fact()/,/^}/p; /^routing()/,/^}/p; /^rest()/,/^}/p' "$0"
    echo "set -eu; policy=$policy"
    cat /tmp/life.sh
} >/tmp/all.sh
unshare --net sh /tmp/all.sh
files >/tmp/after
comm -13 /tmp/before /tmp/after >/tmp/left
fact "purge leaves no file" 1 "" grep . /tmp/left
