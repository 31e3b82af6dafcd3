//! A guest reaches the lab's own endpoints and nothing else: looked at from inside one, by TCP, by UDP over both IPs, and by echo requests.
//!
//! Everything that must be out of reach is shown to be there: whoever may reach it does so first. Skips aloud where the
//! whole path does.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use patchlab_lab::{LabHost, Places, baseline::Baselines, machine::HOST_ADDRESS, worker::Launcher};
use patchlab_tests::{
    daemon::Daemon,
    isolation::{ANSWER_TIMEOUT, From, Isolated, Knock, Ports, echo, exchange},
    program::{Need, Patchlab, folder, obstacle},
};

/// Documentation addresses (RFC 5737): nobody answers there, but packets to them must not even leave.
const OUTSIDE: [&str; 2] = ["198.51.100.1", "203.0.113.1"];
/// The host's name in a guest's user network over IPv6, as QEMU has it.
const HOST_ADDRESS_6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
/// What the host's service says to whoever connects.
const HOST_SAYS: &str = "the host\n";

fn launcher(job: &str) -> Launcher {
    Launcher { program: env!("CARGO_BIN_EXE_lab-worker").into(), arguments: vec![job.into()] }
}

/// A service of the host on all its addresses, and how many connected to it.
fn host_service() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(HOST_SAYS.as_bytes());
        }
    });
    (port, count)
}

/// Words that follow `word` in what `ip` prints.
fn ip(arguments: &[&str], word: &str) -> Vec<String> {
    let output = Command::new("ip").args(arguments).output().expect("ip runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    let followers = words.windows(2).filter(|pair| pair[0] == word);
    followers.map(|pair| pair[1].split('/').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_guest_reaches_the_labs_endpoints_and_nothing_else() {
    if let Some(why) = obstacle(&[Need::Program, Need::Time, Need::Lab, Need::Stored]) {
        eprintln!("SKIP a_guest_reaches_the_labs_endpoints_and_nothing_else: {why}");
        return;
    }
    let folder = folder();
    let places = Places::of_data(&Patchlab::on_a_copy(folder.path()).data);
    let baseline = Baselines::open(&places).list().expect("baselines").swap_remove(0);
    let file = &baseline.record.pool.first().expect("a pool").sha256;
    let head = format!("HEAD /artifacts/{file} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
    let page = "GET / HTTP/1.0\r\n\r\n";

    let daemons = folder.path().join("d");
    std::fs::create_dir(&daemons).expect("a folder");
    let daemon = Daemon::start(&daemons);
    let (here, there) = (LabHost::here(), LabHost::at("daemon", daemon.libvirt()));
    let start = |host, ports| {
        Isolated::start(host, &places, &launcher("isolation"), &baseline.full_name(), ports).expect("a clone")
    };
    let mut one = start(&here, Ports { payload: 18_001, forward: 18_002 });
    let mut other = start(&here, Ports { payload: 18_003, forward: 18_004 });
    // Its emulator is in the network namespace of a libvirt that runs by itself, which is the host's.
    let mut lent = start(&there, Ports { payload: 18_005, forward: 18_006 });

    // What must be reached: the lab's payload server, and through its worker the guest itself.
    for clone in [&mut one, &mut other, &mut lent] {
        let Ports { payload, forward } = clone.ports;
        let answer = clone.connect(From::Guest, HOST_ADDRESS, payload, &head).expect("an answer");
        assert!(answer.as_deref().is_some_and(|text| text.starts_with("HTTP/1.1 200")), "payload: {answer:?}");
        for (from, host) in [(From::Worker, "127.0.0.1"), (From::Guest, HOST_ADDRESS)] {
            let answer = clone.connect(from, host, forward, page).expect("an answer");
            assert!(answer.as_deref().is_some_and(|text| text.contains("200 OK")), "{from:?}: {answer:?}");
        }
    }

    let (port, connected) = host_service();
    let mut addresses = ip(&["-4", "-oneline", "address"], "inet");
    assert!(addresses.contains(&"127.0.0.1".to_owned()), "{addresses:?}");
    for address in &addresses {
        assert_eq!(exchange(address, port, "").expect("the host reaches its own service"), HOST_SAYS, "{address}");
    }
    let by_host = addresses.len();
    assert_eq!(connected.load(Ordering::SeqCst), by_host);

    // What must not be: the host by any of its addresses and by the guest's name for its worker, and the other clone's
    // worker.
    addresses.push(HOST_ADDRESS.to_owned());
    let mut closed: Vec<(String, u16)> = addresses.into_iter().map(|address| (address, port)).collect();
    closed.extend([other.ports.payload, other.ports.forward].map(|port| (HOST_ADDRESS.to_owned(), port)));
    closed.extend(OUTSIDE.map(|address| (address.to_owned(), 80)));
    for gateway in ip(&["-4", "route", "show", "default"], "via") {
        closed.extend([53, 80].map(|port| (gateway.clone(), port)));
    }
    for clone in [&mut one, &mut lent] {
        for (host, port) in &closed {
            let answer = clone.connect(From::Guest, host, *port, page).expect("the guest agent answers");
            assert_eq!(answer, None, "a guest reached {host} port {port}");
        }
    }
    assert_eq!(connected.load(Ordering::SeqCst), by_host, "somebody in the guest reached the host's service");
    eprintln!("out of reach from inside: {closed:?}");

    // The same by what needs no connection.
    let service = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("a port");
    let port = service.local_addr().expect("its address").port();
    let came = Arc::new(AtomicUsize::new(0));
    let counted = came.clone();
    std::thread::spawn(move || {
        echo(&service, || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
    });
    let own: Vec<IpAddr> = ["-4", "-6"]
        .iter()
        .flat_map(|family| ip(&[family, "-oneline", "address", "show", "scope", "global"], family_word(family)))
        .map(|address| address.parse().expect("an address"))
        .collect();
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let here: Vec<IpAddr> = own.iter().copied().chain(loopback).collect();
    for address in &here {
        let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).expect("a port");
        socket.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a time limit");
        socket.send_to(b"knock", (*address, port)).expect("it is sent");
        socket.recv(&mut [0; 64]).unwrap_or_else(|error| panic!("{address}: {error}"));
    }
    let gateway: Ipv4Addr = HOST_ADDRESS.parse().expect("an address");
    let outside = OUTSIDE.map(|address| address.parse::<Ipv4Addr>().expect("an address"));
    let mut closed: Vec<Knock> = here.iter().map(|address| Knock::Udp(SocketAddr::new(*address, port))).collect();
    closed.push(Knock::Udp(SocketAddr::new(gateway.into(), port)));
    closed.push(Knock::Udp(SocketAddr::new(HOST_ADDRESS_6.into(), port)));
    closed.push(Knock::Udp(SocketAddr::new(gateway.into(), other.ports.payload)));
    closed.extend(outside.map(|address| Knock::Udp(SocketAddr::new(address.into(), 53))));
    closed.extend(outside.map(Knock::Echo));
    closed.extend(own.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(Knock::Echo(*address)),
        IpAddr::V6(_) => None,
    }));
    for clone in [&mut one, &mut lent] {
        let open = [Knock::Udp(SocketAddr::new(gateway.into(), clone.ports.payload)), Knock::Echo(gateway)];
        let knocks = [&open[..], &closed[..]].concat();
        assert_eq!(clone.knock(&knocks).expect("the guest knocks"), open, "of {knocks:?}");
    }
    assert_eq!(came.load(Ordering::SeqCst), here.len(), "somebody in the guest reached the host's service");
    eprintln!("out of reach from inside: {closed:?}");
}

/// What stands before an address of `ip`'s option for a family.
fn family_word(option: &str) -> &'static str {
    if option == "-4" { "inet" } else { "inet6" }
}
