#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# nftpolicy on a router: holds the kernel to the policy that was compiled for it. Needs nft, and the ip of
# iproute2 (ip-tiny or ip-full); the words of the policy are in /usr/share/nftpolicy. Says what is wrong on
# standard error, and in its exit status: 0 as wanted, 1 not so, 2 asked wrongly, 4 something is missing here.
set -uf

ROOT=${NFTPOLICY_ROOT:-}
STATE=${NFTPOLICY_STATE:-/var/run/nftpolicy}
SHARE=$ROOT/usr/share/nftpolicy
PLAN=$SHARE/plan
# fw4 loads it with its own tables in one transaction; it lies aside while it must not.
INCLUDE=$ROOT/usr/share/nftables.d/ruleset-post/nftpolicy.nft
ASIDE=$SHARE/guard.nft
OURS="proto @PROTOCOL@"
NL='
'

say() { echo "nftpolicy: $*" >&2; }

fail() {
	say "$2"
	exit "$1"
}

# Whether a line is among lines.
has() {
	case "$NL$1$NL" in *"$NL$2$NL"*) return 0 ;; esac
	return 1
}

families() {
	echo 4
	[ ! -d /proc/sys/net/ipv6 ] || echo 6
}

# --- ip rules and routes ---------------------------------------------------------------------

held_rules() { ip -N "-$1" rule show | sed 's/:[[:space:]]*/: /;s/[[:space:]]*$//'; }

# Ours alone. What the kernel finds out by itself is not part of what is wanted.
held_routes() {
	ip -N "-$1" route show table all proto @PROTOCOL@ 2>/dev/null |
		sed 's/ linkdown//;s/ dead//;s/ pref medium//;s/ error -*[0-9]*//;s/^7 /unreachable /;s/[[:space:]]*$//'
}

# What has to come (+) and to go (-) in a family, a line each. netifd's own rules count as there: they have no
# protocol. Only what is ours goes.
ways() {
	rules=$(held_rules "$1")
	routes=$(held_routes "$1")
	there=
	ours=
	while read -r line; do
		there="$there$NL${line%% proto [0-9]*}"
		case $line in *" $OURS") ours="$ours${ours:+$NL}${line% "$OURS"}" ;; esac
	done <<-RULES
		$rules
	RULES
	wanted=
	while read -r kind line; do
		case $kind in
		"rule$1") has "$there" "$line" || echo "+rule $line" ;;
		"route$1") has "$routes" "$line" || echo "+route $line" ;;
		*) continue ;;
		esac
		wanted="$wanted$NL$kind $line"
	done <"$PLAN"
	while read -r line; do
		[ -z "$line" ] || has "$wanted" "rule$1 $line" || echo "-rule $line"
	done <<-OURS
		$ours
	OURS
	while read -r line; do
		[ -z "$line" ] || has "$wanted" "route$1 $line" || echo "-route $line"
	done <<-ROUTES
		$routes
	ROUTES
}

# Lines of `ways` as words for `ip -batch`. `ip -N` calls unreachable 7.
words() {
	while read -r kind line; do
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

# Carry out those of a kind. New routes come before the rules that lead to them, old ones go after them.
# Arguments: family, lines of `ways`, kinds in order.
go() {
	family=$1
	lines=$2
	shift 2
	for which; do
		todo=$(echo "$lines" | while read -r kind line; do [ "$kind" != "$which" ] || echo "$kind $line"; done | words)
		[ -z "$todo" ] || echo "$todo" | ip -force "-$family" -batch - 2>/dev/null
	done
}

# --- sysctls -----------------------------------------------------------------------------------

# What is not as wanted, of those that this kernel has now: path and value.
other_sysctls() {
	set --
	there=
	while read -r kind path value; do
		if [ "$kind" != sysctl ] || [ ! -e "/proc/sys/$path" ]; then continue; fi
		set -- "$@" "/proc/sys/$path"
		there="$there${there:+$NL}$path $value"
	done <"$PLAN"
	[ "$#" != 0 ] || return
	# All by one cat: ash reads byte by byte, and the kernel gives no more than the first one of a value.
	values=$(cat "$@")
	while read -r path value <&5 && read -r held <&6; do
		[ "$held" = "$value" ] || echo "$path $value"
	done 5<<-THERE 6<<-VALUES
		$there
	THERE
		$values
	VALUES
}

# Values from before the policy are kept once, for release.
write_sysctls() {
	other_sysctls | while read -r path value; do
		grep -qs "^$path " "$STATE/sysctls" || echo "$path $(cat "/proc/sys/$path")" >>"$STATE/sysctls" || break
		echo "$value" >"/proc/sys/$path"
	done
	mine=$(while read -r kind path _; do [ "$kind" != sysctl ] || echo "$path"; done <"$PLAN")
	put_sysctls_back "$mine"
}

# To what they were, but for those that are in use.
put_sysctls_back() {
	[ -s "$STATE/sysctls" ] || return 0
	kept=$(while read -r path value; do
		if has "$1" "$path"; then
			echo "$path $value"
		elif [ -e "/proc/sys/$path" ]; then
			echo "$value" >"/proc/sys/$path"
		fi
	done <"$STATE/sysctls")
	if [ -z "$kept" ]; then
		rm -f "$STATE/sysctls"
	elif [ "$kept" != "$(cat "$STATE/sysctls")" ]; then
		echo "$kept" >"$STATE/sysctls.new" && mv "$STATE/sysctls.new" "$STATE/sysctls"
	fi
}

# --- the guard ---------------------------------------------------------------------------------

guard_text() { cat "$INCLUDE" 2>/dev/null || cat "$ASIDE" 2>/dev/null; }

present() { ip link show dev "$1" >/dev/null 2>&1; }

ports() { ip -o link show master "$1" 2>/dev/null | sed 's/^[0-9]*: \([^:]*\): .*/\1/;s/@.*//'; }

# One base chain at the egress of a device. "@" is no letter of an nft name, and no device has "/".
hooked() {
	case $1 in
	*[!A-Za-z0-9_.@-]*) say "device $1 can't be written in a ruleset, so it has no link guard" ;;
	*) printf '\tchain device-%s {\n\t\ttype filter hook egress device "%s" %s\n\t}\n' "$(echo "$1" | tr @ /)" "$1" "$2" ;;
	esac
}

# The table of the link layer with a chain for each device, and for each port of one that is a bridge.
# "present": only for devices that are there, since a kernel before Linux 6.18 or so takes no others.
link_text() {
	cat "$SHARE/link.nft" || return
	echo "table netdev @TABLE@ {"
	while read -r kind device body; do
		case $kind in
		own) if [ "$1" = all ] || present "$device"; then hooked "$device" "$body"; fi ;;
		port) for port in $(ports "$device"); do hooked "$port" "$body"; done ;;
		esac
	done <"$PLAN"
	echo "}"
}

takes() { echo "$1" | nft -c -f - 2>/dev/null; }

# The link layer as this kernel takes it, nothing if it has no such hook. What it took once is not asked again.
taken_link() {
	[ -e "$SHARE/link.nft" ] || return 0
	for which in all present; do
		text=$(link_text "$which")
		if [ "$text" = "$(cat "$STATE/link.taken" 2>/dev/null)" ] || takes "$text"; then
			keep link.taken "$text" || rm -f "$STATE/link.taken"
			echo "$text"
			return 0
		fi
	done
	return 0
}

listed() { nft -s list table "$1" "$2" 2>/dev/null | sed -e 1d -e '/^$/d' -e '/^	flags dormant$/d'; }

# What a listing must say: the kernel is told the same under another name, in a table that is asleep, and
# asked for it. So nothing depends on how this nft writes what it lists. Arguments: family, text.
reference() {
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
	asleep=$(listed "$1" "@TABLE@-wanted")
	nft delete table "$1" "@TABLE@-wanted" 2>/dev/null
	echo "$asleep"
	keep "$1.wanted" "$asleep" && keep "$1.key" "$key"
}

# Nothing depends on it that something is kept: the folder may be full.
keep() { echo "$2" 2>/dev/null >"$STATE/$1" && [ "$2" = "$(cat "$STATE/$1")" ]; }

# Whether the kernel holds just this. Arguments: family, text.
holds() {
	if [ -z "$2" ]; then
		! nft list table "$1" @TABLE@ >/dev/null 2>&1
		return
	fi
	wanted=$(reference "$1" "$2")
	[ -n "$wanted" ] && [ "$wanted" = "$(listed "$1" @TABLE@)" ]
}

# Whether a guard of ours, whichever policy's, is at the end of the IP layer.
stands() {
	case "$(nft list chain inet @TABLE@ guard 2>/dev/null)" in
	*"hook postrouting "*"policy drop;"*) return 0 ;;
	esac
	return 1
}

# Put a guard into the kernel whole, or a block if it takes none.
load_guard() {
	guard=$(guard_text)
	link=$(taken_link)
	if stands; then
		holds inet "$guard" || set -- inet
		holds netdev "$link" || set -- "$@" netdev
	else
		set -- inet
	fi
	case "$*" in
	'') return 0 ;;
	netdev) text=${link:-delete table netdev @TABLE@} ;;
	*) text="$guard$NL$link" ;;
	esac
	if ! echo "$text" | nft -f - 2>/dev/null; then
		rm -f "$STATE/link.taken" # to be asked again
		case "$*" in *inet*) echo "$guard" | nft -f - 2>/dev/null || block "the kernel refused the guard" ;; esac
	fi
}

# Nothing leaves by an uplink. fw4 must not fail as a whole for a file that the kernel does not take.
block() {
	[ ! -e "$INCLUDE" ] || mv "$INCLUDE" "$ASIDE"
	nft -f "$SHARE/block.nft" || fail 1 "$1, and the block too: THE UPLINKS ARE NOT GUARDED"
	fail 1 "$1: everything on the uplinks is stopped (see: nft -c -f $ASIDE)"
}

# --- what the device is asked ------------------------------------------------------------------

# What is not as wanted, a line each.
differences() {
	holds inet "$(guard_text)" || echo "guard: not as compiled"
	holds netdev "$(taken_link)" || echo "link guard: not as compiled"
	for family in $(families); do
		ways "$family" | while read -r kind line; do
			case $kind in
			[+]rule) echo "ladder, IPv$family: missing: $line" ;;
			-rule) echo "ladder, IPv$family: left over: $line" ;;
			[+]route) echo "routes, IPv$family: missing: $line" ;;
			-route) echo "routes, IPv$family: left over: $line" ;;
			esac
		done
	done
	other_sysctls | while read -r line; do echo "sysctl, should be: $line"; done
}

uncovered() {
	if [ ! -e "$SHARE/link.nft" ]; then
		echo "compiled without it: AF_PACKET sockets are not covered"
	elif [ -z "$(taken_link)" ]; then
		echo "this kernel has no netdev egress hook (kmod-nft-netdev, Linux 5.16): AF_PACKET sockets are not covered"
	else
		while read -r kind device _; do
			[ "$kind" = own ] || continue
			nft list chain netdev @TABLE@ "device-$(echo "$device" | tr @ /)" >/dev/null 2>&1 ||
				echo "not hooked at $device: AF_PACKET sockets are not covered there"
		done <"$PLAN"
	fi
}

# What can be known of a resolver's mark without asking its sockets: the library that puts it on is loaded,
# with this mark, and the process may set marks (SO_MARK: CAP_NET_RAW since Linux 5.17, or CAP_NET_ADMIN).
# A query without the mark does not leave: the guard drops it.
resolver_fault() {
	pid=$(cat "$STATE/resolver-$1.pid" 2>/dev/null)
	if [ -z "$pid" ] || [ ! -d "/proc/$pid" ]; then
		echo "does not run"
	elif ! grep -q libpacketmark "/proc/$pid/maps"; then
		echo "libpacketmark is not loaded, so its queries have no mark and are dropped"
	elif ! tr '\0' '\n' <"/proc/$pid/environ" | grep -qx "LIBPACKETMARK_MARK=$2"; then
		echo "LIBPACKETMARK_MARK is not $2, so its queries are dropped"
	else
		able=$(sed -n 's/^CapEff:[[:space:]]*//p' "/proc/$pid/status")
		need=0x3000
		case $(uname -r) in [0-4].* | 5.[0-9].* | 5.1[0-6].*) need=0x1000 ;; esac
		[ $((0x$(echo "$able" | tail -c 9) & need)) != 0 ] ||
			echo "it may not set marks (CapEff $able), so its queries are dropped"
	fi
}

status() {
	found=$(differences)
	if [ -e "$STATE/released" ]; then
		echo "policy @POLICY@: released; nothing is guarded"
	elif [ -z "$found" ]; then
		echo "policy @POLICY@: in force"
	else
		echo "policy @POLICY@: not as wanted; 'nftpolicy apply' makes it so$NL$found" | sed '2,$s/^/  /'
	fi
	[ "$(listed inet @TABLE@ | grep -c '^	chain block {')" = 0 ] || echo "blocked: nothing leaves by the uplinks"
	uncovered | sed 's/^/link guard: /'
	while read -r kind name mark _; do
		[ "$kind" = resolver ] || continue
		fault=$(resolver_fault "$name" "$mark")
		echo "resolver $name: ${fault:-runs, and may put on its mark}; servers: $(sed 's/nameserver //' "$STATE/$name.servers" 2>/dev/null | tr '\n' ' ')"
	done <"$PLAN"
	for family in inet netdev; do
		nft list counters table "$family" @TABLE@ 2>/dev/null |
			awk -v layer="$family" '$1 == "counter" { name = $2 } $1 == "packets" && $2 { print "count, " layer " " name ": " $2 }'
	done
	[ -z "$found" ]
}

# The DNS servers that netifd learned of each uplink. With peerdns 0 it keeps them as "inactive".
servers() {
	while read -r kind name fixed devices; do
		[ "$kind" = servers ] || continue
		if [ "$fixed" = fixed ]; then
			found=$(echo "$devices" | tr ' ' '\n')
		else
			found=$(for device in $devices; do learned "$device"; done)
		fi
		new=$(echo "$found" | sed -n '/^[0-9A-Fa-f:.]*[.:][0-9A-Fa-f:.]*\(%[A-Za-z0-9_.@-]*\)\{0,1\}$/s/^/nameserver /p' |
			grep -v -e ' 127\.' -e ' ::1$' -e ' 0\.0\.0\.0$' -e ' ::$' | awk '!seen[$0]++')
		[ -e "$STATE/$name.servers" ] && [ "$new" = "$(cat "$STATE/$name.servers")" ] && continue
		echo "$new" | sed '/^$/d' >"$STATE/$name.servers.new" && mv "$STATE/$name.servers.new" "$STATE/$name.servers"
	done <"$PLAN"
}

learned() {
	dump=$(ubus call network.interface dump 2>/dev/null) || return
	for interface in $(echo "$dump" | jsonfilter -e "@.interface[@.l3_device=\"$1\"].interface"); do
		ubus call "network.interface.$interface" status |
			jsonfilter -e '@.inactive["dns-server"][*]' -e '@["dns-server"][*]' 2>/dev/null |
			sed "/^[Ff][Ee]80:[^%]*\$/s/\$/%$1/"
	done
}

# --- what is done ------------------------------------------------------------------------------

prepare() {
	[ "$(id -u)" = 0 ] || fail 4 "this needs root"
	if ! mkdir -p "$STATE" || ! chmod 755 "$STATE" || ! : >"$STATE/alive"; then fail 1 "$STATE can't be written"; fi
}

# Only one process at a time. A link, since it is made or refused at once; its target is the process.
alone() {
	tries=0
	until ln -s "$$" "$STATE/lock" 2>/dev/null; do
		holder=$(readlink "$STATE/lock") || {
			[ -w "$STATE" ] || fail 1 "$STATE can't be written"
			tries=$((tries + 1))
			[ "$tries" -lt 50 ] || fail 1 "$STATE/lock can't be made"
			continue
		}
		if ! tr '\0' ' ' 2>/dev/null <"/proc/$holder/cmdline" | grep -q nftpolicy; then
			# Of a process that was killed. Moved first, so that a newer lock is not taken for it.
			mv "$STATE/lock" "$STATE/lock.$$" 2>/dev/null && rm -f "$STATE/lock.$$"
			continue
		fi
		tries=$((tries + 1))
		[ "$tries" -lt 20 ] || fail 1 "another nftpolicy (process $holder) is at it"
		sleep 1
	done
	trap 'rm -f "$STATE/lock"' EXIT
}

new_ways() {
	go 4 "$ways4" +route +rule
	go 6 "$ways6" +route +rule
}

# New ways before the switch and old ones after it, where a guard stands; where none does, the guard first.
apply() {
	rm -f "$STATE/released"
	if [ ! -e "$INCLUDE" ] && takes "$(guard_text)"; then mv "$ASIDE" "$INCLUDE"; fi
	ways4=$(ways 4)
	ways6=
	[ ! -d /proc/sys/net/ipv6 ] || ways6=$(ways 6)
	if stands; then
		write_sysctls
		new_ways
		load_guard
	else
		load_guard
		write_sysctls
		new_ways
	fi
	go 4 "$ways4" -rule -route
	go 6 "$ways6" -rule -route
	servers
	found=$(differences)
	case $found in
	'') ;;
	guard:*) block "the kernel reads back another guard" ;;
	*) fail 1 "not everything is as wanted:$NL$found" ;;
	esac
}

release() {
	: >"$STATE/released" || fail 1 "$STATE can't be written; nothing was changed"
	if [ -e "$INCLUDE" ] && ! mv "$INCLUDE" "$ASIDE"; then fail 1 "$INCLUDE can't be moved; nothing was changed"; fi
	put_sysctls_back ''
	for one in $(families); do
		go "$one" "$(held_rules "$one" | sed -n "s/^\(.*\) $OURS\$/-rule \1/p")" -rule
		go "$one" "$(held_routes "$one" | sed 's/^/-route /')" -route
	done
	for family in netdev inet; do
		! nft list table "$family" @TABLE@ >/dev/null 2>&1 || nft delete table "$family" @TABLE@
	done
	! nft list table inet @TABLE@ >/dev/null 2>&1 || fail 1 "the guard is still there"
}

# Puts back what others take away, unless it was released. Quick where nothing is to be done.
heal() {
	[ ! -e "$STATE/released" ] || return 0
	[ -n "$(differences)" ] || return 0
	(alone && apply) && say "put back: $1"
}

# The guard, from what lies ready; everything else is looked at then.
at_once() {
	[ -e "$STATE/released" ] || stands || cat "$INCLUDE" "$STATE/link.taken" 2>/dev/null | nft -f - 2>/dev/null
}

# The kernel says what changes; every minute it is looked at anyway. The slow part is done by a child, so that
# it does not stand between the next message and its repair.
watch() {
	events=$STATE/events
	rm -f "$events"
	mkfifo "$events" || fail 1 "$events can't be made"
	exec 3<>"$events"
	trap 'kill $first $second 2>/dev/null; rm -f "$events"' EXIT
	# They only write, so that they end with whoever reads.
	nft monitor >"$events" 2>/dev/null 3>&- &
	first=$!
	ip -N monitor link rule route >"$events" 2>/dev/null 3>&- &
	second=$!
	look "before watching"
	while kill -0 "$first" 2>/dev/null && kill -0 "$second" 2>/dev/null; do
		what="a look"
		# shellcheck disable=SC3045 # ash has it
		if read -r -t 60 line <&3; then
			case $line in
			looked)
				busy=
				[ -z "$missed" ] || look "$missed"
				continue
				;;
			*@TABLE@-wanted* | '#'*) continue ;;
			"delete table inet @TABLE@"*) at_once ;;
			*@TABLE@* | *[0-9]:*from* | *"$OURS"* | [0-9]*": "*'<'*'>'* | Deleted*) ;;
			*) continue ;;
			esac
			what=$line
		fi
		if [ -z "$busy" ]; then
			at_once
			look "$what"
		else
			missed=$what
		fi
	done
	fail 1 "nft monitor or ip monitor has ended"
}

# Look at everything, and put it right. What can't be put right now is not tried again without a pause.
look() {
	busy=1
	missed=
	{
		heal "$1" || sleep 2
		echo looked >&3
	} &
}

usage="usage: nftpolicy apply | check | status | release | watch | heal | servers"

[ "$#" = 1 ] || fail 2 "$usage"
trap 'exit 130' INT
trap 'exit 143' TERM
[ -r "$PLAN" ] || fail 4 "$PLAN is missing: compile the policy again"
for program in nft ip; do
	command -v "$program" >/dev/null || fail 4 "the program $program is missing"
done
prepare
ip -N rule show >/dev/null 2>&1 || fail 4 "this ip can't show rules in numbers: install ip-tiny or ip-full"

case $1 in
apply | release) alone && "$1" ;;
servers | watch | status) "$1" ;;
heal) heal "asked" ;;
check)
	found=$(differences)
	[ -z "$found" ] || fail 1 "not as wanted:$NL$found"
	;;
*) fail 2 "$usage" ;;
esac
