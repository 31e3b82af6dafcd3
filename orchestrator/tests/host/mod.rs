//! A host's SNMP side for the manager's tests: PATCHLAB-MIB's tables over real SNMPv3 on a real socket, with the runs' course
//! under the test's control. It checks no document and changes no package: that is the agent's, which has its own tests.

#![allow(dead_code, reason = "each test file uses its part of it")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use async_snmp::{
    AuthProtocol, AuthoritativeEngine, Oid, PrivProtocol, Value, VarBind,
    agent::Agent,
    handler::{
        BoxFuture, GetNextResult, GetResult, HandlerResult, MibHandler, PreparedSet, RequestContext, SetCommitResult,
        SetTestResult, SetUndoResult,
    },
};
use patchlab_protocol::{
    Digest, SigningKey,
    document::{Checks, RunResult, RunState},
    enrolment::{EngineId, SnmpUser},
    mib::{self, agent, item, order, run},
};

/// What becomes of a run when it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// It ends at once, so.
    Ends(RunState),
    /// It stays there until [`TestHost::finish`].
    Holds(RunState),
}

/// The host.
#[derive(Clone)]
pub struct TestHost {
    pub name: String,
    pub address: SocketAddr,
    tables: Arc<Mutex<Tables>>,
}

struct Tables {
    cells: BTreeMap<Vec<u32>, Value>,
    starts: Vec<(u32, u32)>,
    course: Course,
    name: String,
    key: SigningKey,
    head: Option<Digest>,
}

impl TestHost {
    /// A host that answers on a free port of loopback from now on.
    pub async fn start(name: &str, engine: &EngineId, user: &SnmpUser, key: SigningKey, root: Digest) -> Self {
        Self::start_on("127.0.0.1:0", name, engine, user, key, root).await
    }

    pub async fn start_on(
        address: &str,
        name: &str,
        engine: &EngineId,
        user: &SnmpUser,
        key: SigningKey,
        root: Digest,
    ) -> Self {
        let mut cells = BTreeMap::new();
        let scalar = |column: u32| [agent::GROUP, &[column, 0]].concat();
        cells.insert(scalar(agent::VERSION), Value::from("test"));
        cells.insert(scalar(agent::HOST), Value::from(name));
        cells.insert(scalar(agent::CLASS), Value::from("debian-12-x86_64"));
        cells.insert(scalar(agent::ROOT_DIGEST), Value::from(&root.as_bytes()[..]));
        cells.insert(scalar(agent::AUDIT_HEAD), Value::from(""));
        cells.insert(scalar(agent::RESULT_HEAD), Value::from(""));
        let tables = Arc::new(Mutex::new(Tables {
            cells,
            starts: Vec::new(),
            course: Course::Ends(RunState::Succeeded),
            name: name.to_owned(),
            key,
            head: None,
        }));
        let persist = |_: &_| Ok::<(), std::convert::Infallible>(());
        let authority = AuthoritativeEngine::install(engine.as_bytes().to_vec(), persist).unwrap();
        let server = Agent::builder()
            .bind(address)
            .authoritative_engine(authority)
            .usm_user(user.name.clone(), |u| {
                u.auth_priv(AuthProtocol::Sha256, user.auth.as_bytes(), PrivProtocol::Aes128, user.privacy.as_bytes())
            })
            .unwrap()
            .handler(Oid::from(mib::OBJECTS), Arc::new(Handler(Arc::clone(&tables))))
            .allow_all_access()
            .build()
            .await
            .unwrap();
        let address = server.local_addr();
        tokio::spawn(async move { server.run().await });
        Self { name: name.to_owned(), address, tables }
    }

    pub fn will(&self, course: Course) {
        self.tables.lock().unwrap().course = course;
    }

    /// Every start that began a run.
    pub fn starts(&self) -> Vec<(u32, u32)> {
        self.tables.lock().unwrap().starts.clone()
    }

    pub fn cell(&self, entry: &[u32], column: u32, index: &[u32]) -> Option<Value> {
        self.tables.lock().unwrap().cells.get(&[entry, &[column], index].concat()).cloned()
    }

    pub fn set_cell(&self, entry: &[u32], column: u32, index: &[u32], value: Value) {
        self.tables.lock().unwrap().cells.insert([entry, &[column], index].concat(), value);
    }

    /// Takes a row of a table away.
    pub fn remove_row(&self, entry: &[u32], index: &[u32]) {
        let in_row = |name: &[u32]| name.strip_prefix(entry).and_then(|rest| rest.get(1..)) == Some(index);
        self.tables.lock().unwrap().cells.retain(|name, _| !in_row(name));
    }

    /// Ends a held run.
    pub fn finish(&self, row: u32, run: u32, state: RunState) {
        self.tables.lock().unwrap().finish(row, run, state);
    }

    /// Signs results with another key from now on.
    pub fn forge(&self, key: SigningKey) {
        self.tables.lock().unwrap().key = key;
    }
}

impl Tables {
    fn put(&mut self, entry: &[u32], column: u32, index: &[u32], value: impl Into<Value>) {
        self.cells.insert([entry, &[column], index].concat(), value.into());
    }

    fn start(&mut self, row: u32, number: u32) {
        let at = [row, number];
        if self.starts.contains(&(row, number)) {
            return;
        }
        self.starts.push((row, number));
        let (Course::Ends(state) | Course::Holds(state)) = self.course;
        let shown = if matches!(self.course, Course::Ends(_)) { RunState::Applying } else { state };
        self.put(run::ENTRY, run::STATE, &at, shown as i32);
        self.put(run::ENTRY, run::PERCENT, &at, Value::Gauge32(10));
        self.put(run::ENTRY, run::PHASE, &at, "working");
        for column in [run::EXIT_CODE, run::REFUSAL] {
            self.put(run::ENTRY, column, &at, 0);
        }
        self.put(run::ENTRY, run::REBOOT_NEEDED, &at, 2);
        for column in [run::ERROR, run::RESULT, run::RESULT_SIGNATURE, run::DIGEST_BEFORE, run::DIGEST_AFTER] {
            self.put(run::ENTRY, column, &at, "");
        }
        for column in [run::DURATION, run::TRANSACTION_DURATION] {
            self.put(run::ENTRY, column, &at, Value::Gauge32(1234));
        }
        let item_at = [row, number, 1];
        for (column, text) in
            [(item::NAME, "nginx"), (item::ARCH, "amd64"), (item::FROM, "1.22-1"), (item::TO, "1.22-2")]
        {
            self.put(item::ENTRY, column, &item_at, text);
        }
        self.put(item::ENTRY, item::STATE, &item_at, 2);
        if let Course::Ends(state) = self.course {
            self.finish(row, number, state);
        }
    }

    fn finish(&mut self, row: u32, number: u32, state: RunState) {
        let at = [row, number];
        let bytes = |value: Option<&Value>| match value {
            Some(Value::OctetString(bytes)) => Digest::from_bytes(bytes),
            _ => None,
        };
        let head = [agent::GROUP, &[agent::AUDIT_HEAD, 0]].concat();
        let result = RunResult {
            host: self.name.clone(),
            order: bytes(self.cells.get(&[order::ENTRY, &[order::DIGEST, row]].concat())).unwrap(),
            run: number,
            action: None,
            preparation: None,
            operator: None,
            state,
            refusal: None,
            started: 1_700_000_000,
            ended: 1_700_000_001,
            before: Digest::of("before"),
            after: Digest::of("after"),
            checks: Checks { passed: 1, failed: 0 },
            cause: None,
            previous: self.head,
            audit: bytes(self.cells.get(&head)),
        };
        let statement = serde_json::to_vec(&result).unwrap();
        let signature = self.key.sign(&RunResult::signed_bytes(&statement));
        self.head = Some(Digest::of(&statement));
        self.put(run::ENTRY, run::RESULT, &at, statement.as_slice());
        self.put(run::ENTRY, run::RESULT_SIGNATURE, &at, &signature[..]);
        self.put(run::ENTRY, run::PERCENT, &at, Value::Gauge32(100));
        self.put(run::ENTRY, run::STATE, &at, state as i32);
    }
}

struct Handler(Arc<Mutex<Tables>>);

impl MibHandler for Handler {
    fn get<'a>(&'a self, _: &'a RequestContext, oid: &'a Oid) -> BoxFuture<'a, HandlerResult<GetResult>> {
        let found = self.0.lock().unwrap().cells.get(oid.arcs()).cloned();
        Box::pin(async move { Ok(found.map_or(GetResult::NoSuchInstance, GetResult::Value)) })
    }

    fn get_next<'a>(&'a self, _: &'a RequestContext, oid: &'a Oid) -> BoxFuture<'a, HandlerResult<GetNextResult>> {
        let next = self
            .0
            .lock()
            .unwrap()
            .cells
            .range(oid.arcs().to_vec()..)
            .find(|(name, _)| name.as_slice() != oid.arcs())
            .map(|(name, value)| VarBind::new(Oid::from(name.clone()), value.clone()));
        Box::pin(async move { Ok(next.map_or(GetNextResult::EndOfMibView, GetNextResult::Value)) })
    }

    fn test_set<'a>(&'a self, _: &'a RequestContext, _: &'a Oid, _: &'a Value) -> BoxFuture<'a, SetTestResult> {
        let tables = Arc::clone(&self.0);
        Box::pin(async move { Ok(Box::new(Write(tables)) as Box<dyn PreparedSet>) })
    }
}

struct Write(Arc<Mutex<Tables>>);

impl PreparedSet for Write {
    fn commit<'a>(
        &'a mut self,
        _: &'a RequestContext,
        oid: &'a Oid,
        value: &'a Value,
    ) -> BoxFuture<'a, SetCommitResult> {
        let mut tables = self.0.lock().unwrap();
        let arcs = oid.arcs().to_vec();
        match (arcs.strip_prefix(order::ENTRY), value) {
            (Some(&[order::START, row]), Value::Gauge32(number)) => tables.start(row, *number),
            (Some(&[order::ROW_STATUS, row]), Value::Integer(6)) => {
                tables
                    .cells
                    .retain(|name, _| name.strip_prefix(order::ENTRY).is_none_or(|rest| rest.last() != Some(&row)));
            }
            _ => {
                tables.cells.insert(arcs, value.clone());
            }
        }
        Box::pin(async { Ok(()) })
    }

    fn undo<'a>(&'a mut self, _: &'a RequestContext, _: &'a Oid, _: &'a Value) -> BoxFuture<'a, SetUndoResult> {
        Box::pin(async { Ok(()) })
    }
}
