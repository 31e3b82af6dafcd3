//! libvirt's description of a machine, as a pure function of what it stands for.
//!
//! A template and its clones must be the same machine to QEMU: same devices at the same addresses, same memory backend id,
//! same network card. What may differ is what lies behind: files, ports, and how the memory file is mapped.

use std::{
    fmt::Write as _,
    net::SocketAddrV4,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::foreign::Security;
use crate::accelerator::Accelerator;

/// Size of the second, read-only disk in bytes: 64 MiB. Fixed, since a template and its clones must agree on it.
pub const TOOLS_BYTES: u64 = 64 * 1024 * 1024;

/// The emulator that the lab uses.
pub(crate) const EMULATOR: &str = "/usr/bin/qemu-system-x86_64";

/// The type of machine, until a template fixes it: whichever QEMU has now under that name.
pub(crate) const MACHINE: &str = "q35";

/// A guest's address inside its own user network.
pub const GUEST_ADDRESS: &str = "10.0.2.15";

/// Address of a guest's network card. It is migrated state: all clones share it, each alone in its own user network.
pub const GUEST_MAC: &str = "52:54:00:12:34:56";

/// The address under which a guest reaches its worker's loopback.
pub const HOST_ADDRESS: &str = "10.0.2.2";

/// With this capability of QEMU, libvirt asks at every start for each of the processor's features by a command of its own, more than
/// two hundred. Without it, it asks for all in two (`feature-words`).
const SLOW_CAPABILITY: &str = "cpu-unavailable-features";

/// What a machine is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// What runs them.
    pub accelerator: Accelerator,
    /// QEMU's machine type; [`MACHINE`] until a template fixes it, e.g. `pc-q35-10.0`.
    pub machine: String,
    /// Its screen, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub screen: Option<Screen>,
}

/// A screen: what a person in front of the machine would see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Screen {
    /// A VGA card with 8 MiB: text, and pictures of up to 1920 by 1080 dots.
    Vga,
}

impl Screen {
    /// libvirt's description of it. Its memory is part of what every clone loads, so it has no more than it needs.
    fn to_xml(self) -> &'static str {
        match self {
            Self::Vga => "\n    <video><model type='vga' vram='8192' heads='1'/></video>",
        }
    }
}

impl Hardware {
    /// libvirt's CPU mode for the accelerator.
    pub fn cpu_model(&self) -> &'static str {
        match self.accelerator {
            Accelerator::Kvm => "host-passthrough",
            Accelerator::Tcg => "maximum",
        }
    }
}

/// A port of the worker that leads into the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// UDP or TCP.
    pub protocol: Protocol,
    /// Where it listens, in the worker's network namespace.
    pub host: SocketAddrV4,
    /// Where it leads to.
    pub guest_port: u16,
}

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// How the guest's memory is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Anonymous.
    Plain,
    /// In a file that the guest changes: a template.
    Template(PathBuf),
    /// Mapped from a template's file, copied on write; the device state comes by monitor command.
    Clone(PathBuf, Opening),
    /// Anonymous; its content comes with the device state by monitor command: a saved machine that goes on.
    Saved,
}

/// How QEMU opens a template's memory file. It never writes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// For reading alone; since QEMU 8.2.
    ReadOnly,
    /// As if to write: the file must be the worker's own.
    ReadWrite,
}

/// All that one machine's description says.
#[derive(Debug, Clone)]
pub(crate) struct Description<'a> {
    pub(crate) name: &'a str,
    pub(crate) hardware: &'a Hardware,
    pub(crate) memory: Memory,
    pub(crate) disk: &'a Path,
    pub(crate) tools: &'a Path,
    pub(crate) serial: &'a Path,
    pub(crate) owner: Owner<'a>,
}

/// Whose libvirt starts it: what that does for a machine, and what its emulator has to do itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Owner<'a> {
    /// The worker's own. Its emulator gives it a user network, with ports that lead in.
    Worker(&'a [Forward]),
    /// One that runs by itself. Its emulator listens at a socket for who gives it a network.
    Lender {
        /// Where it listens.
        socket: &'a Path,
        /// What libvirt is told of security.
        security: &'a Security,
    },
}

impl Description<'_> {
    pub(crate) fn to_xml(&self) -> String {
        let hardware = self.hardware;
        let (name, machine, cpu) = (escape(self.name), escape(&hardware.machine), hardware.cpu_model());
        let kind = match hardware.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "qemu",
        };
        let (memory, vcpus) = (hardware.memory_mib, hardware.vcpus);
        let (disk, tools) = (path(self.disk), path(self.tools));
        let (serial, security) = match self.owner {
            Owner::Worker(_) => {
                let file = path(self.serial);
                (format!("\n    <serial type='file'><source path='{file}' append='on'/></serial>"), String::new())
            }
            // It would open the log as root, or have another daemon do so.
            Owner::Lender { security, .. } => (String::new(), security.to_xml()),
        };
        let screen = hardware.screen.map_or("", Screen::to_xml);
        let arguments = self.arguments().iter().fold(String::new(), |mut xml, argument| {
            let _ = write!(xml, "\n    <qemu:arg value='{}'/>", escape(argument));
            xml
        });
        format!(
            "<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name><genid/><memory unit='MiB'>{memory}</memory><vcpu>{vcpus}</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
  <features><acpi/></features><cpu mode='{cpu}' check='none'/>
  <on_reboot>restart</on_reboot><on_crash>preserve</on_crash>
  <devices><emulator>{EMULATOR}</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='unsafe' discard='unmap'/>
      <source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='writeback'/>
      <source file='{tools}'/><target dev='vdb' bus='virtio'/><readonly/></disk>{serial}
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='none'/><controller type='usb' model='none'/>{screen}
  </devices>{security}
  <qemu:commandline>{arguments}
  </qemu:commandline>
  <qemu:capabilities><qemu:del capability='{SLOW_CAPABILITY}'/></qemu:capabilities>
</domain>
"
        )
    }

    fn arguments(&self) -> Vec<String> {
        let from = |file: &Path, mapping: &str| format!("file,mem-path={},{mapping}", file.display());
        let backend = match &self.memory {
            Memory::Plain | Memory::Saved => "ram".to_owned(),
            Memory::Template(file) => from(file, "share=on"),
            Memory::Clone(file, Opening::ReadOnly) => from(file, "share=off,readonly=on,rom=off"),
            Memory::Clone(file, Opening::ReadWrite) => from(file, "share=off"),
        };
        let size = self.hardware.memory_mib;
        // The id must be the same in a machine and all that go on from its state; a second -machine merges with
        // libvirt's own.
        let mut arguments = vec![
            "-object".into(),
            format!("memory-backend-{backend},id=lab-memory,size={size}M"),
            "-machine".into(),
            "memory-backend=lab-memory".into(),
        ];
        match self.owner {
            Owner::Worker(forwards) => arguments.extend(["-netdev".into(), netdev(forwards)]),
            Owner::Lender { socket, .. } => {
                let listens = format!("stream,id=lab-net,server=on,addr.type=unix,addr.path={}", socket.display());
                let log = format!("file,id=lab-serial,append=on,path={}", self.serial.display());
                arguments.extend(["-netdev".into(), listens]);
                // A template's user network is in its state, and wants a place; this one leads nowhere.
                arguments.extend(["-netdev".into(), "user,id=lab-state,restrict=on".into()]);
                arguments.extend(["-chardev".into(), log]);
                arguments.extend(["-device".into(), "isa-serial,chardev=lab-serial,index=0".into()]);
            }
        }
        arguments.push("-device".into());
        arguments.push(format!("virtio-net-pci,netdev=lab-net,mac={GUEST_MAC},addr=0x1d"));
        if matches!(self.memory, Memory::Clone(..) | Memory::Saved) {
            arguments.push("-incoming".into());
            arguments.push("defer".into());
        }
        arguments
    }
}

/// QEMU's user network. Without `restrict`, which silently drops forwarded UDP: isolation is the namespace's work.
pub(super) fn netdev(forwards: &[Forward]) -> String {
    forwards.iter().fold(String::from("user,id=lab-net"), |mut option, forward| {
        let protocol = match forward.protocol {
            Protocol::Udp => "udp",
            Protocol::Tcp => "tcp",
        };
        let (ip, port) = (forward.host.ip(), forward.host.port());
        let _ = write!(option, ",hostfwd={protocol}:{ip}:{port}-{GUEST_ADDRESS}:{}", forward.guest_port);
        option
    })
}

fn path(path: &Path) -> String {
    escape(&path.display().to_string())
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware() -> Hardware {
        let (accelerator, machine) = (Accelerator::Tcg, "pc-q35-10.0".into());
        Hardware { memory_mib: 512, vcpus: 2, accelerator, machine, screen: None }
    }

    fn xml(memory: Memory, forwards: &[Forward]) -> String {
        of(&hardware(), memory, forwards)
    }

    fn of(hardware: &Hardware, memory: Memory, forwards: &[Forward]) -> String {
        Description {
            name: "a&b",
            hardware,
            memory,
            disk: Path::new("/d"),
            tools: Path::new("/t"),
            serial: Path::new("/s"),
            owner: Owner::Worker(forwards),
        }
        .to_xml()
    }

    #[test]
    fn template_and_clone_differ_only_in_how_memory_is_mapped_and_that_the_clone_waits() {
        let template = xml(Memory::Template("/ram".into()), &[]);
        let clone = xml(Memory::Clone("/ram".into(), Opening::ReadOnly), &[]);
        let expected = template.replace("share=on", "share=off,readonly=on,rom=off").replace(
            "\n  </qemu:commandline>",
            "\n    <qemu:arg value='-incoming'/>\n    <qemu:arg value='defer'/>\n  </qemu:commandline>",
        );
        assert_eq!(clone, expected);
        assert!(clone.contains("<name>a&amp;b</name>"));
    }

    #[test]
    fn a_saved_machine_goes_on_as_any_other_with_memory_of_its_own_that_waits() {
        let expected = xml(Memory::Plain, &[]).replace(
            "\n  </qemu:commandline>",
            "\n    <qemu:arg value='-incoming'/>\n    <qemu:arg value='defer'/>\n  </qemu:commandline>",
        );
        assert_eq!(xml(Memory::Saved, &[]), expected);
        assert!(expected.contains("memory-backend-ram,id=lab-memory,size=512M"));
    }

    #[test]
    fn a_machine_that_another_libvirt_starts_reaches_nothing_by_its_emulator() {
        let security = Security { user: (993, 992), models: Vec::new() };
        let owner = Owner::Lender { socket: Path::new("/s.net"), security: &security };
        let (hardware, at) = (hardware(), Path::new("/s"));
        let memory = Memory::Clone("/ram".into(), Opening::ReadOnly);
        let description =
            Description { name: "a", hardware: &hardware, memory, disk: at, tools: at, serial: at, owner };
        let xml = description.to_xml();
        assert!(
            xml.contains("netdev=lab-net,")
                && xml.contains("stream,id=lab-net,server=on,addr.type=unix,addr.path=/s.net")
        );
        assert_eq!((xml.matches("'user,").count(), xml.matches("'user,id=lab-state,restrict=on'").count()), (1, 1));
        assert!(xml.contains("model='dac'") && !xml.contains("<serial"), "{xml}");
        let own = of(&hardware, Memory::Plain, &[]);
        assert!(own.contains("<serial type='file'>") && !own.contains("seclabel"), "{own}");
    }

    #[test]
    fn only_a_machine_with_a_screen_has_a_card_for_it() {
        let with = of(&Hardware { screen: Some(Screen::Vga), ..hardware() }, Memory::Plain, &[]);
        let without = xml(Memory::Plain, &[]);
        assert!(with.contains("<video><model type='vga'") && !without.contains("<video>"));
        assert_eq!(with.replace(Screen::Vga.to_xml(), ""), without);
    }

    #[test]
    fn forwards_lead_to_the_guests_address() {
        let forward = Forward { protocol: Protocol::Udp, host: "127.0.0.1:2161".parse().unwrap(), guest_port: 161 };
        assert!(xml(Memory::Plain, &[forward]).contains("hostfwd=udp:127.0.0.1:2161-10.0.2.15:161"));
    }
}
