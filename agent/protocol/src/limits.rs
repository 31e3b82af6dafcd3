//! Limits on everything that is fetched or received. Each is a promise to the reader of the documents and to the host.

use std::time::Duration;

use jiff::SignedDuration;

/// Largest document (envelope) an agent fetches: 1 MiB.
pub const DOCUMENT_BYTES: u64 = 1024 * 1024;
/// Largest single package file: 4 GiB.
pub const PAYLOAD_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// Most package files in one order.
pub const FILES_PER_ORDER: usize = 2_000;
/// Most files beside the three scripts of an order.
pub const SCRIPT_FILES: usize = 64;
/// Most bytes that an order's scripts and the files beside them have together: 64 MiB.
pub const SCRIPT_BYTES: u64 = 64 * 1024 * 1024;
/// How long a script's `verify` may take: it only looks.
pub const SCRIPT_VERIFY: Duration = Duration::from_secs(120);
/// Most places near a host that are asked before the one that an order's row names.
pub const SOURCES: usize = 8;
/// Most hosts one activation names.
pub const HOSTS_PER_ACTIVATION: usize = 10_000;
/// Longest validity of an activation: 31 days. A permission that is not used in its time is given again.
pub const ACTIVATION_VALID: SignedDuration = SignedDuration::from_hours(31 * 24);
/// Most waivers that a release rests on.
pub const WAIVERS_PER_RELEASE: usize = 32;
/// Largest waiver, bytes of its envelope.
pub const WAIVER_BYTES: usize = 8 * 1024;
/// Longest word in a waiver (baseline, scenario, owner, class), bytes.
pub const WAIVER_WORD_BYTES: usize = 256;
/// Longest reason of a waiver, bytes.
pub const WAIVER_REASON_BYTES: usize = 512;
/// Longest validity of a waiver: 90 days. Whoever waives longer means to change the scenario.
pub const WAIVER_VALID: SignedDuration = SignedDuration::from_hours(90 * 24);
/// Most signatures looked at in one envelope.
pub const SIGNATURES_PER_ENVELOPE: usize = 32;
/// Largest PDU sent or accepted, bytes (fits an IPv6 minimum-MTU datagram with its headers).
pub const PDU_BYTES: usize = 1_232;
/// Largest signed result statement, bytes: an inform that carries it with its signature stays under [`PDU_BYTES`].
pub const RESULT_BYTES: usize = 768;
/// Longest enrolled host name, bytes: it stands in every result.
pub const HOST_NAME_BYTES: usize = 64;
/// Longest enrolment token, bytes of its line.
pub const TOKEN_BYTES: usize = 512;
/// Longest validity of an enrolment token: 30 days. It lies about somewhere until it is used.
pub const TOKEN_VALID: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Shortest validity of an enrolment token: a minute. Somebody has to carry it.
pub const TOKEN_VALID_LEAST: SignedDuration = SignedDuration::from_mins(1);
/// Largest application of a host for enrolment, bytes.
pub const APPLICATION_BYTES: usize = 16 * 1024;
/// Longest word in an application, bytes.
pub const APPLICATION_WORD_BYTES: usize = 64;
/// Most automatic updaters that an application names.
pub const APPLICATION_UPDATERS: usize = 16;
/// Largest answer to an application, bytes: a root document in base64, and a configuration.
pub const ADMISSION_BYTES: usize = 2 * 1024 * 1024;
/// How long an application takes at most, on either side, from the connection to the last byte of the answer.
pub const ADMISSION_TIME: Duration = Duration::from_secs(10);
/// Most documents that a revocation list names.
pub const REVOKED_DOCUMENTS: usize = 4_096;
/// Most roots that follow the pinned one; then the host is enrolled again.
pub const ROOT_SUCCESSORS: usize = 64;
/// Longest grace period before a reboot, minutes: a day.
pub const REBOOT_GRACE_MINUTES: u16 = 24 * 60;
/// How far a signer's clock may be ahead of the host's.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(10);
/// How long an agent may take at most to finish what a run left half-way, after the run's own lifetime is over: see [`settle`].
pub const SETTLE: Duration = Duration::from_secs(300);

/// How long an agent may take to finish what a run left half-way, after its lifetime is over: as long again, at most [`SETTLE`]. Managers wait
/// so much longer.
pub fn settle(lifetime: Duration) -> Duration {
    SETTLE.min(lifetime)
}
