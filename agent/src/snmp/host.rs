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
    description::{Description, LINE_BYTES, Service, Tags},
    mib::host as column,
};

use crate::{
    description::{describe, machine},
    jobs::Jobs,
};

/// How long what was seen is told before it is looked at again.
const FRESH: Duration = Duration::from_secs(60);

/// How long a request waits for a look: after that it is answered with what was seen last, and the look goes on. Managers ask again after
/// seconds, and a busy systemd may take longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the host is and does, for whoever asks.
pub struct HostTable {
    /// What costs nothing to know: the first objects of the group.
    known: OidTable<Value>,
    looked: Arc<Looked>,
}

/// The host as it was seen last.
struct Looked {
    root: PathBuf,
    tags: Tags,
    /// Where the agent keeps what it learned.
    state_dir: PathBuf,
    seen: Mutex<Option<Seen>>,
    /// One at a time looks; the others wait for what it sees.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Seen {
    at: Instant,
    services: Vec<Service>,
    objects: Arc<OidTable<Value>>,
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
        let (seen, looking) = (Mutex::new(None), tokio::sync::Mutex::new(()));
        Self { known, looked: Arc::new(Looked { root, tags, state_dir, seen, looking }) }
    }

    async fn look(&self) -> Arc<OidTable<Value>> {
        let last = self.looked.last();
        if let Some(seen) = last.as_ref().filter(|seen| seen.is_fresh()) {
            return Arc::clone(&seen.objects);
        }
        let mut looking = tokio::spawn(Arc::clone(&self.looked).look());
        let seen = match &last {
            Some(_) => tokio::time::timeout(PATIENCE, &mut looking).await.ok().and_then(Result::ok),
            None => looking.await.ok(),
        };
        seen.or(last).map_or_else(|| Arc::new(OidTable::from_iter([])), |seen| seen.objects)
    }
}

impl Seen {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < FRESH
    }
}

impl Looked {
    fn last(&self) -> Option<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn look(self: Arc<Self>) -> Seen {
        let _one_at_a_time = self.looking.lock().await;
        let last = self.last();
        if let Some(seen) = last.as_ref().filter(|seen| seen.is_fresh()) {
            return seen.clone();
        }
        let services = last.map(|last| last.services).unwrap_or_default();
        let (root, tags, state_dir) = (self.root.clone(), self.tags.clone(), self.state_dir.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let mut host = describe(&root, &tags, Jobs::read(&state_dir).known(), &services);
            host.services.retain(|service| service.to_string().len() <= LINE_BYTES);
            host.ports.retain(|port| port.to_string().len() <= LINE_BYTES);
            host.kernels.retain(|kernel| kernel.to_string().len() <= LINE_BYTES);
            host.jobs.retain(|job| job.to_string().len() <= LINE_BYTES);
            let objects = Arc::new(objects(&host));
            (host.services, objects)
        });
        let looked = looked.await;
        let (services, objects) = looked.unwrap_or_else(|_| (Vec::new(), Arc::new(OidTable::from_iter([]))));
        let seen = Seen { at: Instant::now(), services, objects };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen.clone());
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
