//! Recipes: what people write to say how a baseline is built (`images/*.toml`).
//!
//! A file is read into [`Written`] types that refuse unknown keys, then checked into a [`Recipe`], so that nothing behind
//! this module sees a name with a slash or a disk of no bytes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use patchlab_check::Digest;
use serde::{Deserialize, de::DeserializeOwned};

use crate::baseline::{Os, Represents};

/// Bytes of a recipe that are read: 1 MiB.
const RECIPE_LIMIT: u64 = 1024 * 1024;

/// Files of an overlay that are read.
const OVERLAY_LIMIT: usize = 10_000;

/// A recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// It cannot be read.
    #[error("recipe {path}: cannot {action}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// It is not what a recipe looks like.
    #[error("{path}: {reason}")]
    Form {
        /// The file.
        path: PathBuf,
        /// Line, key, and what was expected.
        reason: String,
    },
    /// A value has the right form but makes no sense.
    #[error("{path}: {key} = {value:?}: {expected}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What it says.
        value: String,
        /// What it should say.
        expected: &'static str,
    },
}

/// A recipe as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    os: Os,
    source: Source,
    #[serde(default)]
    packages: Vec<String>,
    overlay: Option<String>,
    memory: String,
    vcpus: u32,
    disk: String,
    #[serde(default)]
    ready: WrittenReady,
    #[serde(default)]
    represents: Represents,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenReady {
    units: Vec<String>,
    timeout: Option<String>,
}

/// Where a baseline's system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// Installed from a Debian suite's packages.
    Mmdebstrap {
        /// The suite, e.g. `bookworm`. Never a host: the mirror is the installer's own default.
        suite: String,
        /// Which of the suite's pockets: `main`, `updates`, `security`.
        pockets: Vec<Pocket>,
    },
}

/// A part of a suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pocket {
    /// The release itself.
    Main,
    /// Its stable updates.
    Updates,
    /// Its security updates.
    Security,
}

impl Pocket {
    /// Name of the suite that holds this pocket of `suite`.
    pub fn suite(self, suite: &str) -> String {
        match self {
            Self::Main => suite.to_owned(),
            Self::Updates => format!("{suite}-updates"),
            Self::Security => format!("{suite}-security"),
        }
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
    /// Where it comes from.
    pub source: Source,
    /// Packages beside those that every baseline has.
    pub packages: Vec<String>,
    /// Folder whose files are copied over the root.
    pub overlay: Option<PathBuf>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Units that are active when it is ready.
    pub ready_units: Vec<String>,
    /// How long it may take until then, with kvm.
    pub ready_timeout: Duration,
    /// Which hosts it speaks for.
    pub represents: Represents,
}

impl Recipe {
    /// Reads and checks a recipe.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let text = read_limited(path)?;
        let written: Written = parse(&text, path)?;
        Self::check(written, text, path)
    }

    fn check(written: Written, text: String, path: &Path) -> Result<Self, RecipeError> {
        let wrong = |key, value: &str, expected| RecipeError::Value {
            path: path.to_owned(),
            key,
            value: value.to_owned(),
            expected,
        };
        if !is_name(&written.name, 64) {
            return Err(wrong("name", &written.name, "letters, digits, dots and dashes, beginning with a letter"));
        }
        if written.os.arch != "x86_64" {
            return Err(wrong("os.arch", &written.os.arch, "the lab runs x86_64 only"));
        }
        let Source::Mmdebstrap { suite, pockets } = &written.source;
        if !is_name(suite, 64) {
            return Err(wrong("source.suite", suite, "the name of a suite, e.g. \"bookworm\""));
        }
        if pockets.is_empty() {
            return Err(wrong("source.pockets", "[]", "at least one of \"main\", \"updates\", \"security\""));
        }
        if let Some(package) = written.packages.iter().find(|package| !is_package(package)) {
            return Err(wrong("packages", package, "a package's name: lower-case letters, digits, + - ."));
        }
        let memory = bytes(&written.memory).filter(|bytes| (128 << 20..=64 << 30).contains(bytes));
        let memory = memory.ok_or_else(|| wrong("memory", &written.memory, "between \"128MiB\" and \"64GiB\""))?;
        let disk_bytes = bytes(&written.disk).filter(|bytes| (1 << 30..=1 << 40).contains(bytes));
        let disk_bytes = disk_bytes.ok_or_else(|| wrong("disk", &written.disk, "between \"1GiB\" and \"1024GiB\""))?;
        if !(1..=64).contains(&written.vcpus) {
            return Err(wrong("vcpus", &written.vcpus.to_string(), "between 1 and 64"));
        }
        if let Some(unit) = written.ready.units.iter().find(|unit| !unit.contains('.') || unit.starts_with('-')) {
            return Err(wrong("ready.units", unit, "a unit's full name, e.g. \"nginx.service\""));
        }
        let timeout = written.ready.timeout.as_deref().unwrap_or("120s");
        let ready_timeout = span(timeout).ok_or_else(|| wrong("ready.timeout", timeout, "e.g. \"120s\", \"3min\""))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let overlay = written.overlay.map(|overlay| folder.join(overlay));
        if let Some(overlay) = overlay.as_ref().filter(|overlay| !overlay.is_dir()) {
            return Err(wrong("overlay", &overlay.display().to_string(), "a folder, relative to the recipe"));
        }
        Ok(Self {
            path: path.to_owned(),
            text,
            name: written.name,
            os: written.os,
            source: written.source,
            packages: written.packages,
            overlay,
            memory_mib: memory >> 20,
            vcpus: written.vcpus,
            disk_bytes,
            ready_units: written.ready.units,
            ready_timeout,
            represents: written.represents,
        })
    }

    /// Digest of all that decides what is built: the recipe, its overlay's files with their modes, the builder's revision.
    pub fn inputs(&self, builder: &str) -> Result<Digest, RecipeError> {
        use std::os::unix::fs::PermissionsExt as _;
        let mut listed = format!("builder {builder}\nrecipe {}\n", Digest::of(&self.text));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RecipeError::Io { path, action: "read its overlay", source }
        };
        if let Some(overlay) = &self.overlay {
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

fn read_limited(path: &Path) -> Result<String, RecipeError> {
    use io::Read as _;
    let failed = |source| RecipeError::Io { path: path.to_owned(), action: "read it", source };
    let mut text = String::new();
    fs::File::open(path).map_err(failed)?.take(RECIPE_LIMIT).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// The one place where a recipe's TOML becomes a type.
fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, RecipeError> {
    toml::from_str(text).map_err(|error| RecipeError::Form { path: path.to_owned(), reason: error.to_string() })
}

fn is_name(text: &str, limit: usize) -> bool {
    text.len() <= limit
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
}

fn is_package(text: &str) -> bool {
    text.len() >= 2
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '+' | '-' | '.'))
}

/// `"512MiB"`, `"4GiB"`: bytes.
fn bytes(text: &str) -> Option<u64> {
    let (number, shift) = match text {
        _ if text.ends_with("MiB") => (text.strip_suffix("MiB")?, 20),
        _ => (text.strip_suffix("GiB")?, 30),
    };
    number.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `"120s"`, `"3min"`.
fn span(text: &str) -> Option<Duration> {
    let (number, seconds) = match text.strip_suffix("min") {
        Some(number) => (number, 60),
        None => (text.strip_suffix('s')?, 1),
    };
    Some(Duration::from_secs(number.trim().parse::<u64>().ok()?.checked_mul(seconds)?))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let path = Path::new("images/x.toml");
        parse(text, path)
            .and_then(|written| Recipe::check(written, text.into(), path))
            .map_err(|error| error.to_string())
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
    fn bad_values_name_file_key_and_what_is_expected() {
        for (from, to, part) in [
            ("debian-12-web", "../x", "images/x.toml: name"),
            ("512MiB", "512", "memory"),
            ("4GiB", "4MiB", "disk"),
            ("vcpus = 2", "vcpus = 0", "vcpus"),
            ("\"nginx\"", "\"nginx; reboot\"", "packages"),
            ("x86_64", "arm64", "os.arch"),
            ("[\"main\"]", "[]", "source.pockets"),
            ("nginx.service", "nginx", "ready.units"),
            ("2min", "soon", "ready.timeout"),
            ("vcpus = 2", "vcpus = 2\nvcpu = 3", "unknown field `vcpu`"),
        ] {
            let error = read(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(part), "{to}: {error}");
        }
    }
}
