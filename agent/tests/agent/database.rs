//! The package systems themselves, as a test uses them behind the agent's back: packages built on the spot, installed below a root of
//! its own, listed and audited.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use patchlab_protocol::PackageSystem;

use super::host::run;

/// A package to build.
#[derive(Debug, Clone, Copy, Default)]
pub struct Package<'a> {
    pub name: &'a str,
    /// With epoch and revision, as the system writes it.
    pub version: &'a str,
    /// More fields of its control file or specification.
    pub fields: &'a str,
    /// Maintainer scripts by their names.
    pub scripts: &'a [(&'a str, String)],
    /// Files by their paths below the root, with what is in them; those that end in `.conf` are configuration.
    pub files: &'a [(&'a str, &'a str)],
}

/// The name of the package that stands for the shell: rpm wants somebody to provide it.
const SHELL: &str = "shell";

/// Programs that are needed.
pub fn programs(system: PackageSystem) -> &'static [&'static str] {
    match system {
        PackageSystem::Dpkg => &["dpkg", "apt-get", "dpkg-deb"],
        PackageSystem::Rpm => &["rpm", "rpmbuild", "rpmdb"],
    }
}

/// The architecture of packages without one.
pub fn every_arch(system: PackageSystem) -> &'static str {
    match system {
        PackageSystem::Dpkg => "all",
        PackageSystem::Rpm => "noarch",
    }
}

/// Makes an empty database below a root, of a distribution that has this system.
pub fn make(system: PackageSystem, root: &Path) {
    fs::create_dir_all(root.join("etc")).unwrap();
    match system {
        PackageSystem::Dpkg => {
            for name in ["info", "updates"] {
                fs::create_dir_all(root.join("var/lib/dpkg").join(name)).unwrap();
            }
            for name in ["status", "available"] {
                fs::write(root.join("var/lib/dpkg").join(name), "").unwrap();
            }
            fs::write(root.join("etc/os-release"), "ID=debian\nVERSION_ID=\"12\"\n").unwrap();
        }
        PackageSystem::Rpm => {
            fs::write(root.join("etc/os-release"), "ID=\"house\"\nID_LIKE=\"rhel fedora\"\nVERSION_ID=\"9.4\"\n")
                .unwrap();
            run(on(root, "rpmdb").arg("--initdb"));
            let fields = "Provides: /bin/sh\n";
            let shell = Package { name: SHELL, version: "1-1", fields, ..Package::default() };
            let folder = root.join("build");
            install(system, root, &build(system, &folder, &shell));
            fs::remove_dir_all(folder).unwrap();
        }
    }
}

/// A program of rpm's on the database below a root.
pub fn on(root: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    command.arg("--root").arg(root).args(["--dbpath", "/var/lib/rpm"]);
    command
}

/// Builds a package in a folder, and says where it is.
pub fn build(system: PackageSystem, folder: &Path, package: &Package<'_>) -> PathBuf {
    let tree = folder.join("tree");
    for (path, text) in package.files {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::create_dir_all(&tree).unwrap();
    match system {
        PackageSystem::Dpkg => build_deb(folder, &tree, package),
        PackageSystem::Rpm => build_rpm(folder, &tree, package),
    }
}

fn build_deb(folder: &Path, tree: &Path, package: &Package<'_>) -> PathBuf {
    let Package { name, version, fields, scripts, files } = package;
    fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    let configuration = files.iter().filter(|(path, _)| path.ends_with(".conf"));
    let conffiles: String = configuration.map(|(path, _)| format!("/{path}\n")).collect();
    if !conffiles.is_empty() {
        fs::write(tree.join("DEBIAN/conffiles"), conffiles).unwrap();
    }
    let control = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: Test <test@example.org>\nDescription: test\n{fields}"
    );
    fs::write(tree.join("DEBIAN/control"), control).unwrap();
    for (name, script) in *scripts {
        let path = tree.join("DEBIAN").join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let file = folder.join("package.deb");
    run(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).args([tree, &*file]));
    fs::remove_dir_all(tree).unwrap();
    file
}

fn build_rpm(folder: &Path, tree: &Path, package: &Package<'_>) -> PathBuf {
    let Package { name, version, fields, scripts, files } = package;
    let (epoch, short) = version.split_once(':').unwrap_or(("0", version));
    let (upstream, release) = short.split_once('-').unwrap();
    let mut text = format!(
        "Name: {name}\nEpoch: {epoch}\nVersion: {upstream}\nRelease: {release}\nSummary: test\nLicense: MIT\nBuildArch: noarch\n\
         AutoReqProv: no\n{fields}\n%description\ntest\n%install\ncp -a {}/. %{{buildroot}}/\n%files\n",
        tree.display()
    );
    for (path, _) in *files {
        let kind = if path.ends_with(".conf") { "%config(noreplace) " } else { "" };
        text.push_str(&format!("{kind}/{path}\n"));
    }
    for (name, script) in *scripts {
        text.push_str(&format!("%{name}\n{script}\n"));
    }
    let spec = folder.join("package.spec");
    fs::write(&spec, text).unwrap();
    let define = |name: &str, value: &Path| format!("{name} {}", value.display());
    run(Command::new("rpmbuild")
        .args(["-bb", "--quiet", "--define", &define("_topdir", &folder.join("top"))])
        .args(["--define", &define("_rpmdir", folder), "--define", "_rpmfilename package.rpm"])
        .args(["--define", "_build_id_links none", "--define", "debug_package %{nil}"])
        .arg(&spec));
    fs::remove_dir_all(tree).unwrap();
    folder.join("package.rpm")
}

/// Installs a package file.
pub fn install(system: PackageSystem, root: &Path, file: &Path) {
    match system {
        PackageSystem::Dpkg => {
            run(Command::new("dpkg").args([&format!("--root={}", root.display()), "--install"]).arg(file));
        }
        PackageSystem::Rpm => run(on(root, "rpm").args(["-U", "--oldpackage"]).arg(file)),
    }
}

/// What the system finds wrong with its own database, and with the files that it knows; nothing when all is well.
pub fn audit(system: PackageSystem, root: &Path) -> String {
    let said = |command: &mut Command| {
        let output = command.output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    match system {
        PackageSystem::Dpkg => {
            let below = format!("--root={}", root.display());
            ["--audit", "--verify"].map(|question| said(Command::new("dpkg").args([&below, question]))).concat()
        }
        PackageSystem::Rpm => {
            let verified = on(root, "rpmdb").arg("--verifydb").status().unwrap();
            let names = said(on(root, "rpm").args(["-qa", "--qf", "%{NAME}\n"]));
            let mut names: Vec<&str> = names.lines().collect();
            names.sort_unstable();
            let twice: Vec<&str> = names.windows(2).filter(|two| two[0] == two[1]).map(|two| two[0]).collect();
            let left = said(Command::new("find").arg(root).args(["-name", "*;*"]));
            let wrong = if verified.success() { "" } else { "rpmdb --verifydb fails\n" };
            let twice: String = twice.iter().map(|name| format!("{name} is there twice\n")).collect();
            [said(on(root, "rpm").arg("-Va")), left, wrong.to_owned(), twice].concat()
        }
    }
}

/// Lines `installed NAME VERSION`.
pub fn list(system: PackageSystem, root: &Path) -> String {
    let output = match system {
        PackageSystem::Dpkg => {
            let admin = format!("--admindir={}", root.join("var/lib/dpkg").display());
            let format = "--showformat=${db:Status-Status} ${Package} ${Version}\n";
            Command::new("dpkg-query").args([&admin, format, "--show"]).output().unwrap()
        }
        PackageSystem::Rpm => {
            let format = "installed %{NAME} %|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\n";
            on(root, "rpm").args(["-qa", "--qf", format]).output().unwrap()
        }
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| line.replace(" 0:", " "))
        .filter(|line| !line.starts_with(&format!("installed {SHELL} ")))
        .map(|line| line + "\n")
        .collect();
    lines.sort();
    lines.concat()
}
