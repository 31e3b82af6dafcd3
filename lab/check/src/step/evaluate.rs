//! Asking a machine whether a step's expectations hold.

use std::time::{Duration, Instant};

use super::{Errand, Expect, Kind, Outcome, Pattern, Status, Step, Wait, look};
use crate::target::{Ran, Target, TargetError};

/// Exit status by which a command says that it does not apply here.
const SKIP: i32 = 77;
/// Exit status by which a shell says that there is no such command.
const NO_COMMAND: i32 = 127;
/// Time a step gets when it says nothing, before a machine's pace.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of output kept in an outcome: 16 KiB, from both ends.
const OUTPUT_KEPT: usize = 16 * 1024;
/// How long between two looks of a wait: at first, and at most.
const WAIT_POLL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// How long one look of a wait may take, commands apart: a connection that is not answered must not use up the wait.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// Where and for how long a step runs.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The scenario's folder on the machine; `None` where there is none, as on a production host.
    pub dir: Option<&'a str>,
    /// What is left of the scenario's budget.
    pub budget: Duration,
    /// By what a time that nobody said is multiplied: 1 where a processor runs the machine, more under software emulation.
    pub pace: u32,
}

/// What was seen and what follows from it.
pub(super) struct Seen {
    pub status: Status,
    pub exit: Option<i32>,
    pub output: String,
    /// Bytes that the target left out of the output.
    pub unseen: u64,
    pub reason: String,
    pub hope: Hope,
}

/// Whether another look at the same may find something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hope {
    /// It may.
    Open,
    /// It cannot, as long as nobody interferes.
    None,
}

impl Seen {
    pub(super) fn pass(output: impl Into<String>) -> Self {
        let (output, reason) = (output.into(), String::new());
        Self { status: Status::Pass, exit: None, output, unseen: 0, reason, hope: Hope::Open }
    }

    pub(super) fn fail(output: impl Into<String>, reason: impl Into<String>) -> Self {
        let (output, reason) = (output.into(), reason.into());
        Self { status: Status::Fail, exit: None, output, unseen: 0, reason, hope: Hope::Open }
    }

    /// A failure that waiting does not mend.
    pub(super) fn hopeless(output: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { hope: Hope::None, ..Self::fail(output, reason) }
    }

    /// Pass when nothing speaks against it.
    pub(super) fn unless(output: impl Into<String>, reason: Option<String>) -> Self {
        match reason {
            None => Self::pass(output),
            Some(reason) => Self::fail(output, reason),
        }
    }
}

impl Step {
    /// Does the step on `target`, as often as it says or until it does not pass, and says how it ended. "The test said no" is an
    /// [`Outcome`].
    ///
    /// # Errors
    /// The machine or the way to it broke, which says nothing about the step.
    pub fn evaluate(&self, target: &dyn Target, context: Context<'_>) -> Result<Outcome, TargetError> {
        let start = Instant::now();
        let times = self.repeat.times();
        let mut samples = Vec::new();
        let mut seen = Seen::pass("");
        for time in 1..=times {
            let budget = context.budget.saturating_sub(start.elapsed());
            seen = match budget.is_zero() {
                true => Seen::fail("", "the scenario's budget was used up"),
                false => self.once(target, Context { budget, ..context })?,
            };
            seen.output = self.redacted(seen.output);
            if let (Status::Pass, Some(metric)) = (seen.status, self.kind.metric()) {
                match metric.sample(&seen.output) {
                    Ok(sample) => samples.push(sample),
                    Err(reason) => seen = Seen { exit: seen.exit, ..Seen::fail(seen.output, reason) },
                }
            }
            if seen.status != Status::Pass {
                if times > 1 {
                    seen.reason = format!("time {time} of {times}: {}", seen.reason);
                }
                break;
            }
        }
        Ok(Outcome {
            status: seen.status,
            exit: seen.exit,
            ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            output: shortened(seen.output, seen.unseen),
            reason: self.redacted(seen.reason),
            samples,
        })
    }

    fn once(&self, target: &dyn Target, context: Context<'_>) -> Result<Seen, TargetError> {
        match &self.kind {
            Kind::Wait(wait) => wait.hold(target, context, &self.redact),
            kind => {
                let budget = self.time(context.budget, context.pace);
                see(kind, target, Context { budget, ..context }, &self.redact)
            }
        }
    }

    /// How long one time of it may take where so much is `left` of a budget, on a machine of this pace.
    pub fn time(&self, left: Duration, pace: u32) -> Duration {
        self.timeout.map_or(DEFAULT_TIMEOUT * pace, |span| span.0).min(left)
    }

    /// `text` without what the step's `redact` matches.
    pub fn redacted(&self, text: String) -> String {
        redacted(&self.redact, text)
    }

    /// The same of bytes that need be no text.
    pub fn redacted_bytes(&self, bytes: Vec<u8>) -> Vec<u8> {
        self.redact.iter().fold(bytes, |bytes, pattern| pattern.redact_bytes(&bytes).into_owned())
    }
}

/// `text` without what any of the patterns matches.
pub(super) fn redacted(patterns: &[Pattern], text: String) -> String {
    patterns.iter().fold(text, |text, pattern| pattern.redact(&text).into_owned())
}

/// One look, or one command, within the budget. What is quoted of what was seen is quoted without what `redact` matches: later, when
/// line breaks and quotes are escaped, a pattern would not match any more.
fn see(kind: &Kind, target: &dyn Target, context: Context<'_>, redact: &[Pattern]) -> Result<Seen, TargetError> {
    let timeout = context.budget;
    match kind {
        Kind::Run { command, expect, .. } => run(target, (command, expect), context.dir, timeout, redact),
        Kind::Http(http) => look::at_answer(target, http, timeout, redact),
        Kind::Tcp(tcp) => look::at_connection(target, tcp, timeout),
        Kind::Unit(unit) => look::at_unit(target, unit, timeout),
        Kind::File(file) => look::at_file(target, file, timeout, redact),
        Kind::Package(package) => look::at_package(target, package, timeout),
        Kind::Port(port) => look::at_port(target, port, timeout),
        Kind::Wait(wait) => wait.hold(target, context, redact),
        Kind::Errand(errand) => Ok(by_the_lab_alone(errand)),
    }
}

fn by_the_lab_alone(errand: &Errand) -> Seen {
    Seen::hopeless("", format!("{} is done by the lab alone, never on a host", errand.name()))
}

impl Wait {
    /// Looks until the condition holds, can no longer hold, says that it does not apply, or the limit is reached.
    fn hold(&self, target: &dyn Target, context: Context<'_>, redact: &[Pattern]) -> Result<Seen, TargetError> {
        let limit = self.limit.0.min(context.budget);
        let begun = Instant::now();
        let (mut pause, longest) = WAIT_POLL;
        let kind = self.until.kind();
        loop {
            let left = limit.saturating_sub(begun.elapsed());
            let patience = if matches!(kind, Kind::Run { .. }) { left } else { left.min(LOOK_TIMEOUT) };
            let seen = see(kind, target, Context { budget: patience, ..context }, redact)?;
            let left = limit.saturating_sub(begun.elapsed());
            match (seen.status, seen.hope) {
                (Status::Pass | Status::Skip, _) => return Ok(seen),
                (Status::Fail, Hope::None) => {
                    let reason = format!("{}: waiting is no use", seen.reason);
                    return Ok(Seen { reason, ..seen });
                }
                (Status::Fail, Hope::Open) if left.is_zero() => {
                    let reason = format!("not within {} s: {}", limit.as_secs_f32(), seen.reason);
                    return Ok(Seen { reason, ..seen });
                }
                (Status::Fail, Hope::Open) => {}
            }
            // Nothing on a machine tells us of every change; so look again, less and less often.
            std::thread::sleep(pause.min(left));
            pause = (pause * 3 / 2).min(longest);
        }
    }
}

fn run(
    target: &dyn Target,
    (command, expect): (&str, &Expect),
    dir: Option<&str>,
    timeout: Duration,
    redact: &[Pattern],
) -> Result<Seen, TargetError> {
    let ran = target.run(command, dir, timeout)?;
    let output = redacted(redact, both_streams(&ran));
    let unseen = ran.written.saturating_sub((ran.stdout.len() + ran.stderr.len()) as u64);
    if ran.exit == Some(SKIP) && expect.exit != Some(SKIP) {
        let said = output.lines().last().unwrap_or_default();
        let reason = if said.is_empty() { "exit 77".to_owned() } else { format!("exit 77: {said}") };
        return Ok(Seen { status: Status::Skip, exit: ran.exit, output, unseen, reason, hope: Hope::None });
    }
    let reason = expect.unmet(&ran, timeout, redact);
    let hope = if ran.exit == Some(NO_COMMAND) { Hope::None } else { Hope::Open };
    Ok(Seen { exit: ran.exit, hope, unseen, ..Seen::unless(output, reason) })
}

/// Standard output, then standard error.
pub(super) fn both_streams(ran: &Ran) -> String {
    match (ran.stdout.trim_end(), ran.stderr.trim_end()) {
        (stdout, "") => stdout.to_owned(),
        ("", stderr) => stderr.to_owned(),
        (stdout, stderr) => format!("{stdout}\n{stderr}"),
    }
}

/// Both ends of a long output, of which the target left out `unseen` bytes before; the middle tells least.
fn shortened(output: String, unseen: u64) -> String {
    if output.len() <= OUTPUT_KEPT {
        return output;
    }
    let head = output.floor_char_boundary(OUTPUT_KEPT / 4);
    let tail = output.ceil_char_boundary(output.len() - OUTPUT_KEPT * 3 / 4);
    let left_out = unseen + (tail - head) as u64;
    format!("{}\n… {left_out} bytes left out …\n{}", &output[..head], &output[tail..])
}
