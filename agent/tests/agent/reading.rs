//! What a manager may read, and with which credentials.

use patchlab_protocol::{Digest, PackageSystem, enrolment::SnmpUser, mib};

use super::{
    host::{Host, NAME, missing, missing_for},
    manager::oid,
};

#[test]
fn snmpwalk_reads_the_tables_with_v3_credentials_and_gets_nothing_without() {
    if missing() {
        return;
    }
    let host = Host::new();
    let monitor = host.monitor();
    let scalar = |column| oid(mib::agent::GROUP, &[column, 0]);
    assert_eq!(monitor.text(&scalar(mib::agent::HOST)), NAME);
    assert_eq!(monitor.text(&scalar(mib::agent::CLASS)), host.class.to_string());
    assert_eq!(monitor.octets(&scalar(mib::agent::ROOT_DIGEST)), host.authority.root.digest().as_bytes());
    assert_eq!(monitor.octets(&scalar(mib::agent::INVENTORY_DIGEST)), Digest::of("").as_bytes());
    host.installed(&host.package("web", "1", "", None));
    assert_eq!(monitor.octets(&scalar(mib::agent::INVENTORY_DIGEST)), Digest::of("web all 1\n").as_bytes());

    let everything = [oid(mib::MIB, &[])];
    let walk = monitor.tool("snmpwalk", &monitor.credentials(), &everything);
    assert!(walk.status.success());
    assert_eq!(String::from_utf8_lossy(&walk.stdout).lines().filter(|line| line.starts_with('.')).count(), 30);

    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let wrong = |auth: &str, privacy: &str| {
        let user = SnmpUser { auth: auth.into(), privacy: privacy.into(), ..monitor.user.clone() };
        host.manager(&user).credentials()
    };
    let attempts = [
        ("v2c", words("-v2c -c public")),
        ("v1", words("-v1 -c public")),
        ("noAuthNoPriv", words("-v3 -l noAuthNoPriv -u monitor")),
        ("authNoPriv", [words("-v3 -l authNoPriv -u monitor -a SHA-256 -A"), vec![monitor.user.auth.clone()]].concat()),
        ("wrong authentication", wrong("another passphrase", &monitor.user.privacy)),
        ("wrong privacy", wrong(&monitor.user.auth, "another passphrase")),
        ("unknown user", words("-v3 -l noAuthNoPriv -u nobody")),
    ];
    for (what, credentials) in attempts {
        let output = monitor.tool("snmpwalk", &credentials, &everything);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!said.contains("32473"), "{what}: {said}");
        assert!(!output.status.success() || said.trim().is_empty(), "{what}: {said}");
    }
}

#[test]
fn the_monitor_cannot_write_and_a_wrong_set_changes_nothing() {
    if missing() {
        return;
    }
    let host = Host::new();
    let (monitor, deployer) = (host.monitor(), host.deployer());
    let digest = Digest::of("order");
    let error = monitor.create(7, &host.uri, [Some(digest), None, None, None]).unwrap_err();
    assert!(error.contains("noAccess") || error.contains("authorizationError"), "{error}");

    // The second binding is wrong: nothing of the SET may remain.
    let cell = |column| oid(mib::order::ENTRY, &[column, 7]);
    let head = oid(mib::agent::GROUP, &[mib::agent::AUDIT_HEAD, 0]);
    let bindings = [(head.clone(), 'x', digest.to_string()), (cell(mib::order::DIGEST), 'x', "0011".into())];
    let error = deployer.set(&bindings).unwrap_err();
    assert!(error.contains("wrongLength"), "{error}");
    assert!(monitor.octets(&head).is_empty());
    let error = deployer.set(&[(cell(mib::order::STATE), 'i', "7".into())]).unwrap_err();
    assert!(error.contains("notWritable"), "{error}");
    let error = deployer.start(9, 1).unwrap_err();
    assert!(error.contains("commitFailed"), "{error}");

    deployer.set(&[(head.clone(), 'x', digest.to_string())]).unwrap();
    assert_eq!(monitor.octets(&head), digest.as_bytes());
    deployer.create(7, &host.uri, [Some(digest), None, None, None]).unwrap();
    deployer.create(7, &host.uri, [Some(digest), None, None, None]).expect("a repeated SET is no error");
    let error = deployer.create(7, &host.uri, [Some(Digest::of("other")), None, None, None]).unwrap_err();
    assert!(error.contains("inconsistentValue"), "{error}");
}

#[test]
fn a_manager_reads_only_the_packages_that_changed_since_it_last_looked() {
    if missing() {
        return;
    }
    let mut host = Host::new();
    for name in ["web", "lib", "doc"] {
        host.installed(&host.package(name, "1", "", None));
    }
    /// `INDEX.OF.THE.ROW VALUE` of the version column, from a change on.
    fn changed(host: &Host, since: i64) -> Vec<String> {
        let monitor = host.monitor();
        let column = oid(mib::package::ENTRY, &[mib::package::VERSION]);
        let from = format!("{column}.{since}.4294967295");
        let mut rows = Vec::new();
        let mut at = from;
        loop {
            let output = monitor.tool("snmpgetnext", &monitor.credentials(), &[at.clone()]);
            let said = String::from_utf8(output.stdout).unwrap();
            let Some((next, value)) = said.trim().split_once(' ') else { return rows };
            let Some(row) = next.strip_prefix(&format!("{column}.")) else { return rows };
            rows.push(format!("{row} {value}"));
            at = next.to_owned();
        }
    }
    let last = |host: &Host| host.monitor().number(&oid(mib::package::GROUP, &[mib::package::LAST_CHANGE, 0]));
    let first = last(&host);
    assert_eq!(changed(&host, 0).len(), 3);
    assert!(changed(&host, first).is_empty());

    host.installed(&host.package("lib", "2", "", None));
    super::host::run(
        std::process::Command::new("dpkg")
            .arg(format!("--root={}", host.path("root").display()))
            .args(["--purge", "doc"]),
    );
    host.kill();
    host.start();
    let second = last(&host);
    assert!(second > first);
    // One change, by index: what was removed has no version, and what did not change is not there.
    let rows = changed(&host, first);
    assert_eq!(rows, [format!("{second}.1 \"\""), format!("{second}.2 \"32 \"")]);
    assert!(changed(&host, second).is_empty());
}

#[test]
fn a_manager_reads_what_packages_were_built_from_of_dpkg_and_of_rpm() {
    for (system, version, fields, source) in [
        (PackageSystem::Dpkg, "1:2-3+b1", "Source: web-src (1:2-3)\n", ["web-src", "1:2-3"]),
        (PackageSystem::Dpkg, "1:2-3", "", ["web", "1:2-3"]),
        (PackageSystem::Rpm, "1:2-3", "", ["web", "2-3"]),
    ] {
        if missing_for(system) {
            continue;
        }
        let host = Host::of(system);
        host.installed(&host.package("web", version, fields, None));
        let monitor = host.monitor();
        let column = |number| oid(mib::package::ENTRY, &[number]);
        let [names, sources, versions] = [mib::package::NAME, mib::package::SOURCE, mib::package::SOURCE_VERSION]
            .map(|number| monitor.tool("snmpwalk", &monitor.credentials(), &[column(number)]))
            .map(|walked| String::from_utf8(walked.stdout).unwrap());
        // The row of this one, by its name in hexadecimal digits.
        let row = names.lines().find(|line| line.contains("\"77 65 62 \"")).unwrap_or_else(|| panic!("{names}"));
        let index = row.split_once(' ').unwrap().0.strip_prefix(&column(mib::package::NAME)).unwrap();
        let cell = |number| monitor.text(&format!("{}{index}", column(number)));
        let said = [mib::package::SOURCE, mib::package::SOURCE_VERSION].map(cell);
        assert_eq!(said, source.map(str::to_owned), "{system}: {sources} {versions}");
        let words = ["inventory", "--json", "--config"];
        let shown = host.agent().args(words).arg(host.path("id/agent.toml")).output().unwrap().stdout;
        let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
        let details = shown["details"].as_array().unwrap().iter().find(|detail| detail["name"] == "web").unwrap();
        assert_eq!(details["source"], serde_json::json!({ "name": source[0], "version": source[1] }), "{system}");
        let release = version.rsplit_once('-').unwrap().1;
        assert_eq!(details["parts"], serde_json::json!({ "epoch": 1, "version": "2", "release": release }));
    }
}

#[test]
fn hours_of_the_week_that_were_seen_are_read_in_per_mille() {
    use patchlab_agent::profile::{FILE_NAME, Load, Week};
    if missing() {
        return;
    }
    let mut host = Host::new();
    host.kill();
    let mut week = Week::default();
    week.take(0, Load { cpu: 0.25, memory: 0.5, disk: 0.125, sessions: 42.0 });
    week.take(167, Load::default());
    std::fs::write(host.path("state").join(FILE_NAME), serde_json::to_vec(&week).unwrap()).unwrap();
    host.start();
    let monitor = host.monitor();
    let cell = |column, hour| monitor.number(&oid(mib::workload::ENTRY, &[column, hour]));
    use mib::workload::{CPU, DISK, MEMORY, SESSIONS, WEEKS};
    assert_eq!([CPU, MEMORY, DISK, SESSIONS, WEEKS].map(|column| cell(column, 1)), [250, 500, 125, 42, 1]);
    let walk = monitor.tool("snmpwalk", &monitor.credentials(), &[oid(mib::workload::ENTRY, &[WEEKS])]);
    let rows = String::from_utf8(walk.stdout).unwrap();
    assert_eq!(rows, format!("{0}.1 1\n{0}.168 1\n", oid(mib::workload::ENTRY, &[WEEKS])));
}

#[test]
fn an_agent_is_read_by_ipv6() {
    if missing() {
        return;
    }
    // As a host is enrolled that is reached by an address of IPv6: every one of its own.
    for listens in ["[::1]:0", "[::]:0"] {
        let host = Host::listening(listens);
        let mut monitor = host.monitor();
        assert!(monitor.address.is_ipv6(), "{}", monitor.address);
        monitor.address.set_ip(std::net::Ipv6Addr::LOCALHOST.into());
        assert_eq!(monitor.text(&oid(mib::agent::GROUP, &[mib::agent::HOST, 0])), NAME);
    }
}
