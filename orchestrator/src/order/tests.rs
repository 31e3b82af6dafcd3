use std::{fs, path::Path};

use patchlab_check::{Digest, written::parse};
use patchlab_lab::ArtifactStore;
use patchlab_protocol::document::{OnFailure, RebootRule, RebootWhen, RollbackClass, RollbackFiles};

use super::*;

/// The example of the design, as people write it.
const BY_HAND: &str = r#"id = "PO-2026-0001"
title = "nginx security update"
severity = "important"                         # critical, important, moderate, low
kind = "routine"                               # routine, emergency, workaround
advisories = ["CVE-2026-0001"]

[[change]]
on = { family = "debian", release = "12" }
upgrade = [{ name = "nginx", to = "1.22.1-9+deb12u11" }]   # or packages = ["./x.deb"], or script = { apply, rollback, verify }
"#;

fn drafted() -> String {
    let digest = |text: &str| Digest::of(text);
    format!(
        "{BY_HAND}
[[change.file]]
name = \"nginx\"
version = \"1.22.1-9+deb12u11\"
arch = \"amd64\"
size = 3
sha256 = \"{}\"
origin = \"vendor-signed\"
path = \"new.deb\"

[[change.file]]
name = \"nginx-common\"
version = \"1.22.1-9+deb12u11\"
arch = \"all\"
size = 6
sha256 = \"{}\"
origin = \"vendor-signed\"

[[change.replaces]]
name = \"nginx\"
version = \"1.22.1-9\"
arch = \"amd64\"
file = {{ size = 3, sha256 = \"{}\", origin = \"vendor-signed\" }}

[[production]]
scenario = \"web-smoke\"
step = {{ name = \"service\", unit = {{ name = \"nginx.service\", state = \"active\" }} }}
",
        digest("new"),
        digest("common"),
        digest("old")
    )
}

fn read(text: &str) -> Written {
    parse(text, Path::new("order.toml")).unwrap()
}

#[test]
fn the_same_order_gives_the_same_bytes() {
    let written = read(&drafted());
    let order = compile(&written).unwrap();
    assert_eq!(order.rollback, RollbackClass::Proven);
    assert_eq!(order.class.to_string(), "debian-12-x86_64");
    let bytes = serde_json::to_vec(&order).unwrap();
    let mut shuffled = written.clone();
    shuffled.change[0].file.reverse();
    assert_eq!(serde_json::to_vec(&compile(&shuffled).unwrap()).unwrap(), bytes);
    // Through its own text, too.
    let again = read(&toml::to_string(&written).unwrap());
    assert_eq!(again, written);
    assert_eq!(serde_json::to_vec(&compile(&again).unwrap()).unwrap(), bytes);
}

#[test]
fn without_a_way_back_the_rollback_class_says_so() {
    let text = drafted();
    let line = text.lines().find(|line| line.starts_with("file = ")).unwrap();
    let lost = text.replace(line, "");
    assert_eq!(compile(&read(&lost)).unwrap().rollback, RollbackClass::Impossible);
    let claimed = format!("rollback = \"proven\"\n{lost}");
    assert!(compile(&read(&claimed)).unwrap_err().to_string().contains("the way back cannot be proven"));
}

#[test]
fn a_host_that_is_to_roll_back_by_itself_is_told_so_in_the_signed_order_and_needs_every_file() {
    let text = drafted();
    let plain = compile(&read(&text)).unwrap();
    assert_eq!((plain.on_failure, plain.rollback_files), (OnFailure::Leave, RollbackFiles::WhenNeeded));
    let told = format!("on_failure = \"roll-back\"\nrollback_files = \"staged\"\n{text}");
    let order = compile(&read(&told)).unwrap();
    assert_eq!((order.on_failure, order.rollback_files), (OnFailure::RollBack, RollbackFiles::Staged));
    assert_eq!(read(&toml::to_string(&read(&told)).unwrap()), read(&told));
    let line = text.lines().find(|line| line.starts_with("file = ")).unwrap();
    for bad in [told.replace(line, ""), format!("rollback = \"snapshot-only\"\n{told}")] {
        let error = compile(&read(&bad)).unwrap_err().to_string();
        assert!(error.starts_with("on_failure: "), "{error}");
    }
}

#[test]
fn a_reboot_is_a_part_of_the_order_and_has_a_longest_grace() {
    let text = drafted();
    assert_eq!(compile(&read(&text)).unwrap().reboot, None);
    let with = |rule: &str| compile(&read(&format!("reboot = {{ {rule} }}\n{text}")));
    let found = with("when = \"if-needed\", grace_minutes = 5").unwrap().reboot;
    assert_eq!(found, Some(RebootRule { when: RebootWhen::IfNeeded, grace_minutes: 5 }));
    let error = with("when = \"always\", grace_minutes = 1441").unwrap_err().to_string();
    assert!(error.starts_with("reboot.grace_minutes: 1441 minutes"), "{error}");
}

/// Each text, written to `path`, is refused with that file's name and what is expected.
fn refused(path: &Path, store: &ArtifactStore, table: impl IntoIterator<Item = (String, &'static str)>) {
    let mut wrong = String::new();
    for (text, expected) in table {
        fs::write(path, &text).unwrap();
        let error = compile_file(path, store).expect_err(expected).to_string();
        if !error.starts_with(&path.display().to_string()) || !error.contains(expected) {
            wrong += &format!("\nexpected {expected}\n   found {error}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn orders_that_mean_nothing_are_refused_with_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path().join("artifacts")).unwrap();
    let path = dir.path().join("order.toml");
    let text = drafted();
    let script = "script = { apply = \"a\", rollback = \"b\", verify = \"c\" }";
    let upgrade = "upgrade = [{ name = \"nginx\", to = \"1.22.1-9+deb12u11\" }]";
    let table = [
        (BY_HAND.to_owned(), r#"7:1: key "change": no [[change.file]] yet: let `patchlab order draft`"#),
        (
            BY_HAND.replace(upgrade, script),
            r#"9:12: key "change.script.apply": a has no digest yet: let `patchlab order draft --from`"#,
        ),
        (BY_HAND.replace(upgrade, ""), r#"7:1: key "change": nothing to do"#),
        (text.replace("PO-2026-0001", "PO 1"), r#"1:1: key "id": "PO 1" is not 1 to 64 letters"#),
        (text.replace("nginx security update", " "), r#"2:1: key "title": a title has 1 to 200"#),
        (text.replace("name = \"nginx\", to", "name = \"openssl\", to"), r#"no [[change.file]] brings openssl"#),
        (
            text.replace("to = \"1.22.1-9+deb12u11\"", "to = \"2\""),
            "nginx 2 is wanted, the file brings 1.22.1-9+deb12u11",
        ),
        (text.replace("nginx-common", "nginx").replace("\"all\"", "\"amd64\""), "a second file for nginx (amd64)"),
        (text.replace("size = 6", "size = 0"), r#"24:1: key "change.file.size": 0 bytes: expected 1 to"#),
        (text.replace("\"1.22.1-9\"", "\"1.22.1-9+deb12u11\""), "would replace itself"),
        (text.replace("severity", "severty"), r#"3:1: unknown key "severty": did you mean "severity"?"#),
        (text.replace("\"important\"", "\"high\""), r#"3:12: key "severity": unknown value "high": known values"#),
        (text.replace("name = \"service\"", "name = \"service\", run = \"x\""), "is of more than one kind (run, unit)"),
        (
            format!("{text}[[change]]\non = {{ family = \"debian\", release = \"13\" }}\n"),
            "make an order for each class",
        ),
    ];
    refused(&path, &store, table);
}

#[test]
fn files_are_taken_in_from_their_path_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path().join("artifacts")).unwrap();
    let path = dir.path().join("order.toml");
    fs::write(&path, drafted()).unwrap();
    let put = |text: &str| {
        let file = dir.path().join("x");
        fs::write(&file, text).unwrap();
        store.put(&file).unwrap().0
    };
    let (common, old) = (put("common"), put("old"));
    let missing = compile_file(&path, &store).unwrap_err().to_string();
    assert!(missing.starts_with(&format!("{}:", path.display())), "{missing}");
    assert!(missing.contains(&format!("artifact {} is missing", Digest::of("new"))), "{missing}");
    fs::write(dir.path().join("new.deb"), "changed").unwrap();
    let altered = compile_file(&path, &store).unwrap_err().to_string();
    assert!(altered.contains(&format!("artifact {} was altered", Digest::of("new"))), "{altered}");
    fs::write(dir.path().join("new.deb"), "new").unwrap();
    compile_file(&path, &store).unwrap();
    assert!(store.has(&Digest::of("new")));
    for digest in [common, old] {
        fs::write(store.path(&digest), "altered").unwrap();
        let error = compile_file(&path, &store).unwrap_err().to_string();
        assert!(error.contains(&format!("artifact {digest} in ")) && error.contains("was altered"), "{error}");
        put(if digest == common { "common" } else { "old" });
    }
}

/// An order by script as `order draft --from` writes it; its files are these texts.
fn drafted_script() -> String {
    let file = |name: &str, text: &str| {
        format!("{{ path = \"./{name}\", size = {}, sha256 = \"{}\" }}", text.len(), Digest::of(text))
    };
    format!(
        "id = \"PO-2\"\ntitle = \"a banner\"\nseverity = \"low\"\n[[change]]\non = {{ family = \"debian\", release = \"12\" }}\n\
         [change.script]\napply = {}\nrollback = {}\nverify = {}\nfiles = [{}, {}]\n",
        file("apply", SCRIPT),
        file("rollback", SCRIPT),
        file("verify", SCRIPT),
        file("snippet", "b"),
        file("banner", "a"),
    )
}

const SCRIPT: &str = "#!/bin/sh\n";

#[test]
fn a_script_is_compiled_to_the_same_bytes_with_its_way_back() {
    let written = read(&drafted_script());
    let order = compile(&written).unwrap();
    assert_eq!((order.rollback, order.install.len(), order.replaces.len()), (RollbackClass::Proven, 0, 0));
    let script = order.script.clone().unwrap();
    let names: Vec<&str> = script.shipped().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["apply", "rollback", "verify", "banner", "snippet"]);
    let bytes = serde_json::to_vec(&order).unwrap();
    let mut shuffled = written.clone();
    shuffled.change[0].script.as_mut().unwrap().files.reverse();
    assert_eq!(serde_json::to_vec(&compile(&shuffled).unwrap()).unwrap(), bytes);
    let again = read(&toml::to_string(&written).unwrap());
    assert_eq!(serde_json::to_vec(&compile(&again).unwrap()).unwrap(), bytes);
    let subjects = patchlab_protocol::envelope::Predicate::subjects(&order);
    assert_eq!(subjects.iter().map(|subject| subject.name.as_str()).collect::<Vec<_>>(), names);
    // An order of packages says nothing of scripts, as before there were any.
    assert!(!serde_json::to_string(&compile(&read(&drafted())).unwrap()).unwrap().contains("script"));
}

#[test]
fn scripts_that_no_host_could_run_are_refused_with_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path().join("artifacts")).unwrap();
    let path = dir.path().join("order.toml");
    let text = drafted_script();
    let empty = Digest::of(SCRIPT).to_string();
    let plain = |text: &str| text.replacen(&empty, &Digest::of("echo all\r\n").to_string(), 1);
    fs::write(dir.path().join("apply"), "echo all\r\n").unwrap();
    let packages = "[change.script]\napply = ";
    let table = [
        (text.replacen("[change.script]", "upgrade = [{ name = \"nginx\" }]\n[change.script]", 1), "never by both"),
        (text.replacen("./snippet", "./apply", 1), "two of its files are called apply"),
        (text.replacen("./snippet", "../.profile", 1), "\".profile\" is no plain file name"),
        (text.replacen("./snippet", "./a b", 1), "\"a b\" is no plain file name"),
        (text.replacen("size = 1,", "size = 0,", 1), "snippet is empty"),
        (text.replacen("size = 1,", "size = 67108864,", 1), "more than 67108864"),
        (text.replacen("size = 10", "length = 10", 1), "7:29: unknown key \"length\" in \"change.script.apply\""),
        (
            text.replacen(packages, "[change.script]\nverfy = 1\napply = ", 1),
            "7:1: unknown key \"verfy\" in \"change.script\": did you mean \"verify\"?",
        ),
        (text.lines().filter(|line| !line.starts_with("verify")).collect::<Vec<_>>().join("\n"), "verify"),
        (plain(&text), "7:1: ./apply does not begin with #!"),
        (plain(&text).replacen("size = 10", "size = 11", 1), "has 10 bytes, not 11"),
        (text.clone(), "was altered"),
    ];
    refused(&path, &store, table);
}
