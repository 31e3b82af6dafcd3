//! Which control a validation is compared with: one of its own, or what an earlier one's was found to be.

use std::collections::BTreeMap;

use anyhow::Context as _;
use patchlab_check::Digest;
use patchlab_lab::{Baseline, control::Conditions, kept::Keep, runs::Scope, scenario::Scenario};
use serde::{Deserialize, Serialize};

use super::{tools, worker::Manner};

/// Which control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// One of its own, beside the patched clone.
    #[default]
    Beside,
    /// What one was found to be under the same conditions, where that is known; one of its own at the first disagreement.
    Remembered,
}

/// What a control's results depend on beside baseline and scenarios.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    lab: Digest,
    agent: Digest,
}

impl Programs {
    /// Those that run here, when they have to be known: where a control may be remembered. One that is kept must be there, and so must
    /// one that somebody wants to bring to a certain moment, or to try a part on.
    pub(super) fn of(manner: &Manner, scope: &Scope) -> anyhow::Result<Option<Self>> {
        let may_be_remembered =
            manner.control == Control::Remembered && manner.keep != Keep::Always && *scope == Scope::Whole;
        if !may_be_remembered {
            return Ok(None);
        }
        let of = |path: std::path::PathBuf| {
            Digest::of_file(&path).map(|(digest, _)| digest).with_context(|| format!("read {}", path.display()))
        };
        let lab = of(std::env::current_exe().context("find this program")?)?;
        Ok(Some(Self { lab, agent: of(tools::agent_program()?)? }))
    }

    /// The name under which a control's results are remembered.
    pub(super) fn key(
        &self,
        baseline: &Baseline,
        (scenarios, others): (&[Scenario], &BTreeMap<String, Baseline>),
        manner: &Manner,
    ) -> Digest {
        let others = others.iter().map(|(name, baseline)| (name.clone(), baseline.digest)).collect();
        let (lab, agent, baseline, reboot) = (self.lab, self.agent, baseline.digest, manner.reboot);
        Conditions { lab, agent, baseline, scenarios, others, reboot }.key()
    }
}
