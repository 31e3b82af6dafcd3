//! Enrolment by a token: the real server, the real `patchlab-agent enroll`, and those who come in between, before or instead.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod knock;
mod managed;
mod site;

use std::{
    fs,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use knock::Impostor;
use managed::{Agent, package, program};
use patchlab_protocol::{
    Digest, SigningKey,
    enrolment::Enrolment,
    token::{EnrolmentToken, Secret},
};
use serde_json::{Value, json};
use site::{Ran, Site, free_port, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A server, and the program of an agent.
struct World {
    site: Site,
    program: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl World {
    /// `None` where there is no agent to try with, which is said aloud.
    fn new() -> Option<Self> {
        let program = program()?;
        let mut site = Site::new();
        site.serve();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Some(Self { site, program, runtime })
    }

    fn create(&self, name: &str, words: &[&str]) -> Ran {
        let address = free_port().to_string();
        let state = self.site.path(&format!("{name}-state")).display().to_string();
        let create = ["host", "token", "create", name, "--address", &address, "--listen", &address, "--site", "lab"];
        self.site.run(&[&create, &["--state-dir", &state][..], words].concat())
    }

    fn token(&self, name: &str) -> EnrolmentToken {
        let ran = self.create(name, &[]);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        ran.out.parse().unwrap()
    }

    /// The agent's own command on the host, whose folder is called so.
    fn enroll(&self, token: &EnrolmentToken, folder: &str) -> Ran {
        enroll(&self.program, &token.to_string(), &self.site.path(folder))
    }

    /// Enrols nobody: the exit code, and what is said.
    fn refused(&self, token: &EnrolmentToken, folder: &str, code: i32, says: &str) {
        let ran = self.enroll(token, folder);
        assert_eq!(ran.code, Some(code), "{}{}", ran.out, ran.err);
        assert!(ran.err.contains(says), "{}", ran.err);
        for name in ["agent.toml", "root.json"] {
            assert!(!self.site.path(folder).join(name).exists(), "{folder}/{name} is there");
        }
    }

    fn ask(&self, token: &EnrolmentToken, key: &SigningKey) -> knock::Answer {
        self.runtime.block_on(knock::ask(self.site.enrolment, &knock::request(token, key)))
    }

    /// What the list says of a host's newest token.
    fn listed(&self, host: &str) -> Value {
        let all = self.site.ok_json(&["host", "token", "list"]);
        all.as_array().unwrap().iter().rfind(|token| token["host"] == host).unwrap().clone()
    }

    /// Rows of the audit log with that event, of that host.
    fn audited(&self, event: &str, host: &str) -> Vec<Value> {
        let rows = self.site.ok_json(&["audit", "show"]);
        let is_meant = |row: &&Value| row["event"] == event && row["subject"] == host;
        let detail = |row: &Value| serde_json::from_str(row["detail"].as_str().unwrap()).unwrap();
        rows.as_array().unwrap().iter().filter(is_meant).map(detail).collect()
    }

    /// The time of a host's token is over.
    fn expire(&self, host: &str) {
        let database = rusqlite::Connection::open(self.site.path("data/server/store.sqlite")).unwrap();
        let sql = "UPDATE enrolment_token SET not_after = '2020-01-01T00:00:00Z' WHERE host = ?1";
        assert_eq!(database.execute(sql, [host]).unwrap(), 1);
    }
}

fn enroll(program: &Path, token: &str, dir: &Path) -> Ran {
    let mut command = Command::new(program);
    command.arg("enroll").arg("--dir").arg(dir).env("RUST_LOG", "warn");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One that wants no token, because its folder cannot be used, may have ended.
    let _ = writeln!(child.stdin.take().unwrap(), "{token}");
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn configuration(folder: &Path) -> Enrolment {
    toml::from_str(&fs::read_to_string(folder.join("agent.toml")).unwrap()).unwrap()
}

#[test]
fn a_host_enrols_itself_once_and_answers() {
    let Some(world) = World::new() else { return };
    let site = &world.site;
    let made = world.create("web-1", &[]);
    assert_eq!(made.out.lines().count(), 1, "the token is alone on standard output: {}", made.out);
    let token: EnrolmentToken = made.out.parse().unwrap();
    let ran = world.enroll(&token, "web-1");
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("next: systemctl enable --now patchlab-agent"), "{}", ran.out);
    let folder = site.path("web-1");
    for name in ["agent.toml", "root.json", "host.pem"] {
        assert_eq!(fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    let key = SigningKey::read(&folder.join("host.pem")).unwrap();
    assert_eq!(site.ok_json(&["host", "show", "web-1"])["public_key"], key.public().to_string());

    let packages = site.path("packages");
    fs::create_dir(&packages).unwrap();
    let agent = Agent::start_enrolled(site, &world.program, "web-1", &package(&packages, "1.0-1", None));
    until("the server has spoken with it", || !site.ok_json(&["host", "show", "web-1"])["class"].is_null());
    until("it answers to what the server was told", || agent.answers(&agent.enrolment.deployer));
    assert!(!agent.enrolment.scripts.allow);

    // Again: on the host itself, and with its folder gone, where nobody can tell it from somebody else.
    let ran = world.enroll(&token, "web-1");
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("enrolled already"), "{}", ran.err);
    world.refused(&token, "elsewhere", 5, "token-used: another key was enrolled with this token");
    world.refused(&token, "elsewhere", 5, "token-used");
    let told = world.audited("token-refused", "web-1");
    assert_eq!(told.len(), 1, "who asks over and over fills no log: {told:?}");
    assert_eq!(told[0]["enrolled_key"], key.public().id().to_string());
    assert!(told[0]["meaning"].as_str().unwrap().contains("somebody else has the token"));
    let listed = world.listed("web-1");
    assert_eq!((&listed["state"], &listed["refusals"]), (&json!("used"), &json!({ "token-used": 2 })));
    for event in ["token-created", "token-used", "host-enrolled"] {
        assert_eq!(world.audited(event, "web-1").len(), 1, "{event}");
    }
    assert_eq!(site.ok_json(&["audit", "verify"])["findings"], json!([]));
    // What is kept of the token is no way to it.
    let kept = fs::read(site.path("data/server/store.sqlite-wal")).unwrap_or_default();
    let database = [fs::read(site.path("data/server/store.sqlite")).unwrap(), kept].concat();
    let secret = serde_json::to_value(&token.secret).unwrap().as_str().unwrap().to_owned();
    let digest = token.secret.digest().to_string();
    let holds = |text: &str| database.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds(&digest) && !holds(&secret));
}

#[test]
fn a_lost_answer_is_given_again_to_the_same_key_and_to_no_other() {
    let Some(mut world) = World::new() else { return };
    let token = world.token("web-1");
    let folder = world.site.path("web-1");
    fs::create_dir(&folder).unwrap();
    let key = SigningKey::generate().unwrap();
    key.write_new(&folder.join("host.pem")).unwrap();
    // The host is enrolled, and never hears of it.
    let door = world.site.enrolment;
    world.runtime.block_on(async {
        let mut stream = knock::tls(tokio::net::TcpStream::connect(door).await.unwrap()).await;
        stream.write_all(&knock::request(&token, &key)).await.unwrap();
        let hosts = || world.site.ok_json(&["host", "list"]).as_array().unwrap().len();
        until("the host is enrolled", || hosts() == 1);
    });
    // The server is another process by the time the host asks again, with another certificate over the same key.
    world.site.kill();
    world.site.serve();
    let ran = world.enroll(&token, "web-1");
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    let given = fs::read_to_string(folder.join("agent.toml")).unwrap();
    assert_eq!(world.ask(&token, &key).admission().agent_toml, given);
    let credentials: Value =
        serde_json::from_slice(&fs::read(world.site.path("data/keys/hosts/web-1.json")).unwrap()).unwrap();
    let deployer = configuration(&folder).deployer;
    assert_eq!(credentials["deployer"], serde_json::to_value(deployer).unwrap());
    assert_eq!(SigningKey::read(&folder.join("host.pem")).unwrap().public(), key.public());

    let other = world.ask(&token, &SigningKey::generate().unwrap());
    assert_eq!((other.status, other.denied()), (403, "token-used"));
    world.expire("web-1");
    let late = world.ask(&token, &key);
    assert_eq!((late.status, late.denied()), (403, "token-expired"));
    assert!(!world.site.path("data/keys/admissions/web-1.json").exists(), "what was kept for a second try is gone");
}

#[test]
fn of_many_keys_with_one_token_one_is_enrolled() {
    let Some(world) = World::new() else { return };
    let token = world.token("web-1");
    let door = world.site.enrolment;
    let answers = world.runtime.block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let request = knock::request(&token, &SigningKey::generate().unwrap());
            all.spawn(async move { knock::ask(door, &request).await });
        }
        all.join_all().await
    });
    let (in_, out): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(in_.len(), 1);
    assert!(out.iter().all(|answer| answer.denied() == "token-used"));
    assert_eq!(world.listed("web-1")["refusals"], json!({ "token-used": 7 }));
}

#[test]
fn every_refusal_has_a_name_and_nothing_can_be_felt_out() {
    let Some(world) = World::new() else { return };
    let late = world.token("late");
    world.expire("late");
    world.refused(&late, "late", 5, "token-expired: the token's time is over");
    // Its name is free for another.
    let open = world.token("late");

    let revoked = world.token("revoked");
    world.site.ok(&["host", "token", "revoke", "revoked"]);
    world.refused(&revoked, "revoked", 5, "token-revoked: the token was taken back");
    assert_eq!(world.audited("token-revoked", "revoked").len(), 1);
    let ran = world.site.run(&["host", "token", "revoke", "revoked"]);
    assert_eq!(ran.code, Some(65), "there is none to take back: {}", ran.err);

    // Enrolled by hand before the token was used.
    let folder = world.site.path("by-hand").display().to_string();
    world.site.ok(&["host", "enroll", "late", "--address", "127.0.0.1:9", "--site", "lab", "--out", &folder]);
    world.refused(&open, "late", 5, "already-enrolled");

    let token = world.token("web-1");
    let key = SigningKey::generate().unwrap();
    let nobodys = EnrolmentToken { secret: Secret::generate().unwrap(), ..token.clone() };
    let another = EnrolmentToken { host: "web-2".into(), ..token.clone() };
    world.refused(&nobodys, "web-1", 5, "token-unknown");
    world.refused(&another, "web-2", 5, "token-unknown");
    let [unknown, wrong] = [&nobodys, &another].map(|token| world.ask(token, &key));
    assert_eq!((unknown.status, &unknown.body), (wrong.status, &wrong.body), "it is not told which is wrong");
    assert_eq!(unknown.denied(), "token-unknown");
    // That somebody has a part of the token is known here.
    assert_eq!(world.listed("web-1")["refusals"], json!({ "token-unknown": 2 }));
    assert_eq!(world.audited("token-refused", "web-1")[0]["asked_as"], "web-2");

    // Signed by another key than the one that is to be enrolled.
    let mut forged = knock::request(&token, &key);
    let at = forged.windows(6).position(|six| six == br#""sig":"#).unwrap() + 8;
    forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
    let answer = world.runtime.block_on(knock::ask(world.site.enrolment, &forged));
    assert_eq!((answer.status, answer.denied()), (400, "bad-application"));
    // None of it has used the token up.
    assert_eq!(world.listed("web-1")["state"], "open");
    assert_eq!(world.enroll(&token, "good").code, Some(0));
}

#[test]
fn a_token_is_made_for_a_host_that_can_come_and_for_a_sensible_time() {
    let Some(world) = World::new() else { return };
    let bad = |name: &str, words: &[&str], says: &str| {
        let ran = world.create(name, words);
        assert_eq!(ran.code, Some(65), "{name}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains(says), "{}", ran.err);
    };
    for valid in ["59s", "31d", "99999d"] {
        bad("web-1", &["--valid", valid], "1 minute at least and 30 days at most");
    }
    bad(".web", &[], "not with '.' first");
    let token = world.token("web-1");
    assert_eq!(token.server, world.site.enrolment);
    bad("web-1", &[], "patchlab host token revoke");
    assert_eq!(world.enroll(&token, "web-1").code, Some(0));
    bad("web-1", &[], "it is enrolled");
    let elsewhere = world.create("web-2", &["--member", "192.0.2.9"]).out.parse::<EnrolmentToken>().unwrap();
    assert_eq!(elsewhere.server.ip().to_string(), "192.0.2.9");
    let listed = world.site.ok(&["host", "token", "list"]);
    assert!(listed.contains("web-1\tused") && listed.contains("web-2\topen"), "{listed}");
}

#[test]
fn an_impostor_is_told_nothing() {
    let Some(world) = World::new() else { return };
    let token = world.token("web-1");
    let door = world.site.enrolment;
    let (one, two) = (world.site.path("one.pem"), world.site.path("two.pem"));
    let another_key = world.runtime.block_on(Impostor::with_another_key(&one));
    let copied = world.runtime.block_on(Impostor::with_the_certificate_of(door, &two));
    for (impostor, says) in
        [(another_key, "is not the one in the token: somebody else answers there"), (copied, "no secure connection")]
    {
        let led_astray = EnrolmentToken { server: impostor.address(), ..token.clone() };
        let hears = world.runtime.spawn(impostor.hears());
        world.refused(&led_astray, "web-1", 1, says);
        let heard = world.runtime.block_on(hears).unwrap();
        assert_eq!(String::from_utf8_lossy(&heard), "", "it was told something");
    }
    let nobody = EnrolmentToken { server: free_port(), ..token.clone() };
    world.refused(&nobody, "web-1", 1, "cannot reach the server");
    // Nobody has the secret but the host: the token is good where it belongs.
    assert_eq!(world.enroll(&token, "web-1").code, Some(0));
}

#[test]
fn an_answer_with_another_root_is_not_believed() {
    let Some(world) = World::new() else { return };
    let token = EnrolmentToken { root: Digest::of("another root"), ..world.token("web-1") };
    world.refused(&token, "web-1", 1, "nothing was written: agent.toml: root.digest is");
}

#[test]
fn older_tls_is_not_spoken() {
    let Some(world) = World::new() else { return };
    let answer = world.runtime.block_on(async {
        let mut stream = tokio::net::TcpStream::connect(world.site.enrolment).await.unwrap();
        stream.write_all(&knock::hello_of_tls_1_2()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    });
    // An alert (21): fatal (2), protocol_version (70), RFC 8446, 6.
    assert_eq!((answer[0], &answer[5..]), (21, &[2, 70][..]), "{answer:?}");
}

#[test]
fn who_says_nothing_too_much_or_knocks_too_often_hinders_nobody() {
    let Some(world) = World::new() else { return };
    let door = world.site.enrolment;
    let [here, there]: [IpAddr; 2] = ["127.0.0.1", "127.0.0.2"].map(|ip| ip.parse().unwrap());
    let token = world.token("web-1");
    let request = knock::request(&token, &SigningKey::generate().unwrap());
    world.runtime.block_on(async {
        let mut slow = Vec::new();
        for _ in 0..8 {
            let silent = knock::tcp(here, door).await;
            let mut half = knock::tls(knock::tcp(here, door).await).await;
            half.write_all(&request[..request.len() / 2]).await.unwrap();
            slow.push((silent, half));
        }
        let mut many = Vec::new();
        for _ in 0..32 {
            many.push(knock::tls(knock::tcp(there, door).await).await);
        }
        let mut turned_away = knock::tcp(there, door).await;
        // At once, and not as one who is too slow.
        let at_once = tokio::time::timeout(Duration::from_secs(7), turned_away.read(&mut [0])).await;
        assert_eq!(at_once.expect("one more from there is hung up on").unwrap_or(0), 0);

        assert_eq!(knock::ask(door, &knock::post(&vec![b' '; 16 * 1024 + 1])).await.status, 413);
        let mut endless = knock::tls(knock::tcp(here, door).await).await;
        let _ = endless.write_all(&knock::post(&vec![b' '; 4 * 1024 * 1024])).await;
        let mut heard = Vec::new();
        let _ = endless.read_to_end(&mut heard).await;
        assert!(!String::from_utf8_lossy(&heard).contains(" 200 "));
        let elsewhere = b"GET / HTTP/1.1\r\nhost: door\r\n\r\n";
        assert_eq!(knock::ask(door, elsewhere).await.status, 404);

        let good = tokio::task::block_in_place(|| world.enroll(&token, "web-1"));
        assert_eq!(good.code, Some(0), "{}{}", good.out, good.err);
        // Whoever dawdles is hung up on after ten seconds.
        let (mut silent, mut half) = slow.pop().unwrap();
        let end = tokio::time::timeout(Duration::from_secs(30), async {
            (silent.read(&mut [0]).await.unwrap_or(0), half.read(&mut [0]).await.unwrap_or(0))
        });
        assert_eq!(end.await.expect("they are hung up on"), (0, 0));
        drop(many);
    });
}
