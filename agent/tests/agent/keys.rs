//! Keys that change by USM's own table, with Net-SNMP's `snmpusm`, and who sees what.

use std::{net::UdpSocket, time::Duration};

use patchlab_protocol::{enrolment::SnmpUser, mib};

use super::{
    host::{Host, missing},
    manager::{Manager, oid},
};

const WRONG_DIGESTS: &str = ".1.3.6.1.6.3.15.1.1.5.0";

/// `snmpusm`, which ends well also when it was refused.
fn snmpusm(by: &Manager, words: &[&str]) -> Result<(), String> {
    let words: Vec<String> = words.iter().map(ToString::to_string).collect();
    let output = by.tool("snmpusm", &by.credentials(), &words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() && said.is_empty() { Ok(()) } else { Err(said) }
}

/// `snmpusm passwd`: of one user's authentication (`-Ca`) or privacy (`-Cx`).
fn changes(by: &Manager, key: &str, old: &str, new: &str, whose: &str) {
    snmpusm(by, &[key, "passwd", old, new, whose]).unwrap_or_else(|said| panic!("{key} of {whose}: {said}"));
}

fn host_name(manager: &Manager) -> Result<String, String> {
    let object = [oid(mib::agent::GROUP, &[mib::agent::HOST, 0])];
    let output = manager.tool("snmpget", &manager.credentials(), &object);
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if output.status.success() && !out.contains("No Such") { Ok(out) } else { Err(out + &err) }
}

#[test]
fn a_key_that_snmpusm_changes_counts_at_once_and_after_a_kill() {
    if missing() {
        return;
    }
    let mut host = Host::with_key_administrator();
    let administrator = host.key_administrator();
    let old = host.deployer();
    host_name(&old).unwrap();
    let new = SnmpUser { auth: "another auth passphrase".into(), ..old.user.clone() };
    changes(&administrator, "-Ca", &old.user.auth, &new.auth, "deployer");
    // At once: the answer was on the disk before it came.
    host.kill();
    host.start();
    let administrator = host.key_administrator();
    let refused = host.monitor().number(WRONG_DIGESTS);
    let error = host_name(&host.deployer()).unwrap_err();
    assert!(error.contains("Authentication failure"), "{error}");
    assert!(host.monitor().number(WRONG_DIGESTS) > refused, "what was refused is counted");
    let half = host.manager(&new);
    host_name(&half).unwrap();

    let whole = SnmpUser { privacy: "another privacy passphrase".into(), ..new.clone() };
    changes(&administrator, "-Cx", &new.privacy, &whole.privacy, "deployer");
    assert!(host_name(&half).is_err(), "the old privacy key is refused");
    let deployer = host.manager(&whole);
    deployer.create(7, &host.uri, [Some(patchlab_protocol::Digest::of("nobody has this")), None, None, None]).unwrap();
    let log = host.log();
    assert!(log.contains("keys of SNMP users change") && !log.contains("passphrase"), "{log}");

    host.kill();
    host.start();
    host_name(&host.manager(&whole)).unwrap();
    assert!(host_name(&host.deployer()).is_err());
    // By an old key, nothing leads to a new one.
    let administrator = host.key_administrator();
    changes(&administrator, "-Ca", &old.user.auth, "a third auth passphrase", "deployer");
    let wrong = SnmpUser { auth: "a third auth passphrase".into(), ..whole.clone() };
    assert!(host_name(&host.manager(&wrong)).is_err());

    // Who is enrolled anew has the keys of the new enrolment, and the others keep theirs.
    host.enrol_deployer_with("a fourth passphrase");
    host.kill();
    host.start();
    host_name(&host.deployer()).unwrap();
    assert!(host_name(&host.manager(&whole)).is_err());
}

#[test]
fn the_key_administrator_changes_keys_and_nothing_else_and_nobody_else_does() {
    if missing() {
        return;
    }
    let host = Host::with_key_administrator();
    let administrator = host.key_administrator();
    let users = oid(mib::user::GROUP, &[]);
    let walk = |manager: &Manager| {
        let output = manager.tool("snmpwalk", &manager.credentials(), std::slice::from_ref(&users));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.lines().filter(|line| line.starts_with(&users) && !line.contains(" No ")).count()
    };
    // Three users of eleven columns, and the lock.
    assert_eq!([walk(&administrator), walk(&host.monitor()), walk(&host.deployer())], [34, 0, 0]);
    // The monitor may write nothing at all.
    for (by, why) in [(host.deployer(), "noAccess"), (host.monitor(), "authorizationError")] {
        let (name, auth) = (by.user.name.clone(), by.user.auth.clone());
        let refused = snmpusm(&by, &["-Ca", "passwd", &auth, "another passphrase", &name]).unwrap_err();
        assert!(refused.contains(why), "{name}: {refused}");
        host_name(&by).unwrap();
    }
    assert!(host_name(&administrator).is_err(), "nothing of the agent's own is the key administrator's");
    let made = administrator.create(7, &host.uri, [None; 4]).unwrap_err();
    assert!(made.contains("noAccess"), "{made}");
    administrator.number(WRONG_DIGESTS);

    let lock = oid(mib::user::GROUP, &[mib::user::SPIN_LOCK, 0]);
    let set = |value: i64| administrator.set(&[(lock.clone(), 'i', value.to_string())]);
    let now = administrator.number(&lock);
    assert!(set(now + 1).unwrap_err().contains("inconsistentValue"));
    set(now).unwrap();
    assert_eq!(administrator.number(&lock), now + 1);

    // Its own, too, and with that it goes on.
    let own = &administrator.user;
    changes(&administrator, "-Ca", &own.auth, "keys of one's own", &own.name);
    assert!(administrator.tool("snmpget", &administrator.credentials(), std::slice::from_ref(&lock)).stdout.is_empty());
    let next = host.manager(&SnmpUser { auth: "keys of one's own".into(), ..own.clone() });
    assert_eq!(next.number(&lock), now + 1);
    let deleted = snmpusm(&next, &["delete", "deployer"]).unwrap_err();
    assert!(deleted.contains("inconsistentValue"), "users are the enrolment's: {deleted}");
}

/// A manager that takes answers only from where it sent to, as most do, on a host with several addresses.
#[test]
fn the_answer_comes_from_the_address_that_was_asked() {
    if missing() {
        return;
    }
    let host = Host::listening("0.0.0.0:0");
    let port = host.monitor().address.port();
    for address in ["127.0.0.1", "127.0.0.9"] {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((address, port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // Engine discovery (RFC 3414, 4): a GET without an engine id, a user or anything else.
        socket.send(&discovery_message()).unwrap();
        let mut answer = [0; 1500];
        let length = socket.recv(&mut answer).unwrap_or_else(|error| panic!("{address}: {error}\n{}", host.log()));
        assert!(length > 50);
    }
}

fn discovery_message() -> Vec<u8> {
    let tlv = |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).unwrap()], content].concat();
    let join = |parts: &[Vec<u8>]| parts.concat();
    let number = |value: u8| tlv(2, &[value]);
    let empty = || tlv(4, &[]);
    let global = tlv(0x30, &join(&[number(9), tlv(2, &[5, 0xdc]), tlv(4, &[4]), number(3)]));
    let usm = tlv(0x30, &join(&[empty(), number(0), number(0), empty(), empty(), empty()]));
    let pdu = tlv(0xa0, &join(&[number(1), number(0), number(0), tlv(0x30, &[])]));
    let scoped = tlv(0x30, &join(&[empty(), empty(), pdu]));
    tlv(0x30, &join(&[number(3), global, tlv(4, &usm), scoped]))
}
