//! What a captured system says of its packages: dpkg's status or the headers of rpm's, the repositories it knows, the keys that check them.
//! Orders are drafted from it, and its pool is found by it.
//!
//! It comes as files by their paths, out of the running system (one archive) or read from its disk, and nobody vouches for it: what may be
//! fetched is decided by [`sources`], names become files of ours only by their last part, and all of it has limits.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Component, Path},
};

use patchlab_check::PackageSystem;

use super::{BuildError, Coverage, Os, failed, pool};
use crate::{
    apt::sources::{self, Sources},
    dnf,
    manifest::Manifest,
    recipe::Wanted,
};

/// The archive that the worker leaves, in its folder.
pub(super) const ARCHIVE: &str = "captured.tar";
/// Bytes of it that are read: 64 MiB.
pub(super) const ARCHIVE_BYTES: u64 = 64 << 20;
/// Files of it that are read.
const FILES: usize = 5000;

/// The headers of rpm's packages, which the script that takes them writes there.
pub(super) const HEADERS: &str = "run/patchlab-headers";
/// dpkg's status.
pub(super) const STATUS: &str = "var/lib/dpkg/status";
/// What it calls itself.
pub(super) const OS_RELEASE: &str = "usr/lib/os-release";
/// Folders with keyrings.
pub(super) const KEYRINGS: &[&str] = &["usr/share/keyrings", "etc/apt/trusted.gpg.d", "etc/apt/keyrings"];
/// Files and folders with repositories, and with the lists of mirrors that these name.
pub(super) const SOURCES: &[&str] = &["etc/apt/sources.list", "etc/apt/sources.list.d", "etc/apt/mirrors"];

/// The same of systems with rpm: repositories, what stands for variables in them, and keys.
const RPM_SOURCES: &str = "etc/yum.repos.d";
const RPM_VARS: &str = "etc/dnf/vars";
const RPM_KEYS: &str = "etc/pki/rpm-gpg";

/// Writes the archive to its first argument, and rpm's headers to the second; the others are what is in it. What links point to is in it,
/// not the links.
pub(super) const SCRIPT: &str = r#"
to=$1; headers=$2; shift 2
if [ "$(package_system)" = rpm ]; then rpmdb --exportdb >"$headers" || exit 1; fi
cd / && for path in "$@"; do if [ -e "$path" ]; then printf '%s\0' "$path"; fi; done |
  tar --create --file "$to" --dereference --ignore-failed-read --null --files-from - 2>/dev/null
rm -f -- "$headers"
test -s "$to"
"#;

/// Files of a captured system by their paths below its root, without the slash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Captured(BTreeMap<String, Vec<u8>>);

impl Captured {
    /// All that is taken from a system.
    pub(super) fn wanted() -> Vec<&'static str> {
        let rpm = [HEADERS, RPM_SOURCES, RPM_VARS, RPM_KEYS];
        let files = [STATUS, OS_RELEASE].into_iter().chain(rpm);
        files.chain(SOURCES.iter().copied()).chain(KEYRINGS.iter().copied()).collect()
    }

    /// From files that were read one by one.
    pub(super) fn of(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self(files)
    }

    /// From the archive, which goes.
    pub(super) fn take(archive: &Path) -> Result<Self, BuildError> {
        let file = fs::File::open(archive).map_err(failed("read", archive))?;
        let captured = Self::unpack(file).map_err(failed("read", archive))?;
        fs::remove_file(archive).map_err(failed("remove", archive))?;
        Ok(captured)
    }

    /// From the archive.
    pub(super) fn unpack(reader: impl std::io::Read) -> std::io::Result<Self> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(reader.take(ARCHIVE_BYTES)).entries()?.take(FILES) {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
            if entry.header().entry_type().is_file() && plain {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                files.insert(path.to_string_lossy().into_owned(), bytes);
            }
        }
        Ok(Self(files))
    }

    /// The package system that its distribution's name stands for, where that is known.
    pub(super) fn named(&self) -> Option<PackageSystem> {
        let [id, like] = ["ID", "ID_LIKE"].map(|key| self.says(key).unwrap_or_default());
        PackageSystem::of_distribution(id.split_whitespace().chain(like.split_whitespace()))
    }

    /// Its package system: only what has rpm's packages has headers.
    pub(super) fn system(&self) -> PackageSystem {
        if self.0.contains_key(HEADERS) { PackageSystem::Rpm } else { PackageSystem::Dpkg }
    }

    /// dpkg's status; nothing where the system has none.
    pub(super) fn status(&self) -> Option<String> {
        self.text(STATUS)
    }

    /// Whether a package is installed.
    pub(super) fn has(&self, package: &Wanted) -> bool {
        let installed = pool::installed(&self.status().unwrap_or_default());
        let is_it = |version: &String| package.version.as_ref().is_none_or(|wanted| wanted == version);
        installed.iter().any(|(name, _, version)| *name == package.name && is_it(version))
    }

    /// What its os-release(5) says of that name.
    pub(super) fn says(&self, name: &str) -> Option<String> {
        let text = self.text(OS_RELEASE)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim().trim_matches('"').to_owned())
    }

    /// What it calls itself, where that is another system than this, as far as it says.
    pub(super) fn is_another_than(&self, os: &Os) -> Option<String> {
        let (family, release) = (self.says("ID"), self.says("VERSION_ID"));
        let other = |found: &Option<String>, said: &str| found.as_ref().is_some_and(|found| found != said);
        if !other(&family, &os.family) && !other(&release, &os.release) {
            return None;
        }
        Some([family, release].into_iter().flatten().collect::<Vec<_>>().join(" "))
    }

    fn text(&self, path: &str) -> Option<String> {
        self.0.get(path).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// The repositories of rpm packages that it names.
    pub(super) fn rpm_sources(&self) -> dnf::sources::Sources {
        let files = below(&self.0, RPM_SOURCES).filter(|(path, _)| path.ends_with(".repo"));
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        dnf::sources::read(&files.map(|(path, bytes)| (format!("/{path}"), text(bytes))).collect())
    }

    /// The repositories that it names.
    pub(super) fn sources(&self) -> Sources {
        let below = |folder: &str, path: &str| {
            path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')).is_some_and(|name| !name.contains('/'))
        };
        let is_source = |path: &str| {
            let listed = path.ends_with(".list") || path.ends_with(".sources");
            path == SOURCES[0] || (listed && below(SOURCES[1], path))
        };
        let texts = |wanted: &dyn Fn(&str) -> bool| -> BTreeMap<String, String> {
            let paths = self.0.keys().filter(|path| wanted(path));
            paths.filter_map(|path| Some((format!("/{path}"), self.text(path)?))).collect()
        };
        sources::read(&texts(&is_source), &texts(&|path| below(SOURCES[2], path)))
    }

    /// What the system stands for beside its packages.
    pub(super) fn coverage(&self, manifest: &Manifest) -> Coverage {
        match self.system() {
            PackageSystem::Dpkg => {
                Coverage::of_dpkg(manifest, &self.sources(), &self.says("VERSION_CODENAME").unwrap_or_default())
            }
            PackageSystem::Rpm => Coverage::of_rpm(manifest, &self.rpm_sources()),
        }
    }

    /// Writes what drafting an order needs ([`crate::dnf::DnfInputs`]) into a folder.
    pub(super) fn write_rpm(&self, sources: &dnf::sources::Sources, folder: &Path) -> Result<(), BuildError> {
        let write = |path: &Path, bytes: &[u8]| fs::write(path, bytes).map_err(failed("write", path));
        for (within, to) in [(RPM_VARS, dnf::VARS), (RPM_KEYS, dnf::KEYS)] {
            let to = folder.join(to);
            fs::create_dir_all(&to).map_err(failed("create", &to))?;
            for (path, bytes) in below(&self.0, within) {
                write(&to.join(path.rsplit('/').next().unwrap_or_default()), bytes)?;
            }
        }
        write(&folder.join(dnf::HEADERS), self.0.get(HEADERS).map_or(&[], Vec::as_slice))?;
        write(&folder.join(dnf::REPOSITORIES), sources.text().as_bytes())
    }

    /// Writes what drafting an order needs ([`crate::apt::AptInputs`]) below `apt`: `status`, `sources.list`, `keyrings/`.
    pub(super) fn write(&self, sources: &Sources, apt: &Path) -> Result<(), BuildError> {
        let keyrings = apt.join("keyrings");
        fs::create_dir_all(&keyrings).map_err(failed("create", &keyrings))?;
        let write = |path: &Path, bytes: &[u8]| fs::write(path, bytes).map_err(failed("write", path));
        write(&apt.join("status"), self.status().unwrap_or_default().as_bytes())?;
        let lines: String = sources.repositories.iter().map(|repository| repository.line() + "\n").collect();
        write(&apt.join("sources.list"), lines.as_bytes())?;
        let own =
            self.0.iter().filter(|(path, _)| KEYRINGS.iter().any(|folder| path.starts_with(&format!("{folder}/"))));
        let inline = sources.keys.iter().map(|(path, key)| (path.as_str(), key.as_bytes()));
        for (path, bytes) in own.map(|(path, bytes)| (path.as_str(), bytes.as_slice())).chain(inline) {
            let name = path.rsplit('/').next().unwrap_or_default();
            if name.ends_with(".gpg") || name.ends_with(".asc") {
                write(&keyrings.join(name), bytes)?;
            }
        }
        Ok(())
    }
}

/// The files of a folder, not of those in it.
fn below<'f>(
    files: &'f BTreeMap<String, Vec<u8>>,
    folder: &'static str,
) -> impl Iterator<Item = (&'f String, &'f Vec<u8>)> {
    let is_in = move |path: &str| {
        path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')).is_some_and(|name| !name.contains('/'))
    };
    files.iter().filter(move |(path, _)| is_in(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            // What a hostile guest may write, a well-behaved builder refuses.
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn what_drafting_needs_is_written_and_nothing_else() {
        let archive = archive(&[
            (STATUS, b"Package: a\n"),
            (OS_RELEASE, b"ID=debian\nVERSION_CODENAME=\"bookworm\"\n"),
            ("etc/apt/sources.list", b"deb http://h/debian bookworm main\n"),
            ("etc/apt/sources.list.d/x.list", b"deb http://x/y z w\n"),
            ("etc/apt/sources.list.d/x.list.save", b"deb http://old/y z w\n"),
            ("etc/apt/sources.list.d/in/x.list", b"deb http://deep/y z w\n"),
            ("usr/share/keyrings/a.gpg", b"key"),
            ("usr/share/keyrings/README", b"no key"),
            ("usr/share/keyrings/../../../../b.gpg", b"out"),
            ("/etc/apt/keyrings/c.gpg", b"absolute"),
        ]);
        let captured = Captured::unpack(&archive[..]).unwrap();
        assert_eq!(
            (captured.says("VERSION_CODENAME").as_deref(), captured.status().as_deref()),
            (Some("bookworm"), Some("Package: a\n"))
        );
        let dir = tempfile::tempdir().unwrap();
        let apt = dir.path().join("staged/apt");
        captured.write(&captured.sources(), &apt).unwrap();
        let text = |name: &str| fs::read_to_string(apt.join(name)).unwrap();
        assert_eq!(text("sources.list"), "deb http://h/debian bookworm main\ndeb http://x/y z w\n");
        assert_eq!(text("status"), "Package: a\n");
        let names: Vec<_> =
            fs::read_dir(apt.join("keyrings")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["a.gpg"]);
        let beside: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(beside, ["staged"]);
    }

    #[test]
    fn a_system_that_is_another_is_told_by_what_it_calls_itself() {
        let named = |text: &str| Captured::of([(OS_RELEASE.to_owned(), text.as_bytes().to_vec())].into());
        let os = Os { family: "debian".into(), release: "13".into(), arch: "x86_64".into() };
        assert_eq!(named("ID=debian\nVERSION_ID=\"12\"\n").is_another_than(&os).as_deref(), Some("debian 12"));
        assert_eq!(named("ID=ubuntu\nVERSION_ID=\"13\"\n").is_another_than(&os).as_deref(), Some("ubuntu 13"));
        assert_eq!(named("ID=debian\nVERSION_ID=\"13\"\n").is_another_than(&os), None);
        // What has no number yet says none.
        assert_eq!(named("ID=debian\n").is_another_than(&os), None);
        assert_eq!(Captured::default().is_another_than(&os), None);
    }

    #[test]
    fn an_archive_that_is_cut_short_is_an_error() {
        let archive = archive(&[(STATUS, &[b'x'; 3000])]);
        assert!(Captured::unpack(&archive[..1500]).is_err());
    }
}
