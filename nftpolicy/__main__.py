# SPDX-License-Identifier: BSD-2-Clause
"""Entry point of `python -m nftpolicy`, the same as `nftpolicy`."""

from .cli.main import main

main()
