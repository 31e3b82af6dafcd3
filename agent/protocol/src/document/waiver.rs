//! The waiver: a person answers for one thing that the lab found against an order.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Class;
use crate::{
    Digest,
    envelope::{Predicate, Subject},
    limits,
};

/// One failed scenario of one baseline, or its way back, that an order may ship in spite of: signed with an approver's key, which the
/// server never holds. It travels inside the release that rests on it. Subjects: the order, the baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiver {
    /// The order.
    pub order: Digest,
    /// The baseline on which it was found, `name@n`.
    pub baseline: String,
    /// The baseline's digest.
    pub baseline_digest: Digest,
    /// What is waived there.
    pub waived: Waived,
    /// The class of hosts that it holds for.
    pub class: Class,
    /// Most hosts that may get the order under it.
    pub hosts_at_most: u32,
    /// Who answers for it, for people; the signature says who it was.
    pub owner: String,
    /// Why, in one line.
    pub reason: String,
    /// When it was given.
    pub at: jiff::Timestamp,
    /// Not valid after: at most [`limits::WAIVER_VALID`] later.
    pub not_after: jiff::Timestamp,
}

/// What a waiver lets through.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Waived {
    /// That this scenario fails with the order applied; every step of it, before the rollback.
    Scenario(String),
    /// That the way back is not proven: it failed, leaves something behind, was not walked since the order was rejected before, or there
    /// is none.
    WayBack,
}

impl fmt::Display for Waived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scenario(name) => write!(f, "scenario {name}"),
            Self::WayBack => f.write_str("the way back"),
        }
    }
}

impl fmt::Display for Waiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {} by {}", self.waived, self.baseline, self.owner)
    }
}

impl Waiver {
    /// A word or a line: something, of printable characters, and of no more bytes than that.
    fn is_line(text: &str, bytes: usize) -> bool {
        !text.trim().is_empty() && text.len() <= bytes && !text.chars().any(char::is_control)
    }
}

impl Predicate for Waiver {
    const TYPE: &'static str = "urn:patchlab:waiver:1";

    /// The order and the baseline.
    fn subjects(&self) -> Vec<Subject> {
        vec![Subject::new("order", self.order), Subject::new(self.baseline.clone(), self.baseline_digest)]
    }

    fn check(&self) -> Result<(), String> {
        let Class { family, release, arch } = &self.class;
        let scenario = match &self.waived {
            Waived::Scenario(name) => Some(("scenario", name)),
            Waived::WayBack => None,
        };
        let words = [("baseline", &self.baseline), ("family", family), ("release", release), ("arch", arch)];
        for (field, word) in words.into_iter().chain([("owner", &self.owner)]).chain(scenario) {
            if !Self::is_line(word, limits::WAIVER_WORD_BYTES) {
                let most = limits::WAIVER_WORD_BYTES;
                return Err(format!("{field} of a waiver has 1 to {most} bytes, on one line: {word:?}"));
            }
        }
        if !Self::is_line(&self.reason, limits::WAIVER_REASON_BYTES) {
            let most = limits::WAIVER_REASON_BYTES;
            return Err(format!("the reason of a waiver has 1 to {most} bytes, on one line"));
        }
        if !(1..=limits::HOSTS_PER_ACTIVATION).contains(&(self.hosts_at_most as usize)) {
            let most = limits::HOSTS_PER_ACTIVATION;
            return Err(format!("a waiver is for 1 to {most} hosts, and this one for {}", self.hosts_at_most));
        }
        let valid = self.at.duration_until(self.not_after);
        if !valid.is_positive() || valid > limits::WAIVER_VALID {
            let days = limits::WAIVER_VALID.as_hours() / 24;
            return Err(format!(
                "a waiver ends after it was given, at most {days} days later: this one is from {} to {}",
                self.at, self.not_after
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiver() -> Waiver {
        Waiver {
            order: Digest::of("order"),
            baseline: "web@1".into(),
            baseline_digest: Digest::of("web@1"),
            waived: Waived::Scenario("web-smoke".into()),
            class: Class { family: "debian".into(), release: "12".into(), arch: "x86_64".into() },
            hosts_at_most: 2,
            owner: "ann".into(),
            reason: "the page is served by the other vhost until Friday".into(),
            at: "2026-03-01T12:00:00Z".parse().unwrap(),
            not_after: "2026-03-08T12:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn what_is_waived_has_a_form_of_its_own() {
        let text = |waived: &Waived| serde_json::to_string(waived).unwrap();
        assert_eq!(text(&Waived::Scenario("web-smoke".into())), r#"{"scenario":"web-smoke"}"#);
        assert_eq!(text(&Waived::WayBack), r#""way-back""#);
    }

    #[test]
    fn every_field_has_its_limits() {
        assert_eq!(waiver().check(), Ok(()));
        let longest = Waiver { reason: "x".repeat(limits::WAIVER_REASON_BYTES), ..waiver() };
        assert_eq!(longest.check(), Ok(()));
        let last = Waiver { not_after: waiver().at + limits::WAIVER_VALID, ..waiver() };
        assert_eq!(last.check(), Ok(()));
        let word = || "x".repeat(limits::WAIVER_WORD_BYTES + 1);
        let changes: [(&str, Waiver); 14] = [
            ("no baseline", Waiver { baseline: String::new(), ..waiver() }),
            ("a long baseline", Waiver { baseline: word(), ..waiver() }),
            ("no scenario", Waiver { waived: Waived::Scenario(" ".into()), ..waiver() }),
            ("a long scenario", Waiver { waived: Waived::Scenario(word()), ..waiver() }),
            ("a long class", Waiver { class: Class { release: word(), ..waiver().class }, ..waiver() }),
            ("nobody", Waiver { owner: String::new(), ..waiver() }),
            ("an owner on two lines", Waiver { owner: "ann\nbob".into(), ..waiver() }),
            ("no reason", Waiver { reason: "  ".into(), ..waiver() }),
            ("a long reason", Waiver { reason: "x".repeat(limits::WAIVER_REASON_BYTES + 1), ..waiver() }),
            ("for no host", Waiver { hosts_at_most: 0, ..waiver() }),
            ("for all the world", Waiver { hosts_at_most: u32::MAX, ..waiver() }),
            ("over at once", Waiver { not_after: waiver().at, ..waiver() }),
            ("over before", Waiver { at: waiver().not_after, not_after: waiver().at, ..waiver() }),
            ("for ever", Waiver { not_after: "2029-03-01T12:00:00Z".parse().unwrap(), ..waiver() }),
        ];
        for (what, changed) in changes {
            assert!(changed.check().is_err(), "{what}");
        }
    }
}
