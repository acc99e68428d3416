# SPDX-License-Identifier: BSD-2-Clause
"""Sources of an uplink's DNS servers: a file and a pure parser for each program.

A parser takes the bytes or the text that the program wrote, and yields entries. `filter` turns
entries into servers; `registry` reads the files and runs the programs. Queries to these servers
belong elsewhere.
"""
