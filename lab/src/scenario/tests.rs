use std::time::Duration;

use patchlab_check::{
    Status, Target,
    step::{CopyIn, CopyOut},
    target::{Ended, Ran, TargetError},
};

use super::*;
use crate::{
    accelerator::Accelerator,
    machine::{Hardware, Screen},
};

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
        (
            format!("{GOOD}[[check]]\nkind = \"coredump\"\n[[check]]\nkind = \"coredump\"\nlevel = \"info\"\n"),
            r#"16:1: a second [[check]] of kind "coredump": one level"#,
        ),
        (
            GOOD.replace("name = \"b\"", "name = \"check coredump\""),
            r#"11:1: a step is named "check coredump": results go by name, and checks"#,
        ),
        (GOOD.replace("owner = \"qa\"\n", ""), r#"1:1: missing key "owner""#),
        (
            GOOD.replace("run = \"true\"", "reboot = true"),
            r#"6:15: key "production": step "a" is reboot, which the lab alone"#,
        ),
        (
            GOOD.replace("run = \"true\"", "wait = { until = { run = \"./x\" }, limit = \"1s\" }"),
            r#"6:15: key "production": step "a" runs a file of the scenario's folder"#,
        ),
        (GOOD.replace("run = \"true\"", "run = \"x ${prot}\""), r#"9:7: unknown parameter "prot", none is said"#),
        (
            GOOD.replace("run = \"./b.sh\"", "copy-in = { from = \"x.conf\", to = \"/x\" }"),
            r#"12:13: step "b": there is no file x.conf in the scenario's folder"#,
        ),
        (
            GOOD.replace("owner = \"qa\"", "owner = \"qa\"\nfixtures = [\"db\"]"),
            r#"4:13: key "fixtures": there is no fixture "db": make fixtures/db/fixture.toml"#,
        ),
        (
            GOOD.replace(
                "owner = \"qa\"",
                "owner = \"qa\"\nquarantine = { owner = \"qa\", until = \"soon\", ticket = \"1\" }",
            ),
            r#"4:38: key "quarantine.until": expected a day such as "2027-01-31", found "soon""#,
        ),
        (
            GOOD.replace(
                "owner = \"qa\"",
                "owner = \"qa\"\nquarantine = { owner = \"\", until = \"2026-01-01\", ticket = \"1\" }",
            ),
            r#"4:16: key "quarantine.owner": it is empty"#,
        ),
        (
            GOOD.replace("owner = \"qa\"", "owner = \"qa\"\nredact = [\"x*\"]"),
            r#"4:1: key "redact": a pattern matches everything"#,
        ),
        (
            GOOD.replace("owner = \"qa\"", "owner = \"qa\"\nrepeat = 0"),
            r#"4:10: key "repeat": expected a number of times"#,
        ),
        (
            GOOD.replace("run = \"./b.sh\"", "run = \"true\"\nmachine = \"db\""),
            r#"13:1: step "b": there is no machine "db" (there is none): add [machine.db]"#,
        ),
        (
            format!("{}machine = \"db\"\n[machine.db]\n", GOOD.replace("production = [\"a\"]", "production = [\"b\"]"))
                .replace("./b.sh", "true"),
            r#"6:15: key "production": step "b" is done on db, not on the host"#,
        ),
        (
            format!("{GOOD}[machine.subject]\n"),
            r#"13:10: a machine cannot be named "subject": that is the one under test"#,
        ),
        (format!("{GOOD}[machine.Db]\n"), r#"13:10: key "machine.Db": expected a machine's name"#),
        (format!("{GOOD}until = \"end\"\n"), r#"13:1: step "b": there is no barrier "end" after it"#),
        (
            GOOD.replace("run = \"./b.sh\"", "barrier = true"),
            r#"10:1: step "b": no step before it goes on until it: give one until = "b""#,
        ),
        (
            GOOD.replace("run = \"./b.sh\"", "reboot = true\nuntil = \"c\""),
            r#"7:1: key "step": step "b" cannot be as it is written: only what looks at the machine goes on beside"#,
        ),
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
    assert_eq!(findings.len(), 4, "{findings:#?}");
    // Everything that works and might not be meant.
    let toml = GOOD
        .replace("owner = \"qa\"", "owner = \"qa\"\ntimeout = \"30s\"\nrequires = [\"quantum\"]\nquarantine = { owner = \"q\", until = \"2020-01-01\", ticket = \"1\" }")
        .replace("run = \"true\"", "wait = { until = { run = \"true\" }, limit = \"30s\" }")
        .replace("run = \"./b.sh\"", "run = \"if true\"");
    let dir = folder(&format!("{toml}[parameters]\nport = 1\n"));
    let findings: Vec<String> = lint(dir.path()).unwrap().iter().map(ToString::to_string).collect();
    for expected in [
        "the shell cannot read this command",
        "step \"b\" may never be reached: waits and sleeps before it may take 30 s, the scenario has 30 s (advice)",
        "the quarantine until 2020-01-01, owner q, 1 has expired: it counts again (advice)",
        "the scenario is skipped: this patchlab does not know the word \"quantum\"",
        "parameter \"port\" is not used",
    ] {
        assert!(findings.iter().any(|finding| finding.contains(expected)), "{expected}: {findings:#?}");
    }
    assert_eq!(findings.len(), 5, "{findings:#?}");
    let dir = folder(GOOD);
    fs::write(dir.path().join("web/b.sh"), "#!/bin/sh\nrm $1/x\n").unwrap();
    let findings = lint(dir.path()).unwrap();
    if std::process::Command::new("shellcheck").arg("--version").output().is_err() {
        eprintln!("skipped: shellcheck is not installed");
        return;
    }
    let note = findings.iter().find(|finding| finding.text.contains("b.sh:2:4: note: ")).expect("shellcheck's note");
    assert_eq!(note.weight, Weight::Advice);
}

#[test]
fn applies_is_every_list_that_is_given() {
    let installed = set(&["nginx", "curl"]);
    let subject = Subject { baseline: "debian-12-web@2".into(), tags: vec!["web".into()], installed };
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

/// This very machine, on a bench without errands.
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
        let written = (out.stdout.len() + out.stderr.len()) as u64;
        Ok(Ran { exit: out.status.code(), stdout: text(out.stdout), stderr: text(out.stderr), written, ended })
    }
    fn read(&self, path: &str, _: u64) -> Result<Option<Vec<u8>>, TargetError> {
        Ok(fs::read(path).ok())
    }
    fn connect(&self, _: &str, _: u16, _: &[u8], _: Duration) -> Result<Option<Vec<u8>>, TargetError> {
        Ok(None)
    }
}

/// A bench on this machine: files are copied, and a "reboot" says what it is told to.
struct Bed {
    reboot: Result<String, String>,
    out: PathBuf,
}

impl Bench for Bed {
    fn target(&self) -> &(dyn Target + Sync) {
        &Here
    }
    fn reboot(&self, _: Duration) -> ErrandEnd {
        Ok(self.reboot.clone())
    }
    fn copy_in(&self, dir: &Path, copy: &CopyIn, _: Duration) -> ErrandEnd {
        let copied = fs::copy(dir.join(copy.from.as_str()), copy.to.as_str());
        Ok(copied.map(|bytes| format!("{bytes} bytes")).map_err(|error| error.to_string()))
    }
    fn screenshot(&self, step: &Step) -> ErrandEnd {
        Ok(Err(format!("no screen for {}", step.name)))
    }
    fn copy_out(&self, _: &Step, copy: &CopyOut, _: Duration) -> ErrandEnd {
        let copied = fs::copy(copy.from.as_str(), &self.out);
        Ok(copied.map(|bytes| format!("{bytes} bytes")).map_err(|error| error.to_string()))
    }
}

const HEAD: &str = "name = \"web\"\nowner = \"qa\"\nsummary = \"s\"\n";

/// Runs a scenario here; gives what was seen of every step, in order.
fn ran(dir: &tempfile::TempDir, reboot: Result<&str, &str>) -> Vec<(String, Status, String)> {
    let web = dir.path().join("web");
    let scenario = Scenario::read(&web).unwrap();
    let reboot = reboot.map(str::to_owned).map_err(str::to_owned);
    let bed = Bed { reboot, out: dir.path().join("out") };
    let mut begun = 0;
    let ran = run(&scenario, &Benches::alone(&bed), web.to_str().unwrap(), &mut |progress| {
        begun += usize::from(matches!(progress, Progress::Begins { .. }));
    })
    .unwrap();
    assert_eq!(
        ran.steps.iter().map(|step| &step.name).collect::<Vec<_>>(),
        scenario.all_steps().map(|step| &step.name).collect::<Vec<_>>()
    );
    assert!(begun >= ran.steps.len());
    ran.steps.into_iter().map(|step| (step.name, step.outcome.status, step.outcome.reason)).collect()
}

#[test]
fn a_run_goes_on_after_a_failure_and_ends_with_its_budget() {
    let toml = format!(
        "{HEAD}timeout = \"1s\"\n\
        [[step]]\nname = \"no\"\nrun = \"exit 3\"\n[[step]]\nname = \"script\"\nrun = \"./b.sh\"\n\
        [[step]]\nname = \"slow\"\nrun = \"sleep 30\"\n[[step]]\nname = \"late\"\nrun = \"true\"\n"
    );
    let dir = folder(&toml);
    let script = dir.path().join("web/b.sh");
    fs::write(&script, "#!/bin/sh\nexit 77\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let seen = ran(&dir, Ok(""));
    assert_eq!((seen[0].1, seen[0].2.as_str()), (Status::Fail, "exit 3, expected 0"));
    assert_eq!(seen[1].1, Status::Skip);
    assert!(seen[2].2.starts_with("it ran longer than"), "{seen:?}");
    let late = "the scenario's budget of 1 s was used up before this step";
    assert_eq!((seen[3].1, seen[3].2.as_str()), (Status::Fail, late));
}

#[test]
fn errands_are_done_by_the_bench_and_a_machine_that_does_not_come_back_ends_the_run() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("site.conf");
    let toml = format!(
        "{HEAD}[[step]]\nname = \"in\"\ncopy-in = {{ from = \"site.conf\", to = {file:?} }}\n\
        [[step]]\nname = \"there\"\nfile = {{ path = {file:?}, contains = \"listen\" }}\n\
        [[step]]\nname = \"rest\"\nsleep = {{ for = \"1ms\", why = \"to see it\" }}\n\
        [[step]]\nname = \"again\"\nreboot = true\n\
        [[step]]\nname = \"out\"\ncopy-out = {{ from = {file:?} }}\n\
        [[step]]\nname = \"look\"\nscreenshot = true\n"
    );
    let dir = folder(&toml);
    fs::write(dir.path().join("web/site.conf"), "listen 80;\n").unwrap();
    let mut seen = ran(&dir, Ok("back"));
    assert_eq!(seen.pop().unwrap().2, "no screen for look");
    assert!(seen.iter().all(|(_, status, _)| *status == Status::Pass), "{seen:?}");
    assert_eq!(fs::read_to_string(dir.path().join("out")).unwrap(), "listen 80;\n");
    let scenario = Scenario::read(&dir.path().join("web")).unwrap();
    assert_eq!(scenario.requires, ["screen"]);
    let gone = |reboot: Result<&str, &str>| {
        let reboot = reboot.map(str::to_owned).map_err(str::to_owned);
        let bed = Bed { reboot, out: dir.path().join("out") };
        run(&scenario, &Benches::alone(&bed), dir.path().join("web").to_str().unwrap(), &mut |_| ()).unwrap().gone
    };
    assert_eq!((gone(Ok("back")), gone(Err("no answer")).as_deref()), (None, Some("again")));
    let seen = ran(&dir, Err("no answer within 9 s"));
    assert_eq!(seen[3].2, "no answer within 9 s");
    assert_eq!((seen[4].1, seen[4].2.as_str()), (Status::Fail, "not run, since the machine was lost in \"again\""));
}

#[test]
fn a_step_goes_on_beside_others_until_its_barrier() {
    let place = tempfile::tempdir().unwrap();
    let (begun, go) = (place.path().join("begun"), place.path().join("go"));
    let wait = |file: &Path| format!("while ! test -e {}; do sleep 0.01; done", file.display());
    // Each of both waits for what the other does: one after the other would never end.
    let toml = format!(
        "{HEAD}timeout = \"20s\"\nrepeat = 2\n\
        [[step]]\nname = \"load\"\nrun = \"touch {}; {}; rm {}; exit 3\"\nuntil = \"over\"\n\
        [[step]]\nname = \"meanwhile\"\nrun = \"{}; rm {}; touch {}\"\n\
        [[step]]\nname = \"over\"\nbarrier = true\n[[step]]\nname = \"after\"\nrun = \"! test -e {}\"\n",
        begun.display(),
        wait(&go),
        go.display(),
        wait(&begun),
        begun.display(),
        go.display(),
        go.display()
    );
    let (seen, slow) = (ran(&folder(&toml), Ok("")), ran(&folder(&toml.replace("exit 3", "exit 0")), Ok("")));
    let statuses = |seen: &[(String, Status, String)]| seen.iter().map(|(_, status, _)| *status).collect::<Vec<_>>();
    assert_eq!(statuses(&seen), [Status::Fail, Status::Pass, Status::Pass, Status::Pass], "{seen:?}");
    assert_eq!(seen[0].2, "round 1 of 2: exit 3, expected 0");
    assert_eq!(statuses(&slow), [Status::Pass; 4], "{slow:?}");
}

#[test]
fn steps_are_done_on_their_machines_and_one_that_is_lost_ends_only_its_own() {
    let toml = format!(
        "{HEAD}[machine.db]\n[[step]]\nname = \"here\"\nrun = \"true\"\n\
        [[step]]\nname = \"again\"\nreboot = true\nmachine = \"db\"\n\
        [[step]]\nname = \"there\"\nrun = \"true\"\nmachine = \"db\"\n[[step]]\nname = \"still here\"\nreboot = true\n"
    );
    let dir = folder(&toml);
    let scenario = Scenario::read(&dir.path().join("web")).unwrap();
    let out = dir.path().join("out");
    let subject = Bed { reboot: Ok("back".into()), out: out.clone() };
    let db = Bed { reboot: Err("no answer within 9 s".into()), out };
    let name = "db".parse().unwrap();
    let benches = Benches { subject: &subject, others: [(&name, &db as &dyn Bench)].into() };
    let ran = run(&scenario, &benches, "/", &mut |_| ()).unwrap();
    let seen: Vec<(Status, &str)> =
        ran.steps.iter().map(|step| (step.outcome.status, step.outcome.reason.as_str())).collect();
    let lost = "not run, since its machine was lost before";
    let expected =
        [(Status::Pass, ""), (Status::Fail, "no answer within 9 s"), (Status::Fail, lost), (Status::Pass, "")];
    assert_eq!((seen.as_slice(), ran.gone), (&expected[..], None));
    let error = run(&scenario, &Benches::alone(&subject), "/", &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("there is no machine db"), "{error}");
}

/// A scenario with a fixture that writes down what is done, in a folder of its own.
fn with_fixture(set_up: &str, more: &str, steps: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = folder("");
    let log = dir.path().join("log");
    let scenario = format!("{HEAD}fixtures = [\"data\"]\n{more}\n{steps}").replace("LOG", log.to_str().unwrap());
    fs::write(dir.path().join("web").join(FILE), scenario).unwrap();
    let fixture = dir.path().join(FIXTURES).join("data");
    fs::create_dir_all(&fixture).unwrap();
    let text = format!(
        "summary = \"s\"\n[[set-up]]\nname = \"make\"\nrun = \"{set_up}\"\n[[tear-down]]\nname = \"take away\"\nrun = \"echo down >>LOG\"\n"
    );
    fs::write(fixture.join(FIXTURE_FILE), text.replace("LOG", log.to_str().unwrap())).unwrap();
    fs::write(fixture.join("rows.sql"), "x").unwrap();
    // As in a guest, where a fixture's files lie in the scenario's folder.
    fs::create_dir_all(dir.path().join("web/fixtures/data")).unwrap();
    (dir, log)
}

#[test]
fn fixtures_are_set_up_before_and_taken_away_after_whatever_happens() {
    let own = "[[step]]\nname = \"own\"\nrun = \"echo own >>LOG; false\"\n";
    let (dir, log) = with_fixture("echo up >>LOG", "", own);
    let seen = ran(&dir, Ok(""));
    let names: Vec<&str> = seen.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["fixture data: make", "own", "fixture data: take away"]);
    assert_eq!(fs::read_to_string(&log).unwrap(), "up\nown\ndown\n");
    let scenario = Scenario::read(&dir.path().join("web")).unwrap();
    let files: Vec<String> = scenario.files().unwrap().into_iter().map(|file| file.relative).collect();
    assert_eq!(files, ["fixtures/data/fixture.toml", "fixtures/data/rows.sql", "scenario.toml"]);

    let (dir, log) = with_fixture("exit 4", "", own);
    let seen = ran(&dir, Ok(""));
    assert_eq!(seen[1].2, "not run, since \"fixture data: make\" did not pass");
    assert_eq!((seen[2].1, fs::read_to_string(&log).unwrap().as_str()), (Status::Pass, "down\n"));

    // Taken away although the budget is used up.
    let slow = "[[step]]\nname = \"slow\"\nrun = \"sleep 9\"\n";
    let (dir, log) = with_fixture("echo up >>LOG", "timeout = \"500ms\"", slow);
    assert_eq!(ran(&dir, Ok(""))[2].1, Status::Pass);
    assert_eq!(fs::read_to_string(&log).unwrap(), "up\ndown\n");
}

#[test]
fn a_scenario_is_brought_before_a_step_with_its_fixtures_set_up() {
    let steps = "[[step]]\nname = \"a\"\nrun = \"echo a >>LOG\"\n[[step]]\nname = \"b\"\nrun = \"echo b >>LOG\"\n";
    for (step, done) in [("b", "up\na\n"), ("a", "up\n"), ("check coredump", "up\na\nb\n"), ("fixture data: make", "")]
    {
        let (dir, log) = with_fixture("echo up >>LOG", "repeat = 2", steps);
        let scenario = Scenario::read(&dir.path().join("web")).unwrap().before(step);
        let bed = Bed { reboot: Ok(String::new()), out: dir.path().join("out") };
        let root = dir.path().join("web");
        run(&scenario, &Benches::alone(&bed), root.to_str().unwrap(), &mut |_| ()).unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap_or_default(), done, "before {step}");
    }
}

#[test]
fn what_a_workload_writes_into_a_fixture_is_there_after_it() {
    let steps = "[[step]]\nname = \"read\"\nrun = \"echo read >>LOG\"\n\
        [[after-writes]]\nname = \"write\"\nrun = \"echo write >>LOG\"\n";
    let (dir, log) = with_fixture("echo up >>LOG", "repeat = 2\nredact = [\"hunter.\"]", steps);
    let scenario = Scenario::read(&dir.path().join("web")).unwrap();
    let workload = scenario.workload().unwrap();
    assert_eq!(workload.steps[0].redact, scenario.redact);
    let bed = Bed { reboot: Ok(String::new()), out: dir.path().join("out") };
    let root = dir.path().join("web");
    let done = |scenario: &Scenario| run(scenario, &Benches::alone(&bed), root.to_str().unwrap(), &mut |_| ()).unwrap();
    assert!(scenario.taking_away().is_none());
    done(&workload);
    // Once more on the same machine, as where a failure is to show twice.
    done(&workload.taking_away().unwrap());
    done(&workload);
    let after = scenario.after_workload();
    assert!(after.taking_away().is_none());
    done(&after);
    assert_eq!(fs::read_to_string(&log).unwrap(), "up\nwrite\ndown\nup\nwrite\nread\nread\n");
}

#[test]
fn rounds_are_repeated_until_one_fails() {
    let steps = "[[step]]\nname = \"a\"\nrun = \"echo a >>LOG\"\n\
        [[step]]\nname = \"b\"\nrun = \"test $(wc -l <LOG) -ne 3\"\n";
    let (dir, log) = with_fixture("echo up >>LOG", "repeat = 4", steps);
    let seen = ran(&dir, Ok(""));
    assert_eq!(seen.len(), 4);
    assert_eq!(seen[2].2, "round 2 of 4: exit 1, expected 0");
    assert_eq!(fs::read_to_string(&log).unwrap(), "up\na\na\ndown\n");
}

#[test]
fn a_metric_is_sampled_as_often_as_step_and_scenario_say() {
    let metric = "metric = { name = \"n\", regex = \"n=([0-9]+)\", worse_than_control = \"20%\" }";
    let steps = |repeat: &str| {
        format!("[[step]]\nname = \"a\"\nrun = \"echo x >>LOG; echo n=$(wc -l <LOG)\"\n{repeat}\n{metric}\n")
    };
    let samples = |repeat: &str, more: &str| {
        let (dir, _) = with_fixture("true", more, &steps(repeat));
        let scenario = Scenario::read(&dir.path().join("web")).unwrap();
        let bed = Bed { reboot: Ok(String::new()), out: dir.path().join("out") };
        let ran = run(&scenario, &Benches::alone(&bed), dir.path().join("web").to_str().unwrap(), &mut |_| ()).unwrap();
        let outcome = ran.steps[1].outcome.clone();
        (outcome.samples.iter().map(|sample| sample.number()).collect::<Vec<_>>(), outcome.reason)
    };
    assert_eq!(samples("repeat = 3", "repeat = 2").0, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(samples("", "").0.len(), 7);
    // A time without a number is a failure, and ends it.
    let (dir, log) = with_fixture("true", "", &steps("").replace("echo n=", "test $(wc -l <LOG) -lt 3 && echo n="));
    let seen = ran(&dir, Ok(""));
    assert_eq!(seen[1].2, "time 3 of 7: exit 1, expected 0");
    assert_eq!(fs::read_to_string(&log).unwrap().lines().filter(|line| *line == "x").count(), 3);
    let advice = lint(with_fixture("true", "", &steps("repeat = 3")).0.path()).unwrap();
    assert!(advice.iter().any(|found| found.text.contains("3 samples of n cannot be compared")), "{advice:?}");
}

#[test]
fn a_matrix_is_a_scenario_for_each_combination() {
    let toml = format!(
        "{HEAD}[parameters]\npath = \"x\"\n[matrix]\nport = [80, 443]\n\
        [[step]]\nname = \"listens\"\nport = {{ number = \"${{port}}\" }}\n\
        [[step]]\nname = \"page\"\nrun = \"curl http://h:${{port}}/${{path}}\"\n"
    );
    let dir = folder(&toml);
    let all = discover(&[dir.path().to_owned()]).unwrap();
    let names: Vec<(&str, &str)> = all.iter().map(|one| (one.name.as_str(), one.folder())).collect();
    assert_eq!(names, [("web[port=443]", "web"), ("web[port=80]", "web")]);
    let [Kind::Port(port), Kind::Run { command, .. }] = [&all[0].steps[0].kind, &all[0].steps[1].kind] else {
        panic!()
    };
    assert_eq!((port.number, command.as_str()), (443, "curl http://h:443/x"));
    assert_eq!(lint(dir.path()).unwrap().len(), 1, "only that it names no packages");
}

#[test]
fn a_quarantine_holds_until_the_end_of_its_day() {
    let day = |text: &str| text.parse::<jiff::civil::Date>().unwrap();
    let quarantine = Quarantine { owner: "qa".into(), until: day("2026-11-30"), ticket: "QA-1".into() };
    assert_eq!(quarantine.standing(day("2026-11-30")), Standing::Holds);
    assert_eq!(quarantine.standing(day("2026-12-01")), Standing::Expired);
    assert_eq!(quarantine.to_string(), "until 2026-11-30, owner qa, QA-1");
}

#[test]
fn what_a_scenario_requires_is_given_or_said_why_not() {
    let hardware =
        |accelerator| Hardware { memory_mib: 512, vcpus: 1, accelerator, machine: "q35".into(), screen: None };
    let (fast, slow) = (hardware(Accelerator::Kvm), hardware(Accelerator::Tcg));
    for word in ["reboot", "isolated"] {
        assert_eq!(requirement::unmet(word, &slow), None);
    }
    assert_eq!(requirement::unmet("kvm", &fast), None);
    let no = requirement::unmet("kvm", &slow).unwrap();
    assert_eq!(no, "it requires \"kvm\": the lab's machines run under software emulation");
    assert!(requirement::unmet("screen", &fast).unwrap().ends_with("give its recipe screen = \"vga\""));
    assert_eq!(
        requirement::unmet("screen", &Hardware { screen: Some(Screen::Vga), ..hardware(Accelerator::Tcg) }),
        None
    );
    assert!(requirement::unmet("network-outside", &fast).unwrap().ends_with("reach nothing outside it"));
    assert!(
        requirement::unmet("quantum", &fast).unwrap().contains("does not know the word \"quantum\"; it knows isolated")
    );
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

/// A machine three times as slow as others, whose copies say how long they might have taken.
struct Slow;

impl Bench for Slow {
    fn target(&self) -> &(dyn Target + Sync) {
        &Here
    }
    fn pace(&self) -> u32 {
        3
    }
    fn reboot(&self, _: Duration) -> ErrandEnd {
        Ok(Ok(String::new()))
    }
    fn copy_in(&self, _: &Path, _: &CopyIn, timeout: Duration) -> ErrandEnd {
        Ok(Ok(timeout.as_secs_f64().ceil().to_string()))
    }
    fn copy_out(&self, _: &Step, _: &CopyOut, timeout: Duration) -> ErrandEnd {
        Ok(Ok(timeout.as_secs_f64().ceil().to_string()))
    }
    fn screenshot(&self, _: &Step) -> ErrandEnd {
        Ok(Ok(String::new()))
    }
}

#[test]
fn copies_have_their_steps_time_and_what_is_left_of_the_budget() {
    let copies = |head: &str| {
        let dir = folder(&format!(
            "{HEAD}{head}[[step]]\nname = \"in\"\ncopy-in = {{ from = \"scenario.toml\", to = \"/x\" }}\n\
            [[step]]\nname = \"said\"\ncopy-out = {{ from = \"/x\" }}\ntimeout = \"7s\"\n"
        ));
        let scenario = Scenario::read(&dir.path().join("web")).unwrap();
        let ran = run(&scenario, &Benches::alone(&Slow), "/", &mut |_| ()).unwrap();
        let said: Vec<String> = ran.steps.into_iter().map(|step| step.outcome.output).collect();
        (said.join(" "), scenario.budget(3))
    };
    assert_eq!(copies(""), ("180 7".to_owned(), Duration::from_secs(900)));
    assert_eq!(copies("timeout = \"90s\"\n"), ("90 7".to_owned(), Duration::from_secs(90)));
}
