# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy: policies for the use of uplinks, compiled to nftables, ip rules and routes.

`compiler` compiles a policy file (`policy`) to a desired network state (`netstate`). `planner`
turns the difference to the observed state into a plan, and `runtime` applies it through `kernel`.
`model` simulates Linux, `proof` proves states, `cli` prints.
"""

__version__ = "0.1.0"
