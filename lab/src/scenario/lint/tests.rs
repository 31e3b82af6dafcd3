use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;

const HEAD: &str =
    "name = \"web\"\nowner = \"qa\"\nsummary = \"s\"\ntimeout = \"60s\"\napplies = { packages = [\"nginx\"] }\n";
const STEP: &str = "[[step]]\nname = \"a\"\nrun = \"true\"\n";

/// A folder with these files; what is found in it, without the folder's own path.
fn found(files: &[(&str, &str)]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        let mode = if text.contains("is executable") { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let root = format!("{}/", dir.path().display());
    lint(dir.path()).unwrap().iter().map(|finding| finding.to_string().replace(&root, "")).collect()
}

fn scenario(more: &str) -> Vec<String> {
    found(&[("web/scenario.toml", &format!("{HEAD}{more}"))])
}

#[test]
fn commands_are_read_wherever_they_are_written() {
    let after = scenario(&format!("{STEP}[[after-writes]]\nname = \"w\"\nrun = \"if true\"\n"));
    assert!(after.len() == 1 && after[0].starts_with("web/scenario.toml:11:1: step \"w\": the shell"), "{after:#?}");
    let fixture = "summary = \"s\"\n[[set-up]]\nname = \"up\"\nrun = \"while true; do\"\n";
    let text = format!("{HEAD}fixtures = [\"db\"]\n{STEP}");
    let in_fixture = found(&[("web/scenario.toml", &text), ("fixtures/db/fixture.toml", fixture)]);
    let expected = "fixtures/db/fixture.toml:4:1: step \"up\": the shell cannot read this command";
    assert!(in_fixture.len() == 1 && in_fixture[0].starts_with(expected), "{in_fixture:#?}");
    let copied = "[[after-writes]]\nname = \"w\"\ncopy-in = { from = \"x\", to = \"/x\" }\n";
    let missing = scenario(&format!("{STEP}{copied}"));
    let expected = "web/scenario.toml:11:13: step \"w\": there is no file x in the scenario's folder";
    assert_eq!(missing, [expected]);
}

#[test]
fn commands_are_shown_to_shellcheck_where_it_is() {
    if std::process::Command::new("shellcheck").arg("--version").output().is_err() {
        eprintln!("SKIP commands_are_shown_to_shellcheck_where_it_is: shellcheck is not installed");
        return;
    }
    let steps = "[[step]]\nname = \"a\"\nrun = \"[[ -e /x ]]\"\n[[step]]\nname = \"b\"\nrun = \"\"\"\ncd /tmp\nrm x*\n\"\"\"\n\
        [[step]]\nname = \"c\"\nwait = { until = { run = \"ls $(cat /x)\" }, limit = \"5s\" }\n";
    let all = scenario(steps);
    let expected = [
        ("web/scenario.toml:8:1: step \"a\": warning: In POSIX sh, [[ ]] is undefined.", "[SC3010] (advice)"),
        (
            "web/scenario.toml:11:1: step \"b\": line 1 of the command: warning: Use 'cd ... || exit'",
            "[SC2164] (advice)",
        ),
        ("web/scenario.toml:17:", "[SC2046] (advice)"),
    ];
    assert_eq!(all.len(), expected.len(), "{all:#?}");
    for (told, (begin, end)) in all.iter().zip(expected) {
        assert!(told.starts_with(begin) && told.ends_with(end), "{begin} {end}\n{told}");
    }
    // What a command may do, and a script for every POSIX shell may not; and what is only in the guest.
    let fine = "[[step]]\nname = \"a\"\nrun = \"f() { local x=1; echo -n \\\"$x\\\"; }; f; . /etc/os-release; echo $own $1\"\n";
    assert_eq!(scenario(fine), Vec::<String>::new());
}

#[test]
fn scripts_are_read_by_their_shells_and_files_that_are_run_must_be_there_and_executable() {
    let text = format!(
        "{HEAD}[[step]]\nname = \"a\"\nrun = \"./a.sh\"\n[[step]]\nname = \"b\"\nrun = \"./b.sh && sh ./a.sh\"\n\
        [[step]]\nname = \"c\"\nrun = \"./missing.sh\"\n"
    );
    let good = "#!/bin/sh\n# is executable\ntrue\n";
    let all = found(&[("web/scenario.toml", &text), ("web/a.sh", "#!/bin/sh\ntrue\n"), ("web/b.sh", good)]);
    let expected = [
        "web/scenario.toml:8:1: step \"a\": ./a.sh is run, and is not executable: chmod +x it, or have sh run it (advice)",
        "web/scenario.toml:14:1: step \"c\": ./missing.sh is run, and is no file of the folder (advice)",
    ];
    assert_eq!(all, expected);
    let open = found(&[
        ("web/scenario.toml", &format!("{HEAD}{STEP}")),
        ("web/a.sh", "#!/bin/sh\n# is executable\nif true\n"),
    ]);
    // The shell's own word, whether or not shellcheck is here.
    assert!(open.iter().any(|told| told.contains("a.sh: ") && told.contains("yntax error")), "{open:#?}");
}

#[test]
fn every_unknown_key_is_told_in_scenarios_and_fixtures() {
    let text = format!("{HEAD}requirs = []\n{STEP}timout = \"1s\"\n[[step]]\nname = \"b\"\nrnu = \"true\"\n");
    let all = scenario(&text.replace(HEAD, ""));
    let keys = ["6:1: unknown key \"requirs\"", "10:1: unknown key \"timout\"", "13:1: unknown key \"rnu\""];
    assert_eq!(all.len(), 3, "{all:#?}");
    assert!(all.iter().zip(keys).all(|(told, key)| told.contains(key)), "{all:#?}");
    // A fixture that no scenario names is read as well.
    let fixture = "summary = \"s\"\nfoo = 1\n[[set-up]]\nname = \"up\"\nrun = \"true\"\nbar = 1\n";
    let files = [("web/scenario.toml", &*format!("{HEAD}{STEP}")), ("fixtures/db/fixture.toml", fixture)];
    let all = found(&files);
    assert_eq!(all.len(), 2, "{all:#?}");
    assert!(all[0].starts_with("fixtures/db/fixture.toml:2:1: unknown key \"foo\""), "{all:#?}");
    let asks = fixture.replace("foo = 1\n", "").replace("bar = 1\n", "").replace("true", "echo ${port}");
    let all = found(&[files[0], ("fixtures/db/fixture.toml", &asks)]);
    assert_eq!(
        all,
        ["fixtures/db/fixture.toml: not checked: it has parameters, and no scenario here names it (advice)"]
    );
}

#[test]
fn a_fixture_has_the_parameters_of_the_scenario_that_uses_it() {
    let fixture = "summary = \"s\"\n[[set-up]]\nname = \"up\"\nrun = \"serve ${port} $${own}\"\n";
    let text = format!("{HEAD}fixtures = [\"db\"]\nmatrix = {{ port = [80, 443] }}\n{STEP}");
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("web/scenario.toml", text.as_str()), ("fixtures/db/fixture.toml", fixture)] {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    assert_eq!(lint(dir.path()).unwrap(), []);
    let all = Scenario::read_all(&dir.path().join("web")).unwrap();
    let commands: Vec<String> = all.iter().map(|one| format!("{:?}", one.fixtures[0].set_up[0].kind)).collect();
    assert!(commands[0].contains("serve 80 ${own}") && commands[1].contains("serve 443 ${own}"), "{commands:?}");
    // Before, it was the shell's, and nothing at all.
    fs::write(dir.path().join("web/scenario.toml"), format!("{HEAD}fixtures = [\"db\"]\n{STEP}")).unwrap();
    let told = lint(dir.path()).unwrap();
    assert!(told.len() == 1 && told[0].text.contains("fixture.toml:4:7: unknown parameter \"port\""), "{told:?}");
}

#[test]
fn time_is_counted_for_fixtures_and_for_writes_before_the_rollback() {
    let wait = |list: &str, name: &str, limit: &str| {
        format!("[[{list}]]\nname = {name:?}\nwait = {{ until = {{ run = \"true\" }}, limit = {limit:?} }}\n")
    };
    let fixture = format!("summary = \"s\"\n{}", wait("set-up", "up", "60s"));
    let text = format!("{HEAD}fixtures = [\"db\"]\n{STEP}");
    let all = found(&[("web/scenario.toml", &text), ("fixtures/db/fixture.toml", &fixture)]);
    assert!(all.len() == 1 && all[0].contains("step \"a\" may never be reached"), "{all:#?}");
    let all = scenario(&format!("{STEP}{}", wait("after-writes", "w", "90s")));
    assert!(all.len() == 1 && all[0].contains("step \"w\" may wait 90 s, longer than the 60 s"), "{all:#?}");
}
