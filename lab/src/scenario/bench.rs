//! A clone as a scenario's steps have it: its inside, its reboots, and what goes in and comes out.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use patchlab_check::{
    Step, Target,
    step::{CopyIn, CopyOut},
    target::TargetError,
};

use super::{Bench, ErrandEnd, Moment, Scenario, Seat, requirement};
use crate::{
    applier::ApplierError,
    machine::{Answer, Guest, GuestError, LabError, Machine},
};

/// Longest name of a file that was taken out.
const NAME_BYTES: usize = 150;
/// How long the guest may take to remove a file, whatever is left of its time, before its pace.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How the file of a picture of a screen is named, after what tells it from others.
const SCREENSHOT: &str = "screen.png";
/// Copies the end of a file, so that it holds still while it is read, and says the whole's size and where the copy is.
const CUT: &str = r#"test -f "$1" || { echo "$1 is no file" >&2; exit 1; }
copy=$(mktemp /tmp/lab-out.XXXXXXXX) && tail -c "$2" -- "$1" >"$copy" && stat -L -c %s -- "$1" && echo "$copy""#;

/// A clone, for one run of a scenario.
pub struct CloneBench<'a> {
    scenario: &'a Scenario,
    occasion: &'a [&'a str],
    machine: &'a Machine,
    guest: Guest,
    out: PathBuf,
    reboot: &'a dyn Fn(Duration) -> Result<Duration, RebootError>,
    seat: Option<&'a Seat<'a>>,
    suspected: Suspected,
}

/// The time of an errand, which all that it asks of the guest shares.
#[derive(Debug, Clone, Copy)]
struct Time {
    begun: Instant,
    whole: Duration,
}

impl Time {
    fn of(whole: Duration) -> Self {
        Self { begun: Instant::now(), whole }
    }

    fn left(self) -> Duration {
        self.whole.saturating_sub(self.begun.elapsed())
    }
}

/// Whether what breaks on a clone may be its own doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspected {
    /// It may: something was done to it that was not done to the control, or there is none.
    Yes,
    /// It is the lab's failure.
    No,
}

impl<'a> CloneBench<'a> {
    /// `occasion` tells what is taken out of the machine apart (phase, clone); `out` is the folder for that; `reboot` reboots the machine,
    /// starts again what that ends, and says how long it took.
    pub fn new(
        scenario: &'a Scenario,
        occasion: &'a [&'a str],
        machine: &'a Machine,
        out: PathBuf,
        reboot: &'a dyn Fn(Duration) -> Result<Duration, RebootError>,
    ) -> Self {
        Self { scenario, occasion, machine, guest: machine.guest(), out, reboot, seat: None, suspected: Suspected::No }
    }

    /// Looks at the clone from outside when something on it breaks: that it is lost is then its own word.
    pub fn suspecting(self, suspected: Suspected) -> Self {
        Self { suspected, ..self }
    }

    /// Takes the samples of metrics by turns with the other clone.
    pub fn by_turns(self, seat: Option<&'a Seat<'a>>) -> Self {
        Self { seat, ..self }
    }
}

impl Bench for CloneBench<'_> {
    fn target(&self) -> &(dyn Target + Sync) {
        &self.guest
    }

    fn pace(&self) -> u32 {
        self.machine.hardware().accelerator.factor()
    }

    fn reboot(&self, timeout: Duration) -> ErrandEnd {
        match (self.reboot)(timeout) {
            Ok(took) => Ok(Ok(format!("back after {:.1} s", took.as_secs_f64()))),
            // It went down and did not come up as it should: the machine's word, not the lab's.
            Err(RebootError::Lab(error)) if error.is_of_the_machine() => Ok(Err(error.to_string())),
            Err(error) => Err(self.broke("reboot", error)),
        }
    }

    fn copy_in(&self, dir: &Path, copy: &CopyIn, timeout: Duration) -> ErrandEnd {
        use std::os::unix::fs::PermissionsExt as _;
        let time = Time::of(timeout);
        let from = dir.join(copy.from.as_str());
        let read = || Ok((fs::read(&from)?, fs::metadata(&from)?.permissions().mode()));
        let (bytes, own) =
            read().map_err(|error: std::io::Error| self.broke(&format!("read {}", from.display()), error))?;
        let mode = copy.mode.as_ref().map_or(if own & 0o111 == 0 { 0o644 } else { 0o755 }, |mode| mode.bits());
        match self.guest.put_file_within(copy.to.as_str(), &bytes, mode, time.left()) {
            Ok(()) => Ok(Ok(format!("{} bytes, mode {mode:o}, to {}", bytes.len(), copy.to))),
            Err(error) => self.refused(error, time),
        }
    }

    fn copy_out(&self, step: &Step, copy: &CopyOut, timeout: Duration) -> ErrandEnd {
        let (limit, time) = (copy.bytes(), Time::of(timeout));
        let said = match self.guest.script(CUT, &[copy.from.as_str(), &limit.to_string()], time.left()) {
            Ok(said) => String::from_utf8_lossy(&said).into_owned(),
            Err(error) => return self.refused(error, time),
        };
        let (size, place) = said.trim().split_once('\n').unwrap_or_default();
        let read = self.guest.read_file(place, limit, time.left());
        let patience = time.left().max(REMOVE_TIMEOUT * self.pace());
        let removed = self.guest.script(r#"rm -f -- "$1""#, &[place], patience);
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) if error.answer == Answer::None => return self.refused(error, time),
            // What the guest refuses of a file that it made itself is no word of its own.
            Err(error) => return Err(self.broke("copy out", error)),
        };
        removed.map_err(|error| self.broke("copy out", error))?;
        let bytes = bytes.ok_or_else(|| self.broke("copy out", format!("{place} is gone")))?;
        let (taken, bytes) = (bytes.len(), step.redacted_bytes(bytes));
        let file =
            Path::new(copy.from.as_str()).file_name().map_or_else(Default::default, |name| name.to_string_lossy());
        let path = self.free(step, &file).map_err(|error| self.broke("keep what was copied out", error))?;
        fs::write(&path, bytes).map_err(|error| self.broke("keep what was copied out", error))?;
        let name = last(&path);
        let part = if size == taken.to_string() { String::new() } else { format!(", the last {taken}") };
        Ok(Ok(format!("{size} bytes{part}, kept as {name}")))
    }

    fn screenshot(&self, step: &Step) -> ErrandEnd {
        if self.machine.hardware().screen.is_none() {
            return Ok(Err(requirement::NO_SCREEN.to_owned()));
        }
        let path = self.free(step, SCREENSHOT).map_err(|error| self.broke("keep a picture of the screen", error))?;
        self.machine.screenshot(&path).map_err(|error| self.broke("take a picture of the screen", error))?;
        Ok(Ok(format!("kept as {}", last(&path))))
    }

    fn lost(&self) -> Option<String> {
        // That nobody can tell is the lab's failure as well.
        let looked = || self.machine.lost().ok().flatten();
        (self.suspected == Suspected::Yes).then(looked).flatten().map(|loss| loss.to_string())
    }

    fn wait_turn(&self, moment: Moment, patience: Duration) -> Duration {
        self.seat.map_or(Duration::ZERO, |seat| seat.wait(moment, patience))
    }

    fn leave_turn(&self, moment: Moment) {
        if let Some(seat) = self.seat {
            seat.leave(moment);
        }
    }
}

impl CloneBench<'_> {
    fn broke(&self, action: &str, reason: impl ToString) -> TargetError {
        TargetError { action: format!("{action} ({})", self.machine.name()), reason: reason.to_string() }
    }

    /// Whether a refusal is the machine's word or the lab's failure. That it was not done in its time is the machine's, as long as somebody
    /// answers there.
    fn refused(&self, error: GuestError, time: Time) -> ErrandEnd {
        match error.answer {
            Answer::Refused => Ok(Err(error.reason)),
            Answer::None if time.left().is_zero() && self.guest.ping().is_ok() => {
                Ok(Err(format!("not done within {} s", time.whole.as_secs_f32())))
            }
            Answer::None => Err(self.broke(&error.action, error.reason)),
        }
    }

    /// A file where the worker leaves what comes out of its machines, named after the step and its occasion; never one that an earlier attempt
    /// left.
    fn free(&self, step: &Step, file: &str) -> std::io::Result<PathBuf> {
        let out = &self.out;
        fs::create_dir_all(out)?;
        let name = plain(&[&[&*self.scenario.name, &step.name], self.occasion, &[file]].concat());
        let free = |path: &PathBuf| !path.exists();
        let path = (1..).map(|n| out.join(if n == 1 { name.clone() } else { format!("{n}-{name}") })).find(free);
        Ok(path.unwrap_or_else(|| out.join(&name)))
    }
}

/// The name of a file without its folder.
fn last(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// A file's name of these parts that every file system takes, its end kept when it is too long.
fn plain(parts: &[&str]) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let words: Vec<String> = parts.iter().map(|part| part.chars().map(fit).collect()).collect();
    let name = words.join("_");
    let name = &name[name.len().saturating_sub(NAME_BYTES)..];
    name.trim_start_matches('.').to_owned()
}

/// A reboot broke.
#[derive(Debug, thiserror::Error)]
pub enum RebootError {
    /// The machine's.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The applier's.
    #[error(transparent)]
    Applier(#[from] ApplierError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_what_was_taken_out_are_plain() {
        assert_eq!(
            plain(&["web[port=443]", "applied", "the log", "control", "error.log"]),
            "web-port-443-_applied_the-log_control_error.log"
        );
        assert_eq!(plain(&["..", "ü/x"]), "_--x");
        assert_eq!(plain(&[&"x".repeat(300), "e.log"]).len(), NAME_BYTES);
    }
}
