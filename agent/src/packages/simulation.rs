//! What `apt-get --simulate` says, as the package list it leads to.

use patchlab_protocol::{
    PackageSystem,
    inventory::{Inventory, PackageId, Transaction},
};

/// A line that is not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine(pub String);

/// The transaction that the lines of a simulation describe, starting from `installed`. `native` is the system's architecture.
///
/// apt names no architecture where a package is removed, and the old one not at all where it changes: both are taken from the
/// list of what is installed.
pub fn transaction(said: &str, installed: &Inventory, native: &str) -> Result<Transaction, BadLine> {
    let mut after: Vec<(PackageId, String)> =
        installed.packages().map(|(id, version)| (id.clone(), version.to_owned())).collect();
    for line in said.lines() {
        let Some((verb, rest)) = line.split_once(' ') else { continue };
        let bad = || BadLine(line.chars().take(200).collect());
        match verb {
            "Inst" => {
                let (id, version) = installs(rest, native).ok_or_else(bad)?;
                after.retain(|(old, _)| !replaces(&id, old, native));
                after.push((id, version));
            }
            "Remv" | "Purg" => {
                let (name, arch) = name_and_arch(rest.split_whitespace().next().ok_or_else(bad)?);
                let before = after.len();
                after.retain(|(old, _)| !(old.name == name && matches_arch(&old.arch, arch, native)));
                if after.len() == before {
                    return Err(bad());
                }
            }
            _ => {}
        }
    }
    Ok(installed.changes_to(&after.into_iter().collect(), PackageSystem::Dpkg))
}

/// `NAME[:ARCH] [OLD] (VERSION ORIGIN… [ARCH]) …`: what is installed.
fn installs(rest: &str, native: &str) -> Option<(PackageId, String)> {
    let (name, named_arch) = name_and_arch(rest.split_whitespace().next()?);
    let inside = rest.split_once('(')?.1.split_once(')')?.0;
    let version = inside.split_whitespace().next()?;
    let arch = inside.rsplit_once('[').and_then(|(_, arch)| arch.strip_suffix(']'));
    Some((PackageId::new(name, arch.or(named_arch).unwrap_or(native)), version.to_owned()))
}

fn name_and_arch(word: &str) -> (&str, Option<&str>) {
    word.split_once(':').map_or((word, None), |(name, arch)| (name, Some(arch)))
}

/// A native package and one for all architectures are the same package to dpkg.
fn replaces(new: &PackageId, old: &PackageId, native: &str) -> bool {
    let ours = |arch: &str| arch == native || arch == "all";
    new.name == old.name && (new.arch == old.arch || ours(&new.arch) && ours(&old.arch))
}

fn matches_arch(installed: &str, named: Option<&str>, native: &str) -> bool {
    match named {
        Some(arch) => installed == arch,
        None => installed == native || installed == "all",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(said: &str) -> Vec<String> {
        let installed = "foo all 1.0\nlib amd64 1\nlib i386 1\nold all 3\n".parse().unwrap();
        transaction(said, &installed, "amd64").unwrap().lines()
    }

    #[test]
    fn installs_upgrades_downgrades_and_removals_are_told_apart() {
        let said = "Reading package lists...\n\
            Inst new (1.0 local-deb [all])\n\
            Inst foo [1.0] (2.0 local-deb [all]) []\n\
            Inst lib [1] (0.9 Debian:12/stable, local-deb [amd64])\n\
            Inst lib:i386 [1] (0.9 local-deb [i386])\n\
            Purg old [3]\nConf new (1.0 local-deb [all])\n";
        assert_eq!(
            lines(said),
            [
                "downgrade lib amd64 1 -> 0.9",
                "downgrade lib i386 1 -> 0.9",
                "install new all - -> 1.0",
                "remove old all 3 -> -",
                "upgrade foo all 1.0 -> 2.0",
            ]
        );
    }

    #[test]
    fn a_package_that_changes_its_architecture_is_removed_and_installed() {
        let said = "Inst foo [1.0] (2.0 local-deb [amd64])\n";
        assert_eq!(lines(said), ["install foo amd64 - -> 2.0", "remove foo all 1.0 -> -"]);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for said in ["Inst foo [1.0]\n", "Remv unknown [1]\n"] {
            assert!(transaction(said, &Inventory::default(), "amd64").is_err(), "{said}");
        }
    }
}
