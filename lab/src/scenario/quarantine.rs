//! Quarantine: a scenario that is known to be unsound still runs and is always shown, but rejects nothing until a day.

use std::fmt;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};

/// `quarantine = { owner, until, ticket }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Quarantine {
    /// Who mends it.
    pub owner: String,
    /// The last day, in UTC, e.g. `"2027-01-31"`.
    #[serde(deserialize_with = "day")]
    #[schemars(with = "String", extend("format" = "date"))]
    pub until: Date,
    /// Where it is written down why.
    pub ticket: String,
}

fn day<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Date, D::Error> {
    let text = String::deserialize(deserializer)?;
    let refused = |_| serde::de::Error::custom(format!("expected a day such as \"2027-01-31\", found {text:?}"));
    text.parse().map_err(refused)
}

/// Whether a quarantine holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// The scenario does not count.
    Holds,
    /// It counts again.
    Expired,
}

impl Quarantine {
    /// Whether it holds on `today`, a day in UTC.
    pub fn standing(&self, today: Date) -> Standing {
        if today <= self.until { Standing::Holds } else { Standing::Expired }
    }

    /// What is told of a scenario that has it, after the scenario's name.
    pub fn told(&self, standing: Standing) -> String {
        match standing {
            Standing::Holds => format!(" is in quarantine {self}: it runs and rejects nothing"),
            Standing::Expired => format!(": its quarantine {self} has expired: it counts again"),
        }
    }
}

impl fmt::Display for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "until {}, owner {}, {}", self.until, self.owner, self.ticket)
    }
}

/// Today, in UTC.
pub fn today() -> Date {
    jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date()
}
