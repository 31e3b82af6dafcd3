//! What an authorised order of packages means on this host: which files, which removals, what must be installed before and after. Pure.

use patchlab_protocol::{
    PackageSystem, Refusal, Refused,
    document::{Action, Order, PackageFile, Replaced},
    inventory::{Change, PackageId, Transaction},
    limits,
};

use crate::packages::Installed;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Files to install.
    pub files: Vec<PackageFile>,
    /// Packages to remove.
    pub remove: Vec<PackageId>,
    /// How every package of the order must stand afterwards.
    pub after: Vec<(PackageId, Option<String>)>,
}

impl Plan {
    /// The packages that do not stand as they must.
    pub fn missed(&self, installed: &Installed) -> Vec<String> {
        let stands = |id: &PackageId, wanted: &Option<String>| {
            installed.settled.version(id) == wanted.as_deref() && installed.unsettled.version(id).is_none()
        };
        self.after.iter().filter(|(id, wanted)| !stands(id, wanted)).map(|(id, _)| id.to_string()).collect()
    }

    /// The transaction that the order alone describes, from what is installed.
    pub fn transaction(&self, installed: &Installed) -> Transaction {
        let present = installed.all();
        let change = |(id, to): &(PackageId, Option<String>)| {
            let from = present.version(id).map(str::to_owned);
            (from != *to).then(|| Change { id: id.clone(), from, to: to.clone() })
        };
        Transaction::new(installed.system, self.after.iter().filter_map(change))
    }
}

fn id(file: &PackageFile) -> PackageId {
    PackageId::new(&file.name, &file.arch)
}

fn replaced_id(replaced: &Replaced) -> PackageId {
    PackageId::new(&replaced.name, &replaced.arch)
}

/// What a person does about packages that were left half-way.
fn remedy(system: PackageSystem) -> &'static str {
    match system {
        PackageSystem::Dpkg => "run dpkg --configure -a",
        PackageSystem::Rpm => {
            "install the files of one version by rpm -U --replacepkgs --oldpackage, and \
             remove rpm/begun.json in the agent's state folder"
        }
    }
}

/// Plans an authorised action.
///
/// # Errors
/// A refusal, when the host has other versions than the order replaces (or, to roll back, than it installed), when a package
/// manager left something half-way, or when there is no way back.
pub fn plan(order: &Order, action: Action, installed: &Installed) -> Result<Plan, Refused> {
    let files = order.install.len().max(order.replaces.len());
    if files > limits::FILES_PER_ORDER {
        let reason = format!("order {} names {files} files, more than {}", order.id, limits::FILES_PER_ORDER);
        return Err(Refused::new(Refusal::Preflight, reason));
    }
    let Some(system) = installed.system else {
        let reason =
            format!("order {} is of packages, and this host has no package system: only script orders", order.id);
        return Err(Refused::new(Refusal::Preflight, reason));
    };
    match action {
        Action::Apply => plan_apply(order, installed, system),
        Action::Rollback => plan_rollback(order, installed),
    }
}

fn plan_apply(order: &Order, installed: &Installed, system: PackageSystem) -> Result<Plan, Refused> {
    let left: Vec<String> = installed.unsettled.packages().map(|(id, _)| id.to_string()).take(5).collect();
    if !left.is_empty() {
        let (left, remedy) = (left.join(", "), remedy(system));
        let reason = format!("an earlier installation was left half-way: {left}; {remedy}");
        return Err(Refused::new(Refusal::Preflight, reason));
    }
    for replaced in &order.replaces {
        expect(&replaced_id(replaced), Some(&replaced.version), installed)?;
    }
    for file in new_files(order) {
        expect(&id(file), None, installed)?;
    }
    let mut after: Vec<_> = order.install.iter().map(|file| (id(file), Some(file.version.clone()))).collect();
    let gone = order.replaces.iter().map(replaced_id).filter(|old| after.iter().all(|(new, _)| new != old));
    after.extend(gone.map(|id| (id, None)).collect::<Vec<_>>());
    Ok(Plan { files: order.install.clone(), remove: Vec::new(), after })
}

/// The files of packages that the host does not have before.
fn new_files(order: &Order) -> impl Iterator<Item = &PackageFile> {
    order.install.iter().filter(|file| !order.replaces.iter().any(|old| id(file).takes_place_of(&replaced_id(old))))
}

fn expect(id: &PackageId, wanted: Option<&str>, installed: &Installed) -> Result<(), Refused> {
    let found = installed.settled.version(id);
    if found == wanted {
        return Ok(());
    }
    let [found, wanted] = [found, wanted].map(|version| version.unwrap_or("none"));
    Err(Refused::new(Refusal::VersionsDiffer, format!("{id} is installed at {found}, the order replaces {wanted}")))
}

/// Each package stands where the order left it, or already where it was before: an apply that failed half-way can be walked back.
fn plan_rollback(order: &Order, installed: &Installed) -> Result<Plan, Refused> {
    let present = installed.all();
    let mut anything = false;
    for file in &order.install {
        let id = id(file);
        let before = order.replaces.iter().find(|old| replaced_id(old) == id).map(|old| old.version.as_str());
        let found = present.version(&id);
        anything |= found == Some(&file.version);
        if found != Some(&file.version) && found != before {
            let [found, before] = [found, before].map(|version| version.unwrap_or("none"));
            let reason = format!("{id} is at {found}, the order led from {before} to {}", file.version);
            return Err(Refused::new(Refusal::VersionsDiffer, reason));
        }
    }
    if !anything {
        let reason = format!("nothing that order {} installed is there: there is nothing to roll back", order.id);
        return Err(Refused::new(Refusal::VersionsDiffer, reason));
    }
    let mut files = Vec::new();
    for old in &order.replaces {
        let file = old.file.as_ref().ok_or_else(|| {
            let reason = format!("order {} has no file that brings back {}", order.id, replaced_id(old));
            Refused::new(Refusal::Preflight, reason)
        })?;
        if installed.settled.version(&replaced_id(old)) != Some(&old.version) {
            files.push(file.clone());
        }
    }
    let new: Vec<PackageId> = new_files(order).map(id).collect();
    let mut after: Vec<_> = order.replaces.iter().map(|old| (replaced_id(old), Some(old.version.clone()))).collect();
    let gone = order.install.iter().map(id).filter(|new| after.iter().all(|(old, _)| old != new));
    after.extend(gone.map(|id| (id, None)).collect::<Vec<_>>());
    let remove = new.into_iter().filter(|id| present.version(id).is_some()).collect();
    Ok(Plan { files, remove, after })
}

/// Whether everything that an order replaces is there as it was before, wholly installed, and nothing that it brought.
pub fn is_back(order: &Order, installed: &Installed) -> bool {
    let old = order.replaces.iter().all(|old| installed.settled.version(&replaced_id(old)) == Some(&old.version));
    let present = installed.all();
    old && new_files(order).all(|file| present.version(&id(file)).is_none())
}

#[cfg(test)]
pub(crate) mod tests {
    use patchlab_protocol::{
        Digest,
        document::{Class, Kind, OnFailure, Origin, RollbackClass, RollbackFiles, Severity},
    };

    use super::*;

    fn file(name: &str, version: &str) -> PackageFile {
        PackageFile {
            name: name.into(),
            version: version.into(),
            arch: "all".into(),
            size: 1,
            sha256: Digest::of(format!("{name} {version}")),
            origin: Origin::Local,
        }
    }

    /// Upgrades `web` from 1 to 2, which brings in `lib` 1.
    pub fn order() -> Order {
        Order {
            id: "PO-1".into(),
            title: String::new(),
            severity: Severity::Low,
            kind: Kind::Routine,
            advisories: vec![],
            class: Class { family: "debian".into(), release: "12".into(), arch: "x86_64".into() },
            install: vec![file("web", "2"), file("lib", "1")],
            replaces: vec![Replaced {
                name: "web".into(),
                arch: "all".into(),
                version: "1".into(),
                file: Some(file("web", "1")),
            }],
            production: vec![],
            after: vec![],
            supersedes: vec![],
            rollback: RollbackClass::Proven,
            not_after: None,
            on_failure: OnFailure::Leave,
            rollback_files: RollbackFiles::WhenNeeded,
            reboot: None,
            script: None,
        }
    }

    fn installed(settled: &str, unsettled: &str) -> Installed {
        Installed {
            system: Some(PackageSystem::Dpkg),
            settled: settled.parse().unwrap(),
            unsettled: unsettled.parse().unwrap(),
            sources: std::collections::BTreeMap::new(),
        }
    }

    fn refusal(result: Result<Plan, Refused>) -> Refusal {
        result.expect_err("a refusal").refusal
    }

    #[test]
    fn apply_needs_exactly_the_versions_it_replaces() {
        let good = plan(&order(), Action::Apply, &installed("web all 1\nother all 5\n", "")).unwrap();
        assert_eq!((good.files.len(), good.remove.len()), (2, 0));
        for other in ["web all 0\n", "", "web all 1\nlib all 1\n", "web all 2\nlib all 1\n"] {
            assert_eq!(
                refusal(plan(&order(), Action::Apply, &installed(other, ""))),
                Refusal::VersionsDiffer,
                "{other}"
            );
        }
        let half = installed("web all 1\n", "other all 5\n");
        assert_eq!(refusal(plan(&order(), Action::Apply, &half)), Refusal::Preflight);
    }

    #[test]
    fn rollback_brings_back_what_was_and_removes_what_was_new() {
        let back = plan(&order(), Action::Rollback, &installed("web all 2\nlib all 1\n", "")).unwrap();
        assert_eq!(back.files, [file("web", "1")]);
        assert_eq!(back.remove, [PackageId::new("lib", "all")]);
        assert!(back.missed(&installed("web all 1\n", "")).is_empty());
        assert_eq!(back.missed(&installed("web all 1\nlib all 1\n", "")), ["lib:all"]);
    }

    #[test]
    fn rollback_walks_back_an_apply_that_stopped_half_way() {
        let half = plan(&order(), Action::Rollback, &installed("web all 1\n", "lib all 1\n")).unwrap();
        assert_eq!((half.files.len(), half.remove.len()), (0, 1));
        for other in ["web all 1\n", "web all 3\nlib all 1\n"] {
            assert_eq!(
                refusal(plan(&order(), Action::Rollback, &installed(other, ""))),
                Refusal::VersionsDiffer,
                "{other}"
            );
        }
        let mut no_way_back = order();
        no_way_back.replaces[0].file = None;
        let there = installed("web all 2\nlib all 1\n", "");
        assert_eq!(refusal(plan(&no_way_back, Action::Rollback, &there)), Refusal::Preflight);
    }

    #[test]
    fn a_host_is_back_when_the_old_is_whole_and_the_new_is_gone() {
        let back = |settled, unsettled| is_back(&order(), &installed(settled, unsettled));
        assert!(back("web all 1\nother all 5\n", ""));
        for (settled, unsettled) in [
            ("web all 2\nlib all 1\n", ""),
            ("web all 1\nlib all 1\n", ""),
            ("web all 1\n", "lib all 1\n"),
            ("", "web all 1\n"),
            ("", ""),
        ] {
            assert!(!back(settled, unsettled), "{settled:?}, half-way {unsettled:?}");
        }
    }
}
