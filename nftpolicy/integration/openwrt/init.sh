#!/bin/sh /etc/rc.common
# SPDX-License-Identifier: BSD-2-Clause
# nftpolicy: loads the guard before firewall (19) and network (20) start. "stop" ends the watch and the
# resolvers; the rules, routes and guard in the kernel stay.

# shellcheck disable=SC2034 # rc.common reads these
START=18
USE_PROCD=1
PROG=/usr/sbin/nftpolicy
STATE=/var/run/nftpolicy
MARKS=/usr/lib/libpacketmark.so

start_service() {
	# netifd does so later; a route by lo needs it.
	ip link set lo up
	$PROG apply
	procd_open_instance watch
	procd_set_param command "$PROG" watch
	procd_set_param nice -10
	procd_set_param respawn 60 5 0
	procd_set_param stderr 1
	procd_close_instance
	# No pipe here: procd keeps the instance in variables of this shell.
	while read -r kind name mark uid port options; do
		[ "$kind" != resolver ] || resolver
	done </usr/share/nftpolicy/plan
}

# A separate dnsmasq, whose sockets libpacketmark marks. It uses only the servers of the uplink.
resolver() {
	user=$(sed -n "s/^\([^:]*\):[^:]*:$uid:.*/\1/p" /etc/passwd | head -n 1)
	if [ -z "$user" ] || [ ! -e "$MARKS" ]; then
		echo "nftpolicy: resolver $name not started: user $uid or $MARKS is missing" >&2
		return
	fi
	mkdir -p "$STATE"
	[ -e "$STATE/$name.servers" ] || : >"$STATE/$name.servers"
	# With ubus, dnsmasq keeps CAP_NET_RAW, which allows it to set marks (Linux 5.17).
	procd_open_instance "resolver-$name"
	procd_set_param command /usr/sbin/dnsmasq --keep-in-foreground --conf-file=/dev/null --no-hosts \
		--pid-file="$STATE/resolver-$name.pid" --user="$user" --port="$port" --bind-interfaces \
		--resolv-file="$STATE/$name.servers" --all-servers --dns-forward-max=1000 --cache-size=0 --proxy-dnssec --edns-packet-max=1232 \
		--enable-ubus="nftpolicy.$name"
	for option in $options; do procd_append_param command "$option"; done
	# In decimal: libpacketmark parses it by atoi(3).
	procd_set_param env LD_PRELOAD="$MARKS" LIBPACKETMARK_MARK="$mark"
	procd_set_param respawn 60 5 0
	procd_set_param stderr 1
	if [ -x /sbin/ujail ]; then
		procd_add_jail "nftpolicy-$name" ubus log
		procd_add_jail_mount "$MARKS" /etc/passwd /etc/group
		procd_add_jail_mount_rw "$STATE"
	fi
	procd_close_instance
}

reload_service() {
	$PROG reconcile
}

service_triggers() {
	procd_add_reload_trigger network firewall
	procd_add_raw_trigger "interface.*" 1000 "$PROG" reconcile
}
