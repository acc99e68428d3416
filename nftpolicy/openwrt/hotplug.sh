#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# nftpolicy: an interface came, went or changed: its routes, and the DNS servers that it brought.

case ${ACTION:-} in
ifup | ifdown | ifupdate)
	{
		/usr/sbin/nftpolicy servers
		/usr/sbin/nftpolicy heal
	} 2>&1 | logger -t nftpolicy
	;;
esac
