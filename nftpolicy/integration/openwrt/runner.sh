#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# nftpolicy on a router: applies the policy in /usr/share/nftpolicy and keeps the kernel in that state.
# Exit status: 0 the policy is in force, 1 it is not, 2 usage error, 4 a program or file is missing.
set -uf
# A reader of the pipe of "watch" would take its events.
umask 077

ROOT=${NFTPOLICY_ROOT:-}
STATE=${NFTPOLICY_STATE:-/var/run/nftpolicy}
SHARE=$ROOT/usr/share/nftpolicy
PLAN=$SHARE/plan
# fw4 loads this file with its own tables in one transaction. While it must not, the file is at $INACTIVE.
INCLUDE=$ROOT/usr/share/nftables.d/ruleset-post/nftpolicy.nft
INACTIVE=$SHARE/guard.nft
OURS="proto @PROTOCOL@"
NL='
'

log() { echo "nftpolicy: $*" >&2; }

fail() {
	log "$2"
	exit "$1"
}

# Succeed if a line is among lines.
contains() {
	case "$NL$1$NL" in *"$NL$2$NL"*) return 0 ;; esac
	return 1
}

ip_families() {
	echo 4
	[ ! -d /proc/sys/net/ipv6 ] || echo 6
}

# --- ip rules and routes ---------------------------------------------------------------------

kernel_rules() { ip -N "-$1" rule show | sed 's/ \[detached\]//;s/:[[:space:]]*/: /;s/[[:space:]]*$//'; }

# Routes of nftpolicy only, without the flags that the kernel adds.
kernel_routes() {
	ip -N "-$1" route show table all proto @PROTOCOL@ 2>/dev/null |
		sed 's/ linkdown//;s/ dead//;s/ pref medium//;s/ error -*[0-9]*//;s/^7 /unreachable /;s/[[:space:]]*$//'
}

# Print the rules and routes to add (+) and delete (-) in a family, one per line. Rules that netifd added satisfy
# the plan, too: they have no protocol. Only rules and routes of nftpolicy are deleted.
route_changes() {
	rules=$(kernel_rules "$1")
	routes=$(kernel_routes "$1")
	present=
	ours=
	while read -r line; do
		present="$present$NL${line%% proto [0-9]*}"
		case $line in *" $OURS") ours="$ours${ours:+$NL}${line% "$OURS"}" ;; esac
	done <<-RULES
		$rules
	RULES
	planned=
	while read -r kind line; do
		case $kind in
		"rule$1") contains "$present" "$line" || echo "+rule $line" ;;
		"route$1") contains "$routes" "$line" || echo "+route $line" ;;
		*) continue ;;
		esac
		planned="$planned$NL$kind $line"
	done <"$PLAN"
	while read -r line; do
		[ -z "$line" ] || contains "$planned" "rule$1 $line" || echo "-rule $line"
	done <<-OURS
		$ours
	OURS
	while read -r line; do
		[ -z "$line" ] || contains "$planned" "route$1 $line" || echo "-route $line"
	done <<-ROUTES
		$routes
	ROUTES
}

# Convert lines of `route_changes` to commands of `ip -batch`. `ip -N` prints unreachable as 7, and ipproto 17 as
# ipproto ipproto-17, which ip does not read.
ip_commands() {
	while read -r kind line; do
		case $line in
		*" ipproto ipproto-"*) line="${line%%ipproto-*}${line#*ipproto-}" ;;
		esac
		case $line in
		*" lookup "*) ;;
		[0-9]*" 7") line="${line% 7} unreachable" ;;
		esac
		case $kind in
		[+]rule) echo "rule add priority ${line%%: *} ${line#*: } $OURS" ;;
		-rule) echo "rule del priority ${line%%: *} ${line#*: } $OURS" ;;
		[+]route) echo "route replace $line $OURS" ;;
		-route) echo "route del $line $OURS" ;;
		esac
	done
}

# Apply the changes of the given kinds. Routes are added before the rules that use them, and deleted after them.
# Arguments: family, lines of `route_changes`, kinds in order.
apply_changes() {
	family=$1
	lines=$2
	shift 2
	for which; do
		todo=$(echo "$lines" | while read -r kind line; do [ "$kind" != "$which" ] || echo "$kind $line"; done | ip_commands)
		[ -z "$todo" ] || echo "$todo" | ip -force "-$family" -batch - 2>/dev/null
	done
}

# --- sysctls -----------------------------------------------------------------------------------

# Print path and target value of each sysctl that exists and has another value.
changed_sysctls() {
	set --
	targets=
	while read -r kind path value; do
		if [ "$kind" != sysctl ] || [ ! -e "/proc/sys/$path" ]; then continue; fi
		set -- "$@" "/proc/sys/$path"
		targets="$targets${targets:+$NL}$path $value"
	done <"$PLAN"
	[ "$#" != 0 ] || return
	# One cat for all: ash reads single bytes, and procfs returns only the first byte of a value that way.
	values=$(cat "$@")
	while read -r path value <&5 && read -r current <&6; do
		[ "$current" = "$value" ] || echo "$path $value"
	done 5<<-TARGETS 6<<-VALUES
		$targets
	TARGETS
		$values
	VALUES
}

# Save the values from before the policy once, for release.
write_sysctls() {
	changed_sysctls | while read -r path value; do
		grep -qs "^$path " "$STATE/sysctls" || echo "$path $(cat "/proc/sys/$path")" >>"$STATE/sysctls" || break
		echo "$value" >"/proc/sys/$path"
	done
	used=$(while read -r kind path _; do [ "$kind" != sysctl ] || echo "$path"; done <"$PLAN")
	restore_sysctls "$used"
}

# Restore the saved values, except of the sysctls in $1.
restore_sysctls() {
	[ -s "$STATE/sysctls" ] || return 0
	remaining=$(while read -r path value; do
		if contains "$1" "$path"; then
			echo "$path $value"
		elif [ -e "/proc/sys/$path" ]; then
			echo "$value" >"/proc/sys/$path"
		fi
	done <"$STATE/sysctls")
	if [ -z "$remaining" ]; then
		rm -f "$STATE/sysctls"
	elif [ "$remaining" != "$(cat "$STATE/sysctls")" ]; then
		echo "$remaining" >"$STATE/sysctls.new" && mv "$STATE/sysctls.new" "$STATE/sysctls"
	fi
}

# --- the guard ---------------------------------------------------------------------------------

guard_text() { cat "$INCLUDE" 2>/dev/null || cat "$INACTIVE" 2>/dev/null; }

device_exists() { ip link show dev "$1" >/dev/null 2>&1; }

bridge_ports() { ip -o link show master "$1" 2>/dev/null | sed 's/^[0-9]*: \([^:]*\): .*/\1/;s/@.*//'; }

# Print the egress base chain of a device. "@" is not valid in an nft name, and "/" not in a device name.
egress_chain() {
	case $1 in
	*[!A-Za-z0-9_.@-]*) log "device $1 is not valid in a ruleset, so it has no link guard" ;;
	*) printf '\tchain device-%s {\n\t\ttype filter hook egress device "%s" %s\n\t}\n' "$(echo "$1" | sed 's|@|/40|g')" "$1" "$2" ;;
	esac
}

# Print the table of the link layer with a chain for each device, and for each port of a bridge.
# "present": only for existing devices, since kernels before about Linux 6.18 accept no others.
link_text() {
	cat "$SHARE/link.nft" || return
	echo "table netdev @TABLE@ {"
	while read -r kind device body; do
		case $kind in
		own) if [ "$1" = all ] || device_exists "$device"; then egress_chain "$device" "$body"; fi ;;
		port) for port in $(bridge_ports "$device"); do egress_chain "$port" "$body"; done ;;
		esac
	done <"$PLAN"
	echo "}"
}

accepts() { echo "$1" | nft -c -f - 2>/dev/null; }

# Print the link layer table that this kernel accepts, nothing without egress hook. An accepted text is cached.
accepted_link_text() {
	[ -e "$SHARE/link.nft" ] || return 0
	for which in all present; do
		text=$(link_text "$which")
		if [ "$text" = "$(cat "$STATE/link.taken" 2>/dev/null)" ] || accepts "$text"; then
			cache link.taken "$text" || rm -f "$STATE/link.taken"
			echo "$text"
			return 0
		fi
	done
	return 0
}

# Packets add the elements of the sets *.peers4 and the like, so these are left out.
list_table() {
	nft -s list table "$1" "$2" 2>/dev/null | sed -e 1d -e '/^$/d' -e '/^	flags dormant$/d' \
		-e '/^	set [^ ]*\.\(peers\|asked\|askers\|not-local\)[46] {$/,/^	}$/{/elements = {.*}$/d;/elements = {/,/}$/d;}'
}

# Print the expected listing of a table: load it as a dormant table with another name, and list that.
# So the comparison does not depend on how this nft formats a listing. Arguments: family, text.
expected_listing() {
	key=$(echo "$2" | md5sum)
	if [ "$key" = "$(cat "$STATE/$1.key" 2>/dev/null)" ]; then
		cat "$STATE/$1.wanted"
		return
	fi
	{
		echo "add table $1 @TABLE@-wanted"
		echo "delete table $1 @TABLE@-wanted"
		echo "$2" | sed -n "s/^table $1 @TABLE@ {\$/table $1 @TABLE@-wanted { flags dormant/;/^table .*-wanted/,\$p"
	} | nft -f - 2>/dev/null || return
	listing=$(list_table "$1" "@TABLE@-wanted")
	nft delete table "$1" "@TABLE@-wanted" 2>/dev/null
	echo "$listing"
	cache "$1.wanted" "$listing" && cache "$1.key" "$key"
}

# Save a value for the next run. Failure is harmless: the filesystem may be full.
cache() { echo "$2" 2>/dev/null >"$STATE/$1" && [ "$2" = "$(cat "$STATE/$1")" ]; }

# Succeed if the kernel's table equals the text. Arguments: family, text.
is_loaded() {
	if [ -z "$2" ]; then
		! nft list table "$1" @TABLE@ >/dev/null 2>&1
		return
	fi
	expected=$(expected_listing "$1" "$2")
	[ -n "$expected" ] && [ "$expected" = "$(list_table "$1" @TABLE@)" ]
}

# Succeed if a guard of nftpolicy, of any policy, is at the postrouting hook.
guard_in_place() {
	case "$(nft list chain inet @TABLE@ guard 2>/dev/null)" in
	*"hook postrouting "*"policy drop;"*) return 0 ;;
	esac
	return 1
}

# Load the guard in one transaction, or the block if the kernel rejects the guard.
load_guard() {
	guard=$(guard_text)
	link=$(accepted_link_text)
	if guard_in_place; then
		is_loaded inet "$guard" || set -- inet
		is_loaded netdev "$link" || set -- "$@" netdev
	else
		set -- inet
	fi
	case "$*" in
	'') return 0 ;;
	netdev) text=${link:-delete table netdev @TABLE@} ;;
	*) text="$guard$NL$link" ;;
	esac
	if ! echo "$text" | nft -f - 2>/dev/null; then
		# To be checked again.
		rm -f "$STATE/link.taken"
		case "$*" in *inet*) echo "$guard" | nft -f - 2>/dev/null || block "the kernel rejected the guard" ;; esac
	fi
}

# --- the flush filter: no flush of nft removes it ------------------------------------------------

# Print device, preference and program of each filter of tc. 71 and 72 pass packets, 73 drops those without the mark.
# Not of the devices of SQM, whose qdisc for packets that arrive has the place of clsact.
flush_filters() {
	shaped=$(uci -q show sqm 2>/dev/null)
	while read -r kind where pref program devices; do
		[ "$kind" = flush ] || continue
		for device in $devices; do
			case $shaped in *"interface='$device'"*) continue ;; esac
			[ "$where" = port ] || echo "$device $pref $program"
			[ "$where" = own ] || for port in $(bridge_ports "$device"); do echo "$port $pref $program"; done
		done
	done <"$PLAN"
}

load_filters() {
	command -v tc >/dev/null || return 0
	filters=$(flush_filters)
	delete_filters "$filters"
	echo "$filters" | while read -r device pref program; do
		set --
		[ "$pref" != 73 ] || set -- da
		tc qdisc add dev "$device" clsact
		tc filter replace dev "$device" egress pref "$pref" handle 1 bpf "$@" bytecode "$(echo "$program" | sed '@EXPANSION@;s/_/ /g')"
	done 2>/dev/null
	cache flush "$(echo "$filters" | sed 's/ .*//' | sort -u)"
}

# Delete the filters of devices that are not in the given lines, and a clsact without other filters.
delete_filters() {
	[ ! -e "$STATE/flush" ] || while read -r device; do
		case "$NL$1" in *"$NL$device "*) continue ;; esac
		for pref in 73 72 71; do tc filter del dev "$device" egress pref "$pref"; done
		[ -n "$(tc filter show dev "$device" egress && tc filter show dev "$device" ingress)" ] ||
			tc qdisc del dev "$device" clsact
	done <"$STATE/flush" 2>/dev/null
}

# Print the devices that a flush of nft leaves open until the guard is back.
unfiltered_devices() {
	while read -r kind device _; do
		case $kind in
		own) ! device_exists "$device" || echo "$device" ;;
		port) bridge_ports "$device" ;;
		esac
	done <"$PLAN" | while read -r device; do
		tc filter show dev "$device" egress pref 73 2>/dev/null | grep -q bpf || echo "$device"
	done
}

# Drop all packets to the uplinks. A file that the kernel rejects must not make fw4 fail as a whole.
block() {
	[ ! -e "$INCLUDE" ] || mv "$INCLUDE" "$INACTIVE"
	nft -f "$SHARE/block.nft" || fail 1 "$1, and the block, too: THE UPLINKS ARE NOT GUARDED"
	fail 1 "$1: all packets to the uplinks are dropped (see: nft -c -f $INACTIVE)"
}

# --- state of the device -----------------------------------------------------------------------

# Print the differences from the policy, one per line.
differences() {
	is_loaded inet "$(guard_text)" || echo "guard: differs from the policy"
	is_loaded netdev "$(accepted_link_text)" || echo "link guard: differs from the policy"
	for family in $(ip_families); do
		route_changes "$family" | while read -r kind line; do
			case $kind in
			[+]rule) echo "ip rules, IPv$family: missing: $line" ;;
			-rule) echo "ip rules, IPv$family: obsolete: $line" ;;
			[+]route) echo "routes, IPv$family: missing: $line" ;;
			-route) echo "routes, IPv$family: obsolete: $line" ;;
			esac
		done
	done
	changed_sysctls | while read -r line; do echo "sysctl, expected: $line"; done
}

uncovered_sockets() {
	if [ ! -e "$SHARE/link.nft" ]; then
		echo "not compiled"
	elif [ -z "$(accepted_link_text)" ]; then
		echo "this kernel has no netdev egress hook (kmod-nft-netdev, Linux 5.16)"
	else
		while read -r kind device _; do
			[ "$kind" = own ] || continue
			nft list chain netdev @TABLE@ "device-$(echo "$device" | tr @ /)" >/dev/null 2>&1 ||
				echo "no egress chain on $device"
		done <"$PLAN"
	fi
}

# Print the process of a resolver. In a jail, dnsmasq writes the number that its own PID namespace gave it (1), so the
# option that names the file identifies it.
resolver_pid() {
	file=$STATE/resolver-$1.pid
	pid=$(cat "$file" 2>/dev/null)
	if [ -n "$pid" ] && [ "$pid" != 1 ]; then
		[ ! -d "/proc/$pid" ] || echo "$pid"
		return
	fi
	set +f
	# ujail has the words of dnsmasq, too.
	grep -ls -e "--pid-file=$file" /proc/[0-9]*/cmdline | while read -r cmdline; do
		case $(tr '\0' ' ' 2>/dev/null <"$cmdline") in "/usr/sbin/dnsmasq "*) echo "$cmdline" | tr -cd 0-9 ;; esac
	done
	set -f
}

# Check a resolver's mark without reading its sockets: the library that sets it is loaded, with this mark, and
# the process may set marks (SO_MARK: CAP_NET_RAW since Linux 5.17, or CAP_NET_ADMIN).
# The guard drops a query without the mark.
resolver_fault() {
	pid=$(resolver_pid "$1")
	if [ -z "$pid" ]; then
		echo "is not running"
	elif ! grep -q libpacketmark "/proc/$pid/maps"; then
		echo "libpacketmark is not loaded, so its queries have no mark and are dropped"
	elif ! tr '\0' '\n' <"/proc/$pid/environ" | grep -qx "LIBPACKETMARK_MARK=$2"; then
		echo "LIBPACKETMARK_MARK is not $2, so its queries are dropped"
	else
		able=$(sed -n 's/^CapEff:[[:space:]]*//p' "/proc/$pid/status")
		need=0x3000
		case $(uname -r) in [0-4].* | 5.[0-9].* | 5.1[0-6].*) need=0x1000 ;; esac
		[ $((0x$(echo "$able" | tail -c 9) & need)) != 0 ] ||
			echo "it has no capability to set marks (CapEff $able), so its queries are dropped"
	fi
}

# Print what cuts an uplink off: no device that is up, or no default route in its table.
idle_uplinks() {
	while read -r kind name table devices; do
		[ "$kind" = uplink ] || continue
		up=
		for device in $devices; do
			case $(ip -o link show dev "$device" 2>/dev/null) in *[,\<]LOWER_UP*) up=1 ;; esac
		done
		if [ -z "$up" ]; then
			echo "uplink $name: no device is up ($devices)"
			continue
		fi
		for family in $(ip_families); do
			ip -N "-$family" route show table "$table" 2>/dev/null
		done | grep -q '^default ' ||
			echo "uplink $name: no default route in table $table, so its services reach only networks on the link"
	done <"$PLAN"
}

status() {
	remaining=$(differences)
	if released; then
		echo "policy @POLICY@: released; the uplinks are not guarded"
	elif [ -z "$remaining" ]; then
		echo "policy @POLICY@: in force"
	else
		echo "policy @POLICY@: not in force as compiled; run 'nftpolicy apply'$NL$remaining" | sed '2,$s/^/  /'
	fi
	[ "$(list_table inet @TABLE@ | grep -c '^	chain block {')" = 0 ] || echo "blocked: all packets to the uplinks are dropped"
	uncovered_sockets | sed 's/.*/link guard: &: AF_PACKET sockets are not covered/'
	unfiltered_devices | sed 's/^/flush filter: none (tc-tiny, kmod-sched-bpf): a flush of nft lets packets pass on /'
	idle_uplinks
	while read -r kind name mark _; do
		[ "$kind" = resolver ] || continue
		fault=$(resolver_fault "$name" "$mark")
		echo "resolver $name: ${fault:-running, may set its mark}; servers: $(sed 's/nameserver //' "$STATE/$name.servers" 2>/dev/null | tr '\n' ' ')"
	done <"$PLAN"
	for family in inet netdev; do
		nft list counters table "$family" @TABLE@ 2>/dev/null |
			awk -v layer="$family" '$1 == "counter" { name = $2 } $1 == "packets" && $2 { print "count, " layer " " name ": " $2 }'
	done
	[ -z "$remaining" ]
}

# Write the DNS servers that netifd learned on each uplink. With peerdns 0 netifd lists them as "inactive". As in Gluon,
# the servers that the owner of the node entered replace them (gluon-web-network).
update_servers() {
	static=$(uci -q get 'gluon-wan-dnsmasq.@static[0].server' 2>/dev/null) || static=
	while read -r kind name fixed devices; do
		[ "$kind" = servers ] || continue
		if [ "$fixed" = fixed ]; then
			found=$(echo "$devices" | tr ' ' '\n')
		elif [ -n "$static" ]; then
			found=$(echo "$static" | tr ' ' '\n')
		else
			found=$(for device in $devices; do netifd_servers "$device"; done)
		fi
		new=$(echo "$found" | sed -n '/^[0-9A-Fa-f:.]*[.:][0-9A-Fa-f:.]*\(%[A-Za-z0-9_.@-]*\)\{0,1\}$/s/^/nameserver /p' |
			grep -v -e ' 127\.' -e ' ::1$' -e ' 0\.0\.0\.0$' -e ' ::$' | awk '!seen[$0]++')
		[ -e "$STATE/$name.servers" ] && [ "$new" = "$(cat "$STATE/$name.servers")" ] && continue
		# The user of dnsmasq reads them.
		echo "$new" | sed '/^$/d' >"$STATE/$name.servers.new" && chmod 644 "$STATE/$name.servers.new" &&
			mv "$STATE/$name.servers.new" "$STATE/$name.servers"
	done <"$PLAN"
}

netifd_servers() {
	dump=$(ubus call network.interface dump 2>/dev/null) || return
	for interface in $(echo "$dump" | jsonfilter -e "@.interface[@.l3_device=\"$1\"].interface"); do
		ubus call "network.interface.$interface" status |
			jsonfilter -e '@.inactive["dns-server"][*]' -e '@["dns-server"][*]' 2>/dev/null |
			sed "/^[Ff][Ee]80:[^%]*\$/s/\$/%$1/"
	done
}

# --- commands ----------------------------------------------------------------------------------

prepare() {
	[ "$(id -u)" = 0 ] || fail 4 "this needs root"
	if ! mkdir -p "$STATE" || ! chmod 755 "$STATE" || ! : >"$STATE/alive"; then fail 1 "cannot write to $STATE"; fi
}

# Succeed if a process is this program, started by root: another user can give a process these words.
is_runner() {
	tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -q nftpolicy &&
		grep -q '^Uid:[[:space:]]*0[[:space:]]' "/proc/$1/status" 2>/dev/null
}

# Allow one process at a time. The lock is a symlink, created atomically; its target is the process ID.
lock() {
	tries=0
	# Of this subshell, which may outlive the watch that $$ is.
	read -r own _ </proc/self/stat
	until ln -s "$own" "$STATE/lock" 2>/dev/null; do
		holder=$(readlink "$STATE/lock") || {
			[ -w "$STATE" ] || fail 1 "cannot write to $STATE"
			tries=$((tries + 1))
			[ "$tries" -lt 50 ] || fail 1 "$STATE/lock cannot be created"
			continue
		}
		if ! is_runner "$holder"; then
			# Stale lock of a killed process. Move it first, so that a newer lock is not deleted.
			mv "$STATE/lock" "$STATE/lock.$own" 2>/dev/null && rm -f "$STATE/lock.$own"
			continue
		fi
		tries=$((tries + 1))
		[ "$tries" -lt 20 ] || fail 1 "process $holder (nftpolicy) holds the lock; retry"
		sleep 1
	done
	trap 'rm -f "$STATE/lock"' EXIT
}

add_routes_and_rules() {
	apply_changes 4 "$changes4" +route +rule
	apply_changes 6 "$changes6" +route +rule
}

# With a guard in place, add routes and rules before the switch and delete old ones after it; without, load it first.
apply() {
	rm -f "$STATE/released"
	if [ ! -e "$INCLUDE" ] && accepts "$(guard_text)"; then mv "$INACTIVE" "$INCLUDE"; fi
	changes4=$(route_changes 4)
	changes6=
	[ ! -d /proc/sys/net/ipv6 ] || changes6=$(route_changes 6)
	if guard_in_place; then
		write_sysctls
		add_routes_and_rules
		load_guard
	else
		load_guard
		write_sysctls
		add_routes_and_rules
	fi
	apply_changes 4 "$changes4" -rule -route
	apply_changes 6 "$changes6" -rule -route
	load_filters
	update_servers
	remaining=$(differences)
	case $remaining in
	'') ;;
	guard:*) block "the guard in the kernel differs from the compiled one" ;;
	*) fail 1 "differences after apply:$NL$remaining" ;;
	esac
}

release() {
	: >"$STATE/released" || fail 1 "cannot write to $STATE; nothing was changed"
	if [ -e "$INCLUDE" ] && ! mv "$INCLUDE" "$INACTIVE"; then fail 1 "cannot move $INCLUDE; nothing was changed"; fi
	restore_sysctls ''
	delete_filters ''
	rm -f "$STATE/flush"
	for family in $(ip_families); do
		apply_changes "$family" "$(kernel_rules "$family" | sed -n "s/^\(.*\) $OURS\$/-rule \1/p")" -rule
		apply_changes "$family" "$(kernel_routes "$family" | sed 's/^/-route /')" -route
	done
	for family in netdev inet; do
		! nft list table "$family" @TABLE@ >/dev/null 2>&1 || nft delete table "$family" @TABLE@
	done
	! nft list table inet @TABLE@ >/dev/null 2>&1 || fail 1 "the guard is still loaded"
}

released() { [ -e "$STATE/released" ]; }

# Apply the policy if the kernel differs from it, unless it was released: also while this waited for the lock.
reconcile() {
	! released || return 0
	(lock && ! released && load_filters)
	[ -n "$(differences)" ] || return 0
	(lock && ! released && apply) && log "restored after: $1"
}

# Restore the guard at once from prepared text; `reconcile` checks the rest.
restore_guard() {
	released || guard_in_place || cat "$INCLUDE" "$STATE/link.taken" 2>/dev/null | nft -f - 2>/dev/null
}

# End the monitors of a watch that was killed. procd ignores SIGPIPE, and so do they.
end_monitors() {
	[ -e "$STATE/monitors" ] || return 0
	tr ' ' '\n' <"$STATE/monitors" | while read -r pid; do
		case $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") in *" monitor"*) kill "$pid" 2>/dev/null ;; esac
	done
}

# React to the kernel's notifications, and check every minute. A child does the slow part, so that it does not
# delay the reaction to the next notification.
watch() {
	events=$STATE/events
	rm -f "$events"
	mkfifo "$events" || fail 1 "cannot create $events"
	exec 3<>"$events"
	end_monitors
	trap 'kill $first $second 2>/dev/null; rm -f "$events" "$STATE/monitors"' EXIT
	# The monitors only write to the pipe, so that they end with its reader.
	nft monitor >"$events" 2>/dev/null 3>&- &
	first=$!
	ip -N monitor link rule route >"$events" 2>/dev/null 3>&- &
	second=$!
	echo "$first $second" >"$STATE/monitors"
	reconcile_in_background "start of watch"
	while kill -0 "$first" 2>/dev/null && kill -0 "$second" 2>/dev/null; do
		cause="periodic check"
		# shellcheck disable=SC3045 # ash has it
		if read -r -t 60 line <&3; then
			case $line in
			reconciled)
				busy=
				[ -z "$pending" ] || reconcile_in_background "$pending"
				continue
				;;
			*@TABLE@-wanted* | '#'*) continue ;;
			"delete table inet @TABLE@"*) restore_guard ;;
			*@TABLE@* | *[0-9]:*from* | *"$OURS"* | [0-9]*": "*'<'*'>'* | Deleted*) ;;
			*) continue ;;
			esac
			cause=$line
		fi
		if [ -z "$busy" ]; then
			restore_guard
			reconcile_in_background "$cause"
		else
			pending=$cause
		fi
	done
	fail 1 "nft monitor or ip monitor has ended"
}

# Check and repair the whole state. After a failure, pause before the next attempt.
reconcile_in_background() {
	busy=1
	pending=
	{
		reconcile "$1" || sleep 2
		echo reconciled >&3
	} &
}

usage="usage: nftpolicy apply | check | status | release | watch | reconcile | update-servers"

[ "$#" = 1 ] || fail 2 "$usage"
trap 'exit 130' INT
trap 'exit 143' TERM
[ -r "$PLAN" ] || fail 4 "$PLAN is missing: compile the policy again"
for program in nft ip; do
	command -v "$program" >/dev/null || fail 4 "the program $program is missing"
done
prepare
ip -N rule show >/dev/null 2>&1 || fail 4 "this ip does not support -N: install ip-tiny or ip-full"

case $1 in
apply | release) lock && "$1" ;;
watch | status) "$1" ;;
update-servers) update_servers ;;
reconcile) reconcile "manual start" ;;
check)
	found=$(differences)
	[ -z "$found" ] || fail 1 "not in force as compiled:$NL$found"
	idle_uplinks | while read -r line; do log "$line"; done
	;;
*) fail 2 "$usage" ;;
esac
