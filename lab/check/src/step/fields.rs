//! The form a step has in files and documents: one table, the kind named by the key that is set.

use serde::{Deserialize, Serialize};

use super::{
    COPY_OUT_BYTES, CopyIn, CopyOut, Depth, Errand, Expect, File, Http, Kind, LONGEST_SLEEP, MachineName, Metric,
    Package, Pattern, Port, Presence, Repeat, Sleep, Step, Tcp, Unit, Wait, errand::Yes,
};
use crate::written::Span;

/// A step as it is written. [`Step`] is what it means.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = one_of(KINDS), "dependencies" = {"expect": ["run"], "metric": ["run"]}))]
pub(super) struct Fields {
    /// Name, unique in its scenario.
    name: String,
    /// Shell command line, run in the scenario's folder. Exit 77 means: skip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<String>,
    /// What a command must give; absent means exit 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expect: Option<Expect>,
    /// A number in a command's output, compared with the control's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metric: Option<Metric>,
    /// An HTTP request (GET) from the machine itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http: Option<Http>,
    /// A TCP connection from the machine itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tcp: Option<Tcp>,
    /// A systemd unit's state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<Unit>,
    /// A file's presence and content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<File>,
    /// An installed package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    package: Option<Package>,
    /// A listening port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<Port>,
    /// Looks again until something holds, or can never hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wait: Option<Wait>,
    /// `true`: reboots the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reboot: Option<Yes>,
    /// Puts a file of the scenario's folder onto the machine.
    #[serde(default, rename = "copy-in", skip_serializing_if = "Option::is_none")]
    copy_in: Option<CopyIn>,
    /// Takes a file of the machine into the run's evidence.
    #[serde(default, rename = "copy-out", skip_serializing_if = "Option::is_none")]
    copy_out: Option<CopyOut>,
    /// `true`: takes a picture of the machine's screen into the run's evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    screenshot: Option<Yes>,
    /// Does nothing for at most 5 s, with a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sleep: Option<Sleep>,
    /// Its passing is no evidence that the machine works.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    superficial: bool,
    /// How long it may take; absent is 60 s, and eight times that on a machine under software emulation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout: Option<Span>,
    /// How often it is done; every time must pass. Absent is once, and 7 times with a metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    repeat: Option<Repeat>,
    /// Regular expressions of what is taken out of its output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    redact: Vec<Pattern>,
    /// The name of the machine beside the one under test on which it is done; absent is on that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    machine: Option<MachineName>,
    /// `true`: waits for the end of every step that goes on until this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    barrier: Option<Yes>,
    /// The name of the barrier, a later step, until which it goes on beside the steps between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

/// The keys of a step of which there is exactly one: its kind.
pub const KINDS: &[&str] = &[
    "run",
    "http",
    "tcp",
    "unit",
    "file",
    "package",
    "port",
    "wait",
    "reboot",
    "copy-in",
    "copy-out",
    "screenshot",
    "sleep",
    "barrier",
];

/// JSON Schema's way to say that exactly one of these keys is there.
pub(super) fn one_of(keys: &[&str]) -> serde_json::Value {
    keys.iter().map(|key| serde_json::json!({ "required": [key] })).collect()
}

/// The table is not a step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// What it does is not said as it must be.
    #[error("step {name:?} {problem}")]
    Kind {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: KindError,
    },
    /// The name cannot be shown, or is empty.
    #[error("step {name:?}: a name has 1 to 100 characters and no control characters")]
    Name {
        /// Its name.
        name: String,
    },
}

/// A table does not say one thing to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KindError {
    /// No kind.
    #[error("does nothing: give it one of {}", known.join(", "))]
    None {
        /// Those that there are.
        known: &'static [&'static str],
    },
    /// More than one kind.
    #[error("is of more than one kind ({0}): make a step of each")]
    Many(String),
    /// A key that only goes with `run`.
    #[error("has {key}: {key} goes with run only, and this is {kind}")]
    OnlyWithRun {
        /// The key.
        key: &'static str,
        /// The kind it has.
        kind: &'static str,
    },
    /// A value that can never hold.
    #[error("cannot be as it is written: {0}")]
    Value(String),
}

/// The one kind that is given, of those that are `known`, if it makes sense.
pub(super) fn only_kind(
    mut kinds: Vec<Kind>,
    known: &'static [&'static str],
    only_with_run: Option<&'static str>,
) -> Result<Kind, KindError> {
    if kinds.len() > 1 {
        let kinds: Vec<&str> = kinds.iter().map(Kind::name).collect();
        return Err(KindError::Many(kinds.join(", ")));
    }
    let kind = kinds.pop().ok_or(KindError::None { known })?;
    if let (false, Some(key)) = (matches!(kind, Kind::Run { .. }), only_with_run) {
        return Err(KindError::OnlyWithRun { key, kind: kind.name() });
    }
    match impossible(&kind) {
        Some(problem) => Err(KindError::Value(problem)),
        None => Ok(kind),
    }
}

impl TryFrom<Fields> for Step {
    type Error = StepError;

    fn try_from(fields: Fields) -> Result<Self, StepError> {
        let Fields { name, run, expect, metric, http, tcp, unit, file, package, port, .. } = fields;
        let Fields { wait, reboot, copy_in, copy_out, sleep, superficial, timeout, repeat, redact, .. } = fields;
        let Fields { machine, screenshot, barrier, until, .. } = fields;
        if name.trim().is_empty() || name.chars().count() > 100 || name.chars().any(char::is_control) {
            return Err(StepError::Name { name });
        }
        let only_with_run = expect.as_ref().map(|_| "expect").or_else(|| metric.as_ref().map(|_| "metric"));
        let kinds = [
            run.map(|command| Kind::Run { command, expect: expect.unwrap_or_default(), metric }),
            http.map(Kind::Http),
            tcp.map(Kind::Tcp),
            unit.map(Kind::Unit),
            file.map(Kind::File),
            package.map(Kind::Package),
            port.map(Kind::Port),
            wait.map(Kind::Wait),
            reboot.map(|Yes| Kind::Errand(Errand::Reboot)),
            copy_in.map(|copy| Kind::Errand(Errand::CopyIn(copy))),
            copy_out.map(|copy| Kind::Errand(Errand::CopyOut(copy))),
            screenshot.map(|Yes| Kind::Errand(Errand::Screenshot)),
            sleep.map(|sleep| Kind::Errand(Errand::Sleep(sleep))),
            barrier.map(|Yes| Kind::Errand(Errand::Barrier)),
        ];
        let kind = match only_kind(kinds.into_iter().flatten().collect(), KINDS, only_with_run) {
            Ok(kind) => kind,
            Err(problem) => return Err(StepError::Kind { name, problem }),
        };
        let repeat = repeat.unwrap_or_else(|| kind.usual_repeat());
        let problem = match &kind {
            Kind::Wait(_) if timeout.is_some() => Some("wait has its own limit: leave timeout out"),
            Kind::Errand(_) if repeat != Repeat::default() => Some("only what looks at the machine can be repeated"),
            Kind::Errand(_) if until.is_some() => Some("only what looks at the machine goes on beside other steps"),
            Kind::Errand(Errand::Barrier) if machine.is_some() => {
                Some("a barrier is of all machines: leave machine out")
            }
            kind if until.is_some() && kind.metric().is_some() => Some("a metric is measured alone: leave until out"),
            _ if redact.iter().any(|pattern| pattern.is_match("")) => Some("a pattern of redact matches everything"),
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(StepError::Kind { name, problem: KindError::Value(problem.to_owned()) });
        }
        let depth = if superficial { Depth::Superficial } else { Depth::Meaningful };
        Ok(Self { name, kind, depth, timeout, repeat, redact, machine, until })
    }
}

/// What can never hold, or never mean anything, though each part alone is well-formed.
fn impossible(kind: &Kind) -> Option<String> {
    const STATES: &[&str] = &["active", "inactive", "failed", "reloading", "activating", "deactivating"];
    match kind {
        Kind::Run { command, .. } if command.trim().is_empty() => Some("run is empty".into()),
        Kind::Run { command, .. } if command.contains('\0') => Some("run contains a NUL character".into()),
        Kind::Run { metric: Some(metric), .. } => metric.impossible(),
        Kind::Http(http) => {
            let status = http.status.unwrap_or(200);
            (!(100..=599).contains(&status)).then(|| format!("{status} is no HTTP status: expected 100 to 599"))
        }
        Kind::Tcp(tcp) if tcp.host.is_empty() || tcp.host.chars().any(|c| !c.is_ascii_graphic()) => {
            Some(format!("{:?} is no host", tcp.host))
        }
        Kind::Unit(unit) if !STATES.contains(&unit.state.as_str()) => {
            Some(format!("{:?} is no state of a unit: expected one of {}", unit.state, STATES.join(", ")))
        }
        Kind::File(file) if file.state == Presence::Absent => {
            let says_more =
                file.mode.is_some() || file.sha256.is_some() || file.contains.is_some() || file.matches.is_some();
            says_more.then(|| "an absent file has no mode and no content".into())
        }
        Kind::Port(Port { number: 0, .. }) => Some("0 is no port".into()),
        Kind::Wait(wait) if wait.limit.0.is_zero() => Some("nothing can be waited for in 0s".into()),
        Kind::Errand(Errand::CopyOut(copy)) if !(1..=COPY_OUT_BYTES).contains(&copy.bytes()) => {
            Some(format!("the limit of copy-out is from 1B to {}", crate::written::ByteSize(COPY_OUT_BYTES)))
        }
        Kind::Errand(Errand::Sleep(sleep)) if sleep.time.0 > LONGEST_SLEEP => {
            Some(format!("a sleep is at most {} s: use wait, which ends as soon as it may", LONGEST_SLEEP.as_secs()))
        }
        Kind::Errand(Errand::Sleep(sleep)) if sleep.why.trim().is_empty() => {
            Some("a sleep says why nothing can be waited for".into())
        }
        Kind::Package(package) if package.version.is_some() && package.state == super::Installed::Absent => {
            Some("an absent package has no version".into())
        }
        _ => None,
    }
}

impl From<Step> for Fields {
    fn from(step: Step) -> Self {
        let mut fields = Self {
            name: step.name,
            run: None,
            expect: None,
            metric: None,
            http: None,
            tcp: None,
            unit: None,
            file: None,
            package: None,
            port: None,
            wait: None,
            reboot: None,
            copy_in: None,
            copy_out: None,
            screenshot: None,
            sleep: None,
            barrier: None,
            until: step.until,
            superficial: step.depth == Depth::Superficial,
            timeout: step.timeout,
            repeat: Some(step.repeat).filter(|repeat| *repeat != step.kind.usual_repeat()),
            redact: step.redact,
            machine: step.machine,
        };
        match step.kind {
            Kind::Run { command, expect, metric } => {
                fields.run = Some(command);
                fields.expect = Some(expect).filter(|expect| *expect != Expect::default());
                fields.metric = metric;
            }
            Kind::Http(http) => fields.http = Some(http),
            Kind::Tcp(tcp) => fields.tcp = Some(tcp),
            Kind::Unit(unit) => fields.unit = Some(unit),
            Kind::File(file) => fields.file = Some(file),
            Kind::Package(package) => fields.package = Some(package),
            Kind::Port(port) => fields.port = Some(port),
            Kind::Wait(wait) => fields.wait = Some(wait),
            Kind::Errand(Errand::Reboot) => fields.reboot = Some(Yes),
            Kind::Errand(Errand::CopyIn(copy)) => fields.copy_in = Some(copy),
            Kind::Errand(Errand::CopyOut(copy)) => fields.copy_out = Some(copy),
            Kind::Errand(Errand::Screenshot) => fields.screenshot = Some(Yes),
            Kind::Errand(Errand::Sleep(sleep)) => fields.sleep = Some(sleep),
            Kind::Errand(Errand::Barrier) => fields.barrier = Some(Yes),
        }
        fields
    }
}
