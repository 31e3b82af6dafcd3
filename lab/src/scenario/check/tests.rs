use std::{path::Path, process::Command};

use patchlab_check::written;

use super::*;

fn set(items: &[&str]) -> BTreeSet<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

fn found(kind: CheckKind, control: &str, patched: &str) -> Findings {
    Check { kind, level: Level::Fail, tolerance: DISK_TOLERANCE }.compare(control, patched)
}

#[test]
fn checks_read_what_the_programs_write() {
    assert_eq!(failed_units(""), set(&[]));
    assert_eq!(
        failed_units(
            "● nginx.service loaded failed failed A high performance web server\nx.mount loaded failed failed x\n"
        ),
        set(&["nginx.service", "x.mount"])
    );
    assert_eq!(
        serial_panic(
            "[    0.000000] Linux version\n[    1.5] Kernel panic - not syncing: VFS: Unable to mount\r\n[ 2.0] XFS (sda1): Mounting\n"
        ),
        set(&["Kernel panic - not syncing: VFS: Unable to mount"])
    );
    let journal = concat!(
        r#"{"SYSLOG_IDENTIFIER":"nginx","MESSAGE":"unknown directive \"x\" in /etc/nginx/a.conf:12"}"#,
        "\nnot json\n",
        r#"{"_SYSTEMD_UNIT":"b.service","MESSAGE":[104,105]}"#,
        "\n",
        r#"{"SYSLOG_IDENTIFIER":"c","MESSAGE":null}"#,
    );
    assert_eq!(
        journal_errors(journal),
        set(&["nginx: unknown directive \"x\" in /etc/nginx/a.conf:N", "b.service: hi"])
    );
}

#[test]
fn a_check_blames_the_patch_only_for_what_is_new() {
    use Status::{Fail, Pass};
    let check = |kind, level| Check { kind, level, tolerance: DISK_TOLERANCE };
    let (none, one, two) = (set(&[]), set(&["a"]), set(&["a", "b"]));
    let table = [
        (Level::Fail, &none, &none, (Pass, Pass)),
        (Level::Fail, &one, &one, (Fail, Fail)),
        (Level::Fail, &one, &none, (Fail, Pass)),
        (Level::Fail, &none, &one, (Pass, Fail)),
        (Level::Fail, &one, &two, (Pass, Fail)),
        (Level::Info, &none, &two, (Pass, Pass)),
        (Level::ExpectFail, &one, &none, (Pass, Fail)),
        (Level::ExpectFail, &one, &one, (Pass, Pass)),
    ];
    for (level, control, patched, expected) in table {
        let found = differential(check(CheckKind::FailedUnits, level), control, patched);
        assert_eq!(found, expected, "{level:?} {control:?} {patched:?}");
    }
    // What every machine has is none of anybody's failures.
    let table = [
        (Level::Fail, &none, &none, (Pass, Pass)),
        (Level::Fail, &one, &one, (Pass, Pass)),
        (Level::Fail, &one, &none, (Pass, Pass)),
        (Level::Fail, &one, &two, (Pass, Fail)),
        (Level::Info, &one, &two, (Pass, Pass)),
        (Level::ExpectFail, &one, &one, (Pass, Fail)),
        (Level::ExpectFail, &one, &two, (Pass, Pass)),
    ];
    for kind in [CheckKind::SetuidFiles, CheckKind::ChangedConfiguration, CheckKind::JournalErrors] {
        for (level, control, patched, expected) in table {
            let found = differential(check(kind, level), control, patched);
            assert_eq!(found, expected, "{kind:?} {level:?} {control:?} {patched:?}");
        }
    }
    let (_, patched) =
        check(CheckKind::SetuidFiles, Level::Fail).outcomes(&Findings { control: one.clone(), patched: one });
    assert_eq!((patched.status, patched.output.as_str()), (Pass, "a"));
}

#[test]
fn a_unit_that_failed_between_two_looks_is_found() {
    let text = concat!(
        "now.service loaded failed failed x\n",
        r#"{"UNIT":"now.service"}"#,
        "\n",
        r#"{"UNIT":"then.service"}"#,
        "\n",
        // The lab's own way in: a reboot ends it in the middle of an answer.
        r#"{"UNIT":"qemu-guest-agent.service"}"#,
        "\nId=again.service\nNRestarts=2\n\nId=good.service\nNRestarts=0\n"
    );
    // The first record of `systemctl show` follows the journal's lines without an empty one between.
    assert_eq!(
        failed_units(text),
        set(&["now.service", "then.service (failed meanwhile)", "again.service (failed meanwhile)"])
    );
}

#[test]
fn crashes_are_found_by_every_sign_of_them() {
    let text = concat!(
        r#"{"COREDUMP_COMM":"nginx","COREDUMP_SIGNAL_NAME":"SIGSEGV"}"#,
        "\nnginx[812]: segfault at 10 ip 000055d0c1 sp 00007ffe error 4 in nginx\n",
        "traps: crash[99] trap int3 ip:55d0c1 sp:7ffe error:0\n",
        "a.service: Main process exited, code=dumped, status=6/ABRT\ncore file /srv/core.12\n"
    );
    assert_eq!(
        found(CheckKind::Coredump, "", text).patched,
        set(&[
            "nginx: SIGSEGV",
            "nginx[N]: segfault",
            "traps: crash[N] trap intN",
            "a.service: Main process exited, code=dumped, status=N/ABRT",
            "core file /srv/core.N",
        ])
    );
}

#[test]
fn ports_are_compared_with_the_control_in_both_directions() {
    let control = "tcp LISTEN 0 511 0.0.0.0:80 0.0.0.0:* users:((\"nginx\",pid=1,fd=6))\n\
        udp UNCONN 0 0 0.0.0.0:40001 0.0.0.0:* users:((\"avahi-daemon\",pid=3,fd=6))\n";
    let patched = "tcp LISTEN 0 5 [::]:8443 [::]:* users:((\"shop\",pid=7,fd=3))\n\
        udp UNCONN 0 0 0.0.0.0:40002 0.0.0.0:* users:((\"avahi-daemon\",pid=3,fd=6))\n\
        tcp LISTEN 0 5 127.0.0.1:161 0.0.0.0:* users:((\"patchlab-agent\",pid=7,fd=3))\n";
    let found = found(CheckKind::ListeningPorts, control, patched);
    assert_eq!(found.control, set(&[]));
    assert_eq!(found.patched, set(&["tcp [::]:8443 by shop appeared", "tcp 0.0.0.0:80 by nginx vanished"]));
    // In a guest that gives other numbers, the same two are chosen.
    let narrow = |text: &str| format!("50000\t60000\n{text}");
    assert_eq!(self::found(CheckKind::ListeningPorts, &narrow(control), &narrow(patched)).patched.len(), 4);
}

#[test]
fn what_differs_between_any_two_clones_is_no_news() {
    let journal = |host: &str, id: &str, number: u32| {
        format!(
            "host {host}\n{{\"SYSLOG_IDENTIFIER\":\"boot\",\"MESSAGE\":\"{host}: no lease for {id}, process {number}, no control\"}}\n"
        )
    };
    let control = journal("control", "0123456789abcdef0123456789abcdef", 12);
    let patched = journal("patched", "fedcba9876543210fedcba9876543210", 1312);
    let found = found(CheckKind::JournalErrors, &control, &patched);
    assert_eq!(found.control, set(&["boot: HOST: no lease for N, process N, no HOST"]));
    assert_eq!(found.control, found.patched);
    let core = |host: &str, number: u32| format!("host {host}\ncore file /srv/1/core.{number}\n");
    let found = self::found(CheckKind::Coredump, &core("control", 812), &core("patched", 77));
    assert_eq!((found.control, found.patched), (set(&["core file /srv/1/core.N"]), set(&["core file /srv/1/core.N"])));
}

#[test]
fn disks_may_grow_within_the_tolerance_and_by_what_the_agent_holds() {
    let use_of = |root: u64, agent: u64| format!("{} /\n5 /srv\nagent {agent}\n", root << 20);
    let found = |patched: String| found(CheckKind::DiskGrowth, &use_of(1000, 0), &patched).patched;
    assert_eq!(found(use_of(1100, 0)), set(&[]));
    assert_eq!(found(use_of(1101, 0)), set(&["/ holds 101 MiB more than on the control (100MiB allowed)"]));
    assert_eq!(found(use_of(1101, 1 << 20)), set(&[]));
    assert_eq!(found(use_of(900, 0)), set(&[]));
}

#[test]
fn configuration_that_differs_and_what_was_left_beside_it_is_found() {
    let text = "/etc/a b: FAILED\n/etc/gone: FAILED open or read\nleft /etc/x.dpkg-new\n/etc/fine: OK\n";
    assert_eq!(
        found(CheckKind::ChangedConfiguration, "", text).patched,
        set(&["changed /etc/a b", "missing /etc/gone", "left /etc/x.dpkg-new"])
    );
}

#[test]
fn the_reason_names_what_is_new_first() {
    let check = Check { kind: CheckKind::SetuidFiles, level: Level::Fail, tolerance: DISK_TOLERANCE };
    let old = "-rwsr-xr-x root:root /usr/bin/su\n";
    let new = format!("{old}-rwsr-xr-x root:root /zz\n");
    let (control, patched) = check.outcomes(&check.compare(old, &new));
    assert_eq!(control.status, Status::Pass);
    assert_eq!(patched.reason, "1 found: -rwsr-xr-x root:root /zz");
    assert_eq!(patched.output, "-rwsr-xr-x root:root /zz\n-rwsr-xr-x root:root /usr/bin/su");
}

#[test]
fn only_the_growth_of_a_disk_has_a_tolerance() {
    #[derive(Deserialize)]
    struct Form {
        check: Check,
    }
    let read = |text: &str| written::parse::<Form>(text, Path::new("s.toml")).map(|form| form.check);
    let grown = read("check = { kind = \"disk-growth\", tolerance = \"2GiB\" }").unwrap();
    assert_eq!(grown.tolerance, ByteSize(2 << 30));
    let error = read("check = { kind = \"coredump\", tolerance = \"2GiB\" }").unwrap_err().to_string();
    assert!(error.contains("only the check disk-growth has a tolerance"), "{error}");
}

/// Every collector is a script that this machine's shell takes, and none but the serial log is without.
#[test]
fn every_kind_is_collected() {
    for kind in CheckKind::ALL {
        let Some(script) = kind.collector(Timestamp::UNIX_EPOCH) else {
            assert_eq!(kind, CheckKind::SerialPanic);
            continue;
        };
        // Not the root's disk alone.
        assert!(!script.contains("find / "), "{}", kind.name());
        let out = Command::new("sh").args(["-n", "-c", &script]).output().unwrap();
        assert!(out.status.success(), "{}: {}", kind.name(), String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn a_unit_that_fails_in_turns_on_both_is_no_news_whatever_its_state_at_the_look() {
    let failed = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
    let table: [(&[&str], &[&str], bool); 4] = [
        (&["a.service"], &["a.service (failed meanwhile)"], true),
        (&["a.service (failed meanwhile)"], &["a.service (failed meanwhile)"], true),
        // It came back on the control, and not on the patched clone.
        (&["a.service (failed meanwhile)"], &["a.service"], false),
        (&[], &["a.service (failed meanwhile)"], false),
    ];
    for (control, patched, alike) in table {
        let found = read::of_the_same_units(Findings { control: failed(control), patched: failed(patched) });
        assert_eq!(found.patched.is_subset(&found.control), alike, "{control:?} {patched:?}");
    }
}

#[test]
fn the_same_trouble_of_two_kernels_is_the_same() {
    let say = |pid: u32| format!("[   12.5] Out of memory: Killed process {pid} (eater) total-vm:{pid}kB\n");
    assert_eq!(serial_panic(&say(812)), serial_panic(&say(77)));
    let disk = "[ 3.0] EXT4-fs error (device sda1): inode #2: comm x\n";
    assert_eq!(serial_panic(disk), set(&["EXT4-fs error (device sda1): inode #N: comm x"]));
    let stall =
        "[ 9.0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s!\n[ 9.9] rcu: INFO: rcu_sched detected stalls\n";
    assert_eq!(serial_panic(stall), set(&[]));
}
