//! A system that rpm manages, from packages built on the spot to verdicts: a signed repository that real dnf installs from, an image, a
//! baseline whose package files come from that repository, an order drafted by dnf, validated on clones and taken back by the agent.
//! Skips aloud what this machine cannot run.

use std::{fs, path::Path};

use patchlab_check::Digest;
use patchlab_lab::{
    Places,
    baseline::{Baseline, Baselines},
    report::{Report, RollbackStatus},
    verdict::Judgement,
};
use patchlab_tests::{
    program::{Need, Patchlab, folder, obstacle, said, source},
    rpm_system::{Kind, Repository},
    succession::succeed,
};

/// What the baseline is made of, beside its kernel and base.
const PACKAGES: [&str; 3] = ["house-repos", "house-web", "house-web-common"];

fn done(patchlab: &Patchlab, arguments: &[&str]) {
    let ended = patchlab.run(arguments);
    assert_eq!(ended.code, Some(0), "{arguments:?}\n{}{}", ended.out, ended.err);
}

fn recipe(dir: &Path, kind: Kind, image: &Path) -> String {
    let path = dir.join("house.toml");
    let sha256 = Digest::of_file(image).expect("an image").0;
    let text = format!(
        "name = \"house-web\"\nos = {{ family = \"fedora\", release = \"41\", arch = \"x86_64\" }}\n\
         source = {{ kind = \"{}\", path = \"{}\", sha256 = \"{sha256}\" }}\n\
         memory = \"512MiB\"\nvcpus = 2\ndisk = \"2GiB\"\nready = {{ units = [\"house-web.service\"], timeout = \"120s\" }}\n\
         represents = {{ tags = [\"web\"], packages = [\"house-web\"] }}\n",
        kind.name(),
        image.display()
    );
    fs::write(&path, text).expect("a recipe");
    path.display().to_string()
}

/// What the baseline knows of its packages is rpm's.
fn is_of_rpm(baseline: &Baseline) {
    let record = &baseline.record;
    let pool: Vec<_> = record.pool.iter().map(|file| file.name.as_str()).collect();
    assert_eq!((&pool[..], record.unpooled.len()), (&PACKAGES[..], 0));
    let manifest = baseline.manifest().expect("a manifest");
    let mut names: Vec<_> = manifest.packages.values().map(|package| package.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, PACKAGES);
    assert_eq!(manifest.packages["house-web:noarch"].version, "1-1.house");
    let page = &manifest.files["/usr/share/house-web/index.html"];
    assert_eq!(page.package.as_deref(), Some("house-web-common:noarch"));
    let configuration = manifest.configuration.expect("configuration");
    assert!(configuration["/etc/house-web.conf"].is_as_shipped());
    let coverage = record.coverage.as_ref().expect("what it stands for");
    assert_eq!((coverage.third_party_rpm.len(), coverage.unclear.len()), (0, 0), "{coverage:?}");
}

#[test]
fn a_system_that_rpm_manages_becomes_a_baseline_on_which_an_update_passes_and_a_breaking_one_does_not() {
    if let Some(why) = obstacle(&[Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Rpm]) {
        eprintln!("SKIP a_system_that_rpm_manages_becomes_a_baseline: {why}");
        return;
    }
    // cloud-init costs a boot more, of minutes under software emulation.
    let kind = if obstacle(&[Need::Soak]).is_none() { Kind::CloudImage } else { Kind::Disk };
    let dir = folder();
    let dir = dir.path();
    let patchlab = Patchlab { data: dir.join("data") };
    let repository = Repository::build(dir);
    let image = dir.join("house.qcow2");
    repository.image(kind, &image, dir);
    done(&patchlab, &["baseline", "build", &recipe(dir, kind, &image)]);
    is_of_rpm(&Baselines::open(&Places::of_data(&patchlab.data)).get("house-web").expect("a baseline"));

    let scenarios = source().join("tests/rpm").display().to_string();
    let [good, bad, verdict] =
        ["good.toml", "bad.toml", "verdict.json"].map(|name| dir.join(name).display().to_string());
    let order = good.clone();
    let draft = |id: &'static str, out: &str, what: &[&str]| {
        let words = ["order", "draft", "--baseline", "house-web", "--id", id, "--out", out, "--scenarios", &scenarios];
        patchlab.run(&[&words[..], what].concat())
    };
    said(&draft("PO-RPM", &good, &["--upgrade", "house-web"]), 65, &["no newer version of house-web"]);
    repository.publish_update();
    let drafted = draft("PO-RPM", &good, &["--upgrade", "house-web"]);
    assert_eq!(drafted.code, Some(0), "{}", drafted.err);
    // Where people put files.
    let odd = dir.join("it's new");
    fs::create_dir(&odd).expect("a folder");
    let broken = ["house-web", "house-web-common"].map(|name| {
        let to = odd.join(name).with_extension("rpm");
        fs::copy(repository.file(name, "3"), &to).expect("a copy");
        to.display().to_string()
    });
    let drafted = draft("PO-RPM-BREAKING", &bad, &["--package", &broken[0], "--package", &broken[1]]);
    assert_eq!(drafted.code, Some(0), "{}", drafted.err);

    let validate =
        ["lab", "validate", "--order", &good, "--order", &bad, "--bisect", "never", "--scenarios", &scenarios];
    let ended = patchlab.run(&[&validate[..], &["--json", &verdict]].concat());
    assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
    let text = fs::read_to_string(&verdict).expect("verdicts");
    let reports: Vec<Report> = serde_json::from_str(&text).expect("a verdict of each order");
    let [good, bad] = &reports[..] else { panic!("{} verdicts", reports.len()) };
    let [on] = &good.baselines[..] else { panic!("{} baselines", good.baselines.len()) };
    assert_eq!((on.verdict, on.rollback.status), (Judgement::Passed, RollbackStatus::Proven), "{}", on.reason);
    assert_eq!(
        on.transaction,
        ["upgrade house-web noarch 1-1.house -> 2-1.house", "upgrade house-web-common noarch 1-1.house -> 2-1.house",]
    );
    assert_eq!(on.clone.as_ref().map(|clone| clone.rung.as_str()), Some("template-clone"));
    let changed: Vec<_> = on.diff.iter().flat_map(|diff| &diff.packages).map(|one| one.package.as_str()).collect();
    assert_eq!(changed, ["house-web-common:noarch", "house-web:noarch"]);
    assert_eq!(bad.verdict, Judgement::Rejected, "{}", bad.reason);
    assert!(bad.reason.contains("page"), "{}", bad.reason);

    if let Some(why) = obstacle(&[Need::Soak]) {
        eprintln!("SKIP its successor: {why}");
        return;
    }
    let scenario = source().join("tests/rpm/house-web");
    let (successor, _) = succeed(&patchlab, "house-web", &order, &scenario, dir);
    let versions: Vec<_> =
        successor.record.pool.iter().map(|file| (file.name.as_str(), file.version.as_str())).collect();
    assert_eq!(&versions[1..], [("house-web", "2-1.house"), ("house-web-common", "2-1.house")]);
}
