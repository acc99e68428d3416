# SPDX-License-Identifier: BSD-2-Clause
"""Sources of an uplink's DNS servers: one file with one pure parser for each program that learns servers.

A parser takes the bytes or the text that the program wrote, and yields entries. `filter` turns entries into servers;
`registry` reads the files and runs the programs. Queries to these servers belong elsewhere.
"""
