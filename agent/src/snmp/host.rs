//! `plHost`: what the host is and does ([`crate::description`]). It is looked at when somebody asks, at most once in [`FRESH`], so a host
//! that nobody asks spends nothing on it; a manager asks for the digest first, and reads the lines only when it changed.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_snmp::{
    BoxFuture, GetNextResult, GetResult, HandlerResult, MibHandler, Oid, OidTable, RequestContext, Value, VarBind,
};
use patchlab_protocol::{
    description::{Description, LINE_BYTES, Tags},
    mib::host as column,
};

use crate::{
    description::{describe, machine},
    jobs::Jobs,
};

/// How long what was seen is told before it is looked at again.
const FRESH: Duration = Duration::from_secs(60);

/// The host as it was seen last.
pub struct HostTable {
    root: PathBuf,
    tags: Tags,
    /// Where the agent keeps what it learned.
    state_dir: PathBuf,
    /// What costs nothing to know: the first objects of the group.
    known: OidTable<Value>,
    seen: Mutex<Option<(Instant, Arc<OidTable<Value>>)>>,
    /// One at a time looks; the others wait for what it sees.
    looking: tokio::sync::Mutex<()>,
}

fn scalar(number: u32) -> Oid {
    Oid::new(column::GROUP.iter().copied().chain([number, 0]))
}

fn text(value: &str) -> Value {
    Value::OctetString(value.as_bytes().to_vec().into())
}

fn known(tags: &Tags, machine: &str) -> Vec<(Oid, Value)> {
    vec![
        (scalar(column::LOCATION), text(&tags.location)),
        (scalar(column::FUNCTION), text(&tags.function)),
        (scalar(column::MACHINE), text(machine)),
    ]
}

/// Every object, in order.
fn objects(host: &Description) -> OidTable<Value> {
    let mut values = known(&host.tags, &host.machine);
    values.push((scalar(column::DIGEST), Value::OctetString(host.digest().as_bytes().to_vec().into())));
    for (index, line) in (1..).zip(host.lines()) {
        let oid = Oid::new(column::ENTRY.iter().copied().chain([column::LINE, index]));
        values.push((oid, text(&line)));
    }
    values.into_iter().collect()
}

impl HostTable {
    /// Of the system below `root`, and what was learned of it in `state_dir`.
    pub fn new(root: PathBuf, tags: Tags, state_dir: PathBuf) -> Self {
        let known = known(&tags, machine(&root)).into_iter().collect();
        Self { root, tags, state_dir, known, seen: Mutex::new(None), looking: tokio::sync::Mutex::new(()) }
    }

    fn fresh(&self) -> Option<Arc<OidTable<Value>>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.as_ref().filter(|(at, _)| at.elapsed() < FRESH).map(|(_, seen)| Arc::clone(seen))
    }

    async fn look(&self) -> Arc<OidTable<Value>> {
        if let Some(seen) = self.fresh() {
            return seen;
        }
        let _one_at_a_time = self.looking.lock().await;
        if let Some(seen) = self.fresh() {
            return seen;
        }
        let (root, tags, state_dir) = (self.root.clone(), self.tags.clone(), self.state_dir.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let mut host = describe(&root, &tags, Jobs::read(&state_dir).known());
            host.services.retain(|service| service.to_string().len() <= LINE_BYTES);
            host.ports.retain(|port| port.to_string().len() <= LINE_BYTES);
            host.kernels.retain(|kernel| kernel.to_string().len() <= LINE_BYTES);
            host.jobs.retain(|job| job.to_string().len() <= LINE_BYTES);
            objects(&host)
        });
        let seen = Arc::new(looked.await.unwrap_or_else(|_| OidTable::from_iter([])));
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Arc::clone(&seen)));
        seen
    }
}

impl MibHandler for HostTable {
    fn get<'a>(&'a self, _: &'a RequestContext, oid: &'a Oid) -> BoxFuture<'a, HandlerResult<GetResult>> {
        Box::pin(async move {
            let found = match self.known.get(oid) {
                Some(value) => Some(value.clone()),
                None => self.look().await.get(oid).cloned(),
            };
            Ok(found.map_or(GetResult::NoSuchInstance, GetResult::Value))
        })
    }

    /// Asked at every step of any walk: only one that comes here has the host looked at.
    fn get_next<'a>(&'a self, _: &'a RequestContext, oid: &'a Oid) -> BoxFuture<'a, HandlerResult<GetNextResult>> {
        Box::pin(async move {
            let binding = |(oid, value): (&Oid, &Value)| GetNextResult::Value(VarBind::new(oid.clone(), value.clone()));
            if let Some(next) = self.known.get_next(oid) {
                return Ok(binding(next));
            }
            if !oid.starts_with(&Oid::from_slice(column::GROUP)) {
                return Ok(GetNextResult::EndOfMibView);
            }
            Ok(self.look().await.get_next(oid).map_or(GetNextResult::EndOfMibView, binding))
        })
    }
}
