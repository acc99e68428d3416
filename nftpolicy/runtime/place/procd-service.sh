#!/bin/sh /etc/rc.common
# SPDX-License-Identifier: BSD-2-Clause
# nftpolicy: the policy, after network (20); then its watch, and the resolvers of its uplinks. "stop" ends these, and
# what is in the kernel stays there: only "nftpolicy release" takes it away.

# shellcheck disable=SC2034 # rc.common reads these
START=@START@
USE_PROCD=1
EXTRA_COMMANDS="heal"
EXTRA_HELP="	heal	Apply the policy if something of it is missing and it was not released"
PROG=@PROGRAM@
POLICY=@POLICY@

apply() {
	"$PROG" apply --wait 30 "$POLICY" || return
	# The guard of the next start is this policy's too.
	"$PROG" guard --no-load "$POLICY" || :
}

# Where the policy is refused, the guard stands, and the watch tries again.
start_service() {
	apply
	applied=$?
	instances
}

# The status of "start".
service_started() {
	return "$applied"
}

# Where the policy is refused, what is there stays, and what runs goes on.
reload_service() {
	apply && rc_procd instances
}

instances() {
	instance watch watch "$POLICY"
	procd_close_instance
	for uplink in $("$PROG" resolver --list "$POLICY"); do
		instance "resolver-$uplink" resolver --uplink "$uplink" "$POLICY"
		# Started anew when the policy is another one; the watch takes that over by itself.
		procd_set_param file "$POLICY"
		procd_close_instance
	done
}

# Arguments: name, words for the program. It never gives up.
instance() {
	procd_open_instance "$1"
	shift
	procd_set_param command "$PROG" "$@"
	procd_set_param respawn 60 5 0
	procd_set_param stdout 1
	procd_set_param stderr 1
}

heal() {
	"$PROG" status >/dev/null 2>&1
	[ "$?" != 1 ] || apply
}

service_triggers() {
	procd_add_raw_trigger "interface.*" 1000 /etc/init.d/nftpolicy heal
	for config in network firewall; do
		procd_add_config_trigger config.change "$config" /etc/init.d/nftpolicy heal
	done
}
