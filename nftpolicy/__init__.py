# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy: who may use the uplink, compiled to nftables, ip rules and routes.

A policy file (`policy`) compiles (`compiler`) to a desired state of the kernel
(`netstate`); the difference to the observed state becomes a plan (`planner`)
that `runtime` carries out through `kernel`. `cli` prints.
"""

__version__ = "0.1.0"
