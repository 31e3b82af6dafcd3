//! What is installed on a machine, whose each path is, and which of them are configuration: as dpkg knows it, or as rpm does.
//!
//! The machine says which system it has ([`PackageSystem::shell`]) in the first line of its answer, and what follows is read by that
//! system's rules; the rest of the lab sees packages alone.

use std::collections::{BTreeMap, BTreeSet};

use patchlab_check::{
    PackageSystem,
    package_system::{PROVIDED_BY_SEVERAL, rpm_version},
};

use super::{ConfigurationFile, Entry, Package, configuration};

/// Keys of signers stand in rpm's database as packages of this name.
const KEYS: &str = "gpg-pubkey";
/// What a package of rpm is said to be: rpm knows no other state.
const INSTALLED: &str = "install ok installed";
/// Characters of a SHA-256 in hexadecimal.
const SHA256_CHARACTERS: usize = 64;

/// Writes the answers to the files `packages` and `owners`; the system comes first in `packages`.
pub(super) fn script() -> String {
    let several = PROVIDED_BY_SEVERAL.map(|name| format!("'{name}'")).join(" ");
    format!(
        r#"{}
system=$(package_system)
echo "$system" >packages
: >owners
case $system in
dpkg)
  dpkg-query -W -f '${{Package}}\t${{Architecture}}\t${{Version}}\t${{Status}}\n${{Conffiles}}\n' >>packages || exit 1
  ( cd /var/lib/dpkg/info && grep -r -H '' --include='*.list' . ) >owners;;
rpm)
  rpm -q --qf 'several\t%{{NAME}}\n' --whatprovides {several} >>packages
  rpm -qa --qf 'package\t%{{NAME}}\t%{{ARCH}}\t%{{EPOCHNUM}}\t%{{VERSION}}\t%{{RELEASE}}\n[\t%{{FILEFLAGS:fflags}}\t%{{FILEDIGESTS}}\t%{{FILENAMES}}\n]' \
    >>packages || exit 1;;
esac
"#,
        PackageSystem::shell()
    )
}

/// What a machine says of its packages.
#[derive(Debug, Default)]
pub(super) struct Packages<'t> {
    /// By `name:arch`; a package of rpm of which several versions can be installed at a time is `name@version:arch`, as in orders.
    pub(super) installed: BTreeMap<String, Package>,
    /// Whose a path is; nobody's where several packages have it (a folder, mostly).
    pub(super) owners: BTreeMap<String, Option<String>>,
    configuration: Configuration<'t>,
}

/// Configuration files as their packages shipped them.
#[derive(Debug)]
enum Configuration<'t> {
    /// Lines of dpkg's, each with its package.
    Dpkg(Vec<(String, &'t str)>),
    /// By path, with their SHA-256.
    Rpm(BTreeMap<String, ConfigurationFile>),
}

impl Default for Configuration<'_> {
    fn default() -> Self {
        Self::Dpkg(Vec::new())
    }
}

impl<'t> Packages<'t> {
    /// From the two answers.
    pub(super) fn parse(packages: &'t str, owners: &'t str) -> Self {
        let (system, rest) = packages.split_once('\n').unwrap_or_default();
        if system == PackageSystem::Rpm.name() { of_rpm(rest) } else { of_dpkg(rest, owners) }
    }

    /// Configuration files with what is there; `sums` are MD5 of those that were read again, others are as they were `known`.
    pub(super) fn configuration(
        self,
        sums: &str,
        known: Option<&BTreeMap<String, ConfigurationFile>>,
        files: &BTreeMap<String, Entry>,
    ) -> BTreeMap<String, ConfigurationFile> {
        match self.configuration {
            Configuration::Dpkg(conffiles) => {
                configuration::parse(&conffiles, sums, known, |path| files.contains_key(path))
            }
            Configuration::Rpm(shipped) => {
                let found = |path: &String| Some(files.get(path)?.sha256?.to_string());
                shipped
                    .into_iter()
                    .map(|(path, file)| (path.clone(), ConfigurationFile { found: found(&path), ..file }))
                    .collect()
            }
        }
    }
}

/// Packages, a line each, and their configuration files, which stand indented below them.
fn of_dpkg<'t>(text: &'t str, owners_text: &str) -> Packages<'t> {
    let (mut installed, mut conffiles, mut last) = (BTreeMap::new(), Vec::new(), String::new());
    for line in text.lines() {
        if line.starts_with(' ') {
            conffiles.push((last.clone(), line));
        } else if let Some((key, package)) = package(line) {
            last.clone_from(&key);
            installed.insert(key, package);
        }
    }
    let owners = owners(owners_text, &installed);
    Packages { installed, owners, configuration: Configuration::Dpkg(conffiles) }
}

fn package(line: &str) -> Option<(String, Package)> {
    let mut fields = line.split('\t').map(str::to_owned);
    let package =
        Package { name: fields.next()?, arch: fields.next()?, version: fields.next()?, status: fields.next()? };
    Some((format!("{}:{}", package.name, package.arch), package))
}

/// `./name[:arch].list:/path`.
fn owners(text: &str, packages: &BTreeMap<String, Package>) -> BTreeMap<String, Option<String>> {
    let by_name: BTreeMap<&str, &str> =
        packages.iter().map(|(key, package)| (package.name.as_str(), key.as_str())).collect();
    let mut owners = BTreeMap::new();
    for line in text.lines() {
        let Some((list, path)) = line.strip_prefix("./").and_then(|line| line.split_once(".list:")) else { continue };
        let package = match list.contains(':') {
            true => Some(list),
            false => by_name.get(list).copied(),
        };
        own(&mut owners, path, package);
    }
    owners
}

fn own(owners: &mut BTreeMap<String, Option<String>>, path: &str, package: Option<&str>) {
    owners
        .entry(merged(path))
        .and_modify(|owner| *owner = owner.take().filter(|owner| Some(owner.as_str()) == package))
        .or_insert_with(|| package.map(str::to_owned));
}

/// Where a path really is on a system whose `/bin`, `/sbin` and `/lib` are links into `/usr`; packages know some by the old name.
fn merged(path: &str) -> String {
    let top = path.split('/').nth(1).unwrap_or_default();
    let moved = matches!(top, "bin" | "sbin" | "lib" | "lib32" | "lib64" | "libx32") && path.len() > top.len() + 1;
    if moved { format!("/usr{path}") } else { path.to_owned() }
}

/// `several NAME` lines; then a `package` line each, and its files in lines that begin with a tab: flags, digest, path.
fn of_rpm(text: &str) -> Packages<'static> {
    let several: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("several\t")).collect();
    let (mut installed, mut owners, mut shipped) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut last = None;
    for line in text.lines() {
        match line.splitn(6, '\t').collect::<Vec<_>>()[..] {
            // A path may hold tabs.
            ["", flags, digest, ..] => {
                let path = &line[flags.len() + digest.len() + 3..];
                own(&mut owners, path, last.as_deref());
                // Ghosts are not shipped; MD5, which very old packages have, is not what files here are digested by.
                let is_shipped = flags.contains('c') && !flags.contains('g') && digest.len() == SHA256_CHARACTERS;
                if let Some(package) = last.clone().filter(|_| is_shipped) {
                    let file = ConfigurationFile { package, shipped: digest.to_owned(), found: None, obsolete: false };
                    shipped.insert(merged(path), file);
                }
            }
            ["package", KEYS, ..] => last = None,
            ["package", name, arch, epoch, version, release] => {
                let version = rpm_version(epoch, version, release);
                let beside = several.contains(name) || PackageSystem::Rpm.is_kernel(name);
                let key = if beside { format!("{name}@{version}:{arch}") } else { format!("{name}:{arch}") };
                let (name, arch) = (name.to_owned(), arch.to_owned());
                installed.insert(key.clone(), Package { name, arch, version, status: INSTALLED.to_owned() });
                last = Some(key);
            }
            _ => {}
        }
    }
    Packages { installed, owners, configuration: Configuration::Rpm(shipped) }
}

#[cfg(test)]
mod tests {
    use patchlab_check::Digest;

    use super::*;
    use crate::manifest::Kind;

    #[test]
    fn packages_of_rpm_with_their_files_and_configuration() {
        let [same, other] = [Digest::of("same"), Digest::of("other")];
        let text = format!(
            "rpm\nno package provides multiversion(kernel)\nseveral\tkmod-x\npackage\tweb\tnoarch\t0\t2.0\t1.el9\n\
             \tcn\t{same}\t/etc/a\tb\n\tc\t{other}\t/etc/web\n\tcg\t{same}\t/etc/ghost\n\tc\t0123\t/etc/md5\n\
             \t\t\t/opt/web\n\td\t{same}\t/bin/web\n\
             package\tgpg-pubkey\t(none)\t0\t2ec\t6b0\npackage\tkmod-x\tx86_64\t2\t1\t1\npackage\tkmod-x\tx86_64\t2\t2\t1\n\
             package\tkernel-core\tx86_64\t0\t5\t1\n\t\t\t/opt/web\n"
        );
        let found = Packages::parse(&text, "");
        let expected = ["kernel-core@5-1:x86_64", "kmod-x@2:1-1:x86_64", "kmod-x@2:2-1:x86_64", "web:noarch"];
        assert_eq!(found.installed.keys().collect::<Vec<_>>(), expected);
        let web = &found.installed["web:noarch"];
        assert_eq!((web.version.as_str(), web.status.as_str()), ("2.0-1.el9", INSTALLED));
        assert_eq!(found.owners["/usr/bin/web"].as_deref(), Some("web:noarch"));
        assert_eq!(
            (found.owners["/opt/web"].as_ref(), found.owners["/etc/a\tb"].as_deref()),
            (None, Some("web:noarch"))
        );
        let entry = Entry {
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 1,
            sha256: Some(same),
            target: None,
            package: None,
        };
        let files = ["/etc/a\tb", "/etc/web"].map(|path| (path.to_owned(), entry.clone())).into();
        let configuration = found.configuration("", None, &files);
        let states: Vec<_> = configuration.iter().map(|(path, file)| (path.as_str(), file.is_as_shipped())).collect();
        assert_eq!(states, [("/etc/a\tb", true), ("/etc/web", false)]);
    }
}
