//! Informs, as snmptrapd receives them.

use std::{
    fs,
    net::UdpSocket,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use patchlab_protocol::{
    Digest,
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

#[test]
fn the_manager_is_told_of_the_start_and_of_a_runs_end_with_its_result() {
    if missing() || Command::new("snmptrapd").arg("--version").output().is_err() {
        eprintln!("SKIPPED: needs snmptrapd");
        return;
    }
    let sink = InformSink {
        address: UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
        engine_id: EngineId::generate().unwrap(),
        user: SnmpUser {
            name: "informer".into(),
            auth: "inform-auth-pass".into(),
            privacy: "inform-privacy-pass".into(),
        },
    };
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
    let trapd = Trapd { process, folder };

    let host = Host::with_inform(Some(sink));
    trapd.wait_for(&oid(mib::notification::AGENT_STARTED, &[]));
    let manager = host.deployer();
    manager.create(2, &host.uri, [Some(Digest::of("nobody has this")), None, None, None]).unwrap();
    manager.start(2, 1).unwrap();
    manager.wait(2, 1);
    let said = trapd.wait_for(&oid(mib::run::ENTRY, &[mib::run::RESULT_SIGNATURE, 2, 1]));
    assert!(said.contains(&oid(mib::notification::RUN_CHANGED, &[])), "{said}");
    let (_, head) = host.result(2, 1);
    assert_eq!(manager.octets(&oid(mib::agent::GROUP, &[mib::agent::RESULT_HEAD, 0])), head.as_bytes());
}
