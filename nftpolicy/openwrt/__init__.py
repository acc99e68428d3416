# SPDX-License-Identifier: BSD-2-Clause
"""A policy as files for a router with OpenWrt, which has netifd and fw4 and no Python.

Pure: a policy becomes UCI sections (plain data), a plan (lines that a shell can read), nft files, and
the whole tree of files with the shell scripts beside this module. The scripts are the runtime there. And the
other way: what a router's UCI says becomes the netstate that netifd makes of it, and a policy that fits.
Never here: anything that writes a file or asks a machine.
"""
