"""nftpolicy beside real daemons: a Debian machine with systemd, an outside, and a table of what was seen.

scenarios.py says how to add a program. No test of pytest: it downloads Debian packages.
"""
