//! What long work says while it goes on: one moving line on a terminal; elsewhere one line a phase, as it begins, so that a log
//! shows where somebody hangs, with how long the phase before it took.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::output::Voice;
use crate::legible::duration;

/// One piece of long work.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    voice: Voice,
    begun: Instant,
    phase: Option<Phase>,
}

/// What goes on, and since when.
#[derive(Debug)]
struct Phase {
    name: String,
    begun: Instant,
}

impl Progress {
    /// Begins.
    pub fn new(voice: Voice) -> Self {
        let bar = (voice == Voice::Normal && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {elapsed:>4} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, voice, begun: Instant::now(), phase: None }
    }

    /// A phase begins, and with that the one before it has ended. The same one again is no news.
    pub fn now(&mut self, name: &str) {
        if self.phase.as_ref().is_some_and(|phase| phase.name == name) {
            return;
        }
        let now = Instant::now();
        self.say(&begins(name, self.phase.as_ref().map(|before| (before.name.as_str(), now - before.begun))));
        if let Some(bar) = &self.bar {
            bar.set_message(name.to_owned());
        }
        self.phase = Some(Phase { name: name.to_owned(), begun: now });
    }

    /// Something to keep on the screen.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(format!("  {text}")),
            None => self.say(text),
        }
    }

    /// How long it has gone on.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// A line in a log.
    fn say(&self, line: &str) {
        if self.bar.is_none() && self.voice == Voice::Normal {
            eprintln!("  {line}");
        }
    }
}

/// A phase's line.
fn begins(name: &str, before: Option<(&str, Duration)>) -> String {
    match before {
        Some((before, took)) => format!("{name}  ({} took {})", short(before, name), duration(took)),
        None => name.to_owned(),
    }
}

/// A phase's name without what it shares with the next one's, such as the baseline both are about.
fn short<'a>(before: &'a str, next: &str) -> &'a str {
    match before.split_once(": ") {
        Some((subject, name)) if next.strip_prefix(subject).is_some_and(|rest| rest.starts_with(": ")) => name,
        _ => before,
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if let Some(last) = &self.phase {
            let (last, total) = (format!("{} took {}", last.name, duration(last.begun.elapsed())), self.elapsed());
            self.say(&format!("{last}, all {}", duration(total)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_phase_says_what_the_one_before_it_took() {
        let took = |before| Some((before, Duration::from_millis(4_200)));
        assert_eq!(begins("b@1: clone", None), "b@1: clone");
        assert_eq!(begins("b@1: apply", took("b@1: clone")), "b@1: apply  (clone took 4.2 s)");
        assert_eq!(begins("c@1: clone", took("b@1: compare")), "c@1: clone  (b@1: compare took 4.2 s)");
        assert_eq!(
            begins("2/7 writing the disk", took("1/7 installing")),
            "2/7 writing the disk  (1/7 installing took 4.2 s)"
        );
    }
}
