//! Net-SNMP's tools: a manager that shares no code with the agent.

use std::{
    net::SocketAddr,
    process::{Command, Output},
    time::{Duration, Instant},
};

use patchlab_protocol::{Digest, document::RunState, enrolment::SnmpUser, mib};

/// An SNMPv3 manager with one user.
pub struct Manager {
    pub address: SocketAddr,
    pub user: SnmpUser,
}

/// Dotted digits of an object.
pub fn oid(prefix: &[u32], rest: &[u32]) -> String {
    let arcs: Vec<String> = prefix.iter().chain(rest).map(u32::to_string).collect();
    format!(".{}", arcs.join("."))
}

impl Manager {
    pub fn credentials(&self) -> Vec<String> {
        let user = &self.user;
        let words = [
            "-v3",
            "-l",
            "authPriv",
            "-u",
            &user.name,
            "-a",
            "SHA-256",
            "-A",
            &user.auth,
            "-x",
            "AES",
            "-X",
            &user.privacy,
        ];
        words.map(str::to_owned).to_vec()
    }

    /// The agent's address, as Net-SNMP's tools want it (snmpcmd(1)).
    fn agent(&self) -> String {
        let transport = if self.address.is_ipv6() { "udp6" } else { "udp" };
        format!("{transport}:{}", self.address)
    }

    /// Runs a tool, e.g. `snmpget`.
    pub fn tool(&self, tool: &str, credentials: &[String], arguments: &[String]) -> Output {
        Command::new(tool)
            .args(credentials)
            .args(["-t", "3", "-r", "1", "-m", "", "-Oqn", "-Ox", "-OU"])
            .arg(self.agent())
            .args(arguments)
            .env("LC_ALL", "C")
            .output()
            .unwrap_or_else(|error| panic!("{tool}: {error}"))
    }

    fn said(&self, tool: &str, arguments: &[String]) -> Result<String, String> {
        let output = self.tool(tool, &self.credentials(), arguments);
        let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        if output.status.success() { Ok(out) } else { Err(format!("{out}{err}")) }
    }

    /// Value of one object, as printed.
    pub fn get(&self, object: &str) -> String {
        let said = self.said("snmpget", &[object.to_owned()]).unwrap_or_else(|error| panic!("get {object}: {error}"));
        // Long strings are printed over several lines.
        let flat = said.split_whitespace().skip(1).collect::<Vec<_>>().join(" ");
        flat.trim().to_owned()
    }

    /// Value of an OCTET STRING.
    pub fn octets(&self, object: &str) -> Vec<u8> {
        let text = self.get(object);
        if text == "\"\"" {
            return Vec::new();
        }
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        hex::decode(&digits).unwrap_or_else(|_| panic!("{object} is {text}"))
    }

    pub fn text(&self, object: &str) -> String {
        String::from_utf8(self.octets(object)).expect("UTF-8")
    }

    pub fn number(&self, object: &str) -> i64 {
        let text = self.get(object);
        text.parse().unwrap_or_else(|_| panic!("{object} is {text}"))
    }

    pub fn run_cell(&self, column: u32, order: u32, run: u32) -> String {
        oid(mib::run::ENTRY, &[column, order, run])
    }

    /// One SET; bindings as (object, type letter, value). The error is the tool's words.
    pub fn set(&self, bindings: &[(String, char, String)]) -> Result<String, String> {
        let words = bindings.iter().flat_map(|(object, kind, value)| [object.clone(), kind.to_string(), value.clone()]);
        self.said("snmpset", &words.collect::<Vec<_>>())
    }

    /// Makes an order row; absent documents are left out.
    pub fn create(&self, row: u32, uri: &str, documents: [Option<Digest>; 4]) -> Result<String, String> {
        use mib::order;
        let cell = |column| oid(order::ENTRY, &[column, row]);
        let mut bindings = vec![
            (cell(order::ROW_STATUS), 'i', "4".to_owned()),
            (cell(order::URI), 's', uri.to_owned()),
            (cell(order::LIFETIME), 'u', "120".to_owned()),
        ];
        let columns = [order::DIGEST, order::RELEASE, order::APPROVAL, order::ACTIVATION];
        for (column, digest) in columns.into_iter().zip(documents) {
            bindings.extend(digest.map(|digest| (cell(column), 'x', digest.to_string())));
        }
        self.set(&bindings)
    }

    /// Starts a run.
    pub fn start(&self, row: u32, run: u32) -> Result<String, String> {
        self.set(&[(oid(mib::order::ENTRY, &[mib::order::START, row]), 'u', run.to_string())])
    }

    /// State of a run.
    pub fn state(&self, row: u32, run: u32) -> RunState {
        let number = self.number(&self.run_cell(mib::run::STATE, row, run));
        RunState::from_number(number).unwrap_or_else(|| panic!("state {number}"))
    }

    /// Polls a run until it is in a state that does not last; says what it is doing there.
    pub fn wait_until(&self, row: u32, run: u32, wanted: RunState) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let state = self.state(row, run);
            if state == wanted {
                return self.text(&self.run_cell(mib::run::PHASE, row, run));
            }
            assert!(!state.is_final(), "run {row}.{run} ended as {}, and never was {}", state.name(), wanted.name());
            assert!(Instant::now() < deadline, "run {row}.{run} is {}, not {}", state.name(), wanted.name());
        }
    }

    /// Aborts a run.
    pub fn abort(&self, row: u32, run: u32) {
        self.set(&[(self.run_cell(mib::run::ABORT, row, run), 'u', "1".into())]).unwrap();
    }

    /// Polls a run until it ends.
    pub fn wait(&self, row: u32, run: u32) -> RunState {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let state = self.state(row, run);
            if state.is_final() {
                return state;
            }
            assert!(Instant::now() < deadline, "run {row}.{run} is still {}", state.name());
        }
    }
}
