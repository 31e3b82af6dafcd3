//! Debian 13 from its recipe to a verdict: built, frozen, its screen looked at, an update drafted from its security suite, validated on clones, taken back.
//! Skips aloud what this machine cannot run.

use std::{fs, path::Path};

use patchlab_lab::{
    report::{Report, RollbackStatus},
    verdict::Judgement,
};
use patchlab_tests::program::{Need, Patchlab, folder, obstacle, source};

#[test]
fn debian_13_from_its_recipe_to_a_verdict() {
    if let Some(why) = obstacle(&[Need::Program, Need::Lab, Need::Agent, Need::Time]) {
        eprintln!("SKIP debian_13_from_its_recipe_to_a_verdict: {why}");
        return;
    }
    let dir = folder();
    let patchlab = Patchlab { data: dir.path().join("data") };
    let done = |arguments: &[&str]| {
        let ended = patchlab.run(arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}\n{}{}", ended.out, ended.err);
    };
    let [order, verdict, recipe, scenarios] = [
        dir.path().join("order.toml"),
        dir.path().join("verdict.json"),
        source().join("images/debian-13-web.toml"),
        source().join("scenarios"),
    ]
    .map(|path| path.display().to_string());
    done(&["baseline", "build", &recipe]);
    looks_at_its_screen(&patchlab, dir.path());
    let drafted = ["--baseline", "debian-13-web", "--upgrade", "nginx", "--or-next", "--scenarios", &scenarios];
    done(&[&["order", "draft", "--id", "PO-DEBIAN-13", "--out", &order], &drafted[..]].concat());
    done(&["lab", "validate", "--order", &order, "--scenarios", &scenarios, "--json", &verdict]);
    let report = Report::from_json(&fs::read(&verdict).expect("a verdict")).expect("a verdict");
    let [baseline] = &report.baselines[..] else { panic!("{} baselines", report.baselines.len()) };
    assert_eq!((baseline.verdict, baseline.rollback.status), (Judgement::Passed, RollbackStatus::Proven));
    assert_eq!(baseline.clone.as_ref().map(|clone| clone.rung.as_str()), Some("template-clone"));
    assert!(baseline.transaction.iter().all(|line| line.contains("deb13")), "{:?}", baseline.transaction);
}

/// Takes a picture before and after something is written on the screen: both are pictures, and not the same one.
fn looks_at_its_screen(patchlab: &Patchlab, dir: &Path) {
    let (scenario, out) = (dir.join("seen"), dir.join("brought-out"));
    fs::create_dir(&scenario).expect("a folder");
    let text = "name = \"seen\"\nowner = \"qa\"\nsummary = \"what is on the screen\"\n\
                [[step]]\nname = \"before\"\nscreenshot = true\n\
                [[step]]\nname = \"written\"\nrun = \"echo patchlab was here >/dev/tty1\"\n\
                [[step]]\nname = \"after\"\nscreenshot = true\n";
    fs::write(scenario.join("scenario.toml"), text).expect("a scenario");
    let [scenario, kept] = [&scenario, &out].map(|path| path.display().to_string());
    let ran = patchlab.run(&["scenario", "run", &scenario, "--out", &kept]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    let picture = |step: &str| {
        let path = out.join(format!("seen_{step}_trial_screen.png"));
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let (before, after) = (picture("before"), picture("after"));
    assert!([&before, &after].iter().all(|picture| picture.starts_with(b"\x89PNG\r\n")) && before != after);
}
