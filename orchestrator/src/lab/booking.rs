//! What programs that validate at the same time leave to each other: each enters what its validations take in the lab's ledger, and gives no
//! more than what the others left. One of each always runs, for nobody knows how long others will.

use patchlab_lab::{
    LabHost,
    ledger::{Booked, Ledger, Takes},
};

use super::{
    pool::Pool,
    schedule::{Budgets, Needs},
};
use crate::place::Data;

/// Leaves word of what a validation on a host takes. That nobody knows of it stops nothing.
pub fn book(data: &Data, host: &LabHost, Needs { memory_mib, disk }: Needs) -> Option<Booked> {
    let places = data.lab();
    let takes = Takes { memory_mib, disk, folder: host.places(&places).work };
    let booked = Ledger::open(&places).and_then(|ledger| ledger.book(takes));
    booked.inspect_err(|error| tracing::warn!(%error, "others do not know what a validation takes")).ok()
}

/// What there is to give beside what others on this data folder have booked.
pub fn beside_others(data: &Data, pool: &Pool, budgets: &Budgets) -> Budgets {
    let places = data.lab();
    let booked = Ledger::open(&places).and_then(|ledger| ledger.booked_by_others()).unwrap_or_else(|error| {
        tracing::warn!(%error, "what others take is not known");
        Vec::new()
    });
    let disk = pool.hosts().iter().map(|host| {
        let work = host.places(&places).work;
        booked.iter().filter(|takes| takes.folder == work).map(|takes| takes.disk).sum()
    });
    budgets.beside(booked.iter().map(|takes| takes.memory_mib).sum(), &disk.collect::<Vec<u64>>())
}
