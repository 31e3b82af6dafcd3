//! What a host is and does, as a manager reads it and as the host itself shows it.

use std::{fs, os::unix::fs::symlink, process::Command};

use patchlab_protocol::{
    description::{Description, Tags},
    mib,
};

use super::{
    host::{Host, missing},
    manager::oid,
};

const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
";

fn put(host: &Host, place: &str, said: &str) {
    let path = host.path("root").join(place);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, said).unwrap();
}

/// What a manager puts together, and the digest that the agent has for it.
fn read(host: &Host) -> (Description, Vec<u8>) {
    let manager = host.monitor();
    let text = |number| manager.text(&oid(mib::host::GROUP, &[number, 0]));
    let walked = manager.tool("snmpwalk", &manager.credentials(), &[oid(mib::host::ENTRY, &[mib::host::LINE])]);
    let rows = String::from_utf8_lossy(&walked.stdout).lines().filter(|line| line.starts_with(".1.3")).count();
    let rows = if String::from_utf8_lossy(&walked.stdout).contains(" No ") { 0 } else { rows };
    let lines: Vec<String> = (1..=u32::try_from(rows).unwrap())
        .map(|index| manager.text(&oid(mib::host::ENTRY, &[mib::host::LINE, index])))
        .collect();
    let tags = Tags { location: text(mib::host::LOCATION), function: text(mib::host::FUNCTION) };
    let digest = manager.octets(&oid(mib::host::GROUP, &[mib::host::DIGEST, 0]));
    (Description::of(text(mib::host::MACHINE), tags, &lines), digest)
}

#[test]
fn a_host_says_what_it_is_and_does_and_by_the_digest_whether_that_changed() {
    if missing() {
        return;
    }
    let mut host = Host::new();
    let (nothing, digest) = read(&host);
    assert_eq!(digest, nothing.digest().as_bytes());
    assert_eq!((&*nothing.tags.location, nothing.ports.len()), ("", 0));

    put(&host, "sys/class/dmi/id/product_name", "KVM\n");
    put(&host, "proc/net/tcp", TCP);
    put(&host, "proc/812/cgroup", "0::/system.slice/web.service\n");
    fs::create_dir(host.path("root/proc/812/fd")).unwrap();
    symlink("socket:[4711]", host.path("root/proc/812/fd/3")).unwrap();
    put(
        &host,
        "etc/systemd/system/web.service",
        "[Service]\nExecStart=/bin/web\n[Install]\nWantedBy=multi-user.target\n",
    );
    put(&host, "etc/systemd/system/multi-user.target.wants/README", "");
    symlink("../web.service", host.path("root/etc/systemd/system/multi-user.target.wants/web.service")).unwrap();
    put(&host, "proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz-6.1.0-9-amd64 root=/dev/vda1\n");
    put(&host, "boot/vmlinuz-6.1.0-9-amd64", "image");
    put(&host, "boot/vmlinuz-6.1.0-50-amd64", "image");
    host.tag(Tags { location: "hall 2".into(), function: "web".into() });
    host.kill();
    host.start();
    let (said, digest) = read(&host);
    assert_eq!(digest, said.digest().as_bytes());
    assert_eq!((&*said.machine, &*said.tags.location, &*said.tags.function), ("kvm", "hall 2", "web"));
    let ports: Vec<String> = said.ports.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["port tcp 80 0.0.0.0 web.service"]);
    let kernels: Vec<String> = said.kernels.iter().map(ToString::to_string).collect();
    assert_eq!(kernels, ["kernel 6.1.0-9-amd64 running", "kernel 6.1.0-50-amd64 installed"]);
    if Command::new("systemctl").arg("--version").output().is_ok() {
        let services: Vec<String> = said.services.iter().map(ToString::to_string).collect();
        assert!(services.contains(&"service web.service enabled -".to_owned()), "{services:?}");
    } else {
        eprintln!("SKIPPED: services: no systemctl");
    }

    let shown =
        host.agent().args(["inventory", "--json", "--config"]).arg(host.path("id/agent.toml")).output().unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["description"], serde_json::to_value(&said).unwrap());
    let shown = host.agent().args(["inventory", "--config"]).arg(host.path("id/agent.toml")).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("machine: kvm, location: hall 2, function: web\n"), "{shown}");
    assert!(shown.contains("port tcp 80 0.0.0.0 web.service\n"), "{shown}");
}
