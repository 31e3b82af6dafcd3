//! Waiting: a condition, asked again until it holds, can never hold, or the limit is reached.

use serde::{Deserialize, Serialize};

use super::{
    Expect, File, Http, Kind, Package, Port, Tcp, Unit,
    fields::{KINDS, KindError, one_of, only_kind},
};
use crate::written::Span;

/// A condition that must come to hold within a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// What must come to hold: a step's kind with its keys.
    pub until: Condition,
    /// How long it may take.
    pub limit: Span,
}

/// The keys of a condition of which there is exactly one: the first of a step's.
const LOOKS: &[&str] = KINDS.split_at(7).0;

/// A kind that only looks: everything but `wait` itself and what the lab alone does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "ConditionFields", into = "ConditionFields")]
pub struct Condition(Box<Kind>);

impl Condition {
    /// What it looks at.
    pub fn kind(&self) -> &Kind {
        &self.0
    }
}

/// A condition as it is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("oneOf" = one_of(LOOKS), "dependencies" = {"expect": ["run"]}))]
struct ConditionFields {
    /// Shell command line, run in the scenario's folder. Exit 77 means: skip.
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<String>,
    /// What a command must give; absent means exit 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    expect: Option<Expect>,
    /// An HTTP request (GET) from the machine itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<Http>,
    /// A TCP connection from the machine itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp: Option<Tcp>,
    /// A systemd unit's state.
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<Unit>,
    /// A file's presence and content.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<File>,
    /// An installed package.
    #[serde(skip_serializing_if = "Option::is_none")]
    package: Option<Package>,
    /// A listening port.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<Port>,
}

/// The table is no condition.
#[derive(Debug, thiserror::Error)]
#[error("what is waited for {0}")]
struct ConditionError(KindError);

impl TryFrom<ConditionFields> for Condition {
    type Error = ConditionError;

    fn try_from(fields: ConditionFields) -> Result<Self, ConditionError> {
        let ConditionFields { run, expect, http, tcp, unit, file, package, port } = fields;
        let only_with_run = expect.as_ref().map(|_| "expect");
        let kinds = [
            run.map(|command| Kind::Run { command, expect: expect.unwrap_or_default(), metric: None }),
            http.map(Kind::Http),
            tcp.map(Kind::Tcp),
            unit.map(Kind::Unit),
            file.map(Kind::File),
            package.map(Kind::Package),
            port.map(Kind::Port),
        ];
        only_kind(kinds.into_iter().flatten().collect(), LOOKS, only_with_run)
            .map(|kind| Self(Box::new(kind)))
            .map_err(ConditionError)
    }
}

impl From<Condition> for ConditionFields {
    fn from(condition: Condition) -> Self {
        let mut fields = Self::default();
        match *condition.0 {
            Kind::Run { command, expect, .. } => {
                fields.run = Some(command);
                fields.expect = Some(expect).filter(|expect| *expect != Expect::default());
            }
            Kind::Http(http) => fields.http = Some(http),
            Kind::Tcp(tcp) => fields.tcp = Some(tcp),
            Kind::Unit(unit) => fields.unit = Some(unit),
            Kind::File(file) => fields.file = Some(file),
            Kind::Package(package) => fields.package = Some(package),
            Kind::Port(port) => fields.port = Some(port),
            // None can be made: see `try_from`.
            Kind::Wait(_) | Kind::Errand(_) => {}
        }
        fields
    }
}
