//! What runs a machine's processors: kvm, or QEMU's own translation.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
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
    /// How many times slower than this host's processor the guest's is, measured; absent where it was not.
    pub slowdown: Option<u32>,
}

impl fmt::Display for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.took.as_millis();
        if self.accelerator == Accelerator::Kvm {
            return write!(f, "kvm runs a payload in {ms} ms; a baseline's first boot tries a whole kernel");
        }
        match self.slowdown {
            Some(times) => write!(
                f,
                "software emulation, for a whole system about ten times slower than kvm (arithmetic alone: {times} times, \
                 measured)"
            )?,
            None => write!(f, "software emulation ({ms} ms for a payload)")?,
        }
        match &self.why_not_kvm {
            Some(why) => write!(f, ", because {why}"),
            None => Ok(()),
        }
    }
}

/// Longest time for the payload of one sector under emulation.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// A kvm that takes more than this many times as long as emulation is none.
const KVM_FACTOR: u32 = 2;
/// A busy host may be slow once.
const KVM_TRIES: u32 = 3;
/// QEMU's exit status after the payload's marker: isa-debug-exit gives `2 * value + 1`.
const MARKER_STATUS: i32 = 33;
/// Rounds of the loop that measures how slow emulation is: some tenths of a second of it, since a clock tick is a hundredth.
const ROUNDS: u32 = 20_000_000;
/// The same for the processor itself.
const NATIVE_ROUNDS: u32 = 80_000_000;
/// Of `/proc/PID/stat` on x86-64.
const TICKS_PER_SECOND: f64 = 100.0;
/// What the loop begins with; anything but 0.
const SEED: u32 = 2_463_534_242;

/// Runs a payload of one sector under emulation and under kvm. A kvm that is slower than emulation is none: on some hosts each exit
/// from the guest takes so long that a stock kernel seems to hang. A payload is not a kernel, either: a baseline's first boot
/// tries a whole one under kvm before it is believed. Where emulation it is, says how slow that is on this very host.
///
/// # Errors
/// QEMU does not even run the payload under emulation, or is not there.
pub fn probe() -> io::Result<Probed> {
    let emulated = run(Accelerator::Tcg, &marker(), PROBE_TIMEOUT).map_err(|error| {
        io::Error::new(error.kind(), format!("qemu-system-x86_64 (package qemu-system-x86) runs no payload: {error}"))
    })?;
    let mut tries = (0..KVM_TRIES).map(|_| run(Accelerator::Kvm, &marker(), emulated * KVM_FACTOR));
    let mut refused = None;
    let ran = tries.find_map(|ran| ran.map_err(|error| refused = Some(error)).ok());
    if let Some(took) = ran {
        return Ok(Probed { accelerator: Accelerator::Kvm, took, why_not_kvm: None, slowdown: None });
    }
    let why_not_kvm = refused.map(|error| format!("kvm is not usable: {error}"));
    let slowdown = slowdown().ok();
    Ok(Probed { accelerator: Accelerator::Tcg, took: emulated, why_not_kvm, slowdown })
}

/// How many times slower the emulated processor runs a loop of arithmetic and memory than this one does. Processor time, not the
/// clock's: a busy host makes both wait, and neither slower.
fn slowdown() -> io::Result<u32> {
    let spent_on = |code: &[u8]| -> io::Result<f64> {
        let before = children_ticks()?;
        run(Accelerator::Tcg, code, PROBE_TIMEOUT)?;
        Ok(children_ticks()?.saturating_sub(before) as f64 / TICKS_PER_SECOND)
    };
    let empty = spent_on(&marker())?;
    let emulated = (spent_on(&busy())? - empty).max(1.0 / TICKS_PER_SECOND) / f64::from(ROUNDS);
    let native = natively().as_secs_f64() / f64::from(NATIVE_ROUNDS);
    // Emulation is never faster; what is too short to measure may look so.
    Ok((emulated / native).round().clamp(1.0, 1000.0) as u32)
}

/// Processor time of all children that ended, in clock ticks: fields 16 and 17 of `/proc/self/stat` (proc(5)), of which the name
/// in parentheses may hold spaces itself.
fn children_ticks() -> io::Result<u64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().skip(13).take(2));
    let ticks: Option<u64> = fields.and_then(|fields| fields.map(|field| field.parse::<u64>().ok()).sum());
    ticks.ok_or_else(|| io::Error::other("/proc/self/stat has no times of children"))
}

/// The marker alone.
fn marker() -> Vec<u8> {
    // mov dx, 0xf4; mov al, 0x10; out dx, al; hlt
    vec![0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4]
}

/// The loop of [`natively`] in real mode, then the marker.
fn busy() -> Vec<u8> {
    let mut code = vec![0xfa, 0x31, 0xc0, 0x8e, 0xd8]; // cli; xor ax, ax; mov ds, ax
    code.extend([0x66, 0xb8]); // mov eax, SEED
    code.extend(SEED.to_le_bytes());
    code.extend([0x66, 0xb9]); // mov ecx, ROUNDS
    code.extend(ROUNDS.to_le_bytes());
    let begin = code.len();
    code.extend([0x66, 0x89, 0xc3, 0x66, 0xc1, 0xe3, 13, 0x66, 0x31, 0xd8]); // ebx = eax; ebx <<= 13; eax ^= ebx
    code.extend([0x66, 0x89, 0xc3, 0x66, 0xc1, 0xeb, 17, 0x66, 0x31, 0xd8]); // ebx = eax; ebx >>= 17; eax ^= ebx
    code.extend([0x66, 0x89, 0xc3, 0x66, 0xc1, 0xe3, 5, 0x66, 0x31, 0xd8]); // ebx = eax; ebx <<= 5; eax ^= ebx
    code.extend([0x89, 0xc7, 0x81, 0xe7, 0xfc, 0x1f]); // di = ax & 0x1ffc
    code.extend([0x66, 0x01, 0x85, 0x00, 0x10]); // [di + 0x1000] += eax: free memory below the sector
    code.extend([0x66, 0x49]); // dec ecx
    code.extend(jump_back(begin, code.len()));
    code.extend(marker());
    code
}

/// Processor time of the loop of [`busy`] on this processor. A program built without optimisation makes it look slower.
fn natively() -> Duration {
    let spent = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
    };
    let before = spent();
    let mut memory = [0_u32; 2048];
    let mut value = SEED;
    for _ in 0..NATIVE_ROUNDS {
        value ^= value << 13;
        value ^= value >> 17;
        value ^= value << 5;
        let word = &mut memory[(value >> 2) as usize % 2048];
        *word = word.wrapping_add(value);
    }
    std::hint::black_box(memory);
    spent().saturating_sub(before)
}

/// `jnz` to `begin` from `at`.
fn jump_back(begin: usize, at: usize) -> [u8; 2] {
    let distance = at as i64 + 2 - begin as i64;
    [0x75, (-distance) as i8 as u8]
}

/// How long QEMU takes from its start to the marker of a payload that fits into a boot sector.
fn run(accelerator: Accelerator, code: &[u8], limit: Duration) -> io::Result<Duration> {
    if !accelerator.opens() {
        return Err(io::Error::other("/dev/kvm cannot be opened by this user"));
    }
    // A disk of one sector is too small for the machine's firmware.
    let mut sectors = vec![0; 1 << 20];
    sectors[..code.len()].copy_from_slice(code);
    sectors[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut disk = tempfile::NamedTempFile::new()?;
    disk.write_all(&sectors)?;
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
        if begun.elapsed() > limit {
            qemu.kill()?;
            qemu.wait()?;
            return Err(io::Error::other(format!("a small payload did not end within {} ms", limit.as_millis())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_fits_before_the_partition_table_and_jumps_to_its_beginning() {
        let code = busy();
        assert!(code.len() < 440);
        // jnz is the last instruction before the marker.
        let jump = code.len() - marker().len() - 2;
        assert_eq!((code[jump], jump as i64 + 2 + i64::from(code[jump + 1] as i8)), (0x75, 17));
    }

    #[test]
    fn processor_time_passes() {
        assert!(natively() > Duration::ZERO);
        children_ticks().unwrap();
    }

    #[test]
    fn emulation_says_how_slow_it_is_and_why_it_is_taken() {
        let why_not_kvm = Some("kvm is not usable: no".to_owned());
        let took = Duration::from_millis(300);
        let probed = Probed { accelerator: Accelerator::Tcg, took, why_not_kvm, slowdown: Some(7) };
        let text = probed.to_string();
        assert_eq!(
            text,
            "software emulation, for a whole system about ten times slower than kvm (arithmetic alone: 7 times, measured), \
             because kvm is not usable: no"
        );
    }
}
