# SPDX-License-Identifier: BSD-2-Clause
"""Base class of the exceptions of nftpolicy. This module imports nothing, so every layer can use it.

Exception, module, and meaning. An indented class derives from the class above it. `except
NftpolicyError` catches all of them; Unwritable and UciLintError are ValueErrors too, and DumpInterrupted an OSError.

NftpolicyError
  PolicyError           policy.errors                          a policy is invalid: source, line, key, message
  StepRejected          netstate.transition                    Linux would refuse a step in this state
  UnsupportedJson       netstate.formats.nft_json_expressions  `nft -j` lists an unsupported construct
  UnsupportedBytecode   netstate.formats.nft_bytecode.attributes  bytes of nf_tables that the decoder does not know
  UnreadableRuleset     netstate.formats.nft_bytecode.ruleset  a part of the kernel's ruleset without a table
  DebugOutputError      netstate.formats.nft_debug.listing     an unknown line of nft's debug output
  RouterSnapshotError   netstate.formats.router_snapshot       an unknown line of a router's snapshot
  NotReproducible       proof.reproduce.topology               no script can send the packet of a counterexample
  Unwritable            generated_text                         text that another program would read as more
  UciLintError          integration.openwrt.tree               netifd or fw4 would not apply a generated section
  SharedNetworkFile     integration.netconfig.networkd_parser  a .network file may configure other devices, too
  UciError              importers.openwrt.uci_parser           a UCI file has a syntax error
  NotImportable         importers.openwrt.uplinks              a router configuration cannot become a policy
  NoUplink              importers.machine.devices              this machine has no device that a policy could guard
  StepRefused           kernel.errors                          the kernel refused a step of a plan
    SysctlMissing       kernel.errors                          a sysctl to set does not exist, nor its device
  Unavailable           kernel.errors                          the kernel, a right or a library is missing
    RulesetChanging     kernel.errors                          the ruleset changed during each of several reads
    RulesetUnreadable   kernel.errors                          libnftables cannot list the ruleset
    DumpInterrupted     kernel.errors                          changes interrupted each of several netlink dumps
  NoSuchProcess         kernel.errors                          a process has ended
  ChildFailed           kernel.errors                          a forked process ended without a result
  LockTimeout           runtime.file_lock                      another process did not release a lock in time
  Locked                runtime.apply.state_dir                another process holds the lock of the namespace
  PolicyNotProved       runtime.apply.errors                   the compiled policy is refuted or unknown
  NoSafeOrder           runtime.apply.errors                   each step order has a state that is not proved
  ReadBackMismatch      runtime.apply.executor                 the kernel reads back another state; steps undone
  InconsistentState     runtime.apply.journal                  the kernel holds neither the old nor the new state
    RollbackFailed      runtime.apply.executor                 a step failed, and undoing the steps failed too
    RecoveryFailed      runtime.apply.recover                  no policy could be applied after an interruption
  ConfirmError          runtime.apply.pending_confirm          an apply with --confirm cannot be begun or undone
  AlreadyResolved       runtime.apply.pending_confirm          the policy was confirmed or rolled back already
  NotExpired            runtime.apply.pending_confirm          the deadline of a confirmation has not passed
  ServiceStartError     runtime.services.run                   a program could not be started as a service
  ResolverError         runtime.resolver.dnsmasq               the resolver cannot run, or must stop
  FileConflict          runtime.install.installer              files to install exist, or were changed since
  CommandFailed         runtime.install.installer              a command of the init system failed
  ManifestDamaged       runtime.install.installed_files        the list of installed files cannot be parsed
  DropInError           runtime.install.service_dropins        a systemd service cannot be made to mark packets
  RouterConfigError     runtime.import_openwrt                 a directory has no valid router configuration
  SnapshotError         runtime.snapshot                       a document is not a snapshot of this version
  AlternativeNameError  runtime.verify                         an uplink's device is named by an alternative name
  OutputLost            cli.plain_output                       standard output or standard error takes no more
  Failure               cli.common                             a command failed: message and exit status
"""


class NftpolicyError(Exception):
    """Base class of the exceptions of nftpolicy."""
