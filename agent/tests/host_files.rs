//! The files that a host is given: the unit as systemd reads it, and a configuration that names every key.

// JUSTIFICATION: helpers of tests may stop a test as tests do.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use patchlab_protocol::enrolment::{DEFAULT_LISTEN, DEFAULT_STATE_DIR, Enrolment, Packaging};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("etc").join(name)
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit_but_that_the_agent_is_not_installed() {
    let output =
        match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(file("patchlab-agent.service")).output()
        {
            Ok(output) => output,
            Err(error) => {
                eprintln!("SKIPPED: systemd-analyze: {error}");
                return;
            }
        };
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let complaints: Vec<&str> =
        said.lines().filter(|line| line.contains("patchlab-agent") && !line.contains("is not executable")).collect();
    assert!(complaints.is_empty(), "{said}");
}

#[test]
fn what_an_earlier_agent_left_is_finished_before_systemd_hears_that_it_is_ready_however_long_that_takes() {
    let unit = fs::read_to_string(file("patchlab-agent.service")).unwrap();
    let says = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned);
    assert_eq!((says("Type").as_deref(), says("TimeoutStartSec").as_deref()), (Some("notify"), Some("infinity")));
}

#[test]
fn nothing_in_the_unit_makes_maintainer_scripts_and_checks_find_another_host_than_there_is() {
    let unit = fs::read_to_string(file("patchlab-agent.service")).unwrap();
    let keys = unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    // Each of systemd.exec(5)'s that makes a mount namespace, or filters what children may ask the kernel for, begins so.
    let confines = |key: &str| {
        let is_kept = key == "RestrictRealtime";
        let begins =
            ["Private", "Protect", "ReadOnly", "ReadWrite", "Inaccessible", "NoExec", "Exec", "Temporary", "Bind"];
        let named = ["NoNewPrivileges", "DynamicUser", "CapabilityBoundingSet", "MemoryDenyWriteExecute"];
        let filters = ["Restrict", "SystemCall", "LockPersonality", "Root", "Mount", "User", "Group"];
        !is_kept
            && key != "ExecStart"
            && [&begins[..], &named, &filters].concat().iter().any(|word| key.starts_with(word))
    };
    let confined: Vec<&str> = keys.map(|(key, _)| key).filter(|key| confines(key)).collect();
    assert!(confined.is_empty(), "{confined:?}");
    assert!(unit.contains("\nKillMode=process\n") && unit.contains("\nWatchdogSec="), "{unit}");
}

/// Tables and keys of a TOML document, dotted.
fn keys(table: &toml::Table, before: &str) -> BTreeSet<String> {
    table
        .iter()
        .flat_map(|(key, value)| {
            let path = format!("{before}{key}");
            let below = value.as_table().map(|table| keys(table, &format!("{path}."))).unwrap_or_default();
            below.into_iter().chain([path])
        })
        .collect()
}

#[test]
fn the_configuration_shown_is_read_and_names_every_key_with_its_default() {
    let text = fs::read_to_string(file("agent.toml")).unwrap();
    let shown: Enrolment = toml::from_str(&text).unwrap();
    shown.check().unwrap();
    assert_eq!((shown.listen, shown.state_dir.to_str().unwrap()), (DEFAULT_LISTEN, DEFAULT_STATE_DIR));

    // Everything that can be written, written: each of its keys stands in the file, if only as a comment.
    let mut full = shown.clone();
    full.ledger_dir = Some(DEFAULT_STATE_DIR.into());
    full.hooks = Some("/etc/patchlab-agent/hooks".into());
    full.engine_id = full.inform.as_ref().map(|sink| sink.engine_id.clone());
    full.packages.root = "/srv/other".into();
    full.fetch.sources = vec!["http://192.0.2.10:8470/".into()];
    full.fetch.rate = Some("10MiB/s".parse().unwrap());
    full.packages.system = Some(Packaging::Rpm);
    let written = toml::to_string(&full).unwrap();
    for key in keys(&written.parse().unwrap(), "") {
        let last = key.rsplit('.').next().unwrap();
        let stands = text.lines().any(|line| {
            let line = line.trim_start_matches("# ");
            line.starts_with(&format!("{last} = ")) || line == format!("[{key}]")
        });
        assert!(stands, "{key} is not in the file");
    }
    assert!(text.contains(&format!("# listen = \"{DEFAULT_LISTEN}\"")));
    assert!(text.contains(&format!("# state_dir = \"{DEFAULT_STATE_DIR}\"")));
}

/// Largest program that a host is given, bytes.
const PROGRAM_BYTES: u64 = 12 * 1024 * 1024;
/// `p_type` of the segment that names a dynamic linker, elf(5).
const PT_INTERP: u32 = 3;

/// `p_type` of every segment of a program, ELF of 64 bits in this machine's order.
fn segments(elf: &[u8]) -> Vec<u32> {
    assert_eq!(&elf[..5], b"\x7fELF\x02");
    let two = |at: usize| usize::from(u16::from_ne_bytes(elf[at..at + 2].try_into().unwrap()));
    let table = usize::try_from(u64::from_ne_bytes(elf[32..40].try_into().unwrap())).unwrap();
    let (size, number) = (two(54), two(56));
    let kind = |n: usize| u32::from_ne_bytes(elf[table + n * size..][..4].try_into().unwrap());
    (0..number).map(kind).collect()
}

#[test]
fn the_program_is_below_12_mib_and_needs_no_other_file() {
    let path = match std::env::var_os("PATCHLAB_AGENT") {
        Some(path) => PathBuf::from(path),
        None if cfg!(debug_assertions) => return eprintln!("SKIPPED: a debug build is not what hosts are given"),
        None => env!("CARGO_BIN_EXE_patchlab-agent").into(),
    };
    let program = fs::read(&path).unwrap();
    assert!((program.len() as u64) < PROGRAM_BYTES, "{} has {} bytes", path.display(), program.len());
    assert!(!segments(&program).contains(&PT_INTERP), "{} names a dynamic linker", path.display());
    // What it is held against: this test itself is linked as most programs are.
    assert!(segments(&fs::read("/proc/self/exe").unwrap()).contains(&PT_INTERP));
}

#[test]
fn nothing_is_built_with_openssl() {
    let lock = fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock")).unwrap();
    let packages: Vec<&str> = lock.lines().filter_map(|line| line.strip_prefix("name = ")).collect();
    assert!(packages.contains(&"\"rustls\""));
    let openssl: Vec<_> =
        packages.iter().filter(|name| name.contains("openssl") || name.contains("native-tls")).collect();
    assert!(openssl.is_empty(), "{openssl:?}");
}
