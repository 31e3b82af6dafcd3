//! A host without a package system that the agent knows: an appliance, or a distribution with another one. Nothing is installed there, as far
//! as orders go; they change it by scripts alone.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use patchlab_protocol::{
    PackageSystem,
    inventory::{Inventory, Sources, Transaction},
};

use super::{
    Committed, Extent, FileIdentity, Goal, Installed, PackageError, PackageManager, Verified, asks_for_reboot,
};
use crate::{process::ProcessMark, state::Reboot};

/// No package manager, on the system below a root.
#[derive(Debug)]
pub struct NoPackages {
    root: PathBuf,
}

impl NoPackages {
    /// The system below `root` as it is.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }
}

impl PackageManager for NoPackages {
    fn system(&self) -> Option<PackageSystem> {
        None
    }

    fn installed(&self) -> Result<Installed, PackageError> {
        let nothing = Inventory::default;
        Ok(Installed { system: None, settled: nothing(), unsettled: nothing(), sources: Sources::new() })
    }

    fn identify(&self, _: &Path) -> Result<FileIdentity, PackageError> {
        Err(PackageError::NoSystem)
    }

    fn simulate(&self, _: &Goal, _: Instant) -> Result<Transaction, PackageError> {
        Err(PackageError::NoSystem)
    }

    fn commit(&self, _: &Goal, _: Instant, _: &mut dyn FnMut(ProcessMark)) -> Result<Committed, PackageError> {
        Err(PackageError::NoSystem)
    }

    /// Nothing can be half-way.
    fn settle(&self, _: Instant, _: &mut dyn FnMut(ProcessMark)) -> Result<(), PackageError> {
        Ok(())
    }

    fn resume(&self, _: &Goal, _: Instant, _: &mut dyn FnMut(ProcessMark)) -> Result<(), PackageError> {
        Err(PackageError::NoSystem)
    }

    fn verify(&self, extent: Extent<'_>, _: Instant) -> Result<Verified, PackageError> {
        match extent {
            Extent::Everything | Extent::Only([]) => Ok(Verified::default()),
            Extent::Only(_) => Err(PackageError::NoSystem),
        }
    }

    fn reboot(&self, _: &Transaction) -> Reboot {
        if asks_for_reboot(&self.root) { Reboot::Needed } else { Reboot::NotNeeded }
    }

    fn locks(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// What is always there, so that the list of packages is one that can be told.
    fn database(&self) -> Vec<PathBuf> {
        ["etc/os-release", "usr/lib/os-release"].map(|place| self.root.join(place)).into()
    }
}
