#!/bin/sh /etc/rc.common
# SPDX-License-Identifier: BSD-2-Clause
# nftpolicy: apply the policy after network (20), then run the watch and the uplinks' resolvers.
# "stop" ends these daemons; the kernel's state stays, and only "nftpolicy release" removes it.

# shellcheck disable=SC2034 # rc.common reads these
START=@START@
USE_PROCD=1
EXTRA_COMMANDS="reconcile"
EXTRA_HELP="	reconcile	Apply the policy if parts of it are missing and it was not released"
PROG=@PROGRAM@
POLICY=@POLICY@

apply() {
	"$PROG" apply --wait 30 "$POLICY" || return
	# The boot guard of the next start belongs to the same policy.
	"$PROG" guard --no-load "$POLICY" || :
}

# If the policy is refused, the guard stays in force, and the watch tries again.
start_service() {
	apply
	applied=$?
	instances
}

# Return the status of "start".
service_started() {
	return "$applied"
}

# If the policy is refused, the policy in force stays, and the daemons keep running.
reload_service() {
	apply && rc_procd instances
}

instances() {
	instance watch watch "$POLICY"
	procd_set_param nice -10
	procd_close_instance
	for uplink in $("$PROG" resolver --list "$POLICY"); do
		instance "resolver-$uplink" resolver --uplink "$uplink" "$POLICY"
		# Restarted when the policy changes; the watch reads a new policy without a restart.
		procd_set_param file "$POLICY"
		procd_close_instance
	done
}

# Arguments: name, arguments of nftpolicy. Restarted without limit.
instance() {
	procd_open_instance "$1"
	shift
	procd_set_param command "$PROG" "$@"
	procd_set_param respawn 60 5 0
	procd_set_param stdout 1
	procd_set_param stderr 1
}

reconcile() {
	"$PROG" status >/dev/null 2>&1
	[ "$?" != 1 ] || apply
}

service_triggers() {
	procd_add_raw_trigger "interface.*" 1000 /etc/init.d/nftpolicy reconcile
	for config in network firewall; do
		procd_add_config_trigger config.change "$config" /etc/init.d/nftpolicy reconcile
	done
}
