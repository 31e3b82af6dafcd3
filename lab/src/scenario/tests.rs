use patchlab_check::Status;

use super::*;

const GOOD: &str = r#"
name = "web"
owner = "qa"
summary = "it serves"
applies = { packages = ["nginx"] }
production = ["a"]
[[step]]
name = "a"
run = "true"
[[step]]
name = "b"
run = "./b.sh"
"#;

fn folder(toml: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("web")).unwrap();
    fs::write(dir.path().join("web").join(FILE), toml).unwrap();
    dir
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn the_scenario_that_ships_is_valid_and_clean() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    let scenarios = discover(std::slice::from_ref(&dir)).unwrap();
    let web = scenarios.iter().find(|scenario| scenario.name == "web-smoke").unwrap();
    let names: Vec<&str> = web.production_steps().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["front page", "service"]);
    assert!(web.covers(&set(&["nginx", "nginx-common"])) && !web.covers(&set(&["openssl"])));
    let files: Vec<String> = web.files().unwrap().into_iter().map(|file| file.relative).collect();
    assert_eq!(files, ["load.sh", "scenario.toml"]);
    assert_eq!(web.files().unwrap()[0].mode & 0o111, 0o111);
    assert_eq!(lint(&dir).unwrap(), []);
}

#[test]
fn slips_are_named_with_their_line() {
    let table = [
        (
            GOOD.replace("[\"a\"]", "[\"front\"]"),
            r#"6:15: key "production": there is no step "front"; the steps are "a", "b""#,
        ),
        (
            GOOD.replace("[\"a\"]", "[\"b\"]"),
            r#"6:15: key "production": step "b" runs a file of the scenario's folder"#,
        ),
        (GOOD.replace("name = \"b\"", "name = \"a\""), r#"11:1: a second step is named "a""#),
        (GOOD.replace("name = \"web\"", "name = \"wob\""), r#"2:1: key "name": "wob" is not the folder's name, "web""#),
        (GOOD.replace("name = \"web\"", "name = \"We b\""), r#"2:1: key "name": "We b" is not lower-case"#),
        (GOOD.replace("packages", "package"), r#"5:13: unknown key "package" in "applies": did you mean "packages"?"#),
        (
            format!("{GOOD}[[check]]\nkind = \"failed-unit\"\n"),
            r#"14:8: key "check.kind": unknown value "failed-unit": did"#,
        ),
        (GOOD.replace("run = \"true\"", "http = { url = \"x\" }"), r#"9:16: key "step.http.url": expected an address"#),
        (GOOD.replace("owner = \"qa\"\n", ""), r#"1:1: missing key "owner""#),
    ];
    for (toml, expected) in table {
        let dir = folder(&toml);
        let path = dir.path().join("web");
        let error = Scenario::read(&path).expect_err(expected).to_string();
        assert!(error.starts_with(&format!("{}:{expected}", path.join(FILE).display())), "{expected}\n{error}");
        let findings = lint(dir.path()).unwrap();
        assert!(
            findings.iter().any(|finding| finding.weight == Weight::Error && finding.text == error),
            "{findings:?}"
        );
    }
}

#[test]
fn lint_tells_everything_at_once() {
    let toml = GOOD.replace("[\"a\"]", "[\"x\", \"y\"]").replace("applies = { packages = [\"nginx\"] }\n", "");
    let dir = folder(&toml);
    let findings: Vec<String> = lint(dir.path()).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(findings.len(), 3, "{findings:#?}");
    let dir = folder(GOOD);
    fs::write(dir.path().join("web/b.sh"), "#!/bin/sh\nrm $1/x\n").unwrap();
    let findings = lint(dir.path()).unwrap();
    if std::process::Command::new("shellcheck").arg("--version").output().is_err() {
        eprintln!("skipped: shellcheck is not installed");
        return;
    }
    assert!(findings.iter().any(|finding| finding.text.contains("b.sh:2:4: note: ")), "{findings:?}");
}

#[test]
fn applies_is_every_list_that_is_given() {
    let installed = set(&["nginx", "curl"]);
    let tags = ["web".to_owned()];
    let subject = Subject { baseline: "debian-12-web@2", tags: &tags, installed: &installed };
    let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    type Row<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str], bool);
    let table: &[Row<'_>] = &[
        (&[], &[], &[], true),
        (&["nginx"], &[], &[], true),
        (&["apache2", "nginx"], &[], &[], true),
        (&["apache2"], &[], &[], false),
        (&[], &["web"], &[], true),
        (&[], &["db"], &[], false),
        (&["nginx"], &["db"], &[], false),
        (&[], &[], &["debian-12-web"], true),
        (&[], &[], &["debian-12-web@2"], true),
        (&[], &[], &["debian-12-web@1"], false),
    ];
    for (packages, tags, baselines, fits) in table {
        let applies = Applies { packages: list(packages), tags: list(tags), baselines: list(baselines) };
        assert_eq!(applies.fits(&subject), *fits, "{applies:?}");
    }
}

/// A scenario against this very machine, through a Target that runs local commands.
#[test]
fn a_run_goes_on_after_a_failure_and_ends_with_its_budget() {
    use std::time::Duration;

    use patchlab_check::{
        Target,
        target::{Ended, Ran, TargetError},
    };
    struct Here;
    impl Target for Here {
        fn run(&self, command: &str, dir: Option<&str>, timeout: Duration) -> Result<Ran, TargetError> {
            let out = std::process::Command::new("timeout")
                .args([&format!("{}s", timeout.as_secs_f32()), "/bin/sh", "-c", command])
                .current_dir(dir.unwrap_or("/"))
                .output()
                .map_err(|error| TargetError { action: "run".into(), reason: error.to_string() })?;
            let ended = if out.status.code() == Some(124) { Ended::ByTimeout } else { Ended::ByItself };
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            Ok(Ran { exit: out.status.code(), stdout: text(out.stdout), stderr: text(out.stderr), ended })
        }
        fn read(&self, path: &str, _: u64) -> Result<Option<Vec<u8>>, TargetError> {
            Ok(fs::read(path).ok())
        }
        fn connect(&self, _: &str, _: u16, _: &[u8], _: Duration) -> Result<Option<Vec<u8>>, TargetError> {
            Ok(None)
        }
    }
    let toml = "name = \"web\"\nowner = \"qa\"\nsummary = \"s\"\ntimeout = \"1s\"\n\
        [[step]]\nname = \"no\"\nrun = \"exit 3\"\n[[step]]\nname = \"script\"\nrun = \"./b.sh\"\n\
        [[step]]\nname = \"slow\"\nrun = \"sleep 30\"\n[[step]]\nname = \"late\"\nrun = \"true\"\n";
    let dir = folder(toml);
    let web = dir.path().join("web");
    fs::write(web.join("b.sh"), "#!/bin/sh\nexit 77\n").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(web.join("b.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    let scenario = Scenario::read(&web).unwrap();
    let mut begun = 0;
    let ran = run(&scenario, &Here, web.to_str().unwrap(), &mut |progress| {
        begun += usize::from(matches!(progress, Progress::Begins { .. }));
    })
    .unwrap();
    let seen: Vec<(Status, &str)> =
        ran.steps.iter().map(|step| (step.outcome.status, step.outcome.reason.as_str())).collect();
    assert_eq!(seen[0], (Status::Fail, "exit 3, expected 0"));
    assert_eq!(seen[1].0, Status::Skip);
    assert!(seen[2].1.starts_with("it ran longer than"), "{seen:?}");
    assert_eq!(seen[3], (Status::Fail, "the scenario's budget of 1 s was used up before this step"));
    assert_eq!(begun, 4);
}

#[test]
fn a_workload_before_the_rollback_is_a_scenario_of_its_own() {
    let dir = folder(&format!("{GOOD}[[after-writes]]\nname = \"rows\"\nrun = \"./b.sh rows\"\n"));
    let scenario = Scenario::read(&dir.path().join("web")).unwrap();
    let workload = scenario.workload().unwrap();
    assert_eq!((workload.name.as_str(), workload.steps.len(), workload.steps[0].name.as_str()), ("web", 1, "rows"));
    assert!(workload.workload().is_none() && workload.checks.is_empty());
    let dir = folder(&format!("{GOOD}[[after-writes]]\nname = \"a\"\nrun = \"true\"\n"));
    let error = Scenario::read(&dir.path().join("web")).unwrap_err().to_string();
    assert!(error.ends_with("a second step is named \"a\": results go by name"), "{error}");
}
