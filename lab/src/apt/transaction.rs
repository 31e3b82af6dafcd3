//! What apt would do, as it says itself in a simulation. Pure: text in, transaction out.

use std::collections::BTreeMap;

/// One package that apt would install or upgrade.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Installation {
    /// Package name, without architecture.
    pub name: String,
    /// Package architecture, e.g. `amd64`, `all`.
    pub arch: String,
    /// The version it replaces; `None` for a package that is new to the baseline.
    pub from: Option<String>,
    /// The version to reach.
    pub to: String,
}

/// What apt would do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// Packages to install or upgrade, sorted.
    pub install: Vec<Installation>,
    /// Names of packages to remove, sorted.
    pub remove: Vec<String>,
}

/// `Inst nginx [1.22.1-9] (1.22.1-9+deb12u3 Debian-Security:12/stable-security [amd64]) []`; `None` for any other form.
fn installation(line: &str) -> Option<Installation> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    let (from, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once("] ").map(|(from, rest)| (Some(from.to_owned()), rest))?,
        None => (None, rest),
    };
    let (inside, _) = rest.strip_prefix('(')?.split_once(')')?;
    let (to, origins) = inside.split_once(' ')?;
    let (_, arch) = origins.strip_suffix(']')?.rsplit_once('[')?;
    let name = name.split(':').next().unwrap_or(name).to_owned();
    Some(Installation { name, arch: arch.to_owned(), from, to: to.to_owned() })
}

/// Reads the output of `apt-get --simulate`. `Conf` lines and words for people are passed over.
///
/// # Errors
/// The `Inst` line that has another form than apt's.
pub fn parse_simulation(text: &str) -> Result<Transaction, String> {
    let mut transaction = Transaction::default();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("Remv ") {
            transaction.remove.extend(rest.split_whitespace().next().map(str::to_owned));
        }
        if !line.starts_with("Inst ") {
            continue;
        }
        transaction.install.push(installation(line).ok_or_else(|| line.to_owned())?);
    }
    transaction.install.sort();
    transaction.install.dedup();
    transaction.remove.sort();
    Ok(transaction)
}

/// Versions of the fully installed packages by name, from dpkg's status file. Where a name is installed for several
/// architectures, each is in the list.
pub fn installed(status: &str) -> BTreeMap<String, Vec<(String, String)>> {
    let mut found: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for paragraph in status.split("\n\n") {
        let field = |name: &str| {
            paragraph
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(|value| value.trim().to_owned())
        };
        if !field("Status").is_some_and(|status| status.ends_with(" ok installed")) {
            continue;
        }
        if let (Some(name), Some(arch), Some(version)) = (field("Package"), field("Architecture"), field("Version")) {
            found.entry(name).or_default().push((arch, version));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulations() {
        let text = "Reading package lists...\n\
            The following packages will be upgraded:\n  nginx\n\
            Remv old [1.0]\n\
            Inst nginx [1.22.1-9] (1.22.1-9+deb12u3 Debian:12.11/stable, Debian-Security:12/stable-security [amd64]) []\n\
            Inst nginx-common [1.22.1-9] (1.22.1-9+deb12u3 Debian-Security:12/stable-security [all])\n\
            Inst libx:i386 (1:2.0-1 Debian:12.11/stable [i386])\n\
            Inst mine (1.0 local-deb [all])\n\
            Inst plain (1.0 [all])\n\
            Conf nginx (1.22.1-9+deb12u3 Debian-Security:12/stable-security [amd64])\n";
        let transaction = parse_simulation(text).unwrap();
        let shown: Vec<String> = transaction
            .install
            .iter()
            .map(|i| format!("{}:{} {} -> {}", i.name, i.arch, i.from.as_deref().unwrap_or("-"), i.to))
            .collect();
        assert_eq!(
            shown,
            [
                "libx:i386 - -> 1:2.0-1",
                "mine:all - -> 1.0",
                "nginx:amd64 1.22.1-9 -> 1.22.1-9+deb12u3",
                "nginx-common:all 1.22.1-9 -> 1.22.1-9+deb12u3",
                "plain:all - -> 1.0",
            ]
        );
        assert_eq!(transaction.remove, ["old"]);
        assert_eq!(parse_simulation("Inst odd line").unwrap_err(), "Inst odd line");
    }

    #[test]
    fn status_files() {
        let text = "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n\
            Package: b\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n\
            Package: a\nStatus: hold ok installed\nArchitecture: i386\nVersion: 2\nDescription: x\n Version: 9\n";
        let installed = installed(text);
        assert_eq!(installed["a"], [("amd64".into(), "1".into()), ("i386".into(), "2".into())]);
        assert!(!installed.contains_key("b"));
    }
}
