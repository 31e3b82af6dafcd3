//! The form a step has in files and documents: one table, the kind named by the key that is set.

use serde::{Deserialize, Serialize};

use super::{Depth, Expect, File, Http, Kind, Metric, Package, Port, Step, Tcp, Unit};
use crate::written::Span;

/// A step as it is written. [`Step`] is what it means.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fields {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expect: Option<Expect>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metric: Option<Metric>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http: Option<Http>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tcp: Option<Tcp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<Unit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<File>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    package: Option<Package>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<Port>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    superficial: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout: Option<Span>,
}

/// The table is not a step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// No kind.
    #[error("step {name:?} does nothing: give it one of run, http, tcp, unit, file, package, port")]
    NoKind {
        /// Its name.
        name: String,
    },
    /// More than one kind.
    #[error("step {name:?} is of more than one kind ({kinds}): make a step of each")]
    ManyKinds {
        /// Its name.
        name: String,
        /// The kinds given.
        kinds: String,
    },
    /// A key that only goes with `run`.
    #[error("step {name:?}: {key} goes with run only, and this is {kind}")]
    OnlyWithRun {
        /// Its name.
        name: String,
        /// The key.
        key: &'static str,
        /// The kind it has.
        kind: &'static str,
    },
    /// The name cannot be shown, or is empty.
    #[error("step {name:?}: a name has 1 to 100 characters and no control characters")]
    Name {
        /// Its name.
        name: String,
    },
    /// A value that can never hold.
    #[error("step {name:?}: {problem}")]
    Value {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

impl TryFrom<Fields> for Step {
    type Error = StepError;

    fn try_from(fields: Fields) -> Result<Self, StepError> {
        let Fields { name, run, expect, metric, http, tcp, unit, file, package, port, superficial, timeout } = fields;
        if name.trim().is_empty() || name.chars().count() > 100 || name.chars().any(char::is_control) {
            return Err(StepError::Name { name });
        }
        let mut only_with_run: Vec<&'static str> = Vec::new();
        only_with_run.extend(expect.as_ref().map(|_| "expect"));
        only_with_run.extend(metric.as_ref().map(|_| "metric"));
        let run = run.map(|command| Kind::Run { command, expect: expect.unwrap_or_default(), metric });
        let mut kinds: Vec<Kind> = [
            run,
            http.map(Kind::Http),
            tcp.map(Kind::Tcp),
            unit.map(Kind::Unit),
            file.map(Kind::File),
            package.map(Kind::Package),
            port.map(Kind::Port),
        ]
        .into_iter()
        .flatten()
        .collect();
        if kinds.len() > 1 {
            let kinds: Vec<&str> = kinds.iter().map(Kind::name).collect();
            return Err(StepError::ManyKinds { name, kinds: kinds.join(", ") });
        }
        let Some(kind) = kinds.pop() else { return Err(StepError::NoKind { name }) };
        if let (false, Some(key)) = (matches!(kind, Kind::Run { .. }), only_with_run.first()) {
            return Err(StepError::OnlyWithRun { name, key, kind: kind.name() });
        }
        if let Some(problem) = impossible(&kind) {
            return Err(StepError::Value { name, problem });
        }
        let depth = if superficial { Depth::Superficial } else { Depth::Meaningful };
        Ok(Self { name, kind, depth, timeout })
    }
}

/// What can never hold, or never mean anything, though each part alone is well-formed.
fn impossible(kind: &Kind) -> Option<String> {
    const STATES: &[&str] = &["active", "inactive", "failed", "reloading", "activating", "deactivating"];
    match kind {
        Kind::Run { command, .. } if command.trim().is_empty() => Some("run is empty".into()),
        Kind::Run { command, .. } if command.contains('\0') => Some("run contains a NUL character".into()),
        Kind::Run { metric: Some(metric), .. } if metric.regex.groups() == 0 => {
            Some(format!("the metric's regex {:?} has no group for the number", metric.regex.as_str()))
        }
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
            superficial: step.depth == Depth::Superficial,
            timeout: step.timeout,
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
        }
        fields
    }
}
