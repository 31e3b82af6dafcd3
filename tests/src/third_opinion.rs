//! Net-SNMP's `snmpwalk` against an agent: neither side's code is ours.

use std::{
    net::SocketAddr,
    process::{Command, Output},
};

use patchlab_protocol::{enrolment::SnmpUser, mib};

fn oid(arcs: &[u32]) -> String {
    arcs.iter().map(|arc| format!(".{arc}")).collect()
}

/// Seconds until an answer counts as lost, and how often is asked again: of one that must come, on a machine that is emulated beside others;
/// and of one that must not.
const PATIENT: [&str; 4] = ["-t", "10", "-r", "5"];
const BRIEF: [&str; 4] = ["-t", "3", "-r", "1"];

fn walk(address: SocketAddr, credentials: &[&str], patience: [&str; 4]) -> Output {
    Command::new("snmpwalk")
        .args(credentials)
        .args(patience)
        .args(["-m", "", "-Oqn", "-Ox"])
        .args([address.to_string(), oid(mib::MIB)])
        .env("LC_ALL", "C")
        .output()
        .expect("snmpwalk runs: package snmp, which tests/run installs")
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with('.')).map(str::to_owned).collect()
}

/// The tables of an agent that has carried out an order can be read with v3 credentials, and nothing of them without.
///
/// # Panics
/// They cannot, or something can.
pub fn reads_with_credentials_alone(address: SocketAddr, host: &str, user: &SnmpUser) {
    let good = [
        "-v3",
        "-l",
        "authPriv",
        "-u",
        &user.name,
        "-a",
        "SHA-256",
        "-A",
        &user.auth,
        "-x",
        "AES",
        "-X",
        &user.privacy,
    ];
    let read = walk(address, &good, PATIENT);
    assert!(read.status.success(), "{host}: {}", String::from_utf8_lossy(&read.stderr));
    let all = lines(&read);
    for (table, entry) in [("order", mib::order::ENTRY), ("run", mib::run::ENTRY), ("item", mib::item::ENTRY)] {
        let prefix = format!("{}.", oid(entry));
        assert!(
            all.iter().any(|line| line.starts_with(&prefix)),
            "{host}: no row in the {table} table:\n{}",
            all.join("\n")
        );
    }
    let name = format!("{}.{}.0 ", oid(mib::agent::GROUP), mib::agent::HOST);
    let digits: String = host.bytes().map(|byte| format!("{byte:02X} ")).collect();
    assert!(all.iter().any(|line| line.starts_with(&name) && line.contains(digits.trim_end())), "{host}: {all:?}");

    let wrong_auth = [&good[..8], &["wrong passphrase"], &good[9..]].concat();
    let wrong_privacy = [&good[..12], &["wrong passphrase"]].concat();
    let attempts: [(&str, &[&str]); 6] = [
        ("v1", &["-v1", "-c", "public"]),
        ("v2c", &["-v2c", "-c", "public"]),
        ("noAuthNoPriv", &["-v3", "-l", "noAuthNoPriv", "-u", &user.name]),
        ("authNoPriv", &["-v3", "-l", "authNoPriv", "-u", &user.name, "-a", "SHA-256", "-A", &user.auth]),
        ("wrong authentication", &wrong_auth),
        ("wrong privacy", &wrong_privacy),
    ];
    for (what, credentials) in attempts {
        let refused = walk(address, credentials, BRIEF);
        assert_eq!(lines(&refused), Vec::<String>::new(), "{host}: {what} reads something");
    }
    eprintln!("{host} at {address}: {} objects with credentials, none without", all.len());
}
