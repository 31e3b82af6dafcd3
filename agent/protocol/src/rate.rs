//! How much may be fetched in a second, as people write it: `"10MiB/s"`.

use std::{fmt, num::NonZeroU64, str::FromStr, time::Duration};

use patchlab_check::written::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes a second, at least [`Rate::LEAST`]. A number without a unit is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(NonZeroU64);

/// Not a rate.
#[derive(Debug, thiserror::Error)]
#[error("expected a rate such as \"10MiB/s\" or \"512KiB/s\", at least {least}/s, found {text:?}", least = Rate::LEAST)]
pub struct BadRate {
    text: String,
}

impl Rate {
    /// Less would keep an order on its way for days.
    pub const LEAST: ByteSize = ByteSize(16 * 1024);

    /// Bytes a second.
    pub fn bytes(self) -> u64 {
        self.0.get()
    }

    /// How long so many bytes take.
    pub fn time_for(self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteSize(self.bytes()))
    }
}

impl FromStr for Rate {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let size = text.trim().strip_suffix("/s").and_then(|size| size.parse::<ByteSize>().ok());
        let rate = size.filter(|size| *size >= Self::LEAST).and_then(|size| NonZeroU64::new(size.bytes()));
        rate.map(Self).ok_or_else(|| BadRate { text: text.chars().take(80).collect() })
    }
}

impl schemars::JsonSchema for Rate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Rate".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let description = "bytes a second, such as \"10MiB/s\" or \"512KiB/s\"";
        schemars::json_schema!({ "type": "string", "description": description, "pattern": "^\\s*[0-9]+\\s*[A-Za-z]+/s\\s*$" })
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_a_unit_and_a_least() {
        for (text, bytes) in
            [("10MiB/s", 10 << 20), ("10 MiB/s", 10 << 20), ("16KiB/s", 16 << 10), ("1MB/s", 1_000_000)]
        {
            assert_eq!(text.parse::<Rate>().unwrap().bytes(), bytes, "{text}");
        }
        assert_eq!("1024KiB/s".parse::<Rate>().unwrap().to_string(), "1MiB/s");
        for text in ["10MiB", "10", "10Mbit/s", "15KiB/s", "0B/s", "-1MiB/s", "99999999999TiB/s", ""] {
            let error = text.parse::<Rate>().unwrap_err().to_string();
            assert!(error.contains("at least 16KiB/s"), "{error}");
        }
    }

    #[test]
    fn what_takes_how_long_has_no_overflow() {
        let rate: Rate = "1MiB/s".parse().unwrap();
        assert_eq!(rate.time_for(3 << 19), Duration::from_millis(1500));
        assert_eq!(rate.time_for(0), Duration::ZERO);
        let least: Rate = "16KiB/s".parse().unwrap();
        assert!(least.time_for(u64::MAX) > least.time_for(1 << 40));
    }
}
