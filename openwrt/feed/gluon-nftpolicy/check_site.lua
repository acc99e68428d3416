-- SPDX-License-Identifier: BSD-2-Clause
-- nftpolicy = { enabled = true }: with false, Gluon configures the node without nftpolicy.
need_boolean(in_site({'nftpolicy', 'enabled'}), false)
