//! What runs a machine's processors: kvm, or QEMU's own translation.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// What runs a machine's processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The host's virtualisation.
    Kvm,
    /// Software emulation: works everywhere, about ten times slower.
    Tcg,
}

impl Accelerator {
    /// By what the default time limits are multiplied.
    pub fn factor(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Tcg => 8,
        }
    }

    /// Whether this user may open it. Proves nothing yet: see [`probe`].
    pub fn opens(self) -> bool {
        match self {
            Self::Kvm => OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok(),
            Self::Tcg => true,
        }
    }
}

/// The host's processor, by its first name in `/proc/cpuinfo`.
pub(crate) fn host_cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned()))
        .unwrap_or_else(|| "unknown".into())
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// What runs machines here.
    pub accelerator: Accelerator,
    /// How long a payload of one sector took from QEMU's start to its marker.
    pub took: Duration,
    /// Why it is not kvm, when it is not.
    pub why_not_kvm: Option<String>,
}

impl fmt::Display for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.took.as_millis();
        match (&self.accelerator, &self.why_not_kvm) {
            (Accelerator::Kvm, _) => {
                write!(f, "kvm runs a payload in {ms} ms; a baseline's first boot tries a whole kernel")
            }
            (Accelerator::Tcg, Some(why)) => write!(f, "software emulation ({ms} ms for a payload): {why}"),
            (Accelerator::Tcg, None) => write!(f, "software emulation ({ms} ms for a payload)"),
        }
    }
}

/// Longest time for the payload of one sector.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// QEMU's exit status after the payload's marker: isa-debug-exit gives `2 * value + 1`.
const MARKER_STATUS: i32 = 33;

/// Runs a payload of one sector under emulation and under kvm. A kvm that is slower than emulation is none: on some hosts each exit
/// from the guest takes so long that a stock kernel seems to hang. A payload is not a kernel, either: a baseline's first boot
/// tries a whole one under kvm before it is believed.
///
/// # Errors
/// QEMU does not even run the payload under emulation, or is not there.
pub fn probe() -> io::Result<Probed> {
    let emulated = run_payload(Accelerator::Tcg)?;
    let why_not_kvm = match run_payload(Accelerator::Kvm) {
        Ok(took) if took <= emulated * 2 => {
            return Ok(Probed { accelerator: Accelerator::Kvm, took, why_not_kvm: None });
        }
        Ok(took) => format!("kvm takes {} ms for it: not usable", took.as_millis()),
        Err(error) => format!("kvm: {error}"),
    };
    Ok(Probed { accelerator: Accelerator::Tcg, took: emulated, why_not_kvm: Some(why_not_kvm) })
}

fn run_payload(accelerator: Accelerator) -> io::Result<Duration> {
    if !accelerator.opens() {
        return Err(io::Error::other("/dev/kvm cannot be opened by this user"));
    }
    // mov dx, 0xf4; mov al, 0x10; out dx, al; hlt
    let mut sector = vec![0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4];
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    let mut disk = tempfile::NamedTempFile::new()?;
    // A disk of one sector is too small for the machine's firmware.
    sector.resize(1 << 20, 0);
    disk.write_all(&sector)?;
    let name = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    let begun = Instant::now();
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-accel", name, "-machine", "q35", "-display", "none", "-nodefaults", "-no-user-config"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x01", "-drive"])
        .arg(format!("format=raw,file={},snapshot=on", disk.path().display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    loop {
        if let Some(status) = qemu.try_wait()? {
            return match status.code() {
                Some(MARKER_STATUS) => Ok(begun.elapsed()),
                _ => Err(io::Error::other(format!("QEMU ended with {status} before the payload's marker"))),
            };
        }
        if begun.elapsed() > PROBE_TIMEOUT {
            qemu.kill()?;
            qemu.wait()?;
            return Err(io::Error::other(format!("no marker within {} s", PROBE_TIMEOUT.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
