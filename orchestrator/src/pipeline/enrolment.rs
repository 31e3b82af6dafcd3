//! Hosts that are enrolled by hand: whoever does it makes their keys and carries them there. Those that come with a token are in
//! [`super::admission`].

use std::{net::SocketAddr, sync::PoisonError};

use patchlab_protocol::{
    Digest, Envelope,
    enrolment::{EngineId, is_host_name},
    limits,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Pipeline, PipelineError, senders};
use crate::{audit::Event, deploy::Credentials, store::NewHost};

/// A host to enrol, with its SNMP credentials.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentRequest {
    /// The host.
    pub host: NewHost,
    /// The users it shares with the manager.
    pub credentials: Credentials,
}

/// What whoever enrols a host must know of this server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrolmentTerms {
    /// The root document hosts pin.
    pub root: Envelope,
    /// Its digest.
    pub root_digest: Digest,
    /// Informs are localized to this engine.
    pub manager_engine_id: EngineId,
    /// The sink's address, as bound.
    pub informs: SocketAddr,
    /// The payload listener's address, as bound.
    pub payload: SocketAddr,
}

impl Pipeline {
    /// Enrols a host.
    pub fn enrol(&self, request: &EnrolmentRequest, actor: &str) -> Result<(), PipelineError> {
        let host = &request.host;
        if !is_host_name(&host.name) {
            return Err(bad_host_name(&host.name));
        }
        if host.root != self.authority.standing().root().digest {
            return Err(PipelineError::Input("the host pins another root document than this server's".into()));
        }
        // Not while another host comes with a token: who is first writes the credentials of that name.
        let _turn = self.admitting.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.data.credentials(&host.name);
        let there = self.store.hosts()?.iter().any(|there| there.enrolled.name == host.name);
        if !there {
            request.credentials.write(&path)?;
        }
        let detail = json!({
            "address": host.address, "site": host.site, "engine_id": host.engine_id, "key": host.public_key.id(),
        });
        self.store.enrol(host, &Event::new("host-enrolled", &host.name, detail).by(actor))?;
        self.sink.set_senders(senders(&self.store, &self.data)?);
        self.authority.told();
        Ok(())
    }

    /// What whoever enrols a host must know.
    pub fn terms(&self) -> EnrolmentTerms {
        let standing = self.authority.standing();
        EnrolmentTerms {
            root: standing.root().envelope.clone(),
            root_digest: standing.root().digest,
            manager_engine_id: self.sink.engine_id.clone(),
            informs: self.sink.address,
            payload: self.payload,
        }
    }
}

/// Why a host is not called so.
pub(super) fn bad_host_name(name: &str) -> PipelineError {
    let most = limits::HOST_NAME_BYTES;
    PipelineError::Input(format!(
        "host name {name:?}: expected 1 to {most} letters, digits, '.', '_' or '-', not with '.' first"
    ))
}
