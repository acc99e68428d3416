# SPDX-License-Identifier: BSD-2-Clause
"""Policy files for a router with OpenWrt, which has netifd and fw4 but no Python.

Pure: a policy becomes UCI sections (plain data), a router plan (lines that a shell can read), nft
files, and the whole file tree with the shell scripts in this directory, which are the runtime
there. Never here: writing a file, or querying a machine.
"""
