//! What long work says while it goes on: one moving line on a terminal, plain lines elsewhere.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::output::Voice;

/// One piece of long work.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    voice: Voice,
    begun: Instant,
    last: String,
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
        Self { bar, voice, begun: Instant::now(), last: String::new() }
    }

    /// What is going on now.
    pub fn now(&mut self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None if self.voice == Voice::Normal && self.last != what => {
                eprintln!("  {:>4}s {what}", self.begun.elapsed().as_secs());
            }
            None => {}
        }
        what.clone_into(&mut self.last);
    }

    /// Something to keep on the screen.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(format!("  {text}")),
            None if self.voice == Voice::Normal => eprintln!("  {text}"),
            None => {}
        }
    }

    /// How long it has gone on.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
