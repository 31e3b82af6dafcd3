//! What many validations say while they go on: on a terminal a moving line each and one for all of them; in a log a line a phase, as it
//! begins, and one for each that ends. Failures are shown when they are known, with their first line, not at the end.

use std::{
    collections::BTreeSet,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use patchlab_check::Status;
use patchlab_lab::{failure, report::BaselineReport, runs::Record, verdict::Judgement};

use super::output::{Voice, coloured, is_plain};
use crate::{
    lab::{
        validate::{Seen, Subject},
        worker::Tell,
    },
    legible::duration,
};

/// How often the moving lines move.
const TICK: Duration = Duration::from_millis(120);

/// Everything that goes on.
pub struct Board {
    screen: Option<Screen>,
    voice: Voice,
    begun: Instant,
    /// Whether a subject needs its order's name.
    orders: Orders,
    all: usize,
    ended: usize,
    not_passed: usize,
    left: Duration,
    rows: Vec<Row>,
}

/// How many orders the subjects are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orders {
    /// One: it goes without saying.
    One,
    /// More.
    Several,
}

/// A terminal's lines.
struct Screen {
    lines: MultiProgress,
    total: ProgressBar,
}

/// A validation that runs.
struct Row {
    name: String,
    begun: Instant,
    phase: Option<(String, Instant)>,
    /// What was said of steps that failed.
    failed: BTreeSet<String>,
    bar: Option<ProgressBar>,
}

impl Board {
    /// Begins.
    pub fn new(voice: Voice, orders: Orders) -> Self {
        let is_watched = voice == Voice::Normal && std::io::stderr().is_terminal();
        let screen = is_watched.then(|| {
            let lines = MultiProgress::new();
            let total = lines.add(ProgressBar::new_spinner());
            total.set_style(line("  {took:>12}  {wide_msg}"));
            total.enable_steady_tick(TICK);
            Screen { lines, total }
        });
        Self {
            screen,
            voice,
            begun: Instant::now(),
            orders,
            all: 0,
            ended: 0,
            not_passed: 0,
            left: Duration::ZERO,
            rows: Vec::new(),
        }
    }

    /// Shows what was seen.
    pub fn see(&mut self, seen: Seen<'_>) {
        match seen {
            Seen::Begins { all, jobs } => {
                self.all = all;
                if all > 1 {
                    self.keep(&format!("{all} validations, {jobs} at once"));
                }
            }
            Seen::MadeRoom(what) => self.keep(&format!("to make room, taken away: {what}")),
            Seen::HostOut(host, reason) => self.keep(&format!("host {host} is out: {reason}")),
            Seen::Started(subject, host) => self.start(subject, host),
            Seen::Requeued(subject) => self.requeue(subject),
            Seen::Told(subject, tell) => self.told(subject, tell),
            Seen::Ended(subject, report, record) => self.end(subject, report, record),
            Seen::Stopped(subject) => self.leave(subject, "interrupted", ""),
            Seen::Remaining(left) => self.left = left,
            Seen::Interrupted => self.keep("interrupted: ending what runs (once more to leave at once)"),
        }
        self.total();
    }

    fn name(&self, subject: Subject<'_>) -> String {
        match self.orders {
            Orders::One => subject.baseline.to_owned(),
            Orders::Several => format!("{} on {}", subject.order, subject.baseline),
        }
    }

    fn row(&mut self, subject: Subject<'_>) -> Option<&mut Row> {
        let name = self.name(subject);
        self.rows.iter_mut().find(|row| row.name == name)
    }

    fn start(&mut self, subject: Subject<'_>, host: Option<&str>) {
        let name = self.name(subject);
        let shown = host.map_or_else(|| name.clone(), |host| format!("{name} ({host})"));
        if let Some(host) = host {
            self.log(&format!("{name}: on host {host}"));
        }
        let bar = self.screen.as_ref().map(|screen| {
            let bar = screen.lines.insert_before(&screen.total, ProgressBar::new_spinner());
            bar.set_style(line("  {spinner} {took:>10}  {prefix}  {wide_msg}"));
            bar.set_prefix(shown);
            bar.enable_steady_tick(TICK);
            bar
        });
        self.rows.push(Row { name, begun: Instant::now(), phase: None, failed: BTreeSet::new(), bar });
    }

    fn told(&mut self, subject: Subject<'_>, tell: &Tell) {
        let name = self.name(subject);
        match tell {
            Tell::Phase(phase) => {
                let Some(row) = self.row(subject) else { return };
                let now = Instant::now();
                let before = row.phase.replace((phase.clone(), now));
                if let Some(bar) = &row.bar {
                    bar.set_message(phase.clone());
                }
                self.log(&begins(&name, phase, before.map(|(name, since)| (name, now - since))));
            }
            Tell::Agent { what, .. } => self.detail(subject, what),
            Tell::Step { scenario, step, role, status } => {
                self.detail(subject, &format!("{scenario}/{step}"));
                let failed = format!("{name}: {scenario}/{step}: {} on the {} clone", self.word("fail"), role.name());
                let is_news = |row: &mut Row| row.failed.insert(failed.clone());
                // What fails twice is run twice to be sure.
                if *status == Status::Fail && self.row(subject).is_some_and(is_news) {
                    self.keep(&failed);
                }
            }
            Tell::Note(text) => self.keep(&format!("{name}: {text}")),
            Tell::Evidence(text) => {
                self.detail(subject, text);
                self.log(&format!("{name}: {text}"));
            }
            Tell::Done { .. } | Tell::Failed(_) => {}
        }
    }

    /// How far a phase is: for who watches, not for a log.
    fn detail(&mut self, subject: Subject<'_>, text: &str) {
        let Some(row) = self.row(subject) else { return };
        if let Some(bar) = &row.bar {
            let phase = row.phase.as_ref().map_or("", |(name, _)| name.as_str());
            bar.set_message(format!("{phase}: {text}"));
        }
    }

    fn end(&mut self, subject: Subject<'_>, report: &BaselineReport, record: &Record) {
        self.not_passed += usize::from(report.verdict != Judgement::Passed);
        self.leave(subject, report.verdict.name(), &first_line(report, record));
    }

    /// Takes a validation's moving line away.
    fn take(&mut self, subject: Subject<'_>) -> Option<Row> {
        let name = self.name(subject);
        let place = self.rows.iter().position(|row| row.name == name)?;
        let row = self.rows.remove(place);
        if let (Some(bar), Some(screen)) = (&row.bar, &self.screen) {
            bar.finish_and_clear();
            screen.lines.remove(bar);
        }
        Some(row)
    }

    /// A validation waits again.
    fn requeue(&mut self, subject: Subject<'_>) {
        if let Some(row) = self.take(subject) {
            self.keep(&format!("{}: waits to be made once more", row.name));
        }
    }

    /// A validation is over: its moving line goes, and what it came to stays.
    fn leave(&mut self, subject: Subject<'_>, state: &str, more: &str) {
        let name = self.name(subject);
        // One that no host was left for never ran.
        let took = self.take(subject).map(|row| format!("  in {}", duration(row.begun.elapsed()))).unwrap_or_default();
        self.ended += 1;
        self.keep(&format!("{}  {name}{took}{more}", self.word(state)));
    }

    /// The last line: how many are done, and how long the rest will take.
    fn total(&self) {
        let Some(screen) = &self.screen else { return };
        let left = self.left.saturating_sub(Duration::ZERO);
        let left =
            if left < Duration::from_secs(1) { String::new() } else { format!(", about {} left", duration(left)) };
        let failed = if self.not_passed == 0 { String::new() } else { format!(", {} not passed", self.not_passed) };
        screen.total.set_message(format!("{} of {} done{failed}{left}", self.ended, self.all));
    }

    /// A state, in its colour on a terminal.
    fn word(&self, state: &str) -> String {
        if self.screen.is_some() && !is_plain() { coloured(state) } else { state.to_owned() }
    }

    /// Something to keep on the screen, and in a log.
    fn keep(&self, text: &str) {
        match &self.screen {
            Some(screen) => drop(screen.lines.println(format!("  {text}"))),
            None => self.log(text),
        }
    }

    /// A line in a log.
    fn log(&self, line: &str) {
        if self.screen.is_none() && self.voice == Voice::Normal {
            eprintln!("  {line}");
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if let Some(screen) = &self.screen {
            screen.total.finish_and_clear();
        } else if self.all > 0 {
            self.log(&format!("all took {}", duration(self.begun.elapsed())));
        }
    }
}

/// How a moving line looks; `took` is how long it has been there.
fn line(template: &str) -> ProgressStyle {
    let took = |state: &ProgressState, text: &mut dyn std::fmt::Write| {
        // A line that cannot be written is not worth a word.
        let _ = text.write_str(&duration(Duration::from_secs(state.elapsed().as_secs().max(1))));
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    style.with_key("took", took)
}

/// A phase's line.
fn begins(subject: &str, phase: &str, before: Option<(String, Duration)>) -> String {
    match before {
        Some((before, took)) => format!("{subject}: {phase}  ({before} took {})", duration(took)),
        None => format!("{subject}: {phase}"),
    }
}

/// What to say of one that did not pass: the first failure that is the patch's, or else why.
fn first_line(report: &BaselineReport, record: &Record) -> String {
    if report.verdict == Judgement::Passed {
        return String::new();
    }
    format!(": {}", failure::first_line(report, &record.scenarios))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_phase_says_whose_it_is_and_what_the_one_before_it_took() {
        let before = Some(("clone".to_owned(), Duration::from_millis(4_200)));
        assert_eq!(begins("web@1", "clone", None), "web@1: clone");
        assert_eq!(begins("web@1", "apply", before), "web@1: apply  (clone took 4.2 s)");
    }
}
