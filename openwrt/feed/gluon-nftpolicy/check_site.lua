-- SPDX-License-Identifier: BSD-2-Clause
-- nftpolicy = { enabled = true }: false leaves a node as Gluon makes it.
need_boolean(in_site({'nftpolicy', 'enabled'}), false)
