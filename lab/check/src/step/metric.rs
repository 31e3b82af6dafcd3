//! Metrics: a number that a command says of the machine, for the lab to compare with what it says of the control.

use serde::{Deserialize, Serialize};

use super::text::{Pattern, Percent};

/// A number in a command's output. Here it is only read; that a difference means something is the lab's to judge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// Name, e.g. `req_per_s`.
    pub name: String,
    /// Regular expression whose first group is the number.
    pub regex: Pattern,
    /// How much worse than the control is still good, e.g. `"20%"`.
    pub worse_than_control: Percent,
    /// Which numbers are the better ones; absent means `higher`.
    #[serde(default, skip_serializing_if = "Better::is_default")]
    pub better: Better,
}

/// Which of two numbers is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// The higher: a rate.
    #[default]
    Higher,
    /// The lower: a duration, a size.
    Lower,
}

impl Better {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Metric {
    /// How often a step with a metric is done that does not say how often.
    pub const REPEAT: u32 = 7;

    /// Why it can never be compared; `None` when it can.
    pub(super) fn impossible(&self) -> Option<String> {
        let named = (1..=60).contains(&self.name.chars().count()) && !self.name.chars().any(char::is_control);
        if !named {
            return Some(format!("{:?} is no name of a metric: 1 to 60 characters", self.name));
        }
        if self.regex.groups() == 0 {
            return Some(format!("the metric's regex {:?} has no group for the number", self.regex.as_str()));
        }
        let everything = self.better == Better::Higher && self.worse_than_control.factor() >= 1.0;
        everything
            .then(|| "100% worse is nothing at all: a metric of which more is better allows less than 100%".into())
    }

    /// The number in what a command said.
    ///
    /// # Errors
    /// There is none, in words for people.
    pub fn sample(&self, output: &str) -> Result<Sample, String> {
        let missing = || format!("{} is not in its output: nothing matches {:?}", self.name, self.regex.as_str());
        let text = self.regex.capture(output).ok_or_else(missing)?;
        let number = text.trim().parse::<f64>().ok().and_then(|number| Sample::try_from(number).ok());
        number.ok_or_else(|| format!("{} is {text:?}, which is no number", self.name))
    }
}

/// A number that was measured: finite.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Sample(f64);

// A finite number equals itself.
impl Eq for Sample {}

impl Sample {
    /// The number.
    pub fn number(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Sample {
    type Error = &'static str;

    fn try_from(number: f64) -> Result<Self, Self::Error> {
        if number.is_finite() { Ok(Self(number)) } else { Err("expected a finite number") }
    }
}

impl From<Sample> for f64 {
    fn from(sample: Sample) -> Self {
        sample.0
    }
}

/// Three digits that mean something, and never more than six behind the point.
impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let magnitude = if self.0 == 0.0 { 0.0 } else { self.0.abs().log10().floor() };
        // At most 6, so nothing is lost.
        let digits = (2.0 - magnitude).clamp(0.0, 6.0) as usize;
        write!(f, "{:.digits$}", self.0)
    }
}
