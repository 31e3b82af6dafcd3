//! Packages of a test's own, built on the spot by dpkg-deb(1), and orders that install them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use patchlab_check::Digest;

/// A file of a package: its path below the root (`DEBIAN/…` for the control files), its text, its permission bits.
pub type File<'a> = (&'a str, &'a str, u32);

/// Builds version 1.0 of the package `name` for all architectures in `dir`, with these files beside its control file.
///
/// # Panics
/// The folder cannot be written, or dpkg-deb is missing or says no.
pub fn build(name: &str, files: &[File<'_>], dir: &Path) -> PathBuf {
    let root = dir.join(format!("{name}-root"));
    let control = format!(
        "Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: patchlab tests <tests@example.org>\n\
         Description: made for a test of patchlab\n Never install it on a system that matters.\n"
    );
    for (path, text, mode) in [&[("DEBIAN/control", control.as_str(), 0o644)], files].concat() {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
    }
    let package = dir.join(format!("{name}_1.0_all.deb"));
    let built = Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).args([&root, &package]).output();
    let built = built.expect("dpkg-deb starts");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    package
}

/// An order, as people write it, that installs the package `name` that was built as `package`.
///
/// # Panics
/// The package cannot be read.
pub fn order(id: &str, name: &str, package: &Path) -> String {
    order_of(id, &[(name, package)])
}

/// An order, as people write it, that installs several packages.
///
/// # Panics
/// A package cannot be read.
pub fn order_of(id: &str, packages: &[(&str, &Path)]) -> String {
    let paths: Vec<String> = packages.iter().map(|(name, _)| format!("\"{name}_1.0_all.deb\"")).collect();
    let mut order = format!(
        "id = \"{id}\"\ntitle = \"{}\"\nseverity = \"low\"\n\n[[change]]\n\
         on = {{ family = \"debian\", release = \"12\", arch = \"x86_64\" }}\npackages = [{}]\n",
        packages.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        paths.join(", ")
    );
    for (name, package) in packages {
        let (digest, size) = Digest::of_file(package).expect("a readable package");
        order += &format!(
            "\n[[change.file]]\nname = \"{name}\"\nversion = \"1.0\"\narch = \"all\"\nsize = {size}\nsha256 = \"{digest}\"\n\
             origin = \"local\"\npath = {package:?}\n"
        );
    }
    order
}
