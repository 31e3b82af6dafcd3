//! Quantities as people write them: lengths of time and sizes.

use std::{fmt, str::FromStr, time::Duration};

/// The text is not a quantity of that sort.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {text:?}")]
pub struct ParseQuantityError {
    expected: &'static str,
    text: String,
}

/// Splits `"10min"` into 10 and `"min"`, multiplies, and refuses what does not fit in 64 bits.
fn scaled(text: &str, expected: &'static str, units: &[(&str, u64)]) -> Result<u64, ParseQuantityError> {
    let error = || ParseQuantityError { expected, text: text.chars().take(80).collect() };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().map_err(|_| error())?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start()).ok_or_else(error)?;
    number.checked_mul(*factor).ok_or_else(error)
}

/// A length of time as people write it: `"500ms"`, `"120s"`, `"3min"`, `"1h"`, `"2d"`. A number without a unit is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const UNITS: &[(&str, u64)] =
            &[("ms", 1), ("s", 1_000), ("m", 60_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
        scaled(text, r#"a length of time such as "500ms", "120s", "3min" or "1h""#, UNITS)
            .map(|ms| Self(Duration::from_millis(ms)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            ms if ms % 1_000 != 0 => write!(f, "{ms}ms"),
            ms => write!(f, "{}s", ms / 1_000),
        }
    }
}

/// A size in bytes as people write it: `"512MiB"`, `"4GiB"`, `"100MB"`, `"0B"`. A number without a unit is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Whole mebibytes, rounded up.
    pub fn mebibytes(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }
}

const BINARY: &[(&str, u64)] = &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl FromStr for ByteSize {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let units: Vec<(&str, u64)> = BINARY
            .iter()
            .copied()
            .chain([("kB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000), ("TB", 1_000_000_000_000)])
            .collect();
        scaled(text, r#"a size such as "512MiB" or "4GiB""#, &units).map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = BINARY
            .iter()
            .copied()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

/// Serialises by `Display` and reads by `FromStr`, with what was expected for a value that is not even text. The pattern (ECMA-262) is for
/// editors: it refuses nothing that is read.
macro_rules! as_text {
    ($($name:ident $expected:literal like $pattern:literal),*) => {$(
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "description": $expected, "pattern": $pattern })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    )*};
}
pub(crate) use as_text;

as_text!(
    Span r#"a length of time such as "500ms", "120s", "3min" or "1h""# like r"^\s*[0-9]+\s*(ms|s|m|min|h|d)\s*$",
    ByteSize r#"a size such as "512MiB" or "4GiB""# like r"^\s*[0-9]+\s*([KMGT]iB|[kMGT]?B)\s*$"
);
