//! A site's own snmpd beside the agent: it has its port, passes reading on, and passes on nothing that changes anything.

use std::{
    fs,
    net::UdpSocket,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use patchlab_protocol::mib;

use super::{
    host::{Host, NAME, missing},
    manager::{Manager, oid},
};

/// Net-SNMP's daemon. Dropping it ends it.
struct Snmpd {
    child: Child,
    reader: Manager,
}

impl Snmpd {
    /// Starts one with these lines in its configuration, which also lets everybody on this host read and write.
    fn start(host: &Host, lines: &str) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        // Two agents must not have it.
        drop(socket);
        let configuration = host.folder.path().join("snmpd.conf");
        fs::write(&configuration, format!("agentAddress udp:{address}\nrwcommunity site 127.0.0.1\n{lines}")).unwrap();
        let child = Command::new("snmpd")
            .args(["-f", "-Lo", "-r", "-C", "-c"])
            .arg(&configuration)
            .env("SNMP_PERSISTENT_DIR", host.folder.path().join("snmpd"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("snmpd starts");
        let snmpd = Self { child, reader: Manager { address, user: host.monitor().user } };
        let begun = Instant::now();
        while !snmpd.says("snmpget", &[".1.3.6.1.2.1.1.3.0".into()]).0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "snmpd does not answer");
        }
        snmpd
    }

    /// What a tool is answered by the site's own community.
    fn says(&self, tool: &str, arguments: &[String]) -> (bool, String) {
        let output = self.reader.tool(tool, &["-v2c".into(), "-c".into(), "site".into()], arguments);
        let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        (output.status.success(), said.concat())
    }
}

impl Drop for Snmpd {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_sites_own_snmpd_passes_reading_on_and_nothing_else() {
    if missing() {
        return;
    }
    if Command::new("snmpd").arg("-v").output().is_err() {
        eprintln!("SKIPPED: needs snmpd");
        return;
    }
    let host = Host::new();
    host.installed(&host.package("web", "1", "", None));
    let monitor = host.monitor();
    // As docs/snmp.md says it.
    let proxy = format!(
        "proxy -v3 -l authPriv -u monitor -a SHA-256 -A {} -x AES -X {} {} {}\n",
        monitor.user.auth,
        monitor.user.privacy,
        monitor.address,
        oid(mib::MIB, &[])
    );
    let snmpd = Snmpd::start(&host, &proxy);
    let name = oid(mib::agent::GROUP, &[mib::agent::HOST, 0]);
    let (read, said) = snmpd.says("snmpget", std::slice::from_ref(&name));
    let digits: String = said.split_whitespace().skip(1).flat_map(str::chars).filter(char::is_ascii_hexdigit).collect();
    assert_eq!((read, hex::decode(&digits).ok().as_deref()), (true, Some(NAME.as_bytes())), "{said}");

    // A walk over it gives the same as one of the agent itself, but for its own counters.
    let walked = |said: &str| said.lines().filter(|line| line.starts_with(".1.3.6.1.4.1.32473")).count();
    let directly = monitor.tool("snmpwalk", &monitor.credentials(), &[oid(mib::MIB, &[])]);
    let (_, through) = snmpd.says("snmpbulkwalk", &[oid(mib::MIB, &[])]);
    assert!(walked(&through) > 20, "{through}");
    assert_eq!(walked(&through), walked(&String::from_utf8_lossy(&directly.stdout)));

    // Whoever may write at the site's daemon is the monitor here, who may not.
    let head = oid(mib::agent::GROUP, &[mib::agent::AUDIT_HEAD, 0]);
    let (written, said) = snmpd.says("snmpset", &[head.clone(), "x".into(), "00".repeat(32)]);
    assert!(!written, "{said}");
    assert!(monitor.octets(&head).is_empty());
}
