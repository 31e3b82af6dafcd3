//! A patched clone that is lost, or goes astray as a whole, and a control that does not: what no step can tell, since no step is done on it
//! any more.

use std::time::Duration;

use super::{Broke, Clones, Control, Validation, lab};
use crate::{
    machine::{LabError, failures},
    report::BaselineReport,
    verdict::{self, Phase, Verdict},
};

/// How far a clone's clock may be from the lab's, which set it a short while ago.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// When and how the patched clone was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) phase: Phase,
    pub(super) how: String,
}

impl Validation<'_> {
    /// What it means that something broke on the patched clone: the loss of that clone, when it is lost and the control is not; the lab's
    /// failure otherwise.
    pub(super) fn of_patched(&self, clones: &Clones<'_>, phase: Phase, broke: Broke) -> Broke {
        let (control, patched) = clones.both(|_, machine| machine.lost());
        match (control, patched) {
            (None | Some(Ok(None)), Ok(Some(loss))) => self.lost(clones, Lost { phase, how: loss.to_string() }),
            _ => broke,
        }
    }

    /// What it means that the patched clone is lost: beside a control that is only remembered, not yet anything.
    pub(super) fn lost(&self, clones: &Clones<'_>, lost: Lost) -> Broke {
        match clones.control {
            Control::Beside(..) => Broke::Lost(lost),
            Control::Remembered(_) => {
                Broke::Disagrees(format!("the patched clone was lost {}: {}", lost.phase, lost.how))
            }
        }
    }

    /// Compares the clocks. One that a patch sets is wrong for whoever looks at the time, and hides what was changed since the freeze.
    pub(super) fn keeps_time(
        &self,
        clones: &Clones<'_>,
        phase: Phase,
        report: &mut BaselineReport,
    ) -> Result<(), Broke> {
        let (control, patched) = clones.both(|_, machine| machine.clock_off());
        let broke = |error| lab("look at the clocks")(LabError::Guest(error));
        // One that is remembered kept the time, or would not be.
        let control = control.unwrap_or(Ok(Duration::ZERO)).map_err(broke)?;
        let patched = patched.map_err(|error| self.of_patched(clones, phase, broke(error)))?;
        if patched > CLOCK_TOLERANCE && control <= CLOCK_TOLERANCE {
            let why = format!("the patched clone's clock is {} off", span(patched));
            report.scenarios.push(verdict::of_the_machine(phase, verdict::KEEPS_TIME, &why, Verdict::Regression));
        }
        Ok(())
    }

    /// What is still to be read of a patched clone that broke: its journal, or what its console said last.
    pub(super) fn last_words(&self, clones: &Clones<'_>) -> Vec<String> {
        match clones.patched.guest().ping() {
            Ok(()) => self.journal(clones),
            Err(_) => self.console(clones),
        }
    }

    /// The same of one that is lost, whose console tells most, and which may answer all the same.
    pub(super) fn last_words_of_lost(&self, clones: &Clones<'_>) -> Vec<String> {
        let answers = clones.patched.guest().ping().is_ok();
        let journal = if answers { self.journal(clones) } else { Vec::new() };
        journal.into_iter().chain(self.console(clones)).collect()
    }

    fn console(&self, clones: &Clones<'_>) -> Vec<String> {
        let redacted = |line| self.scenarios.iter().fold(line, |line, scenario| scenario.redacted(line));
        let lines = clones.patched.last_lines(CONSOLE_LINES_READ);
        let said = from_failure(&lines).iter().cloned().map(redacted);
        std::iter::once("its console ends:".to_owned()).chain(said).collect()
    }
}

/// Lines of a console that are shown at least for a machine that does not answer.
const CONSOLE_LINES: usize = 30;
/// Lines in which what broke is looked for: a kernel says that first, and where it was after it.
const CONSOLE_LINES_READ: usize = 120;

/// The last lines of a console; all from the first on that says what broke, when one of them does.
fn from_failure(lines: &[String]) -> &[String] {
    let last = lines.len().saturating_sub(CONSOLE_LINES);
    let broke = lines.iter().position(|line| !failures(line).is_empty());
    &lines[broke.map_or(last, |broke| broke.min(last))..]
}

/// A length of time in the largest unit of which there are two.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        ..=7200 => format!("{seconds} s"),
        7201..=172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_for_people() {
        let of = |seconds| span(Duration::from_secs(seconds));
        assert_eq!([of(61), of(7201), of(400 * 86_400)], ["61 s", "2 hours", "400 days"]);
    }
    #[test]
    fn a_console_is_shown_from_what_broke_on() {
        let line = |number: usize| format!("[{number}.0] a line");
        let mut lines: Vec<String> = (0..100).map(line).collect();
        assert_eq!(from_failure(&lines).first(), Some(&line(70)));
        lines[40] = "[40.0] Kernel panic - not syncing: attempted to kill init".into();
        assert_eq!((from_failure(&lines).first(), from_failure(&lines).len()), (Some(&lines[40]), 60));
        lines[40] = line(40);
        lines[95] = "[95.0] Kernel panic - not syncing: x".into();
        assert_eq!(from_failure(&lines).len(), CONSOLE_LINES);
        assert_eq!(from_failure(&lines[..3]).len(), 3);
    }
}
