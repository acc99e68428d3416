"""nftpolicy on releases of Debian: what ran where, for docs/tested.md. No test of pytest: it downloads Debian packages."""
