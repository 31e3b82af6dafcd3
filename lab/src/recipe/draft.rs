//! A recipe drafted from what a host has installed: a baseline as near to that host as the archive still allows.
//!
//! ```text
//! the host's packages ─┐
//!                      ├─ Plan ── packages to name ── apt's simulation ──┐
//! index files ─ Index ─┘    └──────── what it left out or chose ─────────┘   until they agree; then text
//! ```
//!
//! Deciding is pure ([`Plan`], [`index`], [`text`]); asking the installer and apt is in [`mirror`]. What a host says of itself is taken for
//! data: a name that is none of a package never reaches a command line.

mod index;
mod mirror;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use debversion::Version;
use serde::Serialize;

use self::index::{Available, Index};
pub use self::mirror::{DraftError, Mirror, draft};
use super::{Pocket, Wanted};
use crate::{apt::relation::Relation, baseline::Os};

/// Architecture of packages that fit every machine.
const ALL: &str = "all";

/// A package as a host has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Installed {
    /// Its name, without architecture.
    pub name: String,
    /// Its architecture, e.g. `amd64`, `all`.
    pub arch: String,
    /// Its full version.
    pub version: String,
}

/// Why the baseline will not have a package as the host has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case", tag = "why")]
pub enum Why {
    /// The suites have it in other versions alone.
    OtherVersion,
    /// They have that version, but another package, itself not to be had as the host has it, needs a newer one.
    NeededNewer {
        /// That package.
        by: String,
    },
    /// They do not have it at all.
    NotThere,
    /// It is of another architecture than the system.
    OtherArchitecture,
    /// apt left it out or took another version, though it was asked for.
    NotTaken,
}

/// A package that the baseline will not have as the host has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unmatched {
    /// Its name.
    pub name: String,
    /// Its architecture.
    pub arch: String,
    /// The host's version.
    pub host: String,
    /// The version that the baseline will have; none where the suites do not have it.
    pub mirror: Option<String>,
    /// Why.
    #[serde(flatten)]
    pub why: Why,
}

/// A drafted recipe, and how near it comes to its host.
#[derive(Debug, Clone, Serialize)]
pub struct Draft {
    /// Name of the baseline.
    pub name: String,
    /// The host.
    pub host: String,
    /// Its system.
    pub os: Os,
    /// The suite it is installed from.
    pub suite: String,
    /// Which of its pockets were read, and are named.
    pub pockets: Vec<Pocket>,
    /// The kernel's package; the builder's own choice when the host has none that the suites have.
    pub kernel: Option<String>,
    /// What the recipe names.
    #[serde(serialize_with = "as_text")]
    pub packages: Vec<Wanted>,
    /// Size of the disk, GiB.
    pub disk_gib: u64,
    /// How many packages the host has.
    pub installed: usize,
    /// How many of them the baseline will have in the very version.
    pub exact: usize,
    /// The others, by name.
    pub unmatched: Vec<Unmatched>,
    /// What the baseline will have beside the host's packages.
    pub beside: Vec<String>,
    /// Why apt cannot install them together, in its words; then nothing beyond names and versions is proven.
    pub refused: Option<String>,
}

fn as_text<S: serde::Serializer>(packages: &[Wanted], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(packages.iter().map(Wanted::to_string))
}

/// What apt would install, by name.
type Outcome = BTreeMap<String, String>;

/// What is installed whatever the recipe says.
#[derive(Debug, Clone, Copy)]
struct Builder<'i> {
    packages: &'i [&'i str],
    /// The kernel, unless the recipe names one.
    kernel: &'i str,
}

/// What to install of a host's packages, and what to name for it.
#[derive(Debug)]
struct Plan<'i> {
    index: &'i Index,
    /// The host's packages of the system's own architecture.
    hosts: BTreeMap<&'i str, &'i Installed>,
    /// The version to have of each package.
    target: BTreeMap<&'i str, &'i Available>,
    /// What will not be as on the host.
    unmatched: BTreeMap<(&'i str, &'i str), Unmatched>,
    /// The kernel's package.
    kernel: Option<&'i str>,
    /// Packages that must be named, or they do not come.
    named: BTreeSet<&'i str>,
}

/// What came of comparing a plan with what apt would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Learned {
    /// More is named than before: ask again.
    More,
    /// Nothing that naming could mend.
    Settled,
}

impl<'i> Plan<'i> {
    /// `arch` is dpkg's.
    fn new(installed: &'i [Installed], index: &'i Index, arch: &str, builder: &Builder<'i>) -> Self {
        let (own, foreign): (Vec<_>, Vec<_>) = installed.iter().partition(|host| host.arch == arch || host.arch == ALL);
        let hosts: BTreeMap<_, _> = own.into_iter().map(|host| (host.name.as_str(), host)).collect();
        let foreign = foreign.into_iter().map(|host| (host, None, Why::OtherArchitecture));
        let mut plan = Self {
            index,
            hosts,
            target: BTreeMap::new(),
            unmatched: BTreeMap::new(),
            kernel: None,
            named: BTreeSet::new(),
        };
        foreign.for_each(|(host, found, why)| plan.note(host, found, why));
        plan.find();
        plan.kernel = plan.kernel();
        let kernel = if plan.kernel.is_none() { Some(builder.kernel) } else { None };
        let always: Vec<&str> = builder.packages.iter().copied().chain(kernel).collect();
        always.iter().for_each(|name| plan.add(name));
        plan.agree();
        plan.named = plan.roots(&always);
        plan
    }

    fn note(&mut self, host: &'i Installed, found: Option<&str>, why: Why) {
        let Installed { name, arch, version } = host.clone();
        let one = Unmatched { name, arch, host: version, mirror: found.map(str::to_owned), why };
        self.unmatched.insert((&host.name, &host.arch), one);
    }

    /// What the archive has of the host's packages, in the host's version where it can be.
    fn find(&mut self) {
        for (name, host) in self.hosts.clone() {
            let found = host.version.parse().ok().and_then(|version| self.index.nearest(name, &version));
            match found {
                None => self.note(host, None, Why::NotThere),
                Some(found) => {
                    self.target.insert(name, found);
                    if found.version != host.version {
                        self.note(host, Some(&found.version), Why::OtherVersion);
                    }
                }
            }
        }
    }

    /// Adds what the builder installs and the host does not have, with what that brings: the newest that goes with the host's versions.
    fn add(&mut self, name: &'i str) {
        let mut waiting = vec![name];
        while let Some(name) = waiting.pop() {
            if self.target.contains_key(name) {
                continue;
            }
            let fits = |one: &&Available| one.depends.iter().all(|clause| self.holds(clause) || !self.knows(clause));
            let versions = self.index.versions(name);
            let Some(found) = versions.iter().find(fits).or(versions.first()) else { continue };
            self.target.insert(name, found);
            for clause in &found.depends {
                if !self.holds(clause) {
                    let there = clause.iter().find(|relation| !self.index.versions(&relation.name).is_empty());
                    waiting.extend(there.map(|relation| relation.name.as_str()));
                }
            }
        }
    }

    /// Whether one of the alternatives is there, in whatever version.
    fn knows(&self, clause: &[Relation]) -> bool {
        clause.iter().any(|relation| self.target.contains_key(relation.name.as_str()))
    }

    /// Moves packages up to versions that go together: what was to be had as on the host may be too old for what was not.
    fn agree(&mut self) {
        // Every move is to a newer version, so there is a last one.
        while let Some((name, to, by)) = self.discord() {
            self.target.insert(name, to);
            let Some(host) = self.hosts.get(name).copied() else { continue };
            let before = self.unmatched.get(&(name, host.arch.as_str())).map(|one| one.why.clone());
            self.note(host, Some(&to.version), before.unwrap_or_else(|| Why::NeededNewer { by: by.to_owned() }));
        }
    }

    /// The first package that has to be newer, its next version, and what needs it.
    fn discord(&self) -> Option<(&'i str, &'i Available, &'i str)> {
        for (name, available) in &self.target {
            for clause in available.depends.iter().filter(|clause| !self.holds(clause)) {
                let newer = |of: &str, than: &Available, takes: &dyn Fn(&Version) -> bool| {
                    let versions = self.index.versions(of).iter().rev();
                    versions.clone().find(|one| one.order > than.order && takes(&one.order))
                };
                // A dependency on what the host does not have is apt's to fulfil.
                let mut there = clause.iter().filter_map(|one| {
                    self.target.get_key_value(one.name.as_str()).map(|(name, available)| (one, *name, *available))
                });
                let up = there.clone().find_map(|(relation, needed, now)| {
                    newer(needed, now, &|version| relation.takes(version)).map(|to| (needed, to, *name))
                });
                let own = || {
                    let (_, needed, _) = there.next()?;
                    newer(name, available, &|_| true).map(|to| (*name, to, needed))
                };
                if let Some(found) = up.or_else(own) {
                    return Some(found);
                }
            }
        }
        None
    }

    /// Whether one of the alternatives is there.
    fn holds(&self, clause: &[Relation]) -> bool {
        clause.iter().any(|relation| {
            let by_name = self.target.get(relation.name.as_str()).is_some_and(|there| relation.takes(&there.order));
            by_name || self.target.values().any(|there| there.provides.contains(&relation.name))
        })
    }

    /// The host's kernel: the package that follows its flavour, else the newest of one version.
    fn kernel(&self) -> Option<&'i str> {
        let images = self.target.keys().filter(|name| name.starts_with("linux-image-") && !name.ends_with("-dbg"));
        let is_flavour = |name: &&&str| !name["linux-image-".len()..].starts_with(|c: char| c.is_ascii_digit());
        let newest = images.clone().max_by_key(|name| &self.target[**name].order);
        images.clone().find(is_flavour).or(newest).copied()
    }

    /// What every installation has.
    fn base(&self) -> impl Iterator<Item = &'i str> {
        let is_base = |(name, one): &(&&str, &&Available)| one.is_base || **name == "apt";
        self.target.iter().filter(is_base).map(|(name, _)| *name)
    }

    /// The fewest packages that bring all others with them, beside what is there `always`.
    fn roots(&self, always: &[&'i str]) -> BTreeSet<&'i str> {
        let mut covered = BTreeSet::new();
        self.base().chain(always.iter().copied()).chain(self.kernel).for_each(|name| self.cover(name, &mut covered));
        let left: BTreeSet<&str> = self.target.keys().filter(|name| !covered.contains(*name)).copied().collect();
        let needed: BTreeSet<&str> =
            left.iter().flat_map(|name| self.brought(name).filter(move |needed| needed != name)).collect();
        // Those that nothing needs; then, of circles, the first by name that is still not there.
        let (circles, tops): (Vec<&str>, Vec<&str>) = left.iter().copied().partition(|name| needed.contains(name));
        let mut named = BTreeSet::new();
        for name in tops.into_iter().chain(circles) {
            if !covered.contains(name) {
                named.insert(name);
                self.cover(name, &mut covered);
            }
        }
        named
    }

    fn cover(&self, name: &'i str, covered: &mut BTreeSet<&'i str>) {
        let mut waiting = vec![name];
        while let Some(name) = waiting.pop() {
            if self.target.contains_key(name) && covered.insert(name) {
                waiting.extend(self.brought(name));
            }
        }
    }

    /// What a package brings with it: apt takes the first alternative that there is.
    fn brought(&self, name: &str) -> impl Iterator<Item = &'i str> {
        let depends = self.target.get(name).map_or(&[][..], |available| &available.depends);
        let first = |clause: &Vec<Relation>| self.target.get_key_value(clause.first()?.name.as_str());
        depends.iter().filter_map(first).map(|(name, _)| *name).collect::<Vec<_>>().into_iter()
    }

    /// What the recipe names: what does not come by itself, and every version that is not the newest.
    fn packages(&self) -> Vec<Wanted> {
        let wanted = |(name, available): (&&str, &&Available)| {
            let is_newest = self.index.versions(name).first().is_some_and(|newest| newest == *available);
            let version = (!is_newest).then(|| available.version.clone());
            let is_named = self.named.contains(name) && self.kernel != Some(*name);
            (is_named || version.is_some()).then(|| Wanted { name: (*name).to_owned(), version })
        };
        self.target.iter().filter_map(wanted).collect()
    }

    /// Takes in what apt would install for it.
    fn learn(&mut self, outcome: &Outcome) -> Learned {
        let absent: Vec<&str> = self.target.keys().filter(|name| !outcome.contains_key(**name)).copied().collect();
        let before = self.named.len();
        self.named.extend(absent);
        if self.named.len() > before { Learned::More } else { Learned::Settled }
    }

    /// Says of what apt would not install as planned that it is so.
    fn settle(&mut self, outcome: &Outcome) {
        for (name, planned) in self.target.clone() {
            let taken = outcome.get(name);
            if let Some(host) = self.hosts.get(name).copied().filter(|_| taken != Some(&planned.version)) {
                self.note(host, taken.map(String::as_str), Why::NotTaken);
            }
        }
    }

    /// What it takes on the disk, and room to work: GiB.
    fn disk_gib(&self) -> u64 {
        let kib: u64 = self.target.values().map(|available| available.installed_kib.min(1 << 30)).sum();
        (kib * 3 / 2 + (2 << 20)).div_ceil(1 << 20).clamp(4, 1024)
    }
}

#[cfg(test)]
mod tests;
