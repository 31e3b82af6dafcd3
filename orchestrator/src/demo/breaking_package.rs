//! The bad patch of the demonstration: a package that installs cleanly and breaks the service it depends on.
//!
//! Its maintainer script writes a directive that nginx does not know and restarts nginx. The script itself succeeds, so dpkg is
//! content, and only a scenario on the patched clone can tell. Built on the spot by dpkg-deb(1), the same bytes every time.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// Name of the package.
pub const NAME: &str = "nginx-tuning-demo";
/// Its version.
pub const VERSION: &str = "1.0";
/// The file in which it breaks nginx's configuration.
pub const BROKEN_FILE: &str = "/etc/nginx/conf.d/nginx-tuning-demo.conf";

/// The package could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The file system said no.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// dpkg-deb said no.
    #[error("dpkg-deb could not build {NAME}: {reason}")]
    Dpkg {
        /// Its words.
        reason: String,
    },
}

/// Builds the package in the folder `dir` and gives its path. `depends` is its `Depends` field, e.g. `nginx (>= 1.22)`.
///
/// # Errors
/// The folder cannot be written, or dpkg-deb is missing or says no.
pub fn build(depends: &str, dir: &Path) -> Result<PathBuf, BuildError> {
    let failed = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| BuildError::Io { action, path, source }
    };
    fs::create_dir_all(dir).map_err(failed("create", dir))?;
    let root = tempfile::tempdir_in(dir).map_err(failed("create a folder in", dir))?;
    let control = root.path().join("DEBIAN");
    fs::create_dir(&control).map_err(failed("create", &control))?;
    set_mode(root.path(), 0o755).map_err(failed("change the mode of", root.path()))?;
    set_mode(&control, 0o755).map_err(failed("change the mode of", &control))?;
    for (name, text, mode) in [
        ("control", control_file(depends), 0o644),
        ("postinst", POSTINST.replace("@FILE@", BROKEN_FILE), 0o755),
        ("postrm", POSTRM.replace("@FILE@", BROKEN_FILE), 0o755),
    ] {
        let path = control.join(name);
        fs::write(&path, text).map_err(failed("write", &path))?;
        set_mode(&path, mode).map_err(failed("change the mode of", &path))?;
    }
    let package = dir.join(format!("{NAME}_{VERSION}_all.deb"));
    let output = Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Zxz", "--build"])
        .args([root.path(), &package])
        // Without a moment of its own, every build would have another digest.
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .output()
        .map_err(|source| BuildError::Dpkg { reason: source.to_string() })?;
    if !output.status.success() {
        return Err(BuildError::Dpkg { reason: String::from_utf8_lossy(&output.stderr).trim().to_owned() });
    }
    Ok(package)
}

fn control_file(depends: &str) -> String {
    // Folded to one line, so that nothing given can add a field of its own.
    let depends = depends.split_whitespace().collect::<Vec<_>>().join(" ");
    format!(
        "Package: {NAME}\nVersion: {VERSION}\nArchitecture: all\nMaintainer: patchlab demonstration <demo@example.org>\n\
         Depends: {depends}\nSection: misc\nPriority: optional\n\
         Description: tuning for nginx that breaks it, for patchlab's demonstration\n \
         Its maintainer script writes a directive that nginx does not know. Never install it on a system that matters.\n"
    )
}

const POSTINST: &str = r#"#!/bin/sh
set -e
if [ "$1" = configure ]; then
    mkdir -p "$(dirname @FILE@)"
    echo 'turbo_mode on;  # no such directive' > @FILE@
    # nginx refuses to start now, and says why in the journal. The package manager must not mind: that is the point.
    if [ -d /run/systemd/system ]; then
        systemctl restart nginx.service || true
    fi
fi
"#;

const POSTRM: &str = r#"#!/bin/sh
set -e
if [ "$1" = remove ] || [ "$1" = purge ]; then
    rm -f @FILE@
    if [ -d /run/systemd/system ]; then
        systemctl reset-failed nginx.service || true
        systemctl restart nginx.service || true
    fi
fi
"#;

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_the_same_bytes_every_time() {
        let dir = tempfile::tempdir().unwrap();
        let package = match build("nginx (>= 1.22),\n  curl", dir.path()) {
            Err(BuildError::Dpkg { reason }) if reason.contains("No such file") => {
                eprintln!("skipped: no dpkg-deb on this machine");
                return;
            }
            other => other.unwrap(),
        };
        let first = fs::read(&package).unwrap();
        build("nginx (>= 1.22),\n  curl", dir.path()).unwrap();
        assert_eq!(first, fs::read(&package).unwrap());
        let show = |field: &str| {
            let out = Command::new("dpkg-deb").arg("-f").arg(&package).arg(field).output().unwrap();
            String::from_utf8(out.stdout).unwrap().trim().to_owned()
        };
        assert_eq!(show("Package"), NAME);
        assert_eq!(show("Depends"), "nginx (>= 1.22), curl");
        let error = build("nginx\nEssential: yes", dir.path()).unwrap_err().to_string();
        assert!(error.contains("'Depends' field"), "{error}");
        for script in [POSTINST, POSTRM] {
            let out = Command::new("sh").args(["-n", "-c", script]).output().unwrap();
            assert!(out.status.success(), "{script}");
        }
    }
}
