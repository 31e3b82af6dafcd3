//! A managed host that is a virtual machine itself goes back to its own snapshot from before an order: what it was is what it is, and what its
//! agent must not forget it has not forgotten. Skips aloud what this machine cannot run.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::Stdio,
    time::{Duration, Instant},
};

use patchlab_lab::{Places, baseline::Baselines};
use patchlab_tests::{
    daemon::Daemon,
    own_machine::{LEDGER, OwnMachine, free_port},
    program::{Ended, Need, Patchlab, Running, folder, json, obstacle, said},
};

/// The order of the demonstration that the lab passed.
const ORDER: &str = "PO-2026-0001";

fn done(patchlab: &Patchlab, arguments: &[&str]) -> Ended {
    let begun = Instant::now();
    let ended = patchlab.run(arguments);
    println!("{:.1} s: {arguments:?}\n{}{}", begun.elapsed().as_secs_f32(), ended.out, ended.err);
    assert_eq!(ended.code, Some(0), "{arguments:?}: {}{}", ended.out, ended.err);
    ended
}

/// Starts the server of a data folder, whose doors are at these ports of the loopback.
fn serve(patchlab: &Patchlab, payload: &str, informs: &str) -> Running {
    let arguments =
        ["serve", "--listen", "127.0.0.1:0", "--payload", payload, "--informs", informs, "--enrolment", "127.0.0.1:0"];
    let mut running = Running::start(patchlab.command(&arguments).stdout(Stdio::piped()));
    let mut lines = BufReader::new(running.0.stdout.take().expect("its output")).lines();
    lines.next().expect("the server says where it is").expect("a line");
    // Its other lines are read so that it never writes to a closed pipe.
    std::thread::spawn(move || lines.count());
    running
}

#[test]
fn a_host_goes_back_to_its_own_snapshot_and_its_agent_forgets_nothing() {
    let test = "a_host_goes_back_to_its_own_snapshot_and_its_agent_forgets_nothing";
    if let Some(why) = obstacle(&[Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Stored]) {
        eprintln!("SKIP {test}: {why}");
        return;
    }
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    patchlab.with_its_server();
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").to_string();
    let (informs, port) = (format!("127.0.0.1:{}", free_port()), free_port());
    let mut server = serve(&patchlab, &tcp, &informs);
    let key = |name: &str| patchlab.data.join("keys").join(name).with_extension("pem").display().to_string();
    let (address, out) = (format!("127.0.0.1:{port}"), dir.path().join("enrolment"));
    let out = out.display().to_string();
    let enroll = ["host", "enroll", "vm-1", "--address", &address, "--listen", "0.0.0.0:161", "--site", "main"];
    done(&patchlab, &[&enroll[..], &["--member", "10.0.2.2", "--ledger-dir", LEDGER, "--out", &out]].concat());

    let (run, disks) = (dir.path().join("libvirt"), dir.path().join("disks"));
    for folder in [&run, &disks] {
        fs::create_dir(folder).expect("a folder");
    }
    let daemon = Daemon::start(&run);
    let baselines = Baselines::open(&Places::of_data(&patchlab.data)).list().expect("baselines");
    let disk = baselines.first().expect("a baseline").file("disk.qcow2");
    let machine = OwnMachine::start(&daemon, "vm-1", &disk, out.as_ref(), port, &disks);
    let libvirt = daemon.libvirt().to_string();

    // What is no machine of a host is refused before anything rests on it.
    let tell = |domain: &str, outside: &str| {
        patchlab.run(&["host", "machine", "vm-1", "--libvirt", &libvirt, "--domain", domain, "--outside", outside])
    };
    said(&tell("vm-1", "vdz"), 65, &["it has no disk vdz that is written to; it has vda, vdb"]);
    assert_eq!(tell("vm-2", "vdb").code, Some(4));
    assert_eq!(tell("vm-1", "vdb").code, Some(0));

    // An order that goes well: the snapshot from before it stays for a while.
    let nginx = "dpkg-query --show --showformat '${Version}' nginx";
    let before = machine.does(nginx);
    machine.does("echo before >/etc/marker; echo before >/srv/ledger/marker; sync");
    done(&patchlab, &["order", "approve", ORDER, "--key", &key("approver"), "--hosts", "9", "--name", "tests"]);
    let activate = ["order", "activate", ORDER, "--host", "vm-1", "--wait"];
    done(&patchlab, &activate);
    let after = machine.does(nginx);
    assert_ne!(before, after);
    machine.does("echo after >/etc/marker; echo after >/srv/ledger/marker; sync");
    let shown = json(&patchlab.run(&["host", "show", "vm-1", "--json", "-"]));
    let snapshot = &shown["snapshot"];
    assert_eq!(
        (snapshot["state"].as_str(), snapshot["stillness"].as_str()),
        (Some("taken"), Some("quiesced")),
        "{snapshot:#}"
    );
    assert!(snapshot["merge_at"].is_string() && shown["current_order"].is_string(), "{shown:#}");
    // It is the way back, and nothing may be put in its place meanwhile.
    said(&patchlab.run(&["host", "machine", "vm-1", "--forget"]), 65, &["merge it or revert to it first"]);

    // Back, by a server that is killed on the way.
    let mut revert = Running::start(patchlab.command(&["host", "revert", "vm-1"]).stderr(Stdio::piped()));
    let mut lines = BufReader::new(revert.0.stderr.take().expect("its output")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("vm-1: reverting boot")), "the moment did not come");
    server.0.kill().expect("it can be killed");
    server.0.wait().expect("it ends");
    drop(revert);
    let _server = serve(&patchlab, &tcp, &informs);
    let back = done(&patchlab, &["host", "revert", "vm-1"]);
    assert!(back.out.contains("vm-1\treverted to before order"), "{}", back.out);
    assert_eq!(machine.does(nginx), before);
    assert_eq!(machine.does("cat /etc/marker /srv/ledger/marker"), "before\nafter\n");
    let shown = json(&patchlab.run(&["host", "show", "vm-1", "--json", "-"]));
    assert!(shown["snapshot"].is_null() && shown["current_order"].is_null(), "{shown:#}");
    let layer = disks.join(format!("vm-1-disk.qcow2.patchlab-{}-1", &digest(&patchlab)));
    assert!(layer.is_file() && back.err.contains(&layer.display().to_string()), "{}{}", layer.display(), back.err);

    // Its agent knows what it has had: the order does not start again, and a snapshot for nothing is merged at once.
    let again = patchlab.run(&activate);
    assert_eq!(again.code, Some(5), "{}{}", again.out, again.err);
    assert!(again.err.contains("was applied on this host before"), "{}{}", again.out, again.err);
    let begun = Instant::now();
    while json(&patchlab.run(&["host", "snapshots", "--json", "-"])) != serde_json::json!([]) {
        assert!(begun.elapsed() < Duration::from_secs(120), "not merged");
        std::thread::sleep(Duration::from_millis(500));
    }
    let attached = daemon.virsh(&["domblklist", "vm-1"]);
    assert!(!attached.contains(".qcow2.patchlab-"), "{attached}");
    assert_eq!(machine.does("cat /etc/marker"), "before\n");
    let audit = patchlab.run(&["audit", "verify"]);
    assert_eq!(audit.code, Some(0), "{}{}", audit.out, audit.err);
    done(&patchlab, &["host", "machine", "vm-1", "--forget"]);
}

/// How the order's digest begins.
fn digest(patchlab: &Patchlab) -> String {
    let shown = json(&patchlab.run(&["order", "show", ORDER, "--json", "-"]));
    let digest: patchlab_protocol::Digest =
        shown["order"]["digest"].as_str().and_then(|text| text.parse().ok()).expect("a digest");
    digest.short()
}
