#!/bin/sh /etc/rc.common
# SPDX-License-Identifier: BSD-2-Clause
# nftpolicy: load the boot guard by nft alone, before firewall (19) and network (20) start. There is
# no stop(): the guard stays in the kernel, and only "nftpolicy release" removes it.

# shellcheck disable=SC2034 # rc.common reads it
START=@START@

start() {
	# The state in /run must be lost by a restart, as in /var/run.
	[ -e /run ] || ln -s /var/run /run
	# First the block, then the guard. If the guard cannot be loaded, the block stays in force.
	@NFT@ -f @BLOCK@
	@NFT@ -f @GUARD@ || return
	@NFT@ -f @LINK@ || return 0
	# The kernel may accept these only for present devices; "apply" loads the others.
	for file in @STEM@-*.nft; do
		@NFT@ -f "$file" || :
	done
}
