//! Hosts that are virtual machines themselves: which machine one is, and what becomes of its snapshot. What is decided here is done by
//! [`crate::deploy::snapshots`].

use patchlab_lab::snapshot;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Pipeline, PipelineError};
use crate::{
    audit::Event,
    store::{HostMachine, Snapshot},
};

/// Which virtual machine a host is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineRequest {
    /// The machine; `None`: none of which a snapshot is taken.
    pub machine: Option<HostMachine>,
}

impl Pipeline {
    /// Says which virtual machine a host is. A snapshot of it must be possible now.
    pub fn set_machine(&self, name: &str, request: &MachineRequest, actor: &str) -> Result<(), PipelineError> {
        let host = self.store.host(name)?.enrolled.name;
        if let Some(HostMachine { guest, .. }) = &request.machine {
            if guest.outside.is_empty() {
                return Err(PipelineError::Input(
                    "no disk stays outside: what an agent must not forget (its ledger_dir) would go back with the others".into(),
                ));
            }
            snapshot::layers(guest, "patchlab-try")?;
        }
        let event = Event::new("host-machine", &host, json!({ "machine": request.machine })).by(actor);
        Ok(self.store.set_machine(&host, request.machine.as_ref(), &event)?)
    }

    /// Has a host go back to its snapshot.
    pub fn revert(&self, name: &str, actor: &str) -> Result<Snapshot, PipelineError> {
        Ok(self.executor.begin_revert(name, actor)?)
    }

    /// Has a host go on without its snapshot.
    pub fn merge(&self, name: &str, actor: &str) -> Result<Snapshot, PipelineError> {
        let open = self.store.open_snapshot(name)?;
        let run = open.map(|open| self.store.run(&open.order, &open.host, open.run)).transpose()?;
        if run.is_some_and(|run| !run.stage.is_final()) {
            return Err(PipelineError::Input(format!(
                "{name} is being changed: its snapshot is its way back as long as the run is under way"
            )));
        }
        Ok(self.executor.begin_merge_of(name, actor)?)
    }
}
