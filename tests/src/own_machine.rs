//! A managed host that is a virtual machine of a libvirt that runs by itself ([`crate::daemon::Daemon`]): its own disk, begun from a stored
//! baseline's, a second one that stays outside its snapshots, and its agent, which starts with it.

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use patchlab::lab::agent;
use patchlab_lab::machine::{GUEST_ADDRESS, GUEST_MAC};
use serde_json::{Value, json};

use crate::daemon::Daemon;

/// How long the machine may take to boot, under emulation and beside other tests.
const BOOT_WITHIN: Duration = Duration::from_secs(300);
/// Where its agent keeps its ledger: on the disk outside.
pub const LEDGER: &str = "/srv/ledger";

/// Makes the machine a host: everything is found on the third disk. `SERVICE` stands for the options of the unit that hosts get.
const SETTLE: &str = "set -e
mkdir -p /srv/ledger /srv/tools
grep -q /srv/ledger /etc/fstab || printf '/dev/vdb /srv/ledger ext4 defaults 0 2\\n/dev/vdc /srv/tools ext4 ro 0 0\\n' >>/etc/fstab
mount -a
install -d -m 700 /etc/patchlab-agent
install -m 600 /srv/tools/enrolment/* /etc/patchlab-agent/
cat >/etc/systemd/system/patchlab-agent.service <<'UNIT'
[Unit]
RequiresMountsFor=/srv/ledger /srv/tools
[Service]
SERVICE
ExecStart=/srv/tools/patchlab-agent run --config /etc/patchlab-agent/agent.toml
[Install]
WantedBy=multi-user.target
UNIT
systemctl --quiet enable --now patchlab-agent.service
sync
";

/// The machine.
#[derive(Debug)]
pub struct OwnMachine<'a> {
    daemon: &'a Daemon,
    name: String,
}

impl<'a> OwnMachine<'a> {
    /// Defines and starts a machine called `name` whose disk begins as `disk`. Its agent answers at `port` of this host's loopback.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn start(daemon: &'a Daemon, name: &str, disk: &Path, enrolment: &Path, port: u16, dir: &Path) -> Self {
        let file = |what: &str| dir.join(format!("{name}-{what}")).display().to_string();
        let (own, ledger, tools) = (file("disk.qcow2"), file("ledger.img"), file("tools.img"));
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &disk.display().to_string(), &own]);
        let folder = PathBuf::from(file("tools"));
        fs::create_dir(&folder).expect("a folder");
        run("cp", &["-r", &enrolment.display().to_string(), &folder.join("enrolment").display().to_string()]);
        let service = agent::service().collect::<Vec<_>>().join("\n");
        fs::write(folder.join("settle"), SETTLE.replace("SERVICE", &service)).expect("a file");
        let program = std::env::var("PATCHLAB_AGENT").expect("a static agent");
        fs::copy(program, folder.join("patchlab-agent")).expect("the agent");
        run("mke2fs", &["-q", "-t", "ext4", &ledger, "16M"]);
        run("mke2fs", &["-q", "-t", "ext4", "-d", &folder.display().to_string(), &tools, "64M"]);
        let disk = |target: &str, form: &str, path: &str, more: &str| {
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='{form}'/><source file='{path}'/>\
                 <target dev='{target}' bus='virtio'/>{more}</disk>"
            )
        };
        let disks = [
            disk("vda", "qcow2", &own, ""),
            disk("vdb", "raw", &ledger, ""),
            disk("vdc", "raw", &tools, "<readonly/>"),
        ];
        let network = format!("user,id=net,hostfwd=udp:127.0.0.1:{port}-{GUEST_ADDRESS}:161");
        let card = format!("virtio-net-pci,netdev=net,mac={GUEST_MAC},addr=0x1d");
        let description = format!(
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>{name}</name>\
             <memory unit='MiB'>512</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>\
             <features><acpi/></features><cpu mode='maximum' check='none'/><devices>{}\
             <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
             <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng></devices>\
             <qemu:commandline><qemu:arg value='-netdev'/><qemu:arg value='{network}'/><qemu:arg value='-device'/>\
             <qemu:arg value='{card}'/></qemu:commandline></domain>",
            disks.concat()
        );
        let path = file("machine.xml");
        fs::write(&path, description).expect("its description");
        daemon.virsh(&["define", &path]);
        daemon.virsh(&["start", name]);
        let machine = Self { daemon, name: name.to_owned() };
        let begun = Instant::now();
        while !machine.answers() {
            assert!(begun.elapsed() < BOOT_WITHIN, "{name} does not boot");
            std::thread::sleep(Duration::from_secs(1));
        }
        machine.does("mkdir -p /srv/tools && mount -o ro /dev/vdc /srv/tools && sh /srv/tools/settle");
        machine
    }

    fn answers(&self) -> bool {
        let ping = ["qemu-agent-command", &self.name, "{\"execute\": \"guest-ping\"}", "--timeout", "5"];
        let mut virsh = Command::new("virsh");
        virsh.args(["--quiet", "--connect", &self.daemon.libvirt().to_string()]).args(ping);
        virsh.output().is_ok_and(|output| output.status.success())
    }

    /// What a command that must end well says there.
    ///
    /// # Panics
    /// It does not.
    pub fn does(&self, script: &str) -> String {
        let (code, said) = self.ran(script);
        assert_eq!(code, 0, "{script}: {said}");
        said
    }

    /// How a command ends there, and what it says.
    ///
    /// # Panics
    /// The guest does not answer.
    pub fn ran(&self, script: &str) -> (i64, String) {
        let told = json!({ "execute": "guest-exec", "arguments": {
            "path": "/bin/sh", "arg": ["-c", format!("exec 2>&1; {script}")], "capture-output": true
        }});
        let number = self.asked(&told)["pid"].clone();
        loop {
            let status = self.asked(&json!({ "execute": "guest-exec-status", "arguments": { "pid": number } }));
            if status["exited"] == true {
                let mut decode = Command::new("base64");
                let encoded = status["out-data"].as_str().unwrap_or_default();
                let file = tempfile::NamedTempFile::new().expect("a file");
                fs::write(file.path(), encoded).expect("a file");
                let output = decode.arg("--decode").arg(file.path()).output().expect("base64 runs");
                return (
                    status["exitcode"].as_i64().unwrap_or(-1),
                    String::from_utf8_lossy(&output.stdout).into_owned(),
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn asked(&self, told: &Value) -> Value {
        let said = self.daemon.virsh(&["qemu-agent-command", &self.name, &told.to_string(), "--timeout", "60"]);
        serde_json::from_str::<Value>(&said).expect("JSON")["return"].clone()
    }
}

/// A UDP port of the loopback that is free now.
///
/// # Panics
/// There is none.
pub fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    assert!(status.is_ok_and(|status| status.success()), "{program} {arguments:?}");
}
