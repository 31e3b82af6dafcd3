//! Drafting with the real apt against the real archive, on a baseline made of what apt itself says: the closure of nginx in the
//! main suite. Without apt, network or sources for Debian 12 on this machine, the tests say so and pass.

use std::{fs, process::Command};

use patchlab_lab::{
    apt::{Apt, AptError, AptInputs},
    scenario,
};
use patchlab_protocol::document::Origin;

use super::{resolver::simulated, *};

/// A baseline with nginx at the version of the main suite, and the sources to bring it up to date.
struct World {
    dir: tempfile::TempDir,
    inputs: AptInputs,
    class: Class,
    pool: Vec<PackageFile>,
    artifacts: ArtifactStore,
}

/// Sources for `suites` of Debian 12 as this machine's own apt has them: no host is named here.
fn sources(suites: &[&str]) -> Option<String> {
    let format = "$(RELEASE) $(COMPONENT) $(REPO_URI)";
    let output = Command::new("apt-get").args(["indextargets", "--format", format]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = String::new();
    for suite in suites {
        let uri = text.lines().find_map(|line| line.strip_prefix(&format!("{suite} main ")))?;
        lines += &format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri} {suite} main\n");
    }
    Some(lines)
}

fn skipped(reason: &str) -> Option<World> {
    eprintln!("SKIP: drafting with the real apt: {reason}");
    None
}

fn paragraph(apt: &Apt, installation: &Installation) -> String {
    let output = Command::new("apt-cache")
        .args(["show", &format!("{}={}", installation.name, installation.to)])
        .env("APT_CONFIG", apt.configuration_file())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let first = text.split("\n\n").next().unwrap();
    assert!(first.starts_with("Package: "), "{installation:?}: {text}");
    first.replacen('\n', "\nStatus: install ok installed\n", 1)
}

impl World {
    fn new() -> Option<Self> {
        let keyrings = Path::new("/usr/share/keyrings");
        if !keyrings.join("debian-archive-keyring.gpg").exists() {
            return skipped("no Debian keyring on this machine");
        }
        let Some(old) = sources(&["bookworm"]) else { return skipped("no sources for bookworm on this machine") };
        let Some(new) = sources(&["bookworm", "bookworm-security"]) else {
            return skipped("no sources for bookworm-security on this machine");
        };
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("old.list"), old).unwrap();
        fs::write(path("status"), "").unwrap();
        let arch = String::from("amd64");
        let inputs = AptInputs { status: path("status"), sources: path("old.list"), keyrings: keyrings.into(), arch };
        let apt = match Apt::open(&inputs, dir.path()) {
            Err(error @ AptError::NoApt { .. }) => return skipped(&error.to_string()),
            other => other.unwrap(),
        };
        if let Err(error) = apt.update() {
            return skipped(&error.to_string());
        }
        let nginx = [String::from("nginx")];
        let closure = simulated(&apt.simulate_install(&nginx).unwrap()).unwrap();
        let (served, rest): (Vec<_>, Vec<_>) = closure.install.iter().partition(|i| i.name.starts_with("nginx"));
        let text = |list: &[&Installation]| list.iter().map(|i| paragraph(&apt, i) + "\n\n").collect::<String>();
        let (served, rest) = (text(&served), text(&rest));
        drop(apt);

        // The pool: the old nginx packages themselves, fetched for a system that has all else.
        fs::write(path("status"), &rest).unwrap();
        let apt = Apt::open(&inputs, dir.path()).unwrap();
        let transaction = simulated(&apt.simulate_install(&nginx).unwrap()).unwrap();
        let artifacts = ArtifactStore::open(path("artifacts")).unwrap();
        let downloads = apt.download(&nginx).unwrap();
        let mut pool = Vec::new();
        for i in &transaction.install {
            let (sha256, size) = artifacts
                .put(
                    downloads
                        .iter()
                        .find(|d| d.file_name().unwrap().to_str().unwrap().starts_with(&format!("{}_", i.name)))
                        .unwrap(),
                )
                .unwrap();
            let (name, version, arch) = (i.name.clone(), i.to.clone(), i.arch.clone());
            pool.push(PackageFile { name, version, arch, size, sha256, origin: Origin::VendorSigned });
        }
        drop(apt);
        fs::write(path("status"), rest + &served).unwrap();
        fs::write(path("new.list"), new).unwrap();
        let inputs = AptInputs { sources: path("new.list"), ..inputs };
        let class = Class { family: "debian".into(), release: "12".into(), arch: "x86_64".into() };
        Some(Self { dir, inputs, class, pool, artifacts })
    }

    fn draft(&self, request: &Request) -> (Result<Written, DraftError>, Vec<Progress>) {
        let inputs = Inputs::Apt(self.inputs.clone());
        let base = Base { name: "debian-12-web@1", class: &self.class, inputs: &inputs, pool: &self.pool };
        let scenarios = scenario::discover(&[Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios")]).unwrap();
        let mut seen = Vec::new();
        let out = self.dir.path().join("orders/order.toml");
        fs::create_dir_all(out.parent().unwrap()).unwrap();
        let drafted = draft(&base, request, &scenarios, &self.artifacts, self.dir.path(), &out, &mut |progress| {
            seen.push(progress);
        });
        if let Ok(written) = &drafted {
            fs::write(&out, render(written, base.name).unwrap()).unwrap();
        }
        (drafted, seen)
    }
}

fn request(upgrade: &[&str]) -> Request {
    Request {
        id: "PO-2026-0001".into(),
        title: None,
        severity: Severity::Important,
        kind: Kind::Routine,
        advisories: vec!["CVE-2026-0001".into()],
        upgrade: upgrade.iter().map(|name| name.parse().unwrap()).collect(),
        packages: Vec::new(),
        when_current: WhenCurrent::Stop,
    }
}

/// One test, since the index files of a whole suite are fetched for it.
#[test]
fn drafting_with_the_real_apt() {
    let Some(world) = World::new() else { return };
    what_cannot_be_drafted_says_why(&world);
    lists_whose_signature_does_not_check_are_refused(&world);
    the_real_update_of_nginx_is_drafted_compiled_and_guarded(&world);
}

fn the_real_update_of_nginx_is_drafted_compiled_and_guarded(world: &World) {
    let (drafted, seen) = world.draft(&request(&["nginx"]));
    let written = match drafted {
        Err(error @ DraftError::UpToDate { .. }) => {
            eprintln!("SKIP: {error}");
            return;
        }
        other => other.unwrap(),
    };
    assert!(matches!(seen[..], [Progress::Updating, Progress::Resolving, Progress::Fetching { .. }]), "{seen:?}");
    let change = &written.change[0];
    assert!(change.file.iter().any(|file| file.name.as_str() == "nginx" && file.origin == Origin::VendorSigned));
    assert!(change.replaces.iter().all(|replaces| replaces.file.is_some()), "{:?}", change.replaces);
    assert_eq!(
        written.production.iter().map(|check| check.step.name.as_str()).collect::<Vec<_>>(),
        ["front page", "service"]
    );

    // What was written is read back as it was meant, and compiles to the same bytes every time.
    let out = world.dir.path().join("orders/order.toml");
    eprintln!("{}", fs::read_to_string(&out).unwrap().lines().take(30).collect::<Vec<_>>().join("\n"));
    assert_eq!(patchlab_check::written::read::<Written>(&out).unwrap(), written);
    let order = crate::order::compile_file(&out, &world.artifacts).unwrap();
    assert_eq!(order.rollback, patchlab_protocol::document::RollbackClass::Proven);
    let bytes = serde_json::to_vec(&order).unwrap();
    let again = world.draft(&request(&["nginx"])).0.unwrap();
    assert_eq!(serde_json::to_vec(&crate::order::compile(&again).unwrap()).unwrap(), bytes);

    // With a package made on the spot that depends on it.
    let bad = crate::demo::breaking_package::build("nginx", world.dir.path()).unwrap();
    let with_bad = Request { id: "PO-2026-0002".into(), packages: vec![bad], ..request(&["nginx"]) };
    let written = world.draft(&with_bad).0.unwrap();
    let change = &written.change[0];
    let local: Vec<&str> =
        change.file.iter().filter(|file| file.origin == Origin::Local).map(|file| file.name.as_str()).collect();
    assert_eq!(local, [crate::demo::breaking_package::NAME]);
    assert_eq!(change.file.len(), order.install.len() + 1);
    assert_eq!(change.packages, ["../nginx-tuning-demo_1.0_all.deb"]);
    crate::order::compile_file(&out, &world.artifacts).unwrap();

    // A file of the store that was altered, or is gone, is named by its digest.
    let digest = order.install[0].sha256;
    fs::write(world.artifacts.path(&digest), "x").unwrap();
    let error = crate::order::compile_file(&out, &world.artifacts).unwrap_err().to_string();
    assert!(error.contains(&format!("artifact {digest} in ")) && error.contains("was altered"), "{error}");
    fs::remove_file(world.artifacts.path(&digest)).unwrap();
    let error = crate::order::compile_file(&out, &world.artifacts).unwrap_err().to_string();
    assert!(error.contains(&format!("artifact {digest} is missing")), "{error}");
}

fn what_cannot_be_drafted_says_why(world: &World) {
    let error = |request: &Request| world.draft(request).0.unwrap_err().to_string();
    assert!(error(&request(&["apache2"])).starts_with("package apache2 is not installed on baseline debian-12-web@1"));
    assert!(error(&request(&[])).starts_with("nothing to draft"));
    // A package that no suite has newer: the archive's metadata of it never changes between the two.
    let current = "debconf";
    let up_to_date = error(&request(&[current]));
    assert!(up_to_date.starts_with(&format!("no newer version of {current} for baseline")), "{up_to_date}");
    let (drafted, seen) = world.draft(&Request { when_current: WhenCurrent::TakeNext, ..request(&[current]) });
    match drafted {
        Ok(written) => {
            assert!(
                seen.iter().any(|p| matches!(p, Progress::Note(note) if note.contains("is taken instead"))),
                "{seen:?}"
            );
            assert!(!written.change[0].file.is_empty());
        }
        Err(error) => assert!(matches!(error, DraftError::AllUpToDate { .. }), "{error}"),
    }
    let bad = crate::demo::breaking_package::build("no-such-package", world.dir.path()).unwrap();
    let error = error(&Request { packages: vec![bad], ..request(&[]) });
    assert!(
        error.starts_with("apt could not resolve what to install: ") && error.contains("no-such-package"),
        "{error}"
    );
}

fn lists_whose_signature_does_not_check_are_refused(world: &World) {
    // The same sources, whose lists were fetched and believed before, with no key that signed them.
    let keyrings = world.dir.path().join("keyrings");
    fs::create_dir(&keyrings).unwrap();
    fs::write(keyrings.join("debian-archive-keyring.gpg"), "").unwrap();
    let inputs = Inputs::Apt(AptInputs { keyrings, ..world.inputs.clone() });
    let base = Base { name: "b@1", class: &world.class, inputs: &inputs, pool: &[] };
    let out = world.dir.path().join("o.toml");
    let error = draft(&base, &request(&["nginx"]), &[], &world.artifacts, world.dir.path(), &out, &mut |_| {});
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("apt could not fetch the package lists: "), "{error}");
    assert!(error.contains("not signed") || error.contains("NO_PUBKEY"), "{error}");
}

/// A folder with an order by script as people write it, and its files.
fn by_script(dir: &Path) -> PathBuf {
    for (name, text) in [
        ("apply", "#!/bin/sh\n: apply\n"),
        ("rollback", "#!/bin/sh\n: rollback\n"),
        ("verify", "#!/bin/sh\nexit 10\n"),
        ("sshd_config.snippet", "Banner /etc/issue.net\n"),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
    let from = dir.join("written.toml");
    fs::write(
        &from,
        "id = \"PO-1\"\ntitle = \"a banner\"\nseverity = \"low\"\n[[change]]\non = { family = \"debian\", release = \"12\" }\n\
         [change.script]\napply = \"./apply\"\nrollback = \"./rollback\"\nverify = \"./verify\"\nfiles = [\"./sshd_config.snippet\"]\n",
    )
    .unwrap();
    from
}

/// Drafts it to `out`.
fn draft_by_script(from: &Path, out: &Path, store: &ArtifactStore) -> Result<(Written, Vec<Progress>), DraftError> {
    let written: Written = patchlab_check::written::parse(&fs::read_to_string(from).unwrap(), from).unwrap();
    let mut told = Vec::new();
    let drafted = draft_script(&written, from, store, out, &mut |step| told.push(step))?;
    Ok((drafted, told))
}

#[test]
fn a_script_is_drafted_with_its_digests_and_the_draft_compiles_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path().join("artifacts")).unwrap();
    let from = by_script(dir.path());
    let out = dir.path().join("drafts/order.toml");
    fs::create_dir(out.parent().unwrap()).unwrap();
    let (drafted, _) = draft_by_script(&from, &out, &store).unwrap();
    let text = render_script(&drafted).unwrap();
    assert!(text.contains("path = \"../apply\""), "{text}");
    fs::write(&out, &text).unwrap();
    let order = crate::order::compile_file(&out, &store).unwrap();
    let script = order.script.unwrap();
    assert_eq!(script.files[0].name.as_str(), "sshd_config.snippet");
    // With the files gone, the store has them.
    fs::remove_file(dir.path().join("apply")).unwrap();
    assert!(crate::order::compile_file(&out, &store).is_ok());
    // Elsewhere the store has not, and the files are altered.
    let empty = ArtifactStore::open(dir.path().join("empty")).unwrap();
    fs::write(dir.path().join("apply"), "#!/bin/sh\n: other\n").unwrap();
    let error = crate::order::compile_file(&out, &empty).unwrap_err().to_string();
    assert!(error.contains("was altered") && error.contains("apply"), "{error}");
    // Drafted again, it is another order.
    let again: Written = patchlab_check::written::parse(&text, &out).unwrap();
    let drafted = draft_script(&again, &out, &store, &out, &mut |_| ()).unwrap();
    assert_ne!(crate::order::compile(&drafted).unwrap().script.unwrap().apply, script.apply);
}

#[test]
fn what_cannot_be_shipped_is_not_drafted() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path().join("artifacts")).unwrap();
    let out = dir.path().join("order.toml");
    for (name, text, expected) in [
        ("apply", "echo all\n", "it does not begin with #!"),
        ("verify", "", "not a file with anything in it"),
        ("rollback", "#!/bin/sh\nif true\n", "rollback: 3: Syntax error"),
    ] {
        let from = by_script(dir.path());
        fs::write(dir.path().join(name), text).unwrap();
        let error = draft_by_script(&from, &out, &store).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(name), "{expected}: {error}");
    }
    let from = by_script(dir.path());
    fs::remove_file(dir.path().join("sshd_config.snippet")).unwrap();
    let error = draft_by_script(&from, &out, &store).unwrap_err().to_string();
    assert!(error.contains("sshd_config.snippet"), "{error}");
    let packages = fs::read_to_string(&from).unwrap();
    fs::write(&from, packages.split("[change.script]").next().unwrap()).unwrap();
    let error = draft_by_script(&from, &out, &store).unwrap_err().to_string();
    assert!(error.contains("no [change.script]"), "{error}");
}
