//! One run of the lab as one self-contained page: the verdict in words, what differs side by side, when what happened, and what the
//! machines said, folded. Works without scripts, on paper, and on a narrow screen.

mod timeline;

use std::fs;

use askama::Template;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use patchlab_lab::{
    failure::{Blame, failures},
    report::{BaselineReport, Report},
    runs::{PhaseTime, Record, Run, RunsError, State},
    verdict::Judgement,
};

use super::{
    filters,
    html::{Changed, Differing, Measured, Phase, changed, differing, metrics, phases},
    style,
};
use crate::legible::millis;

use timeline::Lane;

/// What of a console or log is shown, characters from its end; the record has it whole.
const TEXT_SHOWN: usize = 200_000;
/// Bytes of a picture that is shown; larger ones are only named.
const PICTURE_BYTES: u64 = 2 << 20;

/// All that a page tells of a run.
pub struct Told {
    record: Record,
    state: State,
    report: Report,
    baselines: Vec<ToldBaseline>,
}

/// What it tells of a baseline.
struct ToldBaseline {
    phases: Vec<PhaseTime>,
    texts: Vec<Text>,
    pictures: Vec<Picture>,
    files: Vec<String>,
}

/// What a machine or a worker said.
struct Text {
    title: &'static str,
    text: String,
    cut: bool,
}

/// A picture that the run brought out.
struct Picture {
    name: String,
    base64: String,
}

impl Told {
    /// Reads it from the run's record.
    ///
    /// # Errors
    /// The record cannot be read.
    pub fn read(run: &Run) -> Result<Self, RunsError> {
        let report = run.report()?;
        let read = |baseline: &BaselineReport| told_baseline(run, &baseline.name);
        let baselines = report.baselines.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { record: run.record.clone(), state: run.state(), report, baselines })
    }
}

fn told_baseline(run: &Run, name: &str) -> Result<ToldBaseline, RunsError> {
    let mut texts = Vec::new();
    for (title, file) in [
        ("What the control's console said", "control.console"),
        ("What the patched clone's console said", "patched.console"),
        ("What the worker wrote", "worker.log"),
    ] {
        if let Some(text) = run.text_of(name, file)? {
            texts.push(shown(title, &text));
        }
    }
    let (mut pictures, mut files) = (Vec::new(), Vec::new());
    for (name, path) in run.brought_out(name) {
        let is_small = fs::metadata(&path).is_ok_and(|found| found.len() <= PICTURE_BYTES);
        match fs::read(&path) {
            Ok(bytes) if is_small && name.ends_with(".png") => {
                pictures.push(Picture { name, base64: BASE64_STANDARD.encode(bytes) });
            }
            _ => files.push(path.display().to_string()),
        }
    }
    Ok(ToldBaseline { phases: run.phases_on(name)?, texts, pictures, files })
}

/// What a machine said, without what would steer a terminal.
fn shown(title: &'static str, text: &str) -> Text {
    let legible: String = plain(text);
    let from = legible.char_indices().rev().nth(TEXT_SHOWN).map_or(0, |(at, _)| at);
    Text { title, cut: from > 0, text: legible[from..].to_owned() }
}

/// Text without control characters, and without the sequences that set colours (ECMA-48: escape, `[`, parameters, a letter).
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\x1b' if characters.peek() == Some(&'[') => {
                characters.by_ref().skip(1).find(|c| ('\x40'..='\x7e').contains(c));
            }
            '\n' | '\t' => plain.push(character),
            character if character.is_control() => {}
            character => plain.push(character),
        }
    }
    plain
}

#[derive(Template)]
#[template(path = "run.html")]
struct Page<'a> {
    style: &'static str,
    own_style: &'static str,
    told: &'a Told,
    state: &'static str,
    headline: &'static str,
    took: String,
    lanes: Vec<Lane>,
    ticks: Vec<(String, String)>,
    baselines: Vec<Section<'a>>,
}

/// What the page says of a baseline.
struct Section<'a> {
    report: &'a BaselineReport,
    told: &'a ToldBaseline,
    /// What the patch, or the lab, has to answer for: one line each.
    patchs: Vec<String>,
    /// What its owners have to answer for: who, and one line.
    owners: Vec<(String, String)>,
    /// Scenarios that were skipped or are in quarantine, and what those found.
    aside: Vec<String>,
    differ: Vec<Differing>,
    rounds: Vec<Round>,
    metrics: Vec<Measured>,
    changes: Vec<Changed>,
    left: Vec<Changed>,
    clone: Option<String>,
    took: String,
}

/// Every step of a phase: folded when there is nothing to look at.
struct Round {
    steps: Phase,
    is_folded: bool,
}

/// Renders the page.
///
/// # Errors
/// When the template cannot be rendered.
pub fn html(told: &Told) -> Result<String, askama::Error> {
    let rows: Vec<(&str, &[PhaseTime])> = told
        .report
        .baselines
        .iter()
        .zip(&told.baselines)
        .map(|(report, told)| (report.name.as_str(), told.phases.as_slice()))
        .collect();
    let (lanes, ticks) = timeline::draw(&rows);
    Page {
        style: style::SHEET,
        own_style: style::RUN,
        told,
        state: told.state.name(),
        headline: headline(told.state),
        took: millis(told.report.total_ms),
        lanes,
        ticks,
        baselines: told.report.baselines.iter().zip(&told.baselines).map(|(of, b)| section(told, of, b)).collect(),
    }
    .render()
}

fn section<'a>(told: &'a Told, report: &'a BaselineReport, more: &'a ToldBaseline) -> Section<'a> {
    let found = failures(report, &told.record.scenarios);
    let of = |blames: &'static [Blame]| found.iter().filter(|failure| blames.contains(&failure.blame));
    let owners = of(&[Blame::Owner]).map(|failure| (failure.owner().to_owned(), failure.to_string()));
    let in_quarantine = of(&[Blame::Quarantine]).map(ToString::to_string);
    Section {
        patchs: of(&[Blame::Patch, Blame::Lab]).map(ToString::to_string).collect(),
        owners: owners.collect(),
        aside: report.aside().into_iter().chain(in_quarantine).collect(),
        differ: report.scenarios.iter().flat_map(differing).collect(),
        rounds: phases(&report.scenarios).into_iter().map(round).collect(),
        metrics: report.scenarios.iter().flat_map(metrics).collect(),
        changes: report.diff.as_ref().map(changed).unwrap_or_default(),
        left: report.rollback.diff.as_deref().map(changed).unwrap_or_default(),
        clone: report.clone.as_ref().map(|clone| {
            format!("{}, ready in {}, handshake {}", clone.rung, millis(clone.ready_ms), millis(clone.handshake_ms))
        }),
        took: millis(report.total_ms),
        report,
        told: more,
    }
}

fn round(steps: Phase) -> Round {
    let is_folded = steps.steps.iter().all(|step| matches!(step.verdict, "pass" | "skipped"));
    Round { steps, is_folded }
}

/// The verdict in words that a tired person understands.
fn headline(state: State) -> &'static str {
    match state {
        State::Judged(Judgement::Passed) => "It may ship: it holds on clones, and the way back is proven.",
        State::Judged(Judgement::Rejected) => {
            "It must not ship: it breaks something, is unstable, or cannot be taken back."
        }
        State::Judged(Judgement::Inapplicable) => "It cannot be applied.",
        State::Judged(Judgement::LabError) => "The lab broke, which says nothing about the patch. Validate it again.",
        State::Judged(Judgement::Missing) => "Nothing that means something for the whole order was tested.",
        State::Interrupted => "It was ended before there was a verdict.",
        State::Running => "It goes on; this is what is known so far.",
    }
}

#[cfg(test)]
mod tests;
