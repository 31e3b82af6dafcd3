//! A control that is remembered: the second order on the same baseline under the same scenarios is validated on one machine, and what is
//! not well there is asked again with a control beside it. And what needs two pairs of clones to be believed. On real clones; skips aloud
//! what this machine cannot run.

use std::{fs, path::Path};

use patchlab_lab::{
    report::{BaselineReport, Report},
    verdict::{Judgement, Verdict},
};
use patchlab_tests::{
    package::{self, File},
    program::{Ended, Need, Patchlab, file, folder, obstacle},
};

const NEEDS: [Need; 5] = [Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Stored];

const WATCHED: &str = r#"name = "watched"
owner = "tests"
summary = "dpkg is well, and so is the journal"
applies = { packages = ["quiet", "still", "loud", "calm", "dpkg"] }

[[step]]
name = "dpkg"
run = "dpkg --audit"

[[check]]
kind = "journal-errors"

[[check]]
kind = "listening-ports"
"#;

/// Says something bad each time that it is installed.
const LOGS: &str = "#!/bin/sh\n[ \"$1\" = configure ] && logger -t loud -p user.err 'it went wrong'\nexit 0\n";

/// In quarantine, and with reason.
const WILD: &str = r#"name = "wild"
owner = "tests"
summary = "a step that brings the patched clone down"
quarantine = { owner = "tests", until = "2099-01-01", ticket = "QA-1" }

[[step]]
name = "wild"
run = """
test -e /etc/calm || exit 0
sed -i 's|^[[:space:]]*linux[[:space:]].*|& init=/bin/false|' /boot/grub/grub.cfg
sync
echo c >/proc/sysrq-trigger
"""
"#;

/// Orders on a copy of a data folder, with scenarios.
struct Ground<'a> {
    patchlab: Patchlab,
    dir: &'a Path,
}

impl Ground<'_> {
    /// Validates the order that installs a package with these files; what was found, what was said, and the run's id.
    fn validate(&self, name: &str, files: &[File<'_>], more: &[&str]) -> (BaselineReport, String) {
        let package = package::build(name, files, self.dir);
        let id = format!("PO-{}-1", name.to_uppercase());
        let order = file(self.dir, &format!("{name}.toml"), &package::order(&id, name, &package));
        let [scenarios, verdict] =
            ["scenarios".to_owned(), format!("{name}.json")].map(|name| self.dir.join(name).display().to_string());
        let baseline = self.patchlab.baseline();
        let asked = ["lab", "validate", "--order", &order, "--baseline", &baseline, "--scenarios", &scenarios];
        // Elsewhere than the sources, whose own scenario measures: no control with metrics is remembered.
        let mut command = self.patchlab.command(&[&asked[..], &["--json", &verdict], more].concat());
        let ended: Ended = command.current_dir(self.dir).output().expect("patchlab starts").into();
        let report = fs::read(&verdict).unwrap_or_else(|error| panic!("{error}: {}{}", ended.out, ended.err));
        let report = Report::from_json(&report).expect("a verdict");
        (report.baselines.into_iter().next().expect("a baseline"), ended.err)
    }

    /// The newest run's id, and whether steps were done on a control in it.
    fn newest(&self) -> (String, bool) {
        let runs = fs::read_dir(self.dir.join("data/runs")).expect("runs");
        let newest = runs.map(|entry| entry.expect("a run").path()).max().expect("a run");
        let events = fs::read_to_string(newest.join("events.jsonl")).expect("events");
        (newest.file_name().expect("a name").display().to_string(), events.contains(r#""role":"control""#))
    }
}

#[test]
fn a_remembered_control_stands_for_one_until_the_first_disagreement() {
    if let Some(why) = obstacle(&NEEDS) {
        eprintln!("SKIP a_remembered_control_stands_for_one_until_the_first_disagreement: {why}");
        return;
    }
    let dir = folder();
    let ground = Ground { patchlab: Patchlab::on_a_copy(dir.path()), dir: dir.path() };
    file(dir.path(), "scenarios/watched/scenario.toml", WATCHED);
    let remembered = ["--control", "remembered"];

    let (first, said) = ground.validate("quiet", &[("etc/quiet", "1\n", 0o644)], &remembered);
    assert_eq!((first.verdict, &first.control), (Judgement::Passed, &None), "{}\n{said}", first.reason);
    let (id, has_control) = ground.newest();
    assert!(has_control);

    let (second, said) = ground.validate("still", &[("etc/still", "1\n", 0o644)], &remembered);
    assert_eq!(second.verdict, Judgement::Passed, "{}\n{said}", second.reason);
    assert_eq!(second.control.as_ref().expect("one that is remembered").run, id);
    assert!(second.reason.contains(&format!("the control is as run {id} saw it")), "{}", second.reason);
    let steps = |report: &BaselineReport| report.scenarios.iter().map(|ran| ran.steps.len()).collect::<Vec<_>>();
    assert_eq!(steps(&second), steps(&first));
    assert!(!ground.newest().1, "no control was made");

    // What it does not explain is asked again beside a control; and what a machine only keeps the traces of, on another pair.
    let (third, said) = ground.validate("loud", &[("DEBIAN/postinst", LOGS, 0o755)], &remembered);
    assert_eq!((third.verdict, &third.control), (Judgement::Rejected, &None), "{}\n{said}", third.reason);
    assert!(third.reason.contains("journal-errors") && third.reason.contains("it went wrong"), "{}", third.reason);
    for part in ["once more, with a control beside it", "rejected by traces alone"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(ground.newest().1);
}

#[test]
fn a_scenario_in_quarantine_that_loses_the_clone_is_left_out() {
    if let Some(why) = obstacle(&[&NEEDS[..], &[Need::Soak]].concat()) {
        eprintln!("SKIP a_scenario_in_quarantine_that_loses_the_clone_is_left_out: {why}");
        return;
    }
    let dir = folder();
    let ground = Ground { patchlab: Patchlab::on_a_copy(dir.path()), dir: dir.path() };
    file(dir.path(), "scenarios/watched/scenario.toml", WATCHED);
    file(dir.path(), "scenarios/wild/scenario.toml", WILD);
    let (report, said) = ground.validate("calm", &[("etc/calm", "1\n", 0o644)], &[]);
    assert_eq!(report.verdict, Judgement::Passed, "{}\n{said}", report.reason);
    let skipped = report.skipped.iter().find(|skipped| skipped.name == "wild").expect("it is told");
    assert!(skipped.reason.contains("the patched clone was lost in it"), "{}", skipped.reason);
    assert!(report.scenarios.iter().all(|ran| ran.verdict == Verdict::Pass), "{report:?}");
}
