//! The connection to libvirt: its embedded driver, or one that runs by itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use virt::{connect::Connect, domain::Domain, sys};

use super::{
    Description, GuestTime, LabError, Steward,
    domain::EMULATOR,
    failed,
    foreign::{self, Security},
    handshake::Introduced,
};
use crate::{host::Driver, places::Places};

/// What runs the machines, as far as a template depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// QEMU's version, e.g. `10.0.2`.
    pub qemu: String,
    /// libvirt's version, e.g. `9.0.0`.
    pub libvirt: String,
}

/// An open lab: one per process, in a worker.
#[derive(Debug)]
pub struct Lab {
    pub(super) connect: Connect,
    pub(super) places: Places,
    /// Where libvirt keeps the state of running machines, and their emulators' logs.
    pub(super) traces: Traces,
    /// What a libvirt that runs by itself is told; `None` where it is this process's own.
    pub(super) lent: Option<Lent>,
    versions: Versions,
    pub(super) guest_time: GuestTime,
    count: AtomicU32,
    /// Held while a file that all machines share is made: an empty layer, a copy of a template's memory.
    pub(super) files: Mutex<()>,
    pub(super) steward: Steward,
    /// Every machine that got an identity of its own here.
    pub(super) introduced: Mutex<Introduced>,
}

/// Where libvirt leaves traces of machines.
#[derive(Debug, Clone)]
pub(super) struct Traces {
    /// The emulators' process numbers.
    pub(super) state: PathBuf,
    /// What the emulators say.
    pub(super) logs: PathBuf,
}

/// How machines are had from a libvirt that runs by itself.
#[derive(Debug, Clone)]
pub(super) struct Lent {
    /// With what their names begin there.
    pub(super) prefix: String,
    pub(super) security: Security,
}

/// The embedded driver's settings. Without them it asks for a security driver and probes at every start.
const QEMU_CONF: &str = r#"security_driver = "none"
stdio_handler = "file"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
"#;

impl Lab {
    /// Where what comes out of its machines goes, in the worker's own folder: plain files.
    pub fn out(&self) -> PathBuf {
        self.places.work.join("out")
    }

    /// Opens libvirt. The embedded driver probes QEMU once and keeps what it found in the cache.
    pub fn open(places: &Places, driver: &Driver) -> Result<Self, LabError> {
        virt::error::clear_error_callback();
        start_events()?;
        let (connect, uri, traces, lent) = match driver {
            Driver::Foreign { uri, prefix } => {
                let connect = foreign::open(uri)?;
                let security = foreign::security(&connect, uri)?;
                let traces = Traces { state: "/run/libvirt/qemu".into(), logs: "/var/log/libvirt/qemu".into() };
                (connect, uri.clone(), traces, Some(Lent { prefix: prefix.clone(), security }))
            }
            Driver::Embedded => {
                // One folder per process: the driver locks it. Short, since its sockets' paths end at 108 bytes.
                let root = places.work.parent().unwrap_or(&places.work).join("embed");
                prepare_root(&root, &places.cache)?;
                let uri = format!("qemu:///embed?root={}", root.display());
                let connect = Connect::open(Some(&uri)).map_err(|error| LabError::Libvirt {
                    action: "open",
                    subject: uri.clone(),
                    reason: format!(
                        "{} (is libvirt-daemon-driver-qemu installed? run lab/setup-host)",
                        error.message()
                    ),
                })?;
                (connect, uri, Traces { state: root.join("run/qemu"), logs: root.join("log/qemu") }, None)
            }
        };
        let versions = foreign::versions(&connect, &uri)?;
        let places = places.clone();
        let (guest_time, count, files) = (GuestTime::default(), AtomicU32::new(0), Mutex::new(()));
        let steward = Steward::new(&places.work).map_err(failed("look after the machines in", &places.work))?;
        let introduced = Mutex::default();
        Ok(Self { connect, places, traces, lent, versions, guest_time, count, files, steward, introduced })
    }

    /// What runs the machines.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// For how long something was awaited of its guests.
    pub fn guest_time(&self) -> &GuestTime {
        &self.guest_time
    }

    /// A number for the next machine, unique in this lab.
    pub(super) fn next_number(&self) -> u32 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }

    /// Starts a machine as described.
    pub(crate) fn create(
        &self,
        description: &Description<'_>,
        flags: sys::virDomainCreateFlags,
    ) -> Result<Domain, LabError> {
        self.connect.create_domain_xml(&description.to_xml(), flags).map_err(|error| LabError::Libvirt {
            action: "start",
            subject: description.name.to_owned(),
            reason: error.message().to_owned(),
        })
    }

    /// A new layer over `backing`, in this worker's folder: a copy of one empty layer, since making one takes qemu-img 30 ms
    /// and more.
    pub(crate) fn layer(&self, backing: &Path, name: &str) -> Result<PathBuf, LabError> {
        let made = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = patchlab_check::Digest::of(backing.display().to_string()).short();
        let empty = self.places.work.join(format!("empty-{digest}.qcow2"));
        if !empty.exists() {
            make_layer(backing, &empty)?;
        }
        drop(made);
        let layer = self.places.work.join(format!("{name}.qcow2"));
        fs::copy(&empty, &layer).map_err(failed("create", &layer))?;
        Ok(layer)
    }

    /// A second disk of the right size with nothing on it.
    pub(crate) fn empty_tools(&self) -> Result<PathBuf, LabError> {
        let path = self.places.work.join("no-tools.raw");
        if !path.exists() {
            let file = fs::File::create(&path).map_err(failed("create", &path))?;
            file.set_len(super::TOOLS_BYTES).map_err(failed("size", &path))?;
        }
        Ok(path)
    }
}

fn make_layer(backing: &Path, layer: &Path) -> Result<(), LabError> {
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(backing).arg(layer);
    qemu_img(&mut create, layer)
}

/// Writes a layer with all that is below it to one new file.
pub(super) fn flatten(layer: &Path, to: &Path) -> Result<(), LabError> {
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "qcow2", "-O", "qcow2"]).arg(layer).arg(to);
    qemu_img(&mut convert, to)
}

fn qemu_img(command: &mut Command, made: &Path) -> Result<(), LabError> {
    let output = command.output().map_err(failed("run qemu-img (package qemu-utils) for", made))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed("create", made)(io::Error::other(said)))
}

/// The driver's folders: settings, and a cache that outlives them.
fn prepare_root(root: &Path, cache: &Path) -> Result<(), LabError> {
    let etc = root.join("etc");
    fs::create_dir_all(&etc).map_err(failed("create", &etc))?;
    let conf = etc.join("qemu.conf");
    // Only root may, and must, say as whom the machines run: otherwise it drops to another user.
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\ngroup = \"root\"\n" } else { "" };
    fs::write(&conf, format!("{user}{QEMU_CONF}")).map_err(failed("write", &conf))?;
    let kept = cache.join("libvirt");
    fs::create_dir_all(&kept).map_err(failed("create", &kept))?;
    let link = root.join("cache");
    match std::os::unix::fs::symlink(&kept, &link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("link", &link)(error)),
        _ => Ok(()),
    }
}

/// Registers libvirt's event loop and runs it, once per process and before the first connection.
pub(crate) fn start_events() -> Result<(), LabError> {
    static STARTED: Mutex<bool> = Mutex::new(false);
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if *started {
        return Ok(());
    }
    let broken = |reason: String| LabError::Libvirt { action: "start", subject: "the event loop".into(), reason };
    virt::event::event_register_default_impl().map_err(|error| broken(error.message().to_owned()))?;
    std::thread::Builder::new()
        .name("libvirt-events".into())
        .spawn(|| {
            loop {
                if let Err(error) = virt::event::event_run_default_impl() {
                    tracing::warn!(error = error.message(), "libvirt's event loop");
                }
            }
        })
        .map_err(|error| broken(error.to_string()))?;
    *started = true;
    Ok(())
}

pub(super) fn version(number: u32) -> String {
    format!("{}.{}.{}", number / 1_000_000, number / 1000 % 1000, number % 1000)
}

/// The version of the emulator on this host as it says itself, in the form that libvirt gives; `None` where there is none.
pub(crate) fn installed_qemu() -> Option<String> {
    let output = Command::new(EMULATOR).arg("--version").output().ok()?;
    said_version(&String::from_utf8_lossy(&output.stdout))
}

/// `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`.
fn said_version(text: &str) -> Option<String> {
    let word = text.strip_prefix("QEMU emulator version ")?.split_whitespace().next()?;
    let numbers: Option<Vec<u32>> = word.split('.').map(|part| part.parse().ok()).collect();
    numbers.filter(|numbers| numbers.len() == 3).map(|_| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emulator_says_its_version_as_libvirt_does() {
        assert_eq!(said_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n").as_deref(), Some("10.0.2"));
        assert_eq!((said_version("QEMU emulator version 10.1\n"), said_version("x 10.0.2")), (None, None));
    }

    #[test]
    fn versions_are_packed_numbers() {
        assert_eq!((version(10_000_002).as_str(), version(9_000_000).as_str()), ("10.0.2", "9.0.0"));
    }
}
