//! The manager against a host's tables over real SNMPv3: pushes, follows, repeats, waits, and takes nobody's word but the host's.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod host;

use std::time::Duration;

use host::{Course, TestHost};
use patchlab::{
    deploy::{
        DeployError, Manager, ManagerError, Observer, Patience, Row, SnmpManager, push_and_run,
        result::{self, Expected},
        row::{self, Progress, Unobserved},
        sink::{Bells, Sink},
        survey::{self, Looked, Packages},
    },
    enrol::Material,
};
use patchlab_protocol::{
    Digest,
    document::RunState,
    inventory::Inventory,
    mib::{agent, order, package, workload},
};

const QUICK: Patience = Patience { wait: Duration::from_millis(400), tries: 5 };

fn row(order: &str) -> Row {
    Row {
        index: 7,
        order: Digest::of(order),
        release: Some(Digest::of("release")),
        approval: Some(Digest::of("approval")),
        activation: Some(Digest::of("activation")),
        uri: "http://127.0.0.1:1".into(),
        lifetime: Duration::from_secs(60),
        window: None,
        preparation: None,
    }
}

async fn pair(name: &str) -> (TestHost, SnmpManager, Material) {
    let material = Material::generate(name).unwrap();
    let key = patchlab_protocol::SigningKey::from_seed(&[9; 32]);
    let user = &material.credentials.deployer;
    let host = TestHost::start(name, &material.engine_id, user, key, Digest::of("root")).await;
    let manager = SnmpManager::new(name, host.address, &material.engine_id, user, QUICK).await.unwrap();
    (host, manager, material)
}

#[derive(Default)]
struct Seen(Vec<RunState>);

impl Observer for Seen {
    fn moved(&mut self, progress: &Progress) {
        self.0.push(progress.state);
    }
}

#[tokio::test]
async fn an_order_is_pushed_run_and_reported_with_its_signature() {
    let (host, manager, _) = pair("web-1").await;
    let said = row::scalars(&manager).await.unwrap();
    assert_eq!((said.host.as_str(), said.class.as_str()), ("web-1", "debian-12-x86_64"));
    let mut seen = Seen::default();
    let report = push_and_run(&manager, &row("order"), 1, &mut seen).await.unwrap();
    assert_eq!(report.state, RunState::Succeeded);
    assert_eq!(seen.0.last(), Some(&RunState::Succeeded));
    assert_eq!((report.items.len(), report.items[0].name.as_str()), (1, "nginx"));
    assert_eq!(report.transaction_ms, 1234);
    assert_eq!(host.starts(), [(7, 1)]);
    let key = patchlab_protocol::SigningKey::from_seed(&[9; 32]).public();
    let order = Digest::of("order");
    let expected = Expected { host: "web-1", key: &key, order: &order, run: 1, state: report.state };
    result::verify(report.signed.as_ref(), &expected).unwrap();
}

#[tokio::test]
async fn doing_it_again_starts_nothing_twice() {
    let (host, manager, _) = pair("web-1").await;
    for _ in 0..3 {
        push_and_run(&manager, &row("order"), 1, &mut Unobserved).await.unwrap();
        row::start(&manager, 7, 1).await.unwrap();
    }
    assert_eq!(host.starts(), [(7, 1)]);
    // A rollback is another activation on the same row, and the next run.
    host.will(Course::Ends(RunState::RolledBack));
    let back = Row { activation: Some(Digest::of("another activation")), ..row("order") };
    let report = push_and_run(&manager, &back, 2, &mut Unobserved).await.unwrap();
    assert_eq!((report.state, host.starts()), (RunState::RolledBack, vec![(7, 1), (7, 2)]));
    let all = row::results(&manager).await.unwrap();
    assert_eq!(all.len(), 2, "both signed results are still there");
}

#[tokio::test]
async fn a_row_that_holds_another_order_is_left_alone() {
    let (host, manager, _) = pair("web-1").await;
    push_and_run(&manager, &row("order"), 1, &mut Unobserved).await.unwrap();
    let error = row::push(&manager, &row("another order")).await.unwrap_err();
    assert!(matches!(error, DeployError::RowTaken { index: 7, .. }), "{error}");
    let digest = host.cell(order::ENTRY, order::DIGEST, &[7]).unwrap();
    assert_eq!(digest, async_snmp::Value::from(&Digest::of("order").as_bytes()[..]));
}

#[tokio::test]
async fn a_host_that_starts_late_is_waited_for() {
    let material = Material::generate("web-1").unwrap();
    let probe = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = probe.local_addr().unwrap();
    drop(probe);
    let user = material.credentials.deployer.clone();
    let manager = SnmpManager::new("web-1", address, &material.engine_id, &user, QUICK).await.unwrap();
    let error = row::scalars(&manager).await.unwrap_err();
    assert!(matches!(error, DeployError::Manager(ManagerError::Silent { .. })), "{error}");
    let wanted = row("order");
    let mut nobody = Unobserved;
    let run = push_and_run(&manager, &wanted, 1, &mut nobody);
    let late = async {
        // Long enough that the first tries are lost.
        tokio::time::sleep(Duration::from_millis(900)).await;
        let key = patchlab_protocol::SigningKey::from_seed(&[9; 32]);
        TestHost::start_on(&address.to_string(), "web-1", &material.engine_id, &user, key, Digest::of("root")).await
    };
    let (run, host) = tokio::join!(run, late);
    assert_eq!(run.unwrap().state, RunState::Succeeded);
    assert_eq!(host.starts(), [(7, 1)]);
}

#[tokio::test]
async fn wrong_keys_get_nothing() {
    let (host, _, material) = pair("web-1").await;
    let mut user = material.credentials.deployer.clone();
    user.auth = "not the passphrase".into();
    let manager = SnmpManager::new("web-1", host.address, &material.engine_id, &user, QUICK).await.unwrap();
    let error = row::push(&manager, &row("order")).await.unwrap_err();
    assert!(matches!(error, DeployError::Manager(_)), "{error}");
    assert!(host.cell(order::ENTRY, order::DIGEST, &[7]).is_none());
}

#[tokio::test]
async fn a_request_too_large_for_every_path_is_not_sent() {
    let (_, manager, _) = pair("web-1").await;
    let oid = patchlab::deploy::manager::Oid::of(agent::GROUP, agent::AUDIT_HEAD, &[0]);
    let value = patchlab::deploy::manager::Value::Octets(vec![0; 1300]);
    let error = manager.set(&[(oid, value)]).await.unwrap_err();
    assert!(matches!(error, ManagerError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn informs_ring_the_bell_of_the_host_that_signed_them() {
    let dir = tempfile::tempdir().unwrap();
    let material = Material::generate("web-1").unwrap();
    let user = material.credentials.inform.clone();
    let bells = Bells::default();
    let kept = dir.path().join("engine.json");
    let sink = Sink::open(&kept, "127.0.0.1:0".parse().unwrap(), Vec::new(), bells.clone()).await.unwrap();
    // Enrolled afterwards, as hosts are.
    sink.set_senders(vec![("web-1".into(), user.clone())]);
    let inform = |auth: &str| {
        let mut command = tokio::process::Command::new("snmpinform");
        command
            .args(["-v3", "-l", "authPriv", "-a", "SHA-256", "-x", "AES", "-r", "8", "-t", "0.5", "-m", ""])
            .args(["-u", &user.name, "-A", auth, "-X", &user.privacy])
            .args(["-e", &format!("0x{}", sink.engine_id)])
            .args([&format!("udp:{}", sink.address), "", "1.3.6.1.4.1.32473.1.0.1"])
            .kill_on_drop(true);
        command
    };
    if inform(&user.auth).arg("--version").output().await.is_err() {
        eprintln!("SKIPPED: snmpinform (package snmp) is not installed");
        return;
    }
    let bell = bells.of("web-1");
    let acknowledged = inform(&user.auth).status().await.unwrap();
    assert!(acknowledged.success(), "the inform was not acknowledged");
    tokio::time::timeout(Duration::from_secs(5), bell.notified()).await.expect("the bell did not ring");
    let refused = inform("another passphrase").args(["-r", "0"]).status().await.unwrap();
    assert!(!refused.success());
    assert!(tokio::time::timeout(Duration::from_millis(200), bell.notified()).await.is_err());
    // The id that informs are localized to survives.
    let id = sink.engine_id.clone();
    drop(sink);
    let again = Sink::open(&kept, "127.0.0.1:0".parse().unwrap(), Vec::new(), bells).await.unwrap();
    assert_eq!(again.engine_id, id);
}

/// What is installed on a test host, by change number and index; an empty version is a removed package.
fn install(host: &TestHost, rows: &[(u32, u32, &str, &str)], forgotten: u32) -> Digest {
    use async_snmp::Value;
    for (change, index, name, version) in rows {
        for (column, text) in [(package::NAME, *name), (package::ARCH, "all"), (package::VERSION, *version)] {
            host.set_cell(package::ENTRY, column, &[*change, *index], Value::from(text));
        }
    }
    let installed = rows.iter().filter(|(_, _, _, version)| !version.is_empty());
    let text: String = installed.map(|(_, _, name, version)| format!("{name} all {version}\n")).collect();
    let digest = text.parse::<Inventory>().unwrap().digest();
    let newest = rows.iter().map(|(change, ..)| *change).max().unwrap();
    host.set_cell(agent::GROUP, agent::INVENTORY_DIGEST, &[0], Value::from(&digest.as_bytes()[..]));
    host.set_cell(package::GROUP, package::LAST_CHANGE, &[0], Value::Gauge32(newest));
    host.set_cell(package::GROUP, package::FORGOTTEN, &[0], Value::Gauge32(forgotten));
    digest
}

fn changed(looked: Looked) -> (Packages, usize) {
    match looked {
        Looked::Changed { packages, rows } => (packages, rows),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn packages_are_read_whole_once_and_then_only_what_changed() {
    let (host, manager, _) = pair("web-1").await;
    assert_eq!(survey::packages(&manager, &Packages::default()).await.unwrap(), Looked::Same, "it says nothing");
    let digest = install(&host, &[(1, 1, "a", "1"), (1, 2, "b", "1"), (1, 3, "c", "1")], 0);
    let (known, rows) = changed(survey::packages(&manager, &Packages::default()).await.unwrap());
    assert_eq!((rows, known.inventory, known.change), (3, Some(digest), 1));
    assert_eq!(survey::packages(&manager, &known).await.unwrap(), Looked::Same);

    // One upgraded, one removed, one new: three rows, and the fourth is not read again.
    [1, 2].into_iter().for_each(|index| host.remove_row(package::ENTRY, &[1, index]));
    let now = [(1, 3, "c", "1"), (2, 1, "a", "2"), (2, 2, "b", ""), (2, 4, "d", "1")];
    install(&host, &now, 0);
    let (known, rows) = changed(survey::packages(&manager, &known).await.unwrap());
    let installed: Vec<_> = known.installed().map(|p| format!("{} {}", p.name, p.version)).collect();
    assert_eq!((rows, installed), (3, ["a 2", "c 1", "d 1"].map(str::to_owned).to_vec()));

    // An agent that forgot removals since, or began anew, is read whole.
    host.remove_row(package::ENTRY, &[2, 1]);
    install(&host, &[(1, 3, "c", "1"), (2, 2, "b", ""), (2, 4, "d", "1"), (9, 1, "a", "3")], 5);
    let (whole, rows) = changed(survey::packages(&manager, &known).await.unwrap());
    assert_eq!((rows, whole.packages.len(), whole.change), (4, 4, 9));
    // What does not come to the digest that the host says is not kept.
    host.set_cell(agent::GROUP, agent::INVENTORY_DIGEST, &[0], async_snmp::Value::from(&[7; 32][..]));
    assert_eq!(survey::packages(&manager, &whole).await.unwrap(), Looked::Moved);
    let long = "x".repeat(300);
    host.set_cell(package::ENTRY, package::VERSION, &[9, 1], async_snmp::Value::from(long.as_str()));
    let error = survey::packages(&manager, &Packages::default()).await.unwrap_err();
    assert!(matches!(error, DeployError::Nonsense { what: "plPackageVersion", .. }), "{error}");
}

#[tokio::test]
async fn what_packages_were_built_from_is_read_when_it_comes_to_be_known_though_nothing_was_installed() {
    use async_snmp::Value;
    let (host, manager, _) = pair("web-1").await;
    install(&host, &[(1, 1, "a", "1"), (1, 2, "b", "1")], 0);
    let (known, _) = changed(survey::packages(&manager, &Packages::default()).await.unwrap());
    assert!(known.packages.iter().all(|package| package.source.is_none()), "an older agent does not say");
    // A newer agent on the same host: the same packages, by a newer change.
    [1, 2].into_iter().for_each(|index| host.remove_row(package::ENTRY, &[1, index]));
    for (index, version) in [(1, "1"), (2, "0.9")] {
        host.set_cell(package::ENTRY, package::SOURCE, &[2, index], Value::from("s"));
        host.set_cell(package::ENTRY, package::SOURCE_VERSION, &[2, index], Value::from(version));
    }
    install(&host, &[(2, 1, "a", "1"), (2, 2, "b", "1")], 0);
    let (known, rows) = changed(survey::packages(&manager, &known).await.unwrap());
    let sources: Vec<_> = known.installed().map(|p| p.source.clone().unwrap().version).collect();
    assert_eq!((rows, sources), (2, ["1", "0.9"].map(str::to_owned).to_vec()));
    assert_eq!(survey::packages(&manager, &known).await.unwrap(), Looked::Same);
    let long = "x".repeat(300);
    host.set_cell(package::ENTRY, package::SOURCE, &[2, 1], Value::from(long.as_str()));
    let error = survey::packages(&manager, &Packages::default()).await.unwrap_err();
    assert!(matches!(error, DeployError::Nonsense { what: "plPackageSource", .. }), "{error}");
}

#[tokio::test]
async fn what_a_host_does_is_read_when_its_digest_changed_and_only_when_it_comes_to_that() {
    use async_snmp::Value;
    use patchlab_protocol::{
        description::{self, JOBS, LINES, Tags},
        mib::host::{DIGEST, ENTRY, FUNCTION, GROUP, LINE, LOCATION, MACHINE},
    };
    let (host, manager, _) = pair("web-1").await;
    assert_eq!(survey::described(&manager, None).await.unwrap(), None, "an older agent says nothing");
    let says = |tags: &Tags, lines: &[String]| {
        for (number, said) in [(MACHINE, "kvm"), (LOCATION, &tags.location), (FUNCTION, &tags.function)] {
            host.set_cell(GROUP, number, &[0], Value::from(said));
        }
        for (index, line) in (1..).zip(lines) {
            host.set_cell(ENTRY, LINE, &[index], Value::from(line.as_str()));
        }
        let digest = description::digest("kvm", tags, lines);
        host.set_cell(GROUP, DIGEST, &[0], Value::from(digest.as_bytes().as_slice()));
        digest
    };
    let tags = Tags { location: "hall 2".into(), function: "web".into() };
    let lines = ["service web.service enabled active", "port tcp 80 :: web.service", "sensor of a later agent"];
    let digest = says(&tags, &lines.map(str::to_owned));
    let read = survey::described(&manager, Some(Digest::of("another"))).await.unwrap().unwrap();
    assert_eq!((read.digest, read.description.tags, read.description.ports[0].port), (digest, tags.clone(), 80));
    assert_eq!(survey::described(&manager, Some(digest)).await.unwrap(), None, "nothing changed");

    host.set_cell(ENTRY, LINE, &[2], Value::from("port tcp 81 :: web.service"));
    assert_eq!(survey::described(&manager, None).await.unwrap(), None, "it changes just now");
    host.set_cell(ENTRY, LINE, &[2], Value::from("x".repeat(300).as_str()));
    let error = survey::described(&manager, None).await.unwrap_err();
    assert!(matches!(error, DeployError::Nonsense { what: "plHostLine", .. }), "{error}");
    says(&tags, &vec!["port tcp 80 :: -".to_owned(); 2 * LINES + JOBS + 1]);
    let error = survey::described(&manager, None).await.unwrap_err();
    assert!(matches!(error, DeployError::Nonsense { what: "plHostTable", .. }), "{error}");
}

#[tokio::test]
async fn a_week_has_the_hours_that_were_seen_and_no_others() {
    use async_snmp::Value;
    let (host, manager, _) = pair("web-1").await;
    assert_eq!(survey::week(&manager).await.unwrap(), []);
    let hour = |hour: u32, cpu: u32| {
        for (column, value) in [(workload::CPU, cpu), (workload::MEMORY, 500), (workload::DISK, 9)] {
            host.set_cell(workload::ENTRY, column, &[hour], Value::Gauge32(value));
        }
        host.set_cell(workload::ENTRY, workload::SESSIONS, &[hour], Value::Gauge32(7));
        host.set_cell(workload::ENTRY, workload::WEEKS, &[hour], Value::Gauge32(3));
    };
    hour(1, 250);
    hour(168, 60_000);
    let week = survey::week(&manager).await.unwrap();
    let seen: Vec<_> = week.iter().map(|hour| (hour.hour, hour.cpu, hour.memory, hour.sessions, hour.weeks)).collect();
    assert_eq!(seen, [(1, 250, 500, 7, 3), (168, 1000, 500, 7, 3)], "a share is at most the whole");
    hour(169, 1);
    let error = survey::week(&manager).await.unwrap_err();
    assert!(matches!(error, DeployError::Nonsense { what: "plWorkloadHour", .. }), "{error}");
}
