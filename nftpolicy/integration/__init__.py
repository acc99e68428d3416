# SPDX-License-Identifier: BSD-2-Clause
"""Text of files for other programs: systemd units and drop-ins, init scripts of OpenWrt.

Pure: each function takes a policy or paths and returns text. Files are written, and commands are
run, by runtime/install.
"""
