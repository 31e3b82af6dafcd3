//! Baselines from images that somebody else made: what is refused before anything is booted, and real ones from image to verdict.
//!
//! Skips aloud what this machine cannot run.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use patchlab_check::Digest;
use patchlab_lab::{
    Places,
    baseline::{Baseline, Baselines, SecretsPolicy},
    report::{Report, RollbackStatus},
    verdict::Judgement,
};
use patchlab_tests::{
    cloud_image,
    program::{Ended, Need, Patchlab, folder, obstacle, source},
    served::Served,
    succession::succeed,
};
use serde_json::Value;

/// Ends the test aloud where the machine lacks something.
macro_rules! needs {
    ($test:literal, $($need:ident),+) => {
        if let Some(why) = obstacle(&[$(Need::$need),+]) {
            eprintln!("SKIP {}: {why}", $test);
            return;
        }
    };
}

fn run(program: &str, arguments: &[&str], dir: &Path) {
    let output = Command::new(program).args(arguments).current_dir(dir).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program} does not start: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn digest(path: &Path) -> Digest {
    Digest::of_file(path).expect("an image").0
}

/// A recipe beside an image in `dir`.
fn recipe(dir: &Path, source: &str) -> String {
    let path = dir.join("image.toml");
    let text = format!(
        "name = \"captured-web\"\nos = {{ family = \"debian\", release = \"12\", arch = \"x86_64\" }}\nsource = {{ {source} }}\n\
         memory = \"512MiB\"\nvcpus = 2\ndisk = \"4GiB\"\nready = {{ units = [\"nginx.service\"], timeout = \"120s\" }}\n\
         represents = {{ tags = [\"web\"], packages = [\"nginx\"] }}\n"
    );
    fs::write(&path, text).expect("a recipe");
    path.display().to_string()
}

fn refused(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.code, Some(65), "{}{}", ended.out, ended.err);
    let line = ended.err.lines().last().unwrap_or_default();
    for part in parts {
        assert!(line.contains(part), "{part:?} is not named in:\n{line}");
    }
}

/// A raw disk with one partition whose system has no guest agent, and calls itself `release`.
fn agentless(dir: &Path, name: &str, release: &str) {
    let root = dir.join(format!("root-{release}"));
    fs::create_dir_all(root.join("var/lib/dpkg")).expect("a folder");
    fs::create_dir_all(root.join("usr/lib")).expect("a folder");
    let status = "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n";
    fs::write(root.join("var/lib/dpkg/status"), status).expect("a status");
    fs::write(root.join("usr/lib/os-release"), format!("ID=debian\nVERSION_ID=\"{release}\"\n")).expect("a name");
    let raw = dir.join(name);
    fs::File::create(&raw).and_then(|file| file.set_len(64 << 20)).expect("a disk");
    let script =
        "echo 'start=2048,type=83' | sfdisk --quiet \"$1\" && mke2fs -q -t ext4 -d \"$2\" -E offset=1048576 \"$1\" 60m";
    run("sh", &["-c", script, "sh", name, &root.display().to_string()], dir);
}

#[test]
fn an_image_that_is_not_whole_sound_and_the_one_that_was_meant_is_refused_before_anything_boots() {
    needs!("an_image_that_is_not_whole_is_refused", Program, Lab);
    let dir = folder();
    let dir = dir.path();
    let patchlab = Patchlab { data: dir.join("data") };
    let qemu_img = |arguments: &[&str]| run("qemu-img", arguments, dir);
    qemu_img(&["create", "-q", "-f", "qcow2", "whole.qcow2", "64M"]);
    run("qemu-io", &["-c", "write -P 7 0 32M", "whole.qcow2"], dir);
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "whole.qcow2", "layer.qcow2"]);
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "data_file=outside.raw", "data.qcow2", "64M"]);
    qemu_img(&["create", "-q", "-f", "qcow2", "huge.qcow2", "8G"]);
    qemu_img(&["create", "-q", "-f", "vmdk", "other.vmdk", "64M"]);
    fs::write(dir.join("text.qcow2"), "this is no image\n".repeat(100)).expect("a file");
    let whole = fs::read(dir.join("whole.qcow2")).expect("an image");
    fs::write(dir.join("cut.qcow2"), &whole[..whole.len() / 2]).expect("a file");
    agentless(dir, "agentless.raw", "12");
    agentless(dir, "thirteen.raw", "13");

    let built = |name: &str, sha256: Digest| {
        let source = format!("kind = \"disk\", path = \"{name}\", sha256 = \"{sha256}\"");
        patchlab.run(&["baseline", "build", &recipe(dir, &source)])
    };
    let wrong = Digest::of("another");
    refused(&built("whole.qcow2", wrong), &["whole.qcow2 has digest", &digest(&dir.join("whole.qcow2")).to_string()]);
    for (name, parts) in [
        ("layer.qcow2", ["is a layer over a backing file", "qemu-img convert"]),
        ("data.qcow2", ["keeps its data in another file", "whole in itself"]),
        ("huge.qcow2", ["holds a disk of 8.0 GiB", "`disk` is 4.0 GiB"]),
        ("other.vmdk", ["cannot be used", "neither qcow2 nor a raw disk"]),
        ("text.qcow2", ["cannot be used", "neither qcow2 nor a raw disk"]),
        ("cut.qcow2", ["cannot be used", "it is cut short or damaged"]),
        ("agentless.raw", ["lacks the package qemu-guest-agent", "cloud-image"]),
        ("thirteen.raw", ["calls itself debian 13", "`os` is debian 12"]),
    ] {
        refused(&built(name, digest(&dir.join(name))), &[&[name], &parts[..]].concat());
    }
    let url = format!("kind = \"cloud-image\", url = \"http://127.0.0.1:1/x.qcow2\", sha256 = \"{wrong}\"");
    refused(
        &patchlab.run(&["baseline", "build", &recipe(dir, &url)]),
        &["http://127.0.0.1:1/x.qcow2 cannot be fetched"],
    );
    assert!(Baselines::open(&Places::of_data(&patchlab.data)).list().expect("a list").is_empty());
    assert_eq!(patchlab.run(&["lab", "gc", "--dry-run"]).out.trim(), "nothing to collect");
}

fn done(patchlab: &Patchlab, arguments: &[&str]) -> Ended {
    let ended = patchlab.run(arguments);
    assert_eq!(ended.code, Some(0), "{arguments:?}\n{}{}", ended.out, ended.err);
    ended
}

fn newest(patchlab: &Patchlab, name: &str) -> Baseline {
    Baselines::open(&Places::of_data(&patchlab.data)).get(name).expect("a baseline")
}

/// The order passes on that baseline, by clones that go on from its memory, and is taken back with the files of its pool.
fn passes(patchlab: &Patchlab, order: &str, baseline: &str, dir: &Path) {
    let verdict = dir.join("verdict.json");
    let scenarios = source().join("scenarios").display().to_string();
    let validate = ["lab", "validate", "--order", order, "--baseline", baseline, "--scenarios", &scenarios];
    done(patchlab, &[&validate[..], &["--json", &verdict.display().to_string()]].concat());
    let report = Report::from_json(&fs::read(&verdict).expect("a verdict")).expect("a verdict");
    let [on] = &report.baselines[..] else { panic!("{} baselines", report.baselines.len()) };
    assert_eq!((on.verdict, on.rollback.status), (Judgement::Passed, RollbackStatus::Proven));
    assert_eq!(on.clone.as_ref().map(|clone| clone.rung.as_str()), Some("template-clone"));
}

/// What lies in the secret files of the test's system, and nowhere else in the world.
const SECRET: &str = "c2VjcmV0LW9mLXRoZS10ZXN0LW5vdGhpbmctZWxzZS1oYXM";

/// Puts secrets, and what a managed host has of its agent, into the ext file system of a baseline's disk, without running it: `$1` qcow2,
/// `$2` new image, `$3` the secret.
const WITH_SECRETS: &str = r#"
set -eu
qemu-img convert -f qcow2 -O raw "$1" with.raw
# A file system of its own: e2fsck loses an offset when it replays the journal.
dd if=with.raw of=part.raw bs=1M skip=1 conv=sparse status=none
e2fsck -fy part.raw >/dev/null 2>&1 || [ $? -le 2 ]
printf -- '-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----\n' "$3" >key
printf 'machine example.org login me password %s\n' "$3" >netrc
printf 'API_TOKEN=%s\n' "$3" >app
printf '[monitor]\nname = "monitor"\nauth = "%s"\n' "$3" >agent.toml
printf '[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n' >unit
printf '%s\n' 'write key /etc/own.key' 'write netrc /root/.netrc' 'write app /etc/default/app' \
  'mkdir /etc/patchlab-agent' 'write agent.toml /etc/patchlab-agent/agent.toml' \
  'mkdir /var/lib/patchlab-agent' 'write netrc /var/lib/patchlab-agent/journal' \
  'write unit /etc/systemd/system/patchlab-agent.service' \
  'symlink /etc/systemd/system/multi-user.target.wants/patchlab-agent.service /etc/systemd/system/patchlab-agent.service' >requests
debugfs -w -f requests part.raw >/dev/null 2>&1
dd if=with.raw of=new.raw bs=1M count=1 status=none
dd if=part.raw of=new.raw bs=1M seek=1 conv=notrunc,sparse status=none
truncate --reference with.raw new.raw
qemu-img convert -f raw -O qcow2 new.raw "$2"
rm with.raw part.raw new.raw key netrc app agent.toml unit requests
"#;

/// Whether a file holds the secret.
fn holds_secret(path: &Path) -> bool {
    let status = Command::new("grep").args(["--quiet", "--text", "--fixed-strings", SECRET]).arg(path).status();
    status.expect("grep starts").success()
}

#[test]
fn the_disk_of_a_system_becomes_a_baseline_without_its_secrets_on_which_an_order_passes() {
    needs!("the_disk_of_a_system_becomes_a_baseline", Program, Lab, Agent, Soak, Stored);
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let stored = Baselines::open(&Places::of_data(&patchlab.data)).list().expect("a list").remove(0).file("disk.qcow2");
    let image = dir.path().join("disk.qcow2");
    let [stored, path] = [&stored, &image].map(|path| path.display().to_string());
    run("sh", &["-c", WITH_SECRETS, "sh", &stored, &path, SECRET], dir.path());
    let source = format!("kind = \"disk\", path = \"disk.qcow2\", sha256 = \"{}\"", digest(&image));

    let refused = patchlab.run(&["baseline", "build", &recipe(dir.path(), &source)]);
    assert_eq!(refused.code, Some(5), "{}", refused.err);
    let named = [
        "/etc/own.key (private key)",
        "/root/.netrc (password or token)",
        "/etc/default/app (password or token)",
        "/etc/patchlab-agent/agent.toml (password or token)",
        "secrets = \"scrub\"",
    ];
    for part in named {
        assert!(refused.err.contains(part), "{part:?} is not in {}", refused.err);
    }
    assert!(!refused.err.contains(SECRET));

    let built = done(&patchlab, &["baseline", "build", &recipe(dir.path(), &format!("{source}, secrets = \"scrub\""))]);
    assert!(built.err.contains("its own agent is taken off"), "{}", built.err);
    let captured = newest(&patchlab, "captured-web");
    println!("{} package files, {} without", captured.record.pool.len(), captured.record.unpooled.len());
    assert!(captured.record.pool.iter().any(|file| file.name == "nginx"));
    let secrets = captured.record.secrets.as_ref().expect("what was done about secrets");
    let scrubbed: Vec<_> = secrets.found.iter().map(|secret| secret.path.as_str()).collect();
    assert!(["/etc/own.key", "/root/.netrc"].iter().all(|path| scrubbed.contains(path)), "{scrubbed:?}");
    let manifest = captured.manifest().expect("a manifest");
    assert!(!manifest.files.contains_key("/etc/own.key") && !manifest.files.contains_key("/root/.netrc"));
    assert!(manifest.files.contains_key("/etc/default/app"), "only the value in it goes");
    let own_agent = |path: &String| path.contains("patchlab-agent");
    assert!(!manifest.files.keys().any(own_agent) && !manifest.units.keys().any(own_agent));
    let raw = dir.path().join("stored.raw");
    let [disk, out] = [&captured.file("disk.qcow2"), &raw].map(|path| path.display().to_string());
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &disk, &out], dir.path());
    for file in [raw, captured.file("ram"), captured.file("state")] {
        assert!(!holds_secret(&file), "{} holds it still", file.display());
    }
    let coverage = captured.record.coverage.as_ref().expect("what it stands for");
    assert_eq!(coverage.flavour.as_deref(), Some("cloud-amd64"));

    let order = patchlab.data.join("orders/good/order.toml").display().to_string();
    passes(&patchlab, &order, "captured-web", dir.path());

    // It ages as any other does: frozen again from its own disk, and made its successor by the order.
    done(&patchlab, &["baseline", "refreeze", "captured-web", "--always"]);
    let again = newest(&patchlab, "captured-web");
    assert_eq!(again.record.parent, Some(captured.digest));
    assert_eq!(again.record.secrets, captured.record.secrets);
    let (successor, parent) =
        succeed(&patchlab, "captured-web", &order, &Path::new(&source_scenarios()).join("web-smoke"), dir.path());
    assert_eq!(again.digest, parent);
    let nginx = |baseline: &Baseline| baseline.manifest().expect("a manifest").packages["nginx:amd64"].version.clone();
    assert_ne!(nginx(&successor), nginx(&captured));
    assert_eq!(successor.record.coverage.as_ref().and_then(|known| known.flavour.as_deref()), Some("cloud-amd64"));
}

/// A libvirt of its own below `root`, with one machine: that disk is its, in that form. What libvirt calls it.
fn libvirt_with(root: &Path, name: &str, disk: &Path, format: &str, more: &str) -> String {
    let machines = root.join("etc/qemu");
    fs::create_dir_all(&machines).expect("a folder");
    let settings = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\nstdio_handler = \"file\"\n\
                    dynamic_ownership = 0\nremember_owner = 0\nnamespaces = []\ncgroup_controllers = []\n";
    fs::write(root.join("etc/qemu.conf"), settings).expect("its settings");
    let description = format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>512</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{more}\
         <disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'/>\
         <target dev='vda' bus='virtio'/></disk></devices></domain>",
        disk.display()
    );
    fs::write(machines.join(format!("{name}.xml")), description).expect("a machine");
    format!("qemu:///embed?root={}", root.display())
}

#[test]
fn a_machine_of_another_libvirt_that_the_lab_has_no_like_of_is_refused() {
    needs!("a_machine_of_another_libvirt_that_the_lab_has_no_like_of_is_refused", Program, Lab);
    let dir = folder();
    let patchlab = Patchlab { data: dir.path().join("data") };
    let (root, disk) = (dir.path().join("libvirt"), dir.path().join("web-01.qcow2"));
    fs::write(&disk, "no disk").expect("a file");
    let second = "<disk type='file' device='disk'><source file='/nowhere'/><target dev='vdb' bus='virtio'/></disk>";
    let uri = libvirt_with(&root, "web-01", &disk, "qcow2", second);
    let source = |name: &str| format!("kind = \"domain\", uri = \"{uri}\", name = \"{name}\"");
    let build = |name: &str| patchlab.run(&["baseline", "build", &recipe(dir.path(), &source(name))]);
    refused(&build("web-01"), &["domain web-01 cannot be a baseline: it has 2 disks"]);
    let unknown = build("web-02");
    assert!(unknown.code == Some(4) && unknown.err.contains("web-02"), "{}", unknown.err);
    libvirt_with(&root, "web-01", &disk, "qcow2", "");
    refused(&build("web-01"), &["domain web-01 cannot be a baseline: its disk", "not in qcow2 format"]);
    // One that was put to sleep is off, and half of it is in what libvirt saved.
    let saved = root.join("lib/qemu/save");
    fs::create_dir_all(&saved).expect("a folder");
    fs::write(saved.join("web-01.save"), "memory").expect("a file");
    refused(&build("web-01"), &["domain web-01 is saved", "managedsave-remove web-01"]);
}

#[test]
fn a_machine_of_another_libvirt_becomes_a_baseline_on_which_an_order_passes() {
    needs!("a_machine_of_another_libvirt_becomes_a_baseline", Program, Lab, Agent, Soak, Stored);
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let stored = Baselines::open(&Places::of_data(&patchlab.data)).list().expect("a list").remove(0).file("disk.qcow2");
    // A layer over another disk, as snapshots leave them.
    let [stored, layer] = [&stored, &dir.path().join("layer.qcow2")].map(|path| path.display().to_string());
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &stored, &layer], dir.path());
    let uri = libvirt_with(&dir.path().join("libvirt"), "web-01", Path::new(&layer), "qcow2", "");
    let source = format!("kind = \"domain\", uri = \"{uri}\", name = \"web-01\", secrets = \"scrub\"");
    let path = recipe(dir.path(), &source);
    done(&patchlab, &["baseline", "build", &path]);
    let captured = newest(&patchlab, "captured-web");
    done(&patchlab, &["baseline", "build", &path]);
    assert_eq!(newest(&patchlab, "captured-web").digest, captured.digest, "nothing has changed");
    let order = patchlab.data.join("orders/good/order.toml").display().to_string();
    passes(&patchlab, &order, "captured-web", dir.path());
}

#[test]
fn a_cloud_image_becomes_a_baseline_on_which_an_order_passes() {
    needs!("a_cloud_image_becomes_a_baseline", Program, Lab, Agent, Soak);
    let dir = folder();
    let patchlab = Patchlab { data: dir.path().join("data") };
    let site = dir.path().join("site");
    fs::create_dir(&site).expect("a folder");
    let [plain, image] = ["plain.qcow2", "site/cloud.qcow2"].map(|name| dir.path().join(name));
    cloud_image::build(&plain, dir.path());
    let words = [&plain, &image].map(|path| path.display().to_string());
    run("sh", &["-c", WITH_SECRETS, "sh", &words[0], &words[1], SECRET], dir.path());
    let (served, sha256) = (Served::folder(site), digest(&image));
    let source = format!("kind = \"cloud-image\", url = \"{}cloud.qcow2\", sha256 = \"{sha256}\"", served.url);
    let found = patchlab.run(&["baseline", "build", &recipe(dir.path(), &source)]);
    assert_eq!(found.code, Some(5), "{}", found.err);
    for part in ["/etc/own.key (private key)", "/root/.netrc (password or token)"] {
        assert!(found.err.contains(part), "{part:?} is not in {}", found.err);
    }
    // What is wanted there stays.
    let path = recipe(dir.path(), &format!("{source}, secrets = \"keep\""));
    let text = fs::read_to_string(&path).expect("the recipe");
    fs::create_dir_all(dir.path().join("overlay/etc")).expect("a folder");
    fs::write(dir.path().join("overlay/etc/of-the-overlay"), "here\n").expect("a file");
    fs::write(&path, text + "packages = [\"curl\"]\noverlay = \"overlay/\"\n").expect("the recipe");
    done(&patchlab, &["baseline", "build", &path]);
    let captured = newest(&patchlab, "captured-web");
    println!("{} package files, {} without", captured.record.pool.len(), captured.record.unpooled.len());
    let manifest = captured.manifest().expect("a manifest");
    for added in ["qemu-guest-agent", "curl"] {
        assert!(manifest.packages.values().any(|package| package.name == added), "{added}");
    }
    assert!(
        manifest.files.contains_key("/etc/of-the-overlay")
            && manifest.files.contains_key("/etc/cloud/cloud-init.disabled")
    );
    assert!(manifest.files.contains_key("/etc/own.key"), "it was to be kept");
    let known = captured.record.secrets.as_ref().expect("what is known of secrets");
    assert_eq!(known.policy, SecretsPolicy::Keep);
    assert!(known.found.iter().any(|secret| secret.path == "/etc/own.key"), "{:?}", known.found);

    let order = dir.path().join("order.toml").display().to_string();
    let drafted = ["--baseline", "captured-web", "--upgrade", "nginx", "--or-next"];
    let scenarios = source_scenarios();
    let draft = ["order", "draft", "--id", "PO-CLOUD", "--out", &order, "--scenarios", &scenarios];
    done(&patchlab, &[&draft[..], &drafted[..]].concat());
    passes(&patchlab, &order, "captured-web", dir.path());
    let shown: Value =
        serde_json::from_str(&done(&patchlab, &["baseline", "show", "captured-web", "--json", "-"]).out).expect("JSON");
    assert_eq!(shown["name"], "captured-web");
}

fn source_scenarios() -> String {
    source().join("scenarios").display().to_string()
}
