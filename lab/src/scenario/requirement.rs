//! What a scenario asks of the lab, as a list of words; what is not met skips the scenario, with the reason.

use super::Scenario;
use crate::{accelerator::Accelerator, machine::Hardware};

/// Every word that is known, with what it asks for.
pub const WORDS: [(&str, &str); 5] = [
    ("isolated", "the machine reaches nothing outside the lab"),
    ("kvm", "the machine runs on the processor, not under software emulation"),
    ("network-outside", "the machine reaches the internet"),
    ("reboot", "the machine can be rebooted"),
    ("screen", "the machine has a screen"),
];

/// The word for a screen, which whoever takes a picture of one asks for.
pub const SCREEN: &str = "screen";

/// Why there is no picture of a machine's screen.
pub const NO_SCREEN: &str = "its baseline has no screen: give its recipe screen = \"vga\"";

/// Why a machine made of `hardware` does not give what `word` asks for; `None` when it does.
pub fn unmet(word: &str, hardware: &Hardware) -> Option<String> {
    let reason = match word {
        "isolated" | "reboot" => return None,
        "kvm" if hardware.accelerator == Accelerator::Kvm => return None,
        "kvm" => "the lab's machines run under software emulation".to_owned(),
        "network-outside" => "the lab's machines reach nothing outside it".to_owned(),
        "screen" if hardware.screen.is_some() => return None,
        "screen" => NO_SCREEN.to_owned(),
        other => unknown(other),
    };
    Some(format!("it requires {word:?}: {reason}"))
}

/// Why a word cannot be met by any lab of this version.
pub fn unknown(word: &str) -> String {
    let known: Vec<&str> = WORDS.iter().map(|(word, _)| *word).collect();
    format!("this patchlab does not know the word {word:?}; it knows {}", known.join(", "))
}

impl Scenario {
    /// Why it is skipped on a machine made of `hardware`, where only those baselines are stored of which `is_stored` says so: everything that
    /// is not met. `None` when it is run.
    pub fn unmet(&self, hardware: &Hardware, is_stored: impl Fn(&str) -> bool) -> Option<String> {
        let words = self.requires.iter().filter_map(|word| unmet(word, hardware));
        let reasons: Vec<String> = words.chain(self.lacking(is_stored)).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}
