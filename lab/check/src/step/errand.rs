//! Errands: steps that the lab alone does, since they change the machine as a whole, or bring something in or out. Real hosts
//! never repeat them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::text::{AbsolutePath, FileMode, FolderPath};
use crate::written::{ByteSize, Span};

/// Longest sleep: 5 s. Who needs more is waiting for something.
pub const LONGEST_SLEEP: std::time::Duration = std::time::Duration::from_secs(5);
/// Most bytes that one `copy-out` brings out: 8 MiB.
pub const COPY_OUT_BYTES: u64 = 8 << 20;

/// What the lab does for a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Errand {
    /// Reboots the machine by its own init; the patch's agent comes back as after any reboot.
    Reboot,
    /// Puts a file of the scenario's folder onto the machine.
    CopyIn(CopyIn),
    /// Takes a file of the machine into the run's evidence.
    CopyOut(CopyOut),
    /// Takes a picture of the machine's screen into the run's evidence.
    Screenshot,
    /// Does nothing for a while.
    Sleep(Sleep),
    /// Waits until every step that goes on until this one ([`super::Step::until`]) has ended.
    Barrier,
}

impl Errand {
    /// The word it is written with.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Reboot => "reboot",
            Self::CopyIn(_) => "copy-in",
            Self::CopyOut(_) => "copy-out",
            Self::Screenshot => "screenshot",
            Self::Sleep(_) => "sleep",
            Self::Barrier => "barrier",
        }
    }
}

/// A file of the scenario's folder and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyIn {
    /// The file, in the scenario's folder.
    pub from: FolderPath,
    /// Where it goes, with its name. Missing folders are made.
    pub to: AbsolutePath,
    /// Its permission bits; absent means `0755` for a program and `0644` for anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<FileMode>,
}

/// A file of the machine, for people to read later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyOut {
    /// The file.
    pub from: AbsolutePath,
    /// Most bytes taken, from its end; absent means 1 MiB, at most [`COPY_OUT_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<ByteSize>,
}

impl CopyOut {
    /// Most bytes taken.
    pub fn bytes(&self) -> u64 {
        self.limit.map_or(1 << 20, ByteSize::bytes)
    }
}

/// A short rest, with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sleep {
    /// How long, at most [`LONGEST_SLEEP`].
    #[serde(rename = "for")]
    pub time: Span,
    /// What cannot be waited for.
    pub why: String,
}

/// `true`: the key's being there is all that it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Yes;

impl schemars::JsonSchema for Yes {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Yes".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "const": true })
    }
}

impl Serialize for Yes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(true)
    }
}

impl<'de> Deserialize<'de> for Yes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match bool::deserialize(deserializer)? {
            true => Ok(Self),
            false => Err(serde::de::Error::custom("expected true, found false: leave the key out")),
        }
    }
}
