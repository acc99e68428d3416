#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# nftpolicy: on interface events, update the DNS servers of the uplinks and reconcile routes and rules.

case ${ACTION:-} in
ifup | ifdown | ifupdate)
	{
		/usr/sbin/nftpolicy update-servers
		/usr/sbin/nftpolicy reconcile
	} 2>&1 | logger -t nftpolicy
	;;
esac
