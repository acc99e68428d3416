#!/bin/sh /etc/rc.common
# SPDX-License-Identifier: BSD-2-Clause
# nftpolicy: the guard, before firewall (19) and network (20) start, by nft alone. It has no "stop": what is in the
# kernel stays there, and only "nftpolicy release" takes it away.

# shellcheck disable=SC2034 # rc.common reads it
START=@START@

start() {
	# What is kept there has to go with the power, as /var/run does.
	[ -e /run ] || ln -s /var/run /run
	# First nothing leaves; then what the policy lets leave. Where the second fails, the first stays.
	@NFT@ -f @BLOCK@
	@NFT@ -f @GUARD@ || return
	# Some kernels take it only when the devices are there; "apply" brings it then.
	@NFT@ -f @LINK@ || :
}
