#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# nftpolicy: adds the sections of the policy to /etc/config/network and dhcp, before the network starts.

names() { uci -q show "$1" | sed -n "s/^$1\.\([A-Za-z0-9_]*\)=$2\$/\1/p"; }

# Delete the sections of an earlier policy.
for section in $(uci -q show network | sed -n 's/^network\.\(nftpolicy_[A-Za-z0-9_]*\)=.*/\1/p'); do
	uci -q delete "network.$section"
done

uci -q batch <<'UCI'
@BATCH@
UCI

# Put the routes of an interface into its uplink's table. Only the uplink's resolver uses its DNS servers.
attach() {
	uci -q batch <<-UCI
		set network.$1.ip4table=$2
		set network.$1.ip6table=$2
		set network.$1.peerdns=0
		set network.$1.sourcefilter=0
	UCI
	served=
	for section in $(uci -q show dhcp | sed -n "s/^dhcp\.\([^.]*\)\.interface='$1'\$/\1/p"); do
		served=1
		silence "$section"
	done
	if [ -z "$served" ]; then
		uci -q set "dhcp.nftpolicy_$1=dhcp"
		uci -q set "dhcp.nftpolicy_$1.interface=$1"
		silence "nftpolicy_$1"
	fi
}

# Disable DHCP server, router advertisements and relay on an uplink.
silence() {
	uci -q batch <<-UCI
		set dhcp.$1.ignore=1
		set dhcp.$1.ra=disabled
		set dhcp.$1.dhcpv6=disabled
		set dhcp.$1.ndp=disabled
	UCI
}

# Print the table of the uplink of a device.
table_of() {
	case $1 in
	@TABLES@
	esac
}

# Print the network device of an interface, as netifd names it. Gluon still writes `ifname` and `type bridge`. An alias
# refers to another interface; the second argument ends a circle of them.
device_of() {
	if [ "$(uci -q get "network.$1.type")" = bridge ]; then
		echo "br-$1"
		return
	fi
	device=$(uci -q get "network.$1.device") || device=$(uci -q get "network.$1.ifname") || device=
	device=${device%% *}
	case $device in
	@*) [ "$2" = 0 ] || device_of "${device#@}" $(($2 - 1)) ;;
	# The control device of a modem.
	/*) echo wwan0 ;;
	*) echo "$device" ;;
	esac
}

for interface in $(names network interface); do
	table=$(table_of "$(device_of "$interface" 4)")
	# PPP and similar protocols create their own device, named after the interface.
	[ -n "$table" ] || table=$(table_of "$(uci -q get "network.$interface.proto")-$interface")
	[ -z "$table" ] || attach "$interface" "$table"
done

# In an image with nftpolicy, sysupgrade must not put the old policy over that of the new image.
[ ! -e /rom/usr/sbin/nftpolicy ] || rm -f /lib/upgrade/keep.d/nftpolicy

uci -q commit network
uci -q commit dhcp
exit 0
