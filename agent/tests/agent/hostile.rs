//! What strangers, liars and broken networks send: nothing of it changes anything, all of it is counted where RFC 3412
//! and RFC 3414 say, and the agent answers as before.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use patchlab_protocol::{Digest, enrolment::SnmpUser, limits, mib};
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::Index,
    strategy::ValueTree,
    test_runner::TestRunner,
};

use super::{
    host::{Host, missing},
    manager::{Manager, oid},
};

const INVALID_MESSAGES: &str = ".1.3.6.1.6.3.11.2.1.2.0";
const UNKNOWN_SECURITY_MODELS: &str = ".1.3.6.1.6.3.11.2.1.1.0";
const BAD_VERSIONS: &str = ".1.3.6.1.2.1.11.3.0";
const UNKNOWN_CONTEXTS: &str = ".1.3.6.1.6.3.12.1.5.0";
const PARSE_ERRORS: &str = ".1.3.6.1.2.1.11.6.0";

/// `usmStats`, RFC 3414 section 5.
fn usm(number: u32) -> String {
    format!(".1.3.6.1.6.3.15.1.1.{number}.0")
}

/// Stands between a manager and the agent, and keeps what the manager sends.
struct Wire {
    address: SocketAddr,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
    /// The largest answer, bytes.
    largest: Arc<AtomicUsize>,
}

impl Wire {
    fn to(agent: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").unwrap();
        back.connect(agent).unwrap();
        let wire = Self { address: front.local_addr().unwrap(), sent: Arc::default(), largest: Arc::default() };
        let largest = Arc::clone(&wire.largest);
        let sent = Arc::clone(&wire.sent);
        let manager = Arc::new(Mutex::new(None::<SocketAddr>));
        let [to_front, to_back] = [&front, &back].map(|socket| socket.try_clone().unwrap());
        let seen = Arc::clone(&manager);
        // Both threads end with the process.
        std::thread::spawn(move || {
            let mut buffer = [0; 65_535];
            while let Ok((length, from)) = front.recv_from(&mut buffer) {
                *seen.lock().unwrap() = Some(from);
                sent.lock().unwrap().push(buffer[..length].to_vec());
                let _ = to_back.send(&buffer[..length]);
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 65_535];
            loop {
                let Ok(length) = back.recv(&mut buffer) else { continue };
                largest.fetch_max(length, Ordering::Relaxed);
                if let Some(to) = *manager.lock().unwrap() {
                    let _ = to_front.send_to(&buffer[..length], to);
                }
            }
        });
        wire
    }

    /// The last message that was sent: authenticated and encrypted, after discovery.
    fn last(&self) -> Vec<u8> {
        self.sent.lock().unwrap().last().cloned().unwrap()
    }
}

/// Sends and says whether an answer came within a second.
fn send(agent: SocketAddr, message: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(agent).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.send(message).unwrap();
    let mut buffer = [0; 65_535];
    socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())
}

/// Waits until a counter is above `before`.
fn grows(manager: &Manager, counter: &str, before: i64, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while manager.number(counter) <= before {
        assert!(Instant::now() < deadline, "{what}: {counter} stays at {before}");
    }
}

fn replace(message: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let place = message.windows(from.len()).position(|window| window == from).expect("in the message");
    [&message[..place], to, &message[place + from.len()..]].concat()
}

#[test]
fn wrong_credentials_of_every_kind_are_refused_and_counted() {
    if missing() {
        return;
    }
    let host = Host::new();
    let monitor = host.monitor();
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let wrong = |auth: &str, privacy: &str| {
        let user = SnmpUser { auth: auth.into(), privacy: privacy.into(), ..monitor.user.clone() };
        host.manager(&user).credentials()
    };
    // Users here are for authPriv alone (RFC 3414, 3.2, step 5). It is access control that says no, for there is no view.
    let no_privacy = [words("-v3 -l authNoPriv -u monitor -a SHA-256 -A"), vec![monitor.user.auth.clone()]].concat();
    for credentials in [words("-v3 -l noAuthNoPriv -u monitor"), no_privacy] {
        let unsupported = monitor.number(&usm(1));
        let output = monitor.tool("snmpget", &credentials, &[oid(mib::agent::GROUP, &[mib::agent::HOST, 0])]);
        let said = [output.stdout, output.stderr].concat();
        assert!(String::from_utf8_lossy(&said).contains("authorizationError"), "{}", String::from_utf8_lossy(&said));
        assert_eq!(monitor.number(&usm(1)), unsupported + 1, "{credentials:?}");
    }
    let cases = [
        ("an unknown user", words("-v3 -l noAuthNoPriv -u nobody"), usm(3)),
        ("a wrong authentication passphrase", wrong("another passphrase", &monitor.user.privacy), usm(5)),
        // AES in CFB mode deciphers anything to something; what comes out is no PDU.
        ("a wrong privacy passphrase", wrong(&monitor.user.auth, "another passphrase"), PARSE_ERRORS.to_owned()),
    ];
    for (what, credentials, counter) in cases {
        let before = monitor.number(&counter);
        let output = monitor.tool("snmpget", &credentials, &[oid(mib::agent::GROUP, &[mib::agent::HOST, 0])]);
        assert!(!output.status.success(), "{what}: {output:?}");
        grows(&monitor, &counter, before, what);
    }
    // snmpUnknownContexts (RFC 3413): another engine's context.
    let contexts = monitor.number(UNKNOWN_CONTEXTS);
    let elsewhere = [monitor.credentials(), words("-E 80001f8804656c736577686572")].concat();
    let output = monitor.tool("snmpget", &elsewhere, &[oid(mib::agent::GROUP, &[mib::agent::HOST, 0])]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("host-1"), "{output:?}");
    assert!(monitor.number(UNKNOWN_CONTEXTS) > contexts, "another context: {output:?}");
    // Both are walked to from before them.
    for place in [".1.3.6.1.6.3.15.1.1", ".1.3.6.1.6.3.12.1"] {
        let walk = monitor.tool("snmpwalk", &monitor.credentials(), &[place.into()]);
        let lines = String::from_utf8_lossy(&walk.stdout).lines().filter(|line| !line.contains("No more")).count();
        assert_eq!(lines, if place.ends_with("15.1.1") { 6 } else { 1 }, "{walk:?}");
    }
}

#[test]
fn messages_that_were_recorded_and_altered_are_refused_and_counted() {
    if missing() {
        return;
    }
    let mut host = Host::new();
    let monitor = host.monitor();
    let agent = monitor.address;
    let wire = Wire::to(agent);
    let through = Manager { address: wire.address, user: monitor.user.clone() };
    through.get(&oid(mib::agent::GROUP, &[mib::agent::HOST, 0]));
    let recorded = wire.last();

    let engine = monitor.octets(".1.3.6.1.6.3.10.2.1.1.0");
    let mut other_engine = engine.clone();
    other_engine[6] ^= 1;
    let mut tail = recorded.clone();
    *tail.last_mut().unwrap() ^= 1;
    let flags = recorded.windows(3).position(|window| matches!(window, [4, 1, 7])).expect("msgFlags");
    let with_flags = |flag: u8| {
        let mut message = recorded.clone();
        message[flags + 2] = flag;
        message
    };
    let mut model = recorded.clone();
    assert_eq!(model[flags + 3..flags + 6], [2, 1, 3], "msgSecurityModel");
    model[flags + 5] = 9;
    let cases = [
        ("another engine", replace(&recorded, &engine, &other_engine), usm(4)),
        ("another user", replace(&recorded, b"monitor", b"m0nitor"), usm(3)),
        ("an altered end", tail, usm(5)),
        // What is encrypted is no plain PDU.
        ("authentication and privacy taken off", with_flags(4), PARSE_ERRORS.to_owned()),
        ("privacy without authentication", with_flags(6), INVALID_MESSAGES.to_owned()),
        ("another security model", model, UNKNOWN_SECURITY_MODELS.to_owned()),
        ("no BER", b"GET / HTTP/1.1\r\n\r\n".to_vec(), PARSE_ERRORS.to_owned()),
        ("half a message", recorded[..recorded.len() / 2].to_vec(), PARSE_ERRORS.to_owned()),
    ];
    for (what, message, counter) in cases {
        let before = monitor.number(&counter);
        let answer = send(agent, &message);
        assert!(answer.is_none_or(|answer| !answer.windows(6).any(|window| window == b"host-1")), "{what}");
        grows(&monitor, &counter, before, what);
    }

    // In the same boot: a time that is further from the engine's own than 150 s (RFC 3414, 3.2, step 7).
    let name = [oid(mib::agent::GROUP, &[mib::agent::HOST, 0])];
    let boots = monitor.number(".1.3.6.1.6.3.10.2.1.2.0");
    let time = monitor.number(".1.3.6.1.6.3.10.2.1.3.0");
    let counted = monitor.number(&usm(2));
    let own = monitor.number(&usm(2)) - counted;
    for (off, more) in [(100, 0), (1000, 1)] {
        let before = monitor.number(&usm(2));
        let at = [monitor.credentials(), vec!["-Z".into(), format!("{boots},{}", time + off)]].concat();
        let output = monitor.tool("snmpget", &at, &name);
        let counted = monitor.number(&usm(2)) - before - own;
        assert!(counted >= more && (more > 0 || counted == own), "{off} s: {counted}, {own}: {output:?}");
    }

    // A message from before a restart is outside the time window, for ever.
    host.kill();
    host.start();
    let monitor = host.monitor();
    let before = monitor.number(&usm(2));
    send(monitor.address, &recorded);
    grows(&monitor, &usm(2), before, "a message from before a restart");
}

#[test]
fn no_answer_is_larger_than_a_datagram_of_ipv6_may_be_anywhere() {
    if missing() {
        return;
    }
    let host = Host::new();
    let deployer = host.deployer();
    // More than fits: eight rows with texts as long as they may be.
    for row in 1..=8 {
        let uri = format!("{}{}", host.uri, "x".repeat(255 - host.uri.len()));
        deployer.create(row, &uri, [Some(Digest::of("order")), None, None, None]).unwrap();
    }
    let wire = Wire::to(deployer.address);
    let through = Manager { address: wire.address, user: deployer.user.clone() };
    let column = [oid(mib::order::ENTRY, &[mib::order::URI])];
    let walk = through.tool("snmpbulkwalk", &[through.credentials(), vec!["-Cr100".into()]].concat(), &column);
    assert!(walk.status.success(), "{walk:?}");
    let largest = wire.largest.load(Ordering::Relaxed);
    assert!((900..=limits::PDU_BYTES).contains(&largest), "{largest} bytes");
}

#[test]
fn messages_of_other_versions_are_not_answered_and_are_counted() {
    if missing() {
        return;
    }
    let host = Host::new();
    let monitor = host.monitor();
    let name = oid(mib::agent::GROUP, &[mib::agent::HOST, 0]);
    for version in ["-v1", "-v2c"] {
        let before = monitor.number(BAD_VERSIONS);
        let words = [version, "-c", "public", "-r", "0"].map(str::to_owned);
        let output = monitor.tool("snmpget", &words, std::slice::from_ref(&name));
        assert!(!output.status.success(), "{version}: {output:?}");
        grows(&monitor, BAD_VERSIONS, before, version);
    }
    // The same message by a version that nobody has yet.
    let wire = Wire::to(monitor.address);
    Manager { address: wire.address, user: monitor.user.clone() }.get(&name);
    let mut recorded = wire.last();
    let at = recorded.windows(3).position(|window| window == [2, 1, 3]).expect("msgVersion");
    recorded[at + 2] = 4;
    let before = monitor.number(BAD_VERSIONS);
    assert_eq!(send(monitor.address, &recorded), None);
    grows(&monitor, BAD_VERSIONS, before, "version 4");
}

#[test]
fn a_start_that_is_recorded_and_sent_again_starts_nothing() {
    if missing() {
        return;
    }
    let host = Host::new();
    let deployer = host.deployer();
    let wire = Wire::to(deployer.address);
    let through = Manager { address: wire.address, user: deployer.user.clone() };
    deployer.create(7, &host.uri, [Some(Digest::of("nobody has this")), None, None, None]).unwrap();
    through.start(7, 5).unwrap();
    deployer.wait(7, 5);
    let recorded = wire.last();
    for _ in 0..3 {
        send(deployer.address, &recorded).expect("within the window a repeated message is answered");
    }
    assert_eq!(deployer.number(&oid(mib::order::ENTRY, &[mib::order::RUN_INDEX_NEXT, 7])), 6);
    assert_eq!(deployer.number(&deployer.run_cell(mib::run::ATTEMPT, 7, 5)), 1);
}

/// Resident memory of a process, KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Noise, nested sequences without end, lengths that lie, and real messages with bytes changed, cut and repeated.
fn hostile(recorded: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let flips = {
        let recorded = recorded.clone();
        vec((any::<Index>(), any::<u8>()), 1..6).prop_map(move |changes| {
            let mut message = recorded.clone();
            for (place, value) in changes {
                let place = place.index(message.len());
                message[place] = value;
            }
            message
        })
    };
    let cut = {
        let recorded = recorded.clone();
        any::<Index>().prop_map(move |place| recorded[..place.index(recorded.len())].to_vec())
    };
    let joined = Just([recorded.clone(), recorded].concat());
    prop_oneof![
        vec(any::<u8>(), 0..1500),
        (1_usize..700, any::<u8>())
            .prop_map(|(depth, tag)| [0x30 | tag & 0x0f, 0x84, 0xff, 0xff, 0xff, 0xff].repeat(depth)),
        vec(any::<u8>(), 0..40).prop_map(|rest| [&[0x30, 0x82, 0x10, 0x00, 0x02, 0x01, 0x03], &rest[..]].concat()),
        Just(vec![0x30; 60_000]),
        flips,
        cut,
        joined,
    ]
}

#[test]
fn two_thousand_hostile_messages_neither_stop_nor_swell_the_agent() {
    if missing() {
        return;
    }
    let host = Host::new();
    let monitor = host.monitor();
    let agent = monitor.address;
    let wire = Wire::to(agent);
    let through = Manager { address: wire.address, user: monitor.user.clone() };
    through.get(&oid(mib::agent::GROUP, &[mib::agent::HOST, 0]));
    let mut runner = TestRunner::deterministic();
    let strategy = hostile(wire.last());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut flood = |messages: u32| {
        for number in 0..messages {
            let message = strategy.new_tree(&mut runner).unwrap().current();
            socket.send_to(&message, agent).unwrap();
            // The kernel's queue is short: now and then, everything sent so far is seen to be taken.
            if number % 10 == 0 {
                assert_eq!(monitor.text(&oid(mib::agent::GROUP, &[mib::agent::HOST, 0])), "host-1");
            }
        }
    };
    let before = monitor.number(PARSE_ERRORS);
    flood(500);
    let settled = resident(host.pid());
    flood(1500);
    assert!(monitor.number(PARSE_ERRORS) > before + 300, "what was sent was not looked at");
    let grown = resident(host.pid()).saturating_sub(settled);
    assert!(grown < 2048, "the agent grew by {grown} KiB");
    let log = host.log();
    assert!(!log.contains("panicked") && log.lines().count() < 20, "strangers fill the log:\n{log}");
}
