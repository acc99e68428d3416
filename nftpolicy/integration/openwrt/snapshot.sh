#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# Writes all that a proof of nftpolicy reads of this kernel into one text file, on a machine without Python:
#
#     sh snapshot.sh [FILE]      FILE or -: standard output
#     nftpolicy verify --snapshot FILE POLICY      on any machine, without root
#
# Needs root, nft, and the ip of iproute2 with JSON (OpenWrt: ip-full). What cannot be read is in the file by name. Lines of
# the file begin with a space; "@ NAME" begins a part, "? NAME REASON" is a part that cannot be read.
# Exit status: 0 the file is written, 1 it is not, 2 usage error, 4 a program or a privilege is missing.
set -u
export LC_ALL=C

GLOBAL='net/ipv4/fwmark_reflect net/ipv6/fwmark_reflect net/ipv4/tcp_fwmark_accept net/ipv4/ip_forward
	net/bridge/bridge-nf-call-iptables net/bridge/bridge-nf-call-ip6tables
	net/ipv4/conf/all/mc_forwarding net/ipv6/conf/all/mc_forwarding'
OF_IPV4='rp_filter forwarding accept_local src_valid_mark route_localnet bc_forwarding'
OF_IPV6='forwarding force_forwarding disable_ipv6'
TRIES=5

fail() {
	echo "snapshot: $2" >&2
	exit "$1"
}

# Print a part with the lines of standard input.
part() {
	echo "@ $1"
	sed 's/^/ /'
}

missing() { echo "? $1 $2"; }

# Print the output of a program as a part.
output_of() {
	name=$1
	shift
	if lines=$("$@" 2>&1); then
		printf '%s\n' "$lines" | part "$name"
	else
		missing "$name" "$* failed: $(printf '%s' "$lines" | head -n 1)"
	fi
}

byte_order() {
	case $(dd if=/proc/self/exe bs=1 skip=5 count=1 2>/dev/null) in # EI_DATA of the ELF header
	"$(printf '\001')") echo little ;;
	"$(printf '\002')") echo big ;;
	*) echo unknown ;;
	esac
}

egress_hook() {
	nft -c 'add table netdev nftpolicy-probe
		add chain netdev nftpolicy-probe probe { type filter hook egress device "lo" priority 0; }' >/dev/null 2>&1 &&
		echo yes || echo no
}

# The kernel gives a sysctl to the first read only: not to `read`, which reads single bytes.
sysctls() (
	cd /proc/sys || exit
	# shellcheck disable=SC2086  # a list of paths
	set -- $GLOBAL
	for path in net/ipv4/conf/*; do
		for key in $OF_IPV4; do
			set -- "$@" "$path/$key"
		done
	done
	for path in net/ipv6/conf/*; do
		for key in $OF_IPV6; do
			set -- "$@" "$path/$key"
		done
	done
	grep -sH '' "$@" | sed 's/:/ /'
)

legacy_tables() {
	for file in ip_tables_names ip6_tables_names arp_tables_names; do
		[ -e "/proc/net/$file" ] || continue
		while read -r table; do
			echo "$file $table"
		done <"/proc/net/$file"
	done
}

# Print the qdiscs, and the filters of those that may have some.
traffic_control() {
	qdiscs=$(tc qdisc show) || return
	printf '%s\n' "$qdiscs" | while read -r word kind handle dev device rest; do
		echo "$word $kind $handle $dev $device $rest"
		case $kind/$handle in
		noqueue/* | noop/* | mq/* | pfifo_fast/* | pfifo/* | bfifo/*) ;;
		clsact/* | ingress/*)
			filters "$device" ingress
			filters "$device" egress
			;;
		*/0:) filters "$device" ;;
		*) filters "$device" parent "$handle" ;;
		esac
	done
}

filters() { tc filter show dev "$@" 2>&1 | sed -n "/./s/^/filter $1 /p"; }

flows() { grep -o ' mark=[0-9]*' /proc/net/nf_conntrack | sort | uniq -c | sed 's/^ *//;s/ *mark=/ /'; }

snapshot() {
	echo "nftpolicy router snapshot 1"
	part host <<-HOST
		kernel $(uname -r)
		time $(date -u +%Y-%m-%dT%H:%M:%SZ)
		byte-order $(byte_order)
		nft $(nft --version)
		ip $(ip -V)
		egress $(egress_hook)
	HOST
	output_of nft nft --debug=netlink -y -a list ruleset
	output_of addresses ip -j -N -d address show
	for family in 4 6; do
		[ "$family" = 4 ] || [ -d /proc/sys/net/ipv6 ] || continue
		output_of "rules-$family" ip -j -N -d "-$family" rule show
		output_of "routes-$family" ip -j -N "-$family" route show table all
	done
	sysctls | part sysctls
	legacy_tables | part legacy-tables
	if [ -r /proc/modules ]; then
		sed -n 's/^\(ebtable[a-z_]*\) .*/\1/p' /proc/modules | part bridge-tables
	else
		missing bridge-tables "/proc/modules cannot be read"
	fi
	if [ -r /proc/net/protocols ]; then
		grep '^XDP ' /proc/net/protocols | part xdp-sockets
	else
		missing xdp-sockets "/proc/net/protocols cannot be read"
	fi
	if [ -r /proc/sys/net/mpls/platform_labels ]; then
		part mpls </proc/sys/net/mpls/platform_labels
	fi
	output_of xfrm ip xfrm state
	if command -v tc >/dev/null; then
		output_of tc traffic_control
	else
		missing tc "tc is not installed"
	fi
	if [ -r /proc/net/nf_conntrack ]; then
		flows | part flows
	else
		missing flows "/proc/net/nf_conntrack cannot be read"
	fi
	echo "@ end"
}

# Print what tells one ruleset from another: no counters, and no elements, which packets may add.
ruleset() { nft -t -s -a list ruleset; }

case $# in
0) file=- ;;
1) file=$1 ;;
*) fail 2 "usage: snapshot.sh [FILE]" ;;
esac
case $file in
-) ;;
-*) fail 2 "usage: snapshot.sh [FILE]" ;;
esac
for program in nft ip; do
	command -v "$program" >/dev/null || fail 4 "$program is not installed"
done
before=$(ruleset 2>&1) || fail 4 "nft cannot list the ruleset: $(printf '%s' "$before" | head -n 1)"
case $(ip -j link show lo 2>/dev/null) in
\[*) ;;
*) fail 4 "ip has no JSON: install ip-full" ;;
esac
tries=0
while text=$(snapshot) && after=$(ruleset) && [ "$before" != "$after" ]; do
	tries=$((tries + 1))
	[ "$tries" -lt "$TRIES" ] || fail 1 "the ruleset changed during each of $TRIES reads"
	before=$after
done
case $text in
*"
@ end") ;;
*) fail 1 "the state cannot be read" ;;
esac
if [ "$file" = - ]; then
	printf '%s\n' "$text"
	exit
fi
umask 077
# In a directory of all users it may be a link of another user.
if [ -h "$file" ] || { [ -e "$file" ] && [ ! -f "$file" ]; }; then fail 1 "$file is not a regular file"; fi
trap 'rm -f "$file"; exit 1' HUP INT TERM
rm -f "$file"
set -C # the file must not exist
{ printf '%s\n' "$text" >"$file"; } 2>/dev/null || fail 1 "$file cannot be written"
