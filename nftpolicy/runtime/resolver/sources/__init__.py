# SPDX-License-Identifier: BSD-2-Clause
"""Which DNS servers an uplink brought: a file for each program that learns them, each with one pure parser.

A parser takes what the program wrote (bytes or text) and yields words; `choice` makes servers of them, `reading` goes
to the files and programs. Never here: who asks those servers.
"""
