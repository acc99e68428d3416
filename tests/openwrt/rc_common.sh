#!/bin/sh
# Stands for OpenWrt's /etc/rc.common and /lib/functions/procd.sh, as far as nftpolicy's scripts ask them. What a
# service is to be is handed to procd_stand_in.py, a line for each call, its words apart by tabs.

initscript=$1
action=$2
shift 2
name=$(readlink "$initscript") || name=$initscript
name=${name##*/}

start() { :; }
stop() { :; }
boot() { start "$@"; }
restart() {
	stop "$@"
	start "$@"
}
reload() { restart "$@"; }
enable() { ln -sf "../init.d/$name" "/etc/rc.d/S$START$name"; }
disable() { rm -f "/etc/rc.d/"[SK]??"$name"; }

tell() {
	for word; do printf '%s\t' "$word"; done >>"$told"
	echo >>"$told"
}
procd_open_instance() { tell instance "$1"; }
procd_set_param() { tell set "$@"; }
procd_close_instance() { :; }
procd_add_raw_trigger() { tell trigger "$1" "" "$@"; }
procd_add_config_trigger() { tell trigger "$1" "$2" "$@"; }

. "$initscript"

if [ -n "${USE_PROCD:-}" ]; then
	told=/tmp/told.$$
	rc_procd() {
		: >"$told"
		"$@"
		service_triggers
		procd set "$name" "$told"
		rm -f "$told"
	}
	start() {
		rc_procd start_service "$@"
		if type service_started >/dev/null 2>&1; then service_started; fi
	}
	stop() {
		if type stop_service >/dev/null 2>&1; then stop_service "$@"; fi
		procd delete "$name"
	}
	reload() { if type reload_service >/dev/null 2>&1; then reload_service "$@"; else start "$@"; fi; }
fi

case " start stop boot restart reload enable disable ${EXTRA_COMMANDS:-} " in
*" $action "*) "$action" "$@" ;;
*) exit 1 ;;
esac
