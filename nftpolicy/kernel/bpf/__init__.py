# SPDX-License-Identifier: BSD-2-Clause
"""BPF: an assembler, the programs that nftpolicy attaches to cgroups, and bpf(2) itself."""
