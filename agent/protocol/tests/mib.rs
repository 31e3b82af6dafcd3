//! The MIB's text against `mib.rs`, and against the checker everybody uses.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use patchlab_protocol::{
    ItemState, Refusal,
    document::{Preparation, RunState},
    mib,
};

/// A tool's output on the MIB; `None`, said aloud, when the tool is not installed.
fn tool(name: &str, arguments: &[&str]) -> Option<String> {
    let mibs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("mibs");
    let output = Command::new(name)
        .args(arguments)
        .arg("./PATCHLAB-MIB.txt")
        .current_dir(&mibs)
        .env("SMIPATH", mibs.join("base"))
        .output();
    match output {
        Ok(output) => Some([output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat()),
        Err(error) => {
            eprintln!("SKIPPED: {name}: {error}");
            None
        }
    }
}

#[test]
fn smilint_is_silent_at_its_highest_level() {
    let Some(said) = tool("smilint", &["-l", "6"]) else { return };
    assert_eq!(said, "");
}

#[test]
fn the_numbers_of_the_text_are_the_numbers_of_the_code() {
    let Some(said) = tool("smidump", &["-f", "identifiers"]) else { return };
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let text: BTreeMap<String, String> = said
        .lines()
        .map(words)
        .filter(|words| words.len() == 4)
        .map(|words| (words[1].clone(), words[3].clone()))
        .collect();
    let dotted = |prefix: &[u32], column: Option<u32>| {
        prefix.iter().copied().chain(column).map(|arc| arc.to_string()).collect::<Vec<_>>().join(".")
    };
    let mut expected: Vec<(String, String)> = [
        ("patchlabMIB", mib::MIB),
        ("plNotifications", mib::NOTIFICATIONS),
        ("plObjects", mib::OBJECTS),
        ("plAgent", mib::agent::GROUP),
        ("plOrderEntry", mib::order::ENTRY),
        ("plRunEntry", mib::run::ENTRY),
        ("plItemEntry", mib::item::ENTRY),
        ("plRunChanged", mib::notification::RUN_CHANGED),
        ("plAgentStarted", mib::notification::AGENT_STARTED),
        ("plTrust", mib::trust::GROUP),
        ("plPackages", mib::package::GROUP),
        ("plPackageEntry", mib::package::ENTRY),
        ("plWorkloadEntry", mib::workload::ENTRY),
        ("plHost", mib::host::GROUP),
        ("plHostEntry", mib::host::ENTRY),
        ("plTrustChanged", mib::notification::TRUST_CHANGED),
        ("plInventoryRead", mib::notification::INVENTORY_READ),
    ]
    .map(|(name, arcs)| (name.to_owned(), dotted(arcs, None)))
    .to_vec();
    let mut columns = |prefix: &[u32], name: &str, columns: &[(&str, u32)]| {
        expected.extend(columns.iter().map(|(column, n)| (format!("{name}{column}"), dotted(prefix, Some(*n)))));
    };
    {
        use mib::agent::*;
        let all = [
            ("Version", VERSION),
            ("Host", HOST),
            ("Class", CLASS),
            ("InventoryDigest", INVENTORY_DIGEST),
            ("RootDigest", ROOT_DIGEST),
            ("LastChange", LAST_CHANGE),
            ("AuditHead", AUDIT_HEAD),
            ("NotificationSequence", NOTIFICATION_SEQUENCE),
            ("ResultHead", RESULT_HEAD),
            ("ReadInventory", READ_INVENTORY),
        ];
        columns(GROUP, "plAgent", &all);
    }
    {
        use mib::order::*;
        let all = [
            ("RowStatus", ROW_STATUS),
            ("StorageType", STORAGE_TYPE),
            ("Digest", DIGEST),
            ("Release", RELEASE),
            ("Approval", APPROVAL),
            ("Activation", ACTIVATION),
            ("Uri", URI),
            ("Lifetime", LIFETIME),
            ("State", STATE),
            ("Refusal", REFUSAL),
            ("RefusalReason", REFUSAL_REASON),
            ("RunIndexNext", RUN_INDEX_NEXT),
            ("Start", START),
            ("NotBefore", NOT_BEFORE),
            ("NotAfter", NOT_AFTER),
            ("Action", ACTION),
        ];
        columns(ENTRY, "plOrder", &all);
    }
    {
        use mib::run::*;
        let all = [
            ("State", STATE),
            ("Percent", PERCENT),
            ("Phase", PHASE),
            ("ExitCode", EXIT_CODE),
            ("Error", ERROR),
            ("Attempt", ATTEMPT),
            ("RebootNeeded", REBOOT_NEEDED),
            ("DigestBefore", DIGEST_BEFORE),
            ("DigestAfter", DIGEST_AFTER),
            ("Abort", ABORT),
            ("Refusal", REFUSAL),
            ("Duration", DURATION),
            ("Result", RESULT),
            ("ResultSignature", RESULT_SIGNATURE),
            ("TransactionDuration", TRANSACTION_DURATION),
            ("Action", ACTION),
            ("Origin", ORIGIN),
        ];
        columns(ENTRY, "plRun", &all);
    }
    {
        use mib::trust::*;
        let all = [
            ("RootVersion", ROOT_VERSION),
            ("RevocationVersion", REVOCATION_VERSION),
            ("RevocationDigest", REVOCATION_DIGEST),
            ("TimeFloor", TIME_FLOOR),
            ("OfferUri", OFFER_URI),
            ("OfferRoot", OFFER_ROOT),
            ("OfferRevocation", OFFER_REVOCATION),
            ("OfferRefusal", OFFER_REFUSAL),
            ("OfferReason", OFFER_REASON),
        ];
        columns(GROUP, "plTrust", &all);
    }
    {
        use mib::package::*;
        columns(GROUP, "plPackages", &[("LastChange", LAST_CHANGE), ("Forgotten", FORGOTTEN)]);
        let all = [
            ("Name", NAME),
            ("Arch", ARCH),
            ("Version", VERSION),
            ("Source", SOURCE),
            ("SourceVersion", SOURCE_VERSION),
        ];
        columns(ENTRY, "plPackage", &all);
    }
    {
        use mib::workload::*;
        let all = [("Cpu", CPU), ("Memory", MEMORY), ("Disk", DISK), ("Sessions", SESSIONS), ("Weeks", WEEKS)];
        columns(ENTRY, "plWorkload", &all);
    }
    {
        use mib::host::*;
        columns(
            GROUP,
            "plHost",
            &[("Location", LOCATION), ("Function", FUNCTION), ("Machine", MACHINE), ("Digest", DIGEST)],
        );
        columns(ENTRY, "plHost", &[("Line", LINE)]);
    }
    {
        use mib::item::*;
        let all = [("Name", NAME), ("Arch", ARCH), ("From", FROM), ("To", TO), ("State", STATE)];
        columns(ENTRY, "plItem", &all);
    }
    for (name, arcs) in expected {
        assert_eq!(text.get(&name), Some(&arcs), "{name}");
    }
}

/// `rolling-back` as SMI writes it: `rollingBack`.
fn label(name: &str) -> String {
    let mut words = name.split('-');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |all, word| all + &word[..1].to_uppercase() + &word[1..])
}

#[test]
fn enumerations_have_the_same_names_and_numbers() {
    let text = include_str!("../mibs/PATCHLAB-MIB.txt");
    let states = RunState::ALL.map(|state| (state.name(), state as i32)).into_iter();
    let refusals = Refusal::ALL.iter().map(|refusal| (refusal.name(), *refusal as i32));
    let items = ItemState::ALL.map(|state| format!("{}({})", state.name(), state as i32)).join(", ");
    assert!(text.contains(&format!("INTEGER {{ {items} }}")), "{items}");
    let preparations = [Preparation::Probe, Preparation::Prefetch].map(|it| (it.name(), it as i32));
    for (name, number) in states.chain(refusals).chain(preparations) {
        let entry = format!("{}({number})", label(name));
        assert!(text.matches(&entry).count() >= 2, "{entry} is not in both the list and its explanation");
    }
}

#[test]
fn the_number_of_a_state_never_changes() {
    // Signed results name states, and managers of other versions read their numbers.
    let known = [
        "received",
        "fetching",
        "verifying",
        "applying",
        "validating",
        "rolling-back",
        "succeeded",
        "failed",
        "refused",
        "rolled-back",
        "rollback-failed",
        "aborted",
        "waiting-window",
        "waiting-lock",
        "preflight",
        "rebooting",
    ];
    assert_eq!(RunState::ALL.map(RunState::name), known);
    for (number, state) in (1..).zip(RunState::ALL) {
        assert_eq!((RunState::from_number(number), state as i64), (Some(state), number));
        assert_eq!(serde_json::to_value(state).unwrap(), state.name());
    }
}
