//! From where a host fetches: near places first, and whatever they do wrong costs only time. How fast it may.

use std::{
    fs,
    time::{Duration, Instant},
};

use patchlab_protocol::{
    Digest, Role,
    document::{Action, RunState},
    enrolment::Fetching,
    mib,
};

use super::{
    database::Package,
    host::{Host, NAME, missing},
    manager::oid,
    member::{Manner, Member},
};

/// Where nobody listens.
const NOBODY: &str = "http://127.0.0.1:1/";
/// After how many bytes a place hangs up: more than a document has, less than a package.
const PART: usize = 20_000;

/// Text that does not become much smaller when it is packed.
fn noise(bytes: usize) -> String {
    (0..bytes / 64).map(|number| Digest::of(format!("noise {number}")).to_string()).collect()
}

/// A host that asks these places first, and the four published documents of an order that brings two packages.
struct Case {
    host: Host,
    documents: [Option<Digest>; 4],
    /// Of both packages, bytes.
    size: u64,
    files: Vec<Digest>,
}

impl Case {
    fn new(fetch: Fetching, bytes: usize) -> Self {
        let host = Host::fetching(fetch);
        let replaced = host.installed(&host.package("web", "1", "", None));
        let content = noise(bytes);
        let files = [("usr/share/noise", content.as_str())];
        let package = |name, version| host.built(&Package { name, version, files: &files, ..Package::default() });
        let lib = [("usr/share/other-noise", content.as_str())];
        let lib = host.built(&Package { name: "lib", version: "1", files: &lib, ..Package::default() });
        let new = vec![package("web", "2"), lib];
        let (size, files) = (new.iter().map(|file| file.size).sum(), new.iter().map(|file| file.sha256).collect());
        let authority = &host.authority;
        let (order, envelope) = authority.order("PO-1", &host.class, new, vec![replaced]);
        let digest = host.publish(&envelope);
        let transaction = ["install lib all - -> 1", "upgrade web all 1 -> 2"];
        let release = host.publish(&authority.release(&order, digest, &transaction));
        let approval = host.publish(&authority.approval(digest, release));
        let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, 1));
        let documents = [digest, release, approval, activation].map(Some);
        Self { host, documents, size, files }
    }

    /// With places near it that answer so.
    fn with_near<const N: usize>(manners: [Manner; N]) -> (Self, [Member; N]) {
        let near = manners.map(|_| Member::new());
        let sources = near.iter().map(Member::uri).collect();
        let case = Self::new(Fetching { sources, rate: None }, 100_000);
        near.iter().zip(manners).for_each(|(member, manner)| member.serve(&case.host.path("www"), manner));
        (case, near)
    }

    /// `seconds` is the run's lifetime.
    fn run(&self, seconds: u32) -> RunState {
        let manager = self.host.deployer();
        manager.create(1, &self.host.uri, self.documents).unwrap();
        manager.set(&[(oid(mib::order::ENTRY, &[mib::order::LIFETIME, 1]), 'u', seconds.to_string())]).unwrap();
        manager.start(1, 1).unwrap();
        manager.wait(1, 1)
    }

    fn succeeds(&self) {
        assert_eq!(self.run(120), RunState::Succeeded, "{}", self.host.log());
        assert_eq!(self.host.packages(), "installed lib 1\ninstalled web 2\n");
    }

    fn refusal(&self, seconds: u32) -> String {
        assert_eq!(self.run(seconds), RunState::Refused, "{}", self.host.log());
        self.host.deployer().text(&oid(mib::order::ENTRY, &[mib::order::REFUSAL_REASON, 1]))
    }

    /// What the place that the row names was asked for: documents, and files with their first bytes.
    fn central(&self) -> (usize, Vec<usize>) {
        (self.host.asked("documents").len(), self.host.asked("artifacts"))
    }
}

fn asked(member: &Member) -> (usize, Vec<usize>) {
    (member.asked("documents").len(), member.asked("artifacts"))
}

#[test]
fn what_a_near_place_has_nobody_else_is_asked_for() {
    if missing() {
        return;
    }
    let (case, [near]) = Case::with_near([Manner::Well]);
    case.succeeds();
    assert_eq!((asked(&near), case.central()), ((4, vec![0, 0]), (0, vec![])));
}

#[test]
fn places_that_cannot_be_reached_or_keep_a_run_waiting_are_asked_once_and_empty_ones_for_each() {
    if missing() {
        return;
    }
    let [silent, dripping, empty] = [Member::new(), Member::new(), Member::new()];
    let sources = vec![NOBODY.into(), silent.uri(), dripping.uri(), empty.uri()];
    let case = Case::new(Fetching { sources, rate: None }, 100_000);
    silent.serve(&case.host.path("www"), Manner::Silent);
    dripping.serve(&case.host.path("www"), Manner::Dripping);
    empty.serve(&case.host.path("www"), Manner::Empty);
    case.succeeds();
    assert_eq!([asked(&silent), asked(&dripping)], [(1, vec![]), (1, vec![])]);
    assert_eq!((asked(&empty), case.central()), ((4, vec![0, 0]), (4, vec![0, 0])));
    let log = case.host.log();
    let given_up: Vec<&str> = log.lines().filter(|line| line.contains("not asked again in this run")).collect();
    let [nobody, silent, dripping] = given_up.as_slice() else { panic!("{log}") };
    assert!(nobody.contains(NOBODY) && silent.contains("said nothing for 5 s"), "{given_up:?}");
    assert!(dripping.contains("bytes came in"), "{given_up:?}");
}

#[test]
fn what_broke_off_is_gone_on_with_at_the_next_place() {
    if missing() {
        return;
    }
    let (case, [breaking, well]) = Case::with_near([Manner::Breaking(PART), Manner::Well]);
    case.succeeds();
    assert_eq!(asked(&breaking), (4, vec![0, 0]));
    assert_eq!((asked(&well), case.central()), ((0, vec![PART, PART]), (0, vec![])));

    // Also at a place that knows no ranges, as the one that the row names here.
    let (case, [first, second]) = Case::with_near([Manner::Breaking(PART), Manner::Breaking(PART)]);
    case.succeeds();
    assert_eq!((asked(&first), asked(&second)), ((4, vec![0, 0]), (0, vec![PART, PART])));
    assert_eq!(case.central(), (0, vec![2 * PART, 2 * PART]));
}

#[test]
fn altered_bytes_are_thrown_away_and_who_sent_them_is_not_asked_again() {
    if missing() {
        return;
    }
    let manners = [Manner::Altering("documents"), Manner::Unsigning, Manner::Altering("artifacts")];
    let (case, [first, second, third]) = Case::with_near(manners);
    case.succeeds();
    assert_eq!([asked(&first), asked(&second), asked(&third)], [(1, vec![]), (1, vec![]), (4, vec![0])]);
    assert_eq!(case.central(), (0, vec![0, 0]));

    // Altered bytes that others went on from: all of it again from the one that went on, without them.
    let (case, [liar, well]) = Case::with_near([Manner::AlteringAndBreaking(PART), Manner::Well]);
    case.succeeds();
    assert_eq!((asked(&liar), asked(&well)), ((4, vec![0]), (0, vec![PART, 0, 0])));
    assert_eq!(case.central(), (0, vec![]));
    let log = case.host.log();
    assert!(log.contains("sent altered bytes") && log.contains(&liar.uri()), "{log}");
}

#[test]
fn when_nobody_has_it_the_place_that_the_row_names_says_why() {
    if missing() {
        return;
    }
    let empty = Member::new();
    let case = Case::new(Fetching { sources: vec![NOBODY.into(), empty.uri()], rate: None }, 100_000);
    empty.serve(&case.host.path("www"), Manner::Empty);
    fs::remove_file(case.host.artifact(&case.files[0])).unwrap();
    let reason = case.refusal(120);
    let central = format!("cannot fetch {}artifacts/{}: the server answered 404", case.host.uri, case.files[0]);
    assert!(reason.starts_with(&central), "{reason}");
    assert!(reason.contains("2 nearer sources failed before it"), "{reason}");
    assert_eq!(case.host.packages(), "installed web 1\n");
}

#[test]
fn a_host_fetches_no_faster_than_it_may_and_refuses_what_would_take_too_long() {
    if missing() {
        return;
    }
    let rate = "64KiB/s".parse().unwrap();
    let case = Case::new(Fetching { sources: vec![], rate: Some(rate) }, 100_000);
    let start = Instant::now();
    case.succeeds();
    // What was free before, a quarter of a second's worth, may be made up for.
    let least = rate.time_for(case.size) - Duration::from_millis(250);
    assert!(start.elapsed() >= least, "{} bytes in {:?}", case.size, start.elapsed());

    let rate = "16KiB/s".parse().unwrap();
    let case = Case::new(Fetching { sources: vec![], rate: Some(rate) }, 600_000);
    assert!(rate.time_for(case.size) > Duration::from_secs(30), "{} bytes", case.size);
    let reason = case.refusal(30);
    assert!(reason.contains("at 16KiB/s") && reason.contains("raise rate under [fetch]"), "{reason}");
    assert_eq!(case.central().1, Vec::<usize>::new(), "nothing of it was fetched");
}

#[test]
fn an_agent_does_not_start_with_places_or_rates_that_cannot_be() {
    if missing() {
        return;
    }
    let mut host = Host::new();
    host.kill();
    let file = host.path("id/agent.toml");
    let good = fs::read_to_string(&file).unwrap();
    let nine = format!("sources = {:?}", vec!["http://127.0.0.1:1/"; 9]);
    for (line, expected) in [
        ("sources = [\"http://cache.example.org/\"]", "expected an IP address, host names are not resolved"),
        ("sources = [\"https://192.0.2.1/\"]", "expected http://ADDRESS[:PORT][/PATH]"),
        (&*nine, "at most 8 places"),
        ("rate = \"1KiB/s\"", "at least 16KiB/s"),
        ("rate = 100", "rate"),
        ("speed = \"1MiB/s\"", "speed"),
    ] {
        fs::write(&file, format!("{good}\n[fetch]\n{line}\n")).unwrap();
        let output = host.agent().args(["run", "--config"]).arg(&file).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(expected), "{line}: {said}");
        let at = good.lines().count() + 3;
        assert!(said.contains(&format!("agent.toml:{at}")), "{line} is line {at}: {said}");
    }
}

#[test]
fn a_download_goes_on_where_it_was_when_the_agent_was_killed() {
    if missing() {
        return;
    }
    let (mut case, [near]) = Case::with_near([Manner::Breaking(PART)]);
    // The near place hangs up, and the last one says nothing until the gate is opened.
    let gate = case.host.hold_artifacts();
    let manager = case.host.deployer();
    manager.create(1, &case.host.uri, case.documents).unwrap();
    manager.start(1, 1).unwrap();
    gate.wait_until_asked();
    case.host.kill();
    case.host.start();
    gate.open();
    let manager = case.host.deployer();
    assert_eq!(manager.wait(1, 1), RunState::Aborted, "{}", case.host.log());
    manager.start(1, 2).unwrap();
    assert_eq!(manager.wait(1, 2), RunState::Succeeded, "{}", case.host.log());
    assert_eq!(near.asked("artifacts")[..2], [0, PART], "{}", case.host.log());
    assert_eq!(fs::read_dir(case.host.path("state/parts")).unwrap().count(), 0);
}
