//! Informs, as snmptrapd receives them.

use std::{
    fs,
    net::UdpSocket,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use patchlab_protocol::{
    Digest, Envelope, Refusal, SigningKey,
    document::Root,
    enrolment::{EngineId, InformSink, SnmpUser},
    mib,
};

use super::{
    host::{Host, missing},
    manager::oid,
};

struct Trapd {
    process: Child,
    folder: tempfile::TempDir,
}

impl Trapd {
    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("out")).unwrap_or_default()
    }

    fn wait_for(&self, what: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let said = self.said();
            if said.contains(what) {
                return said;
            }
            assert!(Instant::now() < deadline, "{what} does not come: {said}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Trapd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether snmptrapd is missing on this machine, said aloud.
fn no_trapd() -> bool {
    let absent = Command::new("snmptrapd").arg("--version").output().is_err();
    if absent {
        eprintln!("SKIPPED: needs snmptrapd");
    }
    absent
}

fn sink() -> InformSink {
    InformSink {
        address: UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
        engine_id: EngineId::generate().unwrap(),
        user: SnmpUser {
            name: "informer".into(),
            auth: "inform-auth-pass".into(),
            privacy: "inform-privacy-pass".into(),
        },
    }
}

fn trapd(sink: &InformSink) -> Trapd {
    let folder = tempfile::tempdir().unwrap();
    let configuration = folder.path().join("snmptrapd.conf");
    let SnmpUser { name, auth, privacy } = &sink.user;
    let text = format!(
        "exactEngineID 0x{}\ncreateUser {name} SHA-256 {auth} AES {privacy}\nauthUser log {name} authPriv\nformat2 %V %v\\n\n",
        sink.engine_id
    );
    fs::write(&configuration, text).unwrap();
    let out = fs::File::create(folder.path().join("out")).unwrap();
    let process = Command::new("snmptrapd")
        .args(["-f", "-n", "-C", "-m", "", "-Lo", "-Onx", "-c"])
        .arg(&configuration)
        .arg(sink.address.to_string())
        .env("SNMP_PERSISTENT_DIR", folder.path())
        .stdout(Stdio::from(out.try_clone().unwrap()))
        .stderr(Stdio::from(out))
        .spawn()
        .unwrap();
    Trapd { process, folder }
}

#[test]
fn the_manager_is_told_of_the_start_and_of_a_runs_end_with_its_result() {
    if missing() || no_trapd() {
        return;
    }
    let sink = sink();
    let trapd = trapd(&sink);
    let host = Host::with_inform(Some(sink));
    trapd.wait_for(&oid(mib::notification::AGENT_STARTED, &[]));
    let manager = host.deployer();
    manager.create(2, &host.uri, [Some(Digest::of("nobody has this")), None, None, None]).unwrap();
    manager.start(2, 1).unwrap();
    manager.wait(2, 1);
    let said = trapd.wait_for(&oid(mib::run::ENTRY, &[mib::run::RESULT_SIGNATURE, 2, 1]));
    assert!(said.contains(&oid(mib::notification::RUN_CHANGED, &[])), "{said}");
    // Why it was refused goes along.
    assert!(said.contains(&format!("{} = INTEGER: 13", oid(mib::run::ENTRY, &[mib::run::REFUSAL, 2, 1]))), "{said}");
    manager.set(&[(oid(mib::agent::GROUP, &[mib::agent::READ_INVENTORY, 0]), 'u', "1".into())]).unwrap();
    trapd.wait_for(&oid(mib::notification::INVENTORY_READ, &[]));
    let (_, head) = host.result(2, 1);
    assert_eq!(manager.octets(&oid(mib::agent::GROUP, &[mib::agent::RESULT_HEAD, 0])), head.as_bytes());
}

#[test]
fn the_manager_is_told_of_a_root_that_is_refused() {
    if missing() || no_trapd() {
        return;
    }
    let sink = sink();
    let trapd = trapd(&sink);
    let host = Host::with_inform(Some(sink));
    let root: Root = host.authority.root.statement().unwrap().predicate;
    let strange = Envelope::sign(Root { version: 2, ..root }, &SigningKey::generate().unwrap());
    let scalar = |column| oid(mib::trust::GROUP, &[column, 0]);
    let offered = [
        (scalar(mib::trust::OFFER_URI), 's', host.uri.clone()),
        (scalar(mib::trust::OFFER_ROOT), 'x', host.publish(&strange).to_string()),
    ];
    host.deployer().set(&offered).unwrap();
    let said = trapd.wait_for(&oid(mib::notification::TRUST_CHANGED, &[]));
    let refused = format!("{} = INTEGER: {}", scalar(mib::trust::OFFER_REFUSAL), Refusal::BadSignature as i32);
    assert!(said.contains(&refused), "{said}");
    assert!(said.contains(&format!("{} = Gauge32: 1", scalar(mib::trust::ROOT_VERSION))), "{said}");
}

/// Sequence numbers in the order in which they came.
fn sequences(said: &str) -> Vec<u32> {
    let object = format!("{} = Gauge32: ", oid(mib::agent::GROUP, &[mib::agent::NOTIFICATION_SEQUENCE, 0]));
    let numbers = said.split(&object).skip(1);
    numbers.map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()).collect()
}

#[test]
fn what_a_manager_that_was_away_missed_waits_for_it_over_a_restart_of_the_agent() {
    if missing() || no_trapd() {
        return;
    }
    let sink = sink();
    let mut host = Host::with_inform(Some(sink.clone()));
    let manager = host.deployer();
    manager.create(2, &host.uri, [Some(Digest::of("nobody has this")), None, None, None]).unwrap();
    manager.start(2, 1).unwrap();
    manager.wait(2, 1);
    host.kill();
    host.start();
    let trapd = trapd(&sink);
    let newest = host.monitor().number(&oid(mib::agent::GROUP, &[mib::agent::NOTIFICATION_SEQUENCE, 0]));
    let deadline = Instant::now() + Duration::from_secs(60);
    while sequences(&trapd.said()).last().copied().map(i64::from) != Some(newest) {
        assert!(Instant::now() < deadline, "{newest} does not come: {}", trapd.said());
        std::thread::yield_now();
    }
    let said = trapd.said();
    let mut seen = sequences(&said);
    // A confirmation that was lost brings one twice; none is missing.
    seen.dedup();
    assert_eq!(seen.iter().map(|number| i64::from(*number)).collect::<Vec<_>>(), (1..=newest).collect::<Vec<_>>());
    assert!(said.contains(&oid(mib::run::ENTRY, &[mib::run::RESULT_SIGNATURE, 2, 1])), "{said}");
    assert_eq!(said.matches(&oid(mib::notification::AGENT_STARTED, &[])).count(), 2, "{said}");
}
