//! What a host does with an order ahead of its activation.

use serde::{Deserialize, Serialize};

/// What a host does with a released order that changes nothing there: it needs neither an approval nor an activation. The number is
/// its value in the MIB (`PatchlabAction`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preparation {
    /// Finds out what apply would refuse now, and whether the order's checks pass as it is.
    Probe = 3,
    /// Fetches and verifies everything, the way back too, and keeps it.
    Prefetch = 4,
}

impl Preparation {
    /// The preparation of a number in the MIB.
    pub fn from_number(number: i64) -> Option<Self> {
        [Self::Probe, Self::Prefetch].into_iter().find(|preparation| *preparation as i64 == number)
    }

    /// Its name, as in the MIB.
    pub fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Prefetch => "prefetch",
        }
    }
}
