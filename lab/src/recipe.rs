//! Recipes: what people write to say how a baseline is built (`images/*.toml`).
//!
//! A file is read into [`Written`] types that refuse unknown keys, then checked into a [`Recipe`], so that nothing behind
//! this module sees a name with a slash or a disk of no bytes.

pub mod draft;
mod package;
mod source;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use patchlab_check::{
    Digest, PackageSystem,
    written::{self, ByteSize, Span, WrittenError},
};
use serde::Deserialize;

pub use self::package::Wanted;
use self::source::{Beside, WrittenSource};
pub use self::source::{CloudImage, Domain, Image, Installation, Place, Pocket, Source};
use crate::{
    baseline::{Os, Represents},
    machine::Screen,
};

/// Files of an overlay that are read.
const OVERLAY_LIMIT: usize = 10_000;
/// How long a system may take to be ready, with kvm, unless its recipe says otherwise.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// A recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file is not a recipe, or a value in it makes no sense.
    #[error(transparent)]
    Written(#[from] WrittenError),
    /// A file of its overlay cannot be read.
    #[error("recipe {recipe}: cannot read {path} of its overlay: make it readable, or take it out of the overlay")]
    Overlay {
        /// The recipe.
        recipe: PathBuf,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// A recipe as written.
#[derive(Debug, Clone, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Written {
    /// Name of the baseline: letters, digits, dots and dashes, beginning with a letter.
    name: String,
    /// Operating system.
    os: Os,
    /// Where the system comes from.
    source: WrittenSource,
    /// The package of its kernel, for `mmdebstrap`; absent is Debian's for virtual machines.
    kernel: Option<String>,
    /// Packages beside those that every baseline has, for `mmdebstrap` and `cloud-image`: `nginx`, or `nginx=1.22.1-9` for that very
    /// version, which counts for packages that come as dependencies too.
    #[serde(default)]
    #[schemars(inner(regex(pattern = package::PATTERN)))]
    packages: Vec<String>,
    /// Folder whose files are copied over the root, relative to this file, for `mmdebstrap` and `cloud-image`.
    overlay: Option<String>,
    /// Memory, from 128MiB to 64GiB.
    memory: ByteSize,
    /// Virtual processors, from 1 to 64.
    vcpus: u32,
    /// Size of the disk, from 1GiB to 1TiB.
    disk: ByteSize,
    /// Its screen; absent is none.
    screen: Option<Screen>,
    /// When it is ready to be frozen.
    #[serde(default)]
    ready: WrittenReady,
    /// Which hosts it speaks for.
    #[serde(default)]
    represents: Represents,
}

#[derive(Debug, Clone, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct WrittenReady {
    /// Units that must be active.
    units: Vec<String>,
    /// How long that may take, with kvm; absent is 120 s.
    timeout: Option<Span>,
}

/// A value of the right type that makes no sense: the key, dotted, with numbers for elements of arrays, and what it should be.
struct Senseless {
    key: String,
    problem: String,
}

impl Written {
    /// Checks what types alone do not, the source apart.
    fn check(&self) -> Result<(), Senseless> {
        let wrong = |key: &str, expected: &str, found: &dyn std::fmt::Display| {
            Err(Senseless { key: key.to_owned(), problem: format!("expected {expected}, found {found}") })
        };
        if !is_name(&self.name, 64) {
            let expected = "up to 64 letters, digits, dots and dashes, beginning with a letter";
            return wrong("name", expected, &format!("{:?}", self.name));
        }
        if self.os.arch != "x86_64" {
            return wrong("os.arch", "\"x86_64\", which is all that the lab runs", &format!("{:?}", self.os.arch));
        }
        match (self.os.package_system(), &self.source) {
            (None, _) => {
                let expected = "a distribution whose package system is known, as its os-release has it in ID, e.g. \"debian\" or \"fedora\"";
                return wrong("os.family", expected, &format!("{:?}", self.os.family));
            }
            (Some(PackageSystem::Rpm), WrittenSource::Mmdebstrap { .. }) => {
                let expected = "\"cloud-image\", \"disk\" or \"domain\" for a system with rpm";
                return wrong("source.kind", expected, &"\"mmdebstrap\", which installs Debian's packages");
            }
            (Some(PackageSystem::Rpm), _) if !self.packages.is_empty() => {
                let problem = "the lab adds no packages to a system with rpm: leave this key out, and use an image that has them and \
                               qemu-guest-agent";
                return Err(Senseless { key: "packages".into(), problem: problem.into() });
            }
            (Some(_), _) => {}
        }
        if !(128 << 20..=64 << 30).contains(&self.memory.bytes()) {
            return wrong("memory", "a size between \"128MiB\" and \"64GiB\"", &self.memory);
        }
        if !(1 << 30..=1 << 40).contains(&self.disk.bytes()) {
            return wrong("disk", "a size between \"1GiB\" and \"1TiB\"", &self.disk);
        }
        if !(1..=64).contains(&self.vcpus) {
            return wrong("vcpus", "a number between 1 and 64", &self.vcpus);
        }
        let is_unit = |unit: &str| unit.contains('.') && !unit.starts_with('-');
        if let Some((index, unit)) = self.ready.units.iter().enumerate().find(|(_, unit)| !is_unit(unit)) {
            let expected = "a unit's full name, e.g. \"nginx.service\"";
            return wrong(&format!("ready.units.{index}"), expected, &format!("{unit:?}"));
        }
        Ok(())
    }
}

/// A recipe that makes sense.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The file it was read from.
    pub path: PathBuf,
    /// The file's text.
    pub text: String,
    /// Name of the baseline.
    pub name: String,
    /// Operating system.
    pub os: Os,
    /// Where it comes from, with what is added to it.
    pub source: Source,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Its screen.
    pub screen: Option<Screen>,
    /// Units that are active when it is ready.
    pub ready_units: Vec<String>,
    /// How long it may take until then, with kvm.
    pub ready_timeout: Duration,
    /// Which hosts it speaks for.
    pub represents: Represents,
}

impl Recipe {
    /// The JSON Schema of a recipe.
    pub fn schema() -> schemars::Schema {
        written::schema::<Written>(written::Parameters::None)
    }

    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// The file is no recipe: line, key and what is expected are named.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let text = written::read_text(path)?;
        Self::parse(text, path)
    }

    fn parse(text: String, path: &Path) -> Result<Self, RecipeError> {
        let written: Written = written::parse(&text, path)?;
        let placed = |Senseless { key, problem }: Senseless| {
            let shown: Vec<&str> = key.split('.').filter(|part| part.parse::<usize>().is_err()).collect();
            WrittenError::at_key(path, &text, &key, format!("key {:?}: {problem}", shown.join(".")))
        };
        written.check().map_err(placed)?;
        let beside = Beside { kernel: written.kernel, packages: written.packages, overlay: written.overlay };
        let source = written.source.check(beside, path.parent().unwrap_or(Path::new("."))).map_err(placed)?;
        Ok(Self {
            path: path.to_owned(),
            text,
            name: written.name,
            os: written.os,
            source,
            memory_mib: written.memory.mebibytes(),
            vcpus: written.vcpus,
            // Whole sectors, whatever unit it was written in.
            disk_bytes: written.disk.mebibytes() << 20,
            screen: written.screen,
            ready_units: written.ready.units,
            ready_timeout: written.ready.timeout.map_or(READY_TIMEOUT, |Span(timeout)| timeout),
            represents: written.represents,
        })
    }

    /// Digest of all that decides what is built: the recipe, its overlay's files with their modes, the builder's revision.
    pub fn inputs(&self, builder: &str) -> Result<Digest, RecipeError> {
        use std::os::unix::fs::PermissionsExt as _;
        let mut listed = format!("builder {builder}\nrecipe {}\n", Digest::of(&self.text));
        let failed = |path: &Path| {
            let (recipe, path) = (self.path.clone(), path.to_owned());
            move |source| RecipeError::Overlay { recipe, path, source }
        };
        if let Some(overlay) = self.source.overlay() {
            let mut paths = Vec::new();
            walk(overlay, &mut paths).map_err(failed(overlay))?;
            paths.sort();
            for path in paths {
                let metadata = fs::symlink_metadata(&path).map_err(failed(&path))?;
                let content = if metadata.is_symlink() {
                    fs::read_link(&path).map_err(failed(&path))?.display().to_string()
                } else {
                    Digest::of_file(&path).map_err(failed(&path))?.0.to_string()
                };
                let name = path.strip_prefix(overlay).unwrap_or(&path).display();
                listed.push_str(&format!("{:o} {content} {name}\n", metadata.permissions().mode()));
            }
        }
        Ok(Digest::of(listed))
    }
}

fn walk(folder: &Path, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), paths)?;
        } else {
            paths.push(entry.path());
        }
        if paths.len() > OVERLAY_LIMIT {
            return Err(io::Error::other(format!("more than {OVERLAY_LIMIT} files")));
        }
    }
    Ok(())
}

/// Whether a baseline, a suite or a kernel may be named so.
fn is_name(text: &str, limit: usize) -> bool {
    text.len() <= limit
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
}

pub(crate) fn is_package(text: &str) -> bool {
    text.len() >= 2
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '+' | '-' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baseline::SecretsPolicy;

    const GOOD: &str = r#"
name = "debian-12-web"
os = { family = "debian", release = "12", arch = "x86_64" }
source = { kind = "mmdebstrap", suite = "bookworm", pockets = ["main"] }
packages = ["nginx"]
memory = "512MiB"
vcpus = 2
disk = "4GiB"
ready = { units = ["nginx.service"], timeout = "2min" }
"#;

    fn read(text: &str) -> Result<Recipe, String> {
        Recipe::parse(text.into(), Path::new("images/x.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_recipe() {
        let recipe = read(GOOD).unwrap();
        assert_eq!((recipe.memory_mib, recipe.disk_bytes, recipe.ready_timeout.as_secs()), (512, 4 << 30, 120));
    }

    #[test]
    fn the_shipped_recipe_is_good() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/debian-12-web.toml");
        let recipe = Recipe::read(&path).unwrap();
        assert_eq!(recipe.inputs("1").unwrap(), recipe.inputs("1").unwrap());
        assert_ne!(recipe.inputs("1").unwrap(), recipe.inputs("2").unwrap());
    }

    #[test]
    fn every_slip_names_file_line_key_and_what_is_expected() {
        for (from, to, expected) in [
            ("debian-12-web", "../x", "images/x.toml:2:1: key \"name\": expected up to 64 letters"),
            ("512MiB", "64MiB", "images/x.toml:6:1: key \"memory\": expected a size between \"128MiB\" and"),
            ("512MiB", "512", "images/x.toml:6:10: key \"memory\": expected a size such as"),
            ("\"512MiB\"", "512", "images/x.toml:6:10: key \"memory\": expected a size such as \"512MiB\" or"),
            ("4GiB", "4MiB", "images/x.toml:8:1: key \"disk\": expected a size between"),
            ("vcpus = 2", "vcpus = 0", "images/x.toml:7:1: key \"vcpus\": expected a number between 1 and 64, found 0"),
            (
                "\"nginx\"]",
                "\"nginx=1 2\"]",
                "images/x.toml:5:13: key \"packages\": expected a package's name (lower-case",
            ),
            ("\"nginx\"]", "\"a2\", \"nginx; reboot\"]", "images/x.toml:5:19: key \"packages\": expected a package's"),
            ("packages =", "kernel = \"grub\"\npackages =", "images/x.toml:5:1: key \"kernel\": expected the name of"),
            ("x86_64", "arm64", "images/x.toml:3:"),
            ("[\"main\"]", "[]", "images/x.toml:4:53: key \"source.pockets\": expected at least one of"),
            ("[\"main\"]", "[\"man\"]", "images/x.toml:4:"),
            ("nginx.service", "nginx", "images/x.toml:9:20: key \"ready.units\": expected a unit's full name"),
            ("2min", "soon", "images/x.toml:9:48: key \"ready.timeout\": expected a length of time such as"),
            ("vcpus = 2", "vcpus = 2\nvcpu = 3", "images/x.toml:8:1: unknown key \"vcpu\": did you mean \"vcpus\"?"),
            ("vcpus = 2", "vcpus = 2\noverlay = \"none/\"", "images/x.toml:8:1: key \"overlay\": expected a folder"),
        ] {
            let error = read(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(error.starts_with(expected), "{to}\nexpected {expected}\n   found {error}");
        }
    }

    #[test]
    fn an_image_has_one_place_a_digest_and_only_what_can_be_done_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        fs::write(dir.path().join("x.qcow2"), "").unwrap();
        let digest = Digest::of("x");
        let with = |source: &str, more: &str| {
            let text = GOOD
                .replace(r#"kind = "mmdebstrap", suite = "bookworm", pockets = ["main"]"#, source)
                .replace("packages = [\"nginx\"]\n", more);
            Recipe::parse(text, &path).map_err(|error| error.to_string().replace(&path.display().to_string(), ""))
        };
        let disk = format!("kind = \"disk\", path = \"x.qcow2\", sha256 = \"{digest}\"");
        let secrets = SecretsPolicy::Refuse;
        let image = Image { place: Place::Path(dir.path().join("x.qcow2")), sha256: digest, secrets };
        assert_eq!(with(&disk, "").unwrap().source, Source::Disk(image.clone()));
        let cloud = |place: &str| format!("kind = \"cloud-image\", {place}, sha256 = \"{digest}\"");
        let (by_path, by_url) = (cloud("path = \"x.qcow2\""), cloud("url = \"https://h/x\""));
        let expected = CloudImage { image, packages: vec!["nginx".parse().unwrap()], overlay: None };
        assert_eq!(with(&by_path, "packages = [\"nginx\"]\n").unwrap().source, Source::CloudImage(expected));
        assert!(
            matches!(with(&by_url, "").unwrap().source, Source::CloudImage(cloud) if cloud.image.place == Place::Url("https://h/x".into()))
        );
        let scrubbed = with(&format!("{disk}, secrets = \"scrub\""), "").unwrap().source;
        assert!(matches!(scrubbed, Source::Disk(image) if image.secrets == SecretsPolicy::Scrub));
        for (source, more, expected) in [
            (&disk, "packages = [\"nginx\"]\n", ":5:1: key \"packages\": a disk is taken as it is"),
            (&disk, "overlay = \".\"\n", ":5:1: key \"overlay\": a disk is taken as it is"),
            (&by_url, "kernel = \"linux-image-amd64\"\n", ":5:1: key \"kernel\": an image has its own kernel"),
            (&by_url, "packages = [\"A\"]\n", ":5:13: key \"packages\": expected a package's name"),
            (
                &by_url.replace("url", "path = \"x.qcow2\", url"),
                "",
                ":4:52: key \"source.url\": an image has one place",
            ),
            (&by_url.replace("url = \"https://h/x\", ", ""), "", ":4:1: key \"source\": where is the image?"),
            (&by_url.replace("https", "ftp"), "", ":4:34: key \"source.url\": expected an address that begins with"),
            (&by_url.replace("//h", "//me:pw@h"), "", ":4:34: key \"source.url\": an address with credentials"),
            (&disk.replace("x.qcow2", "y.qcow2"), "", ":4:27: key \"source.path\": expected an image file"),
            (&disk.replace(&digest.to_string(), "abc"), "", ":4:"),
            (&disk.replace("path", "url"), "", ":4:"),
        ] {
            let error = with(source, more).unwrap_err();
            assert!(error.starts_with(expected), "{source}\nexpected {expected}\n   found {error}");
        }
    }
}
