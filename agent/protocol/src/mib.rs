//! Object identifiers and enumerations of PATCHLAB-MIB (`mibs/PATCHLAB-MIB.txt`), under enterprise 32473
//! (documentation, RFC 5612) until one is assigned.
//!
//! Shaped on DISMAN-SCRIPT-MIB (RFC 3165): an order row is made by the manager, a run row by writing a run index to
//! `plOrderStart`. A resent SET starts nothing twice, because the run index is the manager's.

/// `patchlabMIB`.
pub const MIB: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1];
/// `plNotifications`.
pub const NOTIFICATIONS: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 0];
/// `plObjects`.
pub const OBJECTS: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 1];

/// Scalars, `plAgent`; the instance is `.0`.
pub mod agent {
    /// `plAgent`.
    pub const GROUP: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 1, 1];
    /// Version of the agent, SnmpAdminString.
    pub const VERSION: u32 = 1;
    /// The host's enrolled name, SnmpAdminString.
    pub const HOST: u32 = 2;
    /// The host's class, `family-release-arch`, SnmpAdminString.
    pub const CLASS: u32 = 3;
    /// Digest of the package list, OCTET STRING (32).
    pub const INVENTORY_DIGEST: u32 = 4;
    /// Digest of the pinned root document, OCTET STRING (32).
    pub const ROOT_DIGEST: u32 = 5;
    /// sysUpTime at the last change of any table here, TimeStamp.
    pub const LAST_CHANGE: u32 = 6;
    /// Newest audit head seen, OCTET STRING (0|32), read-write.
    pub const AUDIT_HEAD: u32 = 7;
    /// Sequence number of the newest notification, Unsigned32.
    pub const NOTIFICATION_SEQUENCE: u32 = 8;
    /// Digest of the newest signed result, OCTET STRING (0|32).
    pub const RESULT_HEAD: u32 = 9;
    /// Write 1 to have what is installed read anew, and be informed of it; reads 1 until that is done. Unsigned32 (0..1).
    pub const READ_INVENTORY: u32 = 10;
}

/// `usmUser` of SNMP-USER-BASED-SM-MIB (RFC 3414, 5): the keys of the agent's users. `usmUserTable` is indexed by engine id and user name, each
/// as its length and its bytes.
pub mod user {
    /// `usmUser`.
    pub const GROUP: &[u32] = &[1, 3, 6, 1, 6, 3, 15, 1, 2];
    /// `usmUserSpinLock`, TestAndIncr; the instance is `.0`.
    pub const SPIN_LOCK: u32 = 1;
    /// `usmUserEntry`.
    pub const ENTRY: &[u32] = &[1, 3, 6, 1, 6, 3, 15, 1, 2, 2, 1];
    /// `usmUserSecurityName`, SnmpAdminString, read-only.
    pub const SECURITY_NAME: u32 = 3;
    /// `usmUserCloneFrom`, RowPointer; zeroDotZero.
    pub const CLONE_FROM: u32 = 4;
    /// `usmUserAuthProtocol`, AutonomousType, read-only here.
    pub const AUTH_PROTOCOL: u32 = 5;
    /// `usmUserAuthKeyChange`, KeyChange.
    pub const AUTH_KEY_CHANGE: u32 = 6;
    /// `usmUserOwnAuthKeyChange`, KeyChange, by that user alone.
    pub const OWN_AUTH_KEY_CHANGE: u32 = 7;
    /// `usmUserPrivProtocol`, AutonomousType, read-only here.
    pub const PRIVACY_PROTOCOL: u32 = 8;
    /// `usmUserPrivKeyChange`, KeyChange.
    pub const PRIVACY_KEY_CHANGE: u32 = 9;
    /// `usmUserOwnPrivKeyChange`, KeyChange, by that user alone.
    pub const OWN_PRIVACY_KEY_CHANGE: u32 = 10;
    /// `usmUserPublic`, OCTET STRING (0..32): whoever changes a key writes it in the same SET, and sees by it that the change was made.
    pub const PUBLIC: u32 = 11;
    /// `usmUserStorageType`: permanent(4).
    pub const STORAGE_TYPE: u32 = 12;
    /// `usmUserStatus`: active(1).
    pub const STATUS: u32 = 13;
    /// `usmHMAC192SHA256AuthProtocol` (RFC 7860).
    pub const SHA_256: &[u32] = &[1, 3, 6, 1, 6, 3, 10, 1, 1, 5];
    /// `usmAesCfb128PrivProtocol` (RFC 3826).
    pub const AES_128: &[u32] = &[1, 3, 6, 1, 6, 3, 10, 1, 2, 4];
}

/// `plOrderTable`, indexed by `plOrderIndex` (Unsigned32, 1.., chosen by the manager).
pub mod order {
    /// `plOrderEntry`.
    pub const ENTRY: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 1, 2, 1];
    /// RowStatus: createAndGo(4), active(1), destroy(6).
    pub const ROW_STATUS: u32 = 2;
    /// StorageType: nonVolatile(3) only.
    pub const STORAGE_TYPE: u32 = 3;
    /// Digest of the order, OCTET STRING (32).
    pub const DIGEST: u32 = 4;
    /// Digest of the release, OCTET STRING (0|32).
    pub const RELEASE: u32 = 5;
    /// Digest of the approval, OCTET STRING (0|32).
    pub const APPROVAL: u32 = 6;
    /// Digest of the activation, OCTET STRING (0|32). Writable while no run is under way: a rollback is a new
    /// activation on the same row.
    pub const ACTIVATION: u32 = 7;
    /// Base URI: documents at `URI/documents/DIGEST`, files at `URI/artifacts/DIGEST`. SnmpAdminString (1..255).
    pub const URI: u32 = 8;
    /// Longest duration of a run, seconds, Unsigned32 (1..86400); counted anew when its window opens.
    pub const LIFETIME: u32 = 9;
    /// State of the newest run, `PatchlabRunState`, 0 before any.
    pub const STATE: u32 = 10;
    /// `PatchlabRefusal` of the newest run, 0 for none.
    pub const REFUSAL: u32 = 11;
    /// The sentence for people, SnmpAdminString (0..255).
    pub const REFUSAL_REASON: u32 = 12;
    /// A run index greater than any used, Unsigned32.
    pub const RUN_INDEX_NEXT: u32 = 13;
    /// Write a run index below 2^31 to start that run; reads 0. An index that was used before starts nothing and is no error.
    pub const START: u32 = 14;
    /// No apply begins before, `PatchlabTime`; empty for none. The activation's own limits hold beside it.
    pub const NOT_BEFORE: u32 = 15;
    /// No apply begins after, `PatchlabTime`; empty for none.
    pub const NOT_AFTER: u32 = 16;
    /// What a run does that is started: `PatchlabAction`, probe(3) or prefetch(4); none(0) for what the activation says.
    pub const ACTION: u32 = 17;
}

/// `plRunTable`, indexed by (`plOrderIndex`, `plRunIndex`).
pub mod run {
    /// `plRunEntry`.
    pub const ENTRY: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 1, 3, 1];
    /// `PatchlabRunState`.
    pub const STATE: u32 = 2;
    /// 0..100, Unsigned32.
    pub const PERCENT: u32 = 3;
    /// What it is doing, SnmpAdminString.
    pub const PHASE: u32 = 4;
    /// Exit status of the package manager, Integer32; -1 before.
    pub const EXIT_CODE: u32 = 5;
    /// Last error, SnmpAdminString (0..255).
    pub const ERROR: u32 = 6;
    /// Attempt, from 1, Unsigned32.
    pub const ATTEMPT: u32 = 7;
    /// TruthValue: whether the host asks for a reboot.
    pub const REBOOT_NEEDED: u32 = 8;
    /// Digest of the package list before, OCTET STRING (0|32).
    pub const DIGEST_BEFORE: u32 = 9;
    /// Digest of the package list after, OCTET STRING (0|32).
    pub const DIGEST_AFTER: u32 = 10;
    /// Write 1 to abort; reads 0. Needs no signature. Honoured until the package manager starts.
    pub const ABORT: u32 = 11;
    /// `PatchlabRefusal`, 0 for none.
    pub const REFUSAL: u32 = 12;
    /// Duration so far or in all, milliseconds, Unsigned32.
    pub const DURATION: u32 = 13;
    /// The signed result statement (see `RunResult`), OCTET STRING (0..768); empty before the end.
    pub const RESULT: u32 = 14;
    /// Ed25519 signature over it, OCTET STRING (0|64).
    pub const RESULT_SIGNATURE: u32 = 15;
    /// Duration of the package manager's work alone, milliseconds, Unsigned32.
    pub const TRANSACTION_DURATION: u32 = 16;
    /// What it does: `PatchlabAction`; none(0) before its activation was verified.
    pub const ACTION: u32 = 17;
    /// Who started it: `operator UID` of the host itself; empty for a manager. SnmpAdminString.
    pub const ORIGIN: u32 = 18;
}

/// `plItemTable`, indexed by (`plOrderIndex`, `plRunIndex`, `plItemIndex`).
pub mod item {
    /// `plItemEntry`.
    pub const ENTRY: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 1, 4, 1];
    /// Package name, SnmpAdminString.
    pub const NAME: u32 = 2;
    /// Package architecture, SnmpAdminString.
    pub const ARCH: u32 = 3;
    /// Version before, SnmpAdminString, empty for none.
    pub const FROM: u32 = 4;
    /// Version to reach, SnmpAdminString, empty for removal.
    pub const TO: u32 = 5;
    /// pending(1), done(2), failed(3).
    pub const STATE: u32 = 6;
}

/// Scalars, `plTrust`: whom the host believes, and what is offered to change that; the instance is `.0`.
pub mod trust {
    /// `plTrust`.
    pub const GROUP: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 1, 5];
    /// Version of the root in force, Unsigned32. Its digest is `plAgentRootDigest`.
    pub const ROOT_VERSION: u32 = 1;
    /// Version of the revocation list in force, Unsigned32, 0 for none.
    pub const REVOCATION_VERSION: u32 = 2;
    /// Digest of the revocation list in force, OCTET STRING (0|32).
    pub const REVOCATION_DIGEST: u32 = 3;
    /// The newest signed time seen, DateAndTime; no instance before any.
    pub const TIME_FLOOR: u32 = 4;
    /// Where offered documents are, SnmpAdminString (0..255), read-write.
    pub const OFFER_URI: u32 = 5;
    /// Write the digest of a root document to have it fetched and, if it follows, taken; reads empty when that is
    /// decided.
    pub const OFFER_ROOT: u32 = 6;
    /// Write the digest of a revocation list to have it fetched and, if it follows, taken; reads empty when that is
    /// decided.
    pub const OFFER_REVOCATION: u32 = 7;
    /// `PatchlabRefusal` of the newest offer, 0 when it was taken.
    pub const OFFER_REFUSAL: u32 = 8;
    /// The sentence for people, SnmpAdminString (0..255).
    pub const OFFER_REASON: u32 = 9;
}

/// Packages, `plPackages`: two scalars and a table of what is installed, indexed by (`plPackageChange`,
/// `plPackageIndex`).
pub mod package {
    /// `plPackages`.
    pub const GROUP: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 1, 6];
    /// Number of the newest change, Unsigned32, 0 before any.
    pub const LAST_CHANGE: u32 = 1;
    /// Removals up to this change may be forgotten, Unsigned32.
    pub const FORGOTTEN: u32 = 2;
    /// `plPackageEntry`. A walk from `column.N` on sees what changed from change N on.
    pub const ENTRY: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 1, 6, 3, 1];
    /// Package name, SnmpAdminString.
    pub const NAME: u32 = 3;
    /// Package architecture, SnmpAdminString.
    pub const ARCH: u32 = 4;
    /// Its version, SnmpAdminString, empty when it was removed.
    pub const VERSION: u32 = 5;
    /// What it was built from, SnmpAdminString (0..128), empty when it does not say.
    pub const SOURCE: u32 = 6;
    /// That one's version, SnmpAdminString (0..128).
    pub const SOURCE_VERSION: u32 = 7;
}

/// `plWorkloadTable`, indexed by `plWorkloadHour` (1..168, from Monday 00:00 UTC on); rows of hours that were seen.
pub mod workload {
    /// `plWorkloadEntry`.
    pub const ENTRY: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 1, 7, 1];
    /// Processor time used, per mille of the host's, Unsigned32.
    pub const CPU: u32 = 2;
    /// Memory used, per mille, Unsigned32.
    pub const MEMORY: u32 = 3;
    /// Time in which the busiest disk worked, per mille, Unsigned32.
    pub const DISK: u32 = 4;
    /// TCP sockets in use (IPv4 and IPv6; connections, and what listens), Unsigned32.
    pub const SESSIONS: u32 = 5;
    /// How many weeks were averaged, Unsigned32.
    pub const WEEKS: u32 = 6;
}

/// `plHost`: what the host is and does. `plHostTable` is indexed by `plHostIndex` (1..).
pub mod host {
    /// `plHost`.
    pub const GROUP: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 1, 8];
    /// Where it stands, as its configuration says, SnmpAdminString (0..64).
    pub const LOCATION: u32 = 1;
    /// What it is for, as its configuration says, SnmpAdminString (0..64).
    pub const FUNCTION: u32 = 2;
    /// `physical`, `container`, or whose virtual machine it is, SnmpAdminString.
    pub const MACHINE: u32 = 3;
    /// Digest of the description, OCTET STRING (32): what [`crate::description::digest`] makes of the three above and every line.
    pub const DIGEST: u32 = 4;
    /// `plHostEntry`.
    pub const ENTRY: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 1, 8, 5, 1];
    /// A service or a listening port in words, SnmpAdminString.
    pub const LINE: u32 = 2;
}

/// Notifications, sent as informs; each carries `plAgentNotificationSequence`, `plAgentHost`, and for a run its state,
/// result and signature.
pub mod notification {
    /// `plRunChanged`: state of a run changed; varbinds after sysUpTime and snmpTrapOID: sequence, host,
    /// plRunState.O.R, plRunRefusal.O.R, and at the end of a run plRunResult.O.R and plRunResultSignature.O.R.
    pub const RUN_CHANGED: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 0, 1];
    /// `plAgentStarted`: the agent (re)started: sequence, host.
    pub const AGENT_STARTED: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 0, 2];
    /// `plTrustChanged`: an offered root or revocation list was taken or refused: sequence, host, plTrustRootVersion,
    /// plTrustRevocationVersion, plTrustOfferRefusal.
    pub const TRUST_CHANGED: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 0, 3];
    /// `plInventoryRead`: what is installed was read anew: sequence, host, plAgentInventoryDigest.
    pub const INVENTORY_READ: &[u32] = &[1, 3, 6, 1, 4, 1, 32473, 1, 0, 4];
}
