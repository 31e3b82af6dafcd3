//! Plans for small hosts whose packages and index files are of the shape of real ones.

use super::*;

/// `name arch version` lines.
fn host(lines: &[&str]) -> Vec<Installed> {
    let one = |line: &&str| {
        let mut words = line.split(' ').map(str::to_owned);
        Installed { name: words.next().unwrap(), arch: words.next().unwrap(), version: words.next().unwrap() }
    };
    lines.iter().map(one).collect()
}

/// `name version[; field: value]…` lines as stanzas of an index.
fn index(lines: &[&str]) -> Index {
    let stanza = |line: &&str| {
        let mut fields = line.split("; ");
        let (name, version) = fields.next().unwrap().split_once(' ').unwrap();
        let rest: String = fields.map(|field| format!("{field}\n")).collect();
        format!("Package: {name}\nVersion: {version}\nArchitecture: amd64\n{rest}")
    };
    Index::read(&lines.iter().map(stanza).collect::<Vec<_>>().join("\n"))
}

/// A builder that brings these, and a kernel that the archive does not have.
fn builder<'a>(packages: &'a [&'a str]) -> Builder<'a> {
    Builder { packages, kernel: "linux-image-cloud-amd64" }
}

fn named(plan: &Plan<'_>) -> Vec<String> {
    plan.packages().iter().map(Wanted::to_string).collect()
}

fn unmatched(plan: &Plan<'_>) -> Vec<String> {
    let shown = |one: &Unmatched| {
        let here = one.mirror.as_deref().unwrap_or("-");
        format!("{}:{} {} -> {here}: {}", one.name, one.arch, one.host, one.why.sentence())
    };
    plan.unmatched.values().map(shown).collect()
}

/// What a web server of Debian 12 has in the index: release and security updates.
const WEB: &[&str] = &[
    "libc6 2.36-9+deb12u10; Priority: optional; Depends: libgcc-s1",
    "libgcc-s1 12.2.0-14+deb12u1; Depends: libc6 (>= 2.35)",
    "base-files 12.4+deb12u11; Essential: yes; Priority: required; Pre-Depends: awk",
    "mawk 1.3.4.20200120-3.1; Priority: required; Provides: awk; Pre-Depends: libc6 (>= 2.34)",
    "login 1:4.13+dfsg1-1+deb12u1; Essential: yes; Priority: required; Pre-Depends: libc6 (>= 2.34)",
    "nginx 1.22.1-9; Depends: nginx-common (<< 1.22.1-9.1~), iproute2, libc6 (>= 2.34), libssl3 (>= 3.0.0)",
    "nginx 1.22.1-9+deb12u3; Depends: nginx-common (= 1.22.1-9+deb12u3), iproute2, libssl3 (>= 3.0.15)",
    "nginx-common 1.22.1-9",
    "nginx-common 1.22.1-9+deb12u3",
    "libssl3 3.0.14-1~deb12u2; Depends: libc6 (>= 2.34)",
    "libssl3 3.0.16-1~deb12u1; Depends: libc6 (>= 2.34)",
    "openssl 3.0.14-1~deb12u2; Depends: libc6 (>= 2.34), libssl3 (>= 3.0.14)",
    "openssl 3.0.16-1~deb12u1; Depends: libc6 (>= 2.34), libssl3 (>= 3.0.16)",
    "iproute2 6.1.0-3; Depends: libc6",
    "postfix 3.7.11-0+deb12u1; Provides: mail-transport-agent; Depends: libc6",
    "bsd-mailx 8.1.2-0.20220412cvs-1; Depends: default-mta | mail-transport-agent, libc6",
    "linux-image-amd64 6.1.129-1; Depends: linux-image-6.1.0-32-amd64 (= 6.1.129-1)",
    "linux-image-amd64 6.1.137-1; Depends: linux-image-6.1.0-37-amd64 (= 6.1.137-1)",
    "linux-image-6.1.0-32-amd64 6.1.129-1",
    "linux-image-6.1.0-37-amd64 6.1.137-1",
];

const BASE: &[&str] = &[
    "libc6 amd64 2.36-9+deb12u10",
    "libgcc-s1 amd64 12.2.0-14+deb12u1",
    "base-files amd64 12.4+deb12u11",
    "mawk amd64 1.3.4.20200120-3.1",
    "login amd64 1:4.13+dfsg1-1+deb12u1",
];

#[test]
fn only_what_does_not_come_by_itself_is_named_and_only_an_older_version_is_said() {
    let index = index(WEB);
    let installed = host(
        &[
            BASE,
            &[
                "iproute2 amd64 6.1.0-3",
                "bsd-mailx amd64 8.1.2-0.20220412cvs-1",
                "postfix amd64 3.7.11-0+deb12u1",
                "nginx amd64 1.22.1-9+deb12u3",
                "nginx-common all 1.22.1-9+deb12u3",
                "libssl3 amd64 3.0.16-1~deb12u1",
            ],
        ]
        .concat(),
    );
    // At the newest: names, and postfix, since the first alternative of its like is not on the host.
    let plan = Plan::new(&installed, &index, "amd64", &builder(&["iproute2"]));
    assert_eq!(named(&plan), ["bsd-mailx", "nginx", "postfix"]);
    assert_eq!(unmatched(&plan), [""; 0]);
    // At the release's: every package of which there is a newer one has its version, dependencies too.
    let installed = host(
        &[BASE, &["nginx amd64 1.22.1-9", "nginx-common all 1.22.1-9", "libssl3 amd64 3.0.14-1~deb12u2"]].concat(),
    );
    let plan = Plan::new(&installed, &index, "amd64", &builder(&[]));
    assert_eq!(named(&plan), ["libssl3=3.0.14-1~deb12u2", "nginx=1.22.1-9", "nginx-common=1.22.1-9"]);
    assert_eq!(unmatched(&plan), [""; 0]);
}

#[test]
fn what_the_mirror_no_longer_has_is_taken_at_the_nearest_and_told() {
    let index = index(WEB);
    let installed = host(
        &[
            BASE,
            &[
                "nginx amd64 1.22.1-9+deb12u1",
                "nginx-common all 1.22.1-9+deb12u1",
                "libssl3 amd64 3.0.14-1~deb12u2",
                "libssl3 i386 3.0.14-1~deb12u2",
                "google-chrome-stable amd64 131.0.6778.85-1",
                "iproute2 amd64 7:9.0-1",
                "zabbix-agent amd64 1:7.0.6-1+debian12",
                "?essential amd64 1",
            ],
        ]
        .concat(),
    );
    let plan = Plan::new(&installed, &index, "amd64", &builder(&[]));
    assert_eq!(
        unmatched(&plan),
        [
            "?essential:amd64 1 -> -: not there",
            "google-chrome-stable:amd64 131.0.6778.85-1 -> -: not there",
            // An epoch that the archive never had: the newest there is.
            "iproute2:amd64 7:9.0-1 -> 6.1.0-3: another version",
            // As on the host it would do for nginx as on the host; nginx as it is here needs it newer.
            "libssl3:amd64 3.0.14-1~deb12u2 -> 3.0.16-1~deb12u1: nginx needs it newer",
            "libssl3:i386 3.0.14-1~deb12u2 -> -: another architecture",
            "nginx:amd64 1.22.1-9+deb12u1 -> 1.22.1-9+deb12u3: another version",
            "nginx-common:all 1.22.1-9+deb12u1 -> 1.22.1-9+deb12u3: another version",
            "zabbix-agent:amd64 1:7.0.6-1+debian12 -> -: not there",
        ]
    );
    assert_eq!(named(&plan), ["nginx"]);
}

#[test]
fn what_moves_takes_along_what_must_be_of_its_version() {
    // The library moved for somebody else; the tools of its source, exact on the host, must follow.
    let index = index(&[
        "lib 1; Priority: optional",
        "lib 2",
        "tool 1; Depends: lib (= 1)",
        "tool 2; Depends: lib (= 2)",
        "app 2; Depends: lib (>= 2)",
    ]);
    let installed = host(&["lib amd64 1", "tool amd64 1", "app amd64 1.5"]);
    let plan = Plan::new(&installed, &index, "amd64", &builder(&[]));
    assert_eq!(named(&plan), ["app", "tool"]);
    assert_eq!(
        unmatched(&plan),
        [
            "app:amd64 1.5 -> 2: another version",
            "lib:amd64 1 -> 2: app needs it newer",
            "tool:amd64 1 -> 2: lib needs it newer"
        ]
    );
}

#[test]
fn a_kernel_is_named_by_its_flavour_and_held_at_its_version() {
    let index = index(WEB);
    let kernel = |lines: &[&str]| {
        let installed = host(&[BASE, lines].concat());
        let plan = Plan::new(&installed, &index, "amd64", &builder(&[]));
        (plan.kernel.map(str::to_owned), named(&plan), unmatched(&plan).len())
    };
    let flavour = Some("linux-image-amd64".to_owned());
    let both = ["linux-image-amd64 amd64 6.1.137-1", "linux-image-6.1.0-37-amd64 amd64 6.1.137-1"];
    assert_eq!(kernel(&both), (flavour.clone(), vec![], 0));
    // The one that runs is gone from the mirror, an older one is kept beside it.
    let older = [
        "linux-image-amd64 amd64 6.1.129-1",
        "linux-image-6.1.0-32-amd64 amd64 6.1.129-1",
        "linux-image-6.1.0-28-amd64 amd64 6.1.119-1",
    ];
    assert_eq!(kernel(&older), (flavour, vec!["linux-image-amd64=6.1.129-1".to_owned()], 1));
    assert_eq!(
        kernel(&["linux-image-6.1.0-32-amd64 amd64 6.1.129-1"]).0.as_deref(),
        Some("linux-image-6.1.0-32-amd64")
    );
    assert_eq!(kernel(&[]), (None, vec![], 0));
}

#[test]
fn what_the_builder_adds_goes_with_the_hosts_versions() {
    let index = index(&[
        "libudev1 252.38-1~deb12u1",
        "libudev1 252.39-1~deb12u2",
        "udev 252.38-1~deb12u1; Depends: libudev1 (= 252.38-1~deb12u1)",
        "udev 252.39-1~deb12u2; Depends: libudev1 (= 252.39-1~deb12u2)",
        "qemu-guest-agent 1:7.2; Depends: libudev1 (>= 183), liburing2",
        "liburing2 2.3-3",
    ]);
    let installed = host(&["libudev1 amd64 252.38-1~deb12u1"]);
    let plan = Plan::new(&installed, &index, "amd64", &builder(&["udev", "qemu-guest-agent"]));
    assert_eq!(named(&plan), ["libudev1=252.38-1~deb12u1", "udev=252.38-1~deb12u1"]);
    assert_eq!(unmatched(&plan), [""; 0]);
    // One that the archive has no more pulls the host's up.
    let installed = host(&["libudev1 amd64 252.36-1~deb12u1"]);
    let plan = Plan::new(&installed, &index, "amd64", &builder(&["udev"]));
    assert_eq!(named(&plan), ["libudev1=252.38-1~deb12u1", "udev=252.38-1~deb12u1"]);
    assert_eq!(unmatched(&plan).len(), 1);
}

#[test]
fn circles_are_broken_once_and_apt_has_the_last_word() {
    let index = index(&["aa 1; Depends: bb", "bb 1; Depends: aa | xx", "cc 1; Depends: dd", "dd 1"]);
    let installed = host(&["aa amd64 1", "bb amd64 1", "cc amd64 1", "dd amd64 1"]);
    let mut plan = Plan::new(&installed, &index, "amd64", &builder(&[]));
    assert_eq!(named(&plan), ["aa", "cc"]);
    // apt fulfils a dependency otherwise: what it left out is named, and then it is as it is.
    let outcome =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect::<Outcome>();
    let first = outcome(&[("aa", "1"), ("bb", "1"), ("cc", "1")]);
    assert_eq!((plan.learn(&first), named(&plan)), (Learned::More, ["aa", "cc", "dd"].map(String::from).to_vec()));
    let second = outcome(&[("aa", "1"), ("bb", "2"), ("cc", "1")]);
    assert_eq!(plan.learn(&second), Learned::Settled);
    plan.settle(&second);
    let why = "apt does not install it so";
    assert_eq!(unmatched(&plan), [format!("bb:amd64 1 -> 2: {why}"), format!("dd:amd64 1 -> -: {why}")]);
}

fn drafted(refused: Option<&str>) -> Draft {
    let index = index(WEB);
    let installed = host(
        &[
            BASE,
            &[
                "nginx amd64 1.22.1-9",
                "nginx-common all 1.22.1-9",
                "libssl3 amd64 3.0.14-1~deb12u2",
                "acme-agent amd64 1:2.0~rc1\u{7}",
                "linux-image-amd64 amd64 6.1.129-1",
            ],
        ]
        .concat(),
    );
    let plan = Plan::new(&installed, &index, "amd64", &builder(&[]));
    Draft {
        name: "web-1".into(),
        host: "web-1\nname = \"other\"".into(),
        os: Os { family: "debian".into(), release: "12".into(), arch: "x86_64".into() },
        suite: "bookworm".into(),
        pockets: vec![Pocket::Main, Pocket::Security],
        kernel: plan.kernel.map(str::to_owned),
        packages: plan.packages(),
        disk_gib: plan.disk_gib(),
        installed: installed.len(),
        exact: installed.len() - plan.unmatched.len(),
        unmatched: plan.unmatched.values().cloned().collect(),
        beside: (0..40).map(|number| format!("package-{number}")).collect(),
        refused: refused.map(str::to_owned),
    }
}

#[test]
fn what_is_drafted_reads_back_as_a_recipe() {
    let dir = tempfile::tempdir().unwrap();
    for refused in [None, Some("a : Depends: b (>= 2)\nE: broken")] {
        let draft = drafted(refused);
        let path = dir.path().join("web-1.toml");
        std::fs::write(&path, draft.text()).unwrap();
        let recipe = crate::recipe::Recipe::read(&path).unwrap();
        let crate::recipe::Source::Mmdebstrap(installation) = &recipe.source else { panic!("{:?}", recipe.source) };
        assert_eq!((recipe.name.as_str(), recipe.disk_bytes), ("web-1", 4 << 30));
        assert_eq!((&installation.suite, &installation.pockets), (&draft.suite, &draft.pockets));
        assert_eq!((Some(&installation.kernel), &installation.packages), (draft.kernel.as_ref(), &draft.packages));
        assert!(draft.text().contains("#   acme-agent:amd64  1:2.0~rc1   -  not there\n"), "{}", draft.text());
        assert!(draft.text().lines().all(|line| line.chars().count() <= 140), "{}", draft.text());
        assert_eq!(draft.text().contains("cannot be built as it is"), refused.is_some());
    }
    let json = serde_json::to_value(drafted(None)).unwrap();
    assert_eq!(json["packages"][0], "libssl3=3.0.14-1~deb12u2");
    assert_eq!(
        (&json["unmatched"][0]["name"], &json["unmatched"][0]["why"]),
        (&"acme-agent".into(), &"not-there".into())
    );
}
