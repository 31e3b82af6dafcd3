//! An order of two packages of which one breaks something, or cannot even be put on: split by further validations, into what breaks it and
//! what could ship, which is offered as an order of its own. On real clones; skips aloud what this machine cannot run.

use std::{fs, path::PathBuf};

use patchlab_lab::{
    report::{Report, Unapplied},
    verdict::Judgement,
};
use patchlab_tests::{
    package,
    program::{Ended, Need, Patchlab, file, folder, obstacle},
};

const SCENARIO: &str = r#"name = "sound"
owner = "tests"
summary = "nobody left a broken file"
applies = { packages = ["fine", "rotten", "dpkg"] }

[[step]]
name = "sound"
run = "test ! -e /etc/rotten"
"#;

/// Long enough for nothing to fit behind it.
const ID: &str = "PO-TWO-012345678901234567890123456789012345678901234567890123456";

#[test]
fn what_breaks_an_order_is_found_and_what_passes_is_offered() {
    let Some(site) = Site::made("what_breaks_an_order_is_found_and_what_passes_is_offered", &[]) else { return };
    let order = site.order(&[("fine", &[("etc/fine", "1\n", 0o644)]), ("rotten", &[("etc/rotten", "1\n", 0o644)])]);

    let (report, ended) = site.validate(&order);
    assert_eq!((report.verdict, ended.code), (Judgement::Rejected, Some(1)), "{}{}", ended.out, ended.err);
    site.is_split(&report, &ended);

    let text = fs::read_to_string(site.offered()).expect("an order is offered");
    assert!(text.contains("fine") && !text.contains("rotten") && text.contains("-passing\""), "{text}");
    let (report, ended) = site.validate(&site.offered().display().to_string());
    assert_eq!((report.verdict, ended.code), (Judgement::Passed, Some(0)), "{}{}", ended.out, ended.err);
}

#[test]
fn a_package_whose_script_says_no_is_found_as_well() {
    let Some(site) = Site::made("a_package_whose_script_says_no_is_found_as_well", &[Need::Soak]) else { return };
    let no = "#!/bin/sh\necho 'the old data cannot be read' >&2\nexit 1\n";
    let order = site.order(&[("fine", &[("etc/fine", "1\n", 0o644)]), ("rotten", &[("DEBIAN/postinst", no, 0o755)])]);

    let (report, ended) = site.validate(&order);
    assert_eq!((report.verdict, ended.code), (Judgement::Inapplicable, Some(3)), "{}{}", ended.out, ended.err);
    let baseline = &report.baselines[0];
    assert_eq!(baseline.unapplied, Some(Unapplied::Failed), "{}", baseline.reason);
    assert!(baseline.diff.is_some(), "what it left half-way is looked at");
    site.is_split(&report, &ended);
    assert!(fs::read_to_string(site.offered()).is_ok_and(|text| !text.contains("rotten")));
}

/// A data folder with a baseline, and a scenario for packages of these tests.
struct Site {
    dir: tempfile::TempDir,
    patchlab: Patchlab,
}

impl Site {
    /// `None` where this machine cannot run the test, which is said.
    fn made(test: &str, more: &[Need]) -> Option<Self> {
        let needs = [&[Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Stored][..], more].concat();
        if let Some(why) = obstacle(&needs) {
            eprintln!("SKIP {test}: {why}");
            return None;
        }
        let dir = folder();
        let patchlab = Patchlab::on_a_copy(dir.path());
        file(dir.path(), "scenarios/sound/scenario.toml", SCENARIO);
        Some(Self { dir, patchlab })
    }

    /// An order of packages with these files.
    fn order(&self, packages: &[(&str, &[package::File<'_>])]) -> String {
        let dir = self.dir.path();
        let built: Vec<_> = packages.iter().map(|(name, files)| (*name, package::build(name, files, dir))).collect();
        let built: Vec<_> = built.iter().map(|(name, path)| (*name, path.as_path())).collect();
        file(dir, "two.toml", &package::order_of(ID, &built))
    }

    fn validate(&self, order: &str) -> (Report, Ended) {
        let dir = self.dir.path();
        let [scenarios, out] =
            [&dir.join("scenarios"), &dir.join("verdict.json")].map(|path| path.display().to_string());
        // Of a validation before.
        let _ = fs::remove_file(&out);
        let baseline = self.patchlab.baseline();
        let asked =
            ["lab", "validate", "--order", order, "--baseline", &baseline, "--scenarios", &scenarios, "--json", &out];
        let ended: Ended = self.patchlab.command(&asked).current_dir(dir).output().expect("patchlab starts").into();
        match fs::read(&out) {
            Ok(json) => (Report::from_json(&json).expect("a verdict"), ended),
            Err(error) => panic!("no verdict: {error}: {}{}", ended.out, ended.err),
        }
    }

    /// `rotten` breaks it, and `fine` passes.
    fn is_split(&self, report: &Report, ended: &Ended) {
        let found = report.bisection.as_ref().unwrap_or_else(|| panic!("it was split: {}{}", ended.out, ended.err));
        let breaking: Vec<_> = found.breaking.iter().map(|set| (set.packages.clone(), set.with.clone())).collect();
        assert_eq!(breaking, [(vec!["rotten".to_owned()], Vec::new())], "{}{}", ended.out, ended.err);
        assert_eq!((found.passing.as_slice(), found.limited), (&["fine".to_owned()][..], false));
    }

    fn offered(&self) -> PathBuf {
        self.dir.path().join("two.passing.toml")
    }
}
