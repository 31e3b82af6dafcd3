//! What rpm is told to do. It cannot install and erase in one transaction of its command line, nor put one package beside another
//! version and a second in another version's place, so a goal has up to three steps. The rehearsal judges where they end: there the
//! packages that go are gone first, and every rule of rpm counts.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use patchlab_protocol::inventory::PackageId;

use super::{
    super::Goal,
    query::{Header, Versions, label},
};

/// A goal, parted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steps {
    /// Files that take the place of whatever version is there.
    pub upgrade: Vec<PathBuf>,
    /// Files that come beside other versions.
    pub beside: Vec<PathBuf>,
    /// Packages to erase.
    pub erase: Vec<PackageId>,
}

/// Whether steps are gone for the first time, or once more after an interruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// What is there already is an error.
    First,
    /// What is there already may be half-way, and is installed again.
    Again,
}

/// Bytes are verified against the signed order, digests by rpm; keys of distributions need not be there. What is no package must not
/// be read as a list of packages to fetch.
const FILES: [&str; 2] = ["--nosignature", "--nomanifest"];
/// Only the database changes: no file, no script of a package, no plugin of the host's.
const DATABASE_ONLY: [&str; 4] = ["--justdb", "--noscripts", "--notriggers", "--noplugins"];

impl Steps {
    /// Parts a goal; `headers` are its files' own.
    pub fn of(goal: &Goal, headers: &[Header]) -> Self {
        let files = goal.install.iter().zip(headers);
        let (beside, upgrade): (Vec<_>, Vec<_>) = files.partition(|(_, header)| header.versions == Versions::Several);
        let [upgrade, beside] =
            [upgrade, beside].map(|files| files.into_iter().map(|(file, _)| file.clone()).collect());
        Self { upgrade, beside, erase: goal.remove.clone() }
    }

    /// Words for rpm, one list a step, in order: the new is there before the old is erased, so nobody's script misses anything.
    pub fn work(&self, pass: Pass) -> Vec<Vec<OsString>> {
        let again: &[&str] = if pass == Pass::Again { &["--replacepkgs"] } else { &[] };
        // Files and dependencies of packages that are about to go are in nobody's way; what is left was rehearsed.
        let before_erasure: &[&str] = if self.erase.is_empty() { &[] } else { &["--nodeps", "--replacefiles"] };
        let steps = [
            words(&[&["-U", "--oldpackage"], &FILES, again, before_erasure], &self.upgrade),
            words(&[&["-i", "--oldpackage"], &FILES, again], &self.beside),
            words(&[&["-e"]], &labels(&self.erase)),
        ];
        steps.into_iter().flatten().collect()
    }

    /// Words for the rehearsal on a copy of the database.
    pub fn rehearsal(&self) -> Vec<Vec<OsString>> {
        let steps = [
            words(&[&["-e", "--nodeps"], &DATABASE_ONLY], &labels(&self.erase)),
            words(&[&["-U", "--oldpackage"], &FILES, &DATABASE_ONLY], &self.upgrade),
            words(&[&["-i", "--oldpackage"], &FILES, &DATABASE_ONLY], &self.beside),
        ];
        steps.into_iter().flatten().collect()
    }
}

fn words(options: &[&[&str]], what: &[impl AsRef<OsStr>]) -> Option<Vec<OsString>> {
    let options = options.concat().into_iter().map(OsString::from).chain([OsString::from("--")]);
    (!what.is_empty()).then(|| options.chain(what.iter().map(|what| what.as_ref().to_owned())).collect())
}

fn labels(ids: &[PackageId]) -> Vec<String> {
    let name = |id: &PackageId| match id.name.split_once('@') {
        Some((_, version)) => label(id, version),
        None => format!("{}.{}", id.name, id.arch),
    };
    ids.iter().map(name).collect()
}

/// The scripts that failed without making rpm fail, in rpm's words: it says so as a warning when the package is installed all the same.
pub fn failed_scripts(stderr: &str) -> Vec<String> {
    let warnings = stderr.lines().filter_map(|line| line.trim().strip_prefix("warning: "));
    warnings.filter(|said| said.starts_with('%') && said.contains(" scriptlet failed")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages::rpm::query;

    fn steps(remove: &[PackageId]) -> Steps {
        let line = |name| format!("{name}\tx86_64\t0\t2\t1\t1\tbinary\t{name} \n");
        let headers = query::headers(&[line("web"), line("kernel-core")].concat()).unwrap();
        Steps::of(&Goal { install: ["/web.rpm", "/k.rpm"].map(PathBuf::from).into(), remove: remove.into() }, &headers)
    }

    fn text(lists: Vec<Vec<OsString>>) -> Vec<String> {
        let join = |list: Vec<OsString>| list.join(OsStr::new(" ")).to_string_lossy().into_owned();
        lists.into_iter().map(join).collect()
    }

    #[test]
    fn a_kernel_comes_beside_the_old_one_and_checks_are_left_out_only_for_what_goes() {
        let plain = "--oldpackage --nosignature --nomanifest";
        let goal = steps(&[]);
        assert_eq!(text(goal.work(Pass::First)), [format!("-U {plain} -- /web.rpm"), format!("-i {plain} -- /k.rpm")]);
        assert_eq!(text(goal.work(Pass::Again))[0], format!("-U {plain} --replacepkgs -- /web.rpm"));
        let goal = steps(&[PackageId::new("lib", "noarch"), PackageId::of_version("kernel-core", "1:2-1", "x86_64")]);
        let erased = "lib.noarch kernel-core-1:2-1.x86_64";
        assert_eq!(
            text(goal.work(Pass::First)),
            [
                format!("-U {plain} --nodeps --replacefiles -- /web.rpm"),
                format!("-i {plain} -- /k.rpm"),
                format!("-e -- {erased}"),
            ]
        );
        let database = "--justdb --noscripts --notriggers --noplugins";
        let rehearsal = text(goal.rehearsal());
        assert_eq!(rehearsal[0], format!("-e --nodeps {database} -- {erased}"));
        assert_eq!(rehearsal[1], format!("-U {plain} {database} -- /web.rpm"));
    }

    #[test]
    fn a_script_that_fails_is_heard_although_rpm_ends_well() {
        let said = "warning: %post(web-2-1.noarch) scriptlet failed, exit status 1\nwarning: x: NOKEY\n";
        assert_eq!(failed_scripts(said), ["%post(web-2-1.noarch) scriptlet failed, exit status 1"]);
    }
}
