# SPDX-License-Identifier: BSD-2-Clause
"""`python -m nftpolicy` is `nftpolicy`."""

from .cli.main import main

main()
