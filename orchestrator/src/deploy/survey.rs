//! What is installed on a host and how busy its week is, by PATCHLAB-MIB: the package table from the change that is known on, and
//! the workload table. Everything that is read has a limit, and what was put together must have the digest that the host says.

use std::{collections::BTreeMap, time::Duration};

use patchlab_protocol::{
    Digest,
    description::{self, Description, JOBS, LINES, Tags},
    inventory::{Inventory, PackageId, Source},
    mib::{agent, host, package, workload},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    manager::{Manager, Oid, Value},
    row::{DeployError, digest},
};

/// Most packages read of a host, removed ones included.
const PACKAGES: usize = 20_000;
/// Longest name, architecture or version read, bytes (SnmpAdminString).
const TEXT_BYTES: usize = 255;
/// Hours of a week.
pub const HOURS: u32 = 168;

/// A package of a host, as its table says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its index on that host; stays.
    pub index: u32,
    /// The change that touched it last.
    pub change: u32,
    /// Package name.
    pub name: String,
    /// Package architecture.
    pub arch: String,
    /// Its version; empty when it was removed.
    pub version: String,
    /// What it was built from; `None` when the host does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// What is installed on a host, as far as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Packages {
    /// The digest that the host had for it; `None` before it was ever read.
    pub inventory: Option<Digest>,
    /// The newest change that was read.
    pub change: u32,
    /// Every package, removed ones included, by index.
    pub packages: Vec<Package>,
}

impl Packages {
    /// Takes what changed in.
    fn take(&mut self, changed: Vec<Package>) {
        let known = std::mem::take(&mut self.packages).into_iter().chain(changed);
        let by_index: BTreeMap<u32, Package> = known.map(|package| (package.index, package)).collect();
        self.packages = by_index.into_values().collect();
    }

    /// What is installed.
    pub fn installed(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| !package.version.is_empty())
    }

    /// The digest of what is installed by this.
    fn digest(&self) -> Digest {
        let installed = self.installed();
        let inventory: Inventory =
            installed.map(|package| (PackageId::new(&package.name, &package.arch), package.version.clone())).collect();
        inventory.digest()
    }
}

/// What came of looking at a host's packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    /// They are what they were: nothing was read.
    Same,
    /// They changed: everything that is known now, and how many rows that took.
    Changed {
        /// What is known now.
        packages: Packages,
        /// Rows read.
        rows: usize,
    },
    /// They changed while they were read: look again later.
    Moved,
}

/// One hour of a host's week, from Monday 00:00 UTC on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hour {
    /// 1 to 168.
    pub hour: u32,
    /// Processor time used, per mille.
    pub cpu: u32,
    /// Memory used, per mille.
    pub memory: u32,
    /// Time in which the busiest disk worked, per mille.
    pub disk: u32,
    /// Open TCP connections.
    pub sessions: u32,
    /// How many weeks were averaged.
    pub weeks: u32,
}

/// How long a host may take to read what is installed there.
const READING: Duration = Duration::from_secs(45);
/// Time between two looks whether it has.
const LOOK: Duration = Duration::from_millis(250);

/// Has a host read anew what is installed there, and waits until it has.
///
/// # Errors
/// When it cannot be asked, or does not do it in time.
pub async fn read_anew(manager: &dyn Manager) -> Result<(), DeployError> {
    let oids = [Oid::of(agent::GROUP, agent::READ_INVENTORY, &[0])];
    let [oid] = oids.clone();
    manager.set(&[(oid, Value::Unsigned(1))]).await?;
    let until = Instant::now() + READING;
    while manager.get(&oids).await?.pop().flatten().and_then(|value| value.number()) != Some(0) {
        if Instant::now() >= until {
            return Err(DeployError::Lost { waited_s: READING.as_secs() });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// The digest of what is installed on a host, read anew.
///
/// # Errors
/// When it cannot be asked, or does not do it in time.
pub async fn inventory(manager: &dyn Manager) -> Result<Option<Digest>, DeployError> {
    read_anew(manager).await?;
    Ok(head(manager).await?.inventory)
}

fn text(what: &'static str, value: Option<&Value>) -> Result<String, DeployError> {
    let bytes = value.and_then(Value::octets).unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() <= TEXT_BYTES && !text.contains(char::is_control) => Ok(text.to_owned()),
        _ => Err(DeployError::Nonsense { what, found: format!("{} bytes that are no name", bytes.len()) }),
    }
}

fn number(value: Option<&Value>) -> u32 {
    value.and_then(Value::number).and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
}

/// What a host says of its packages as a whole.
#[derive(Debug, Clone, Copy)]
struct Head {
    inventory: Option<Digest>,
    change: u32,
    forgotten: u32,
}

async fn head(manager: &dyn Manager) -> Result<Head, DeployError> {
    let found = manager
        .get(&[
            Oid::of(agent::GROUP, agent::INVENTORY_DIGEST, &[0]),
            Oid::of(package::GROUP, package::LAST_CHANGE, &[0]),
            Oid::of(package::GROUP, package::FORGOTTEN, &[0]),
        ])
        .await?;
    let get = |n: usize| found.get(n).and_then(Option::as_ref);
    Ok(Head { inventory: digest(get(0)), change: number(get(1)), forgotten: number(get(2)) })
}

/// Looks at a host's packages: reads nothing while digest and change are the known ones, what changed since otherwise, and everything
/// when that does not lead to the digest that the host says. What a package was built from stands in no digest: that it is known now,
/// the change alone says.
///
/// # Errors
/// When the host cannot be asked, or says what no agent says.
pub async fn packages(manager: &dyn Manager, known: &Packages) -> Result<Looked, DeployError> {
    let said = head(manager).await?;
    if said.inventory.is_none() || (said.inventory == known.inventory && said.change == known.change) {
        return Ok(Looked::Same);
    }
    let mut rows = 0;
    // By the numbers of an agent that began anew, or that forgot removals since, nothing follows from what is known.
    let follows = known.inventory.is_some() && said.change >= known.change && known.change >= said.forgotten;
    let starts = if follows { vec![known.clone(), Packages::default()] } else { vec![Packages::default()] };
    for mut packages in starts {
        let changed = since(manager, packages.change).await?;
        rows += changed.len();
        packages.take(changed);
        packages.inventory = said.inventory;
        packages.change = said.change;
        if said.inventory == Some(packages.digest()) {
            return Ok(Looked::Changed { packages, rows });
        }
    }
    Ok(Looked::Moved)
}

/// Every row that a change after this one touched.
async fn since(manager: &dyn Manager, change: u32) -> Result<Vec<Package>, DeployError> {
    let mut all = Vec::new();
    let mut at = Oid::of(package::ENTRY, package::NAME, &[change, u32::MAX]);
    while let Some((oid, name)) = manager.next(&at).await? {
        let Some(&[change, index]) = oid.index_in(package::ENTRY, package::NAME) else { break };
        // An agent that does not move forward would keep us here for ever.
        if oid <= at || all.len() >= PACKAGES {
            let found = format!("more than {PACKAGES} rows, or rows in no order");
            return Err(DeployError::Nonsense { what: "plPackageTable", found });
        }
        let columns = [package::ARCH, package::VERSION, package::SOURCE, package::SOURCE_VERSION];
        let rest = manager.get(&columns.map(|column| Oid::of(package::ENTRY, column, &[change, index]))).await?;
        let get = |n: usize| rest.get(n).and_then(Option::as_ref);
        all.push(Package {
            index,
            change,
            name: text("plPackageName", Some(&name))?,
            arch: text("plPackageArch", get(0))?,
            version: text("plPackageVersion", get(1))?,
            source: Source::new(&text("plPackageSource", get(2))?, &text("plPackageSourceVersion", get(3))?),
        });
        at = oid;
    }
    Ok(all)
}

/// What a host is and does, with the digest that it had for that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// `plHostDigest`.
    pub digest: Digest,
    /// What it said.
    #[serde(flatten)]
    pub description: Description,
}

/// Looks at what a host is and does. `None` when that is what is known, when it changes just now, and when its agent does not say.
///
/// # Errors
/// When the host cannot be asked, or says what no agent says.
pub async fn described(manager: &dyn Manager, known: Option<Digest>) -> Result<Option<Described>, DeployError> {
    let scalars = [host::DIGEST, host::MACHINE, host::LOCATION, host::FUNCTION];
    let found = manager.get(&scalars.map(|number| Oid::of(host::GROUP, number, &[0]))).await?;
    let get = |n: usize| found.get(n).and_then(Option::as_ref);
    let Some(said) = digest(get(0)).filter(|said| Some(*said) != known) else { return Ok(None) };
    let machine = text("plHostMachine", get(1))?;
    let tags = Tags { location: text("plHostLocation", get(2))?, function: text("plHostFunction", get(3))? };
    let mut lines = Vec::new();
    let mut at = Oid::of(host::ENTRY, host::LINE, &[0]);
    while let Some((oid, line)) = manager.next(&at).await? {
        let Some(&[_]) = oid.index_in(host::ENTRY, host::LINE) else { break };
        if oid <= at || lines.len() >= 2 * LINES + JOBS {
            let found = format!("more than {} rows, or rows in no order", 2 * LINES + JOBS);
            return Err(DeployError::Nonsense { what: "plHostTable", found });
        }
        lines.push(text("plHostLine", Some(&line))?);
        at = oid;
    }
    let same = description::digest(&machine, &tags, &lines) == said;
    Ok(same.then(|| Described { digest: said, description: Description::of(machine, tags, &lines) }))
}

/// Reads a host's week: the hours that it has seen.
///
/// # Errors
/// When the host cannot be asked.
pub async fn week(manager: &dyn Manager) -> Result<Vec<Hour>, DeployError> {
    let mut hours: Vec<Hour> = Vec::new();
    let mut at = Oid::of(workload::ENTRY, workload::CPU, &[0]);
    while let Some((oid, cpu)) = manager.next(&at).await? {
        let Some(&[hour]) = oid.index_in(workload::ENTRY, workload::CPU) else { break };
        if oid <= at || !(1..=HOURS).contains(&hour) {
            return Err(DeployError::Nonsense { what: "plWorkloadHour", found: hour.to_string() });
        }
        let columns = [workload::MEMORY, workload::DISK, workload::SESSIONS, workload::WEEKS];
        let rest = manager.get(&columns.map(|column| Oid::of(workload::ENTRY, column, &[hour]))).await?;
        let get = |n: usize| number(rest.get(n).and_then(Option::as_ref));
        hours.push(Hour {
            hour,
            cpu: number(Some(&cpu)).min(1000),
            memory: get(0).min(1000),
            disk: get(1).min(1000),
            sessions: get(2),
            weeks: get(3),
        });
        at = oid;
    }
    Ok(hours)
}
