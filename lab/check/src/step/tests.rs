use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use super::*;
use crate::{
    Digest, Target,
    target::{Ended, OUTPUT_LIMIT, Ran, TargetError},
    written::parse,
};

/// This very machine, with programs that stand before the system's where a container has none (systemctl).
struct Here {
    first_in_path: Option<String>,
}

impl Target for Here {
    fn run(&self, command: &str, dir: Option<&str>, timeout: Duration) -> Result<Ran, TargetError> {
        let path = std::env::var("PATH").unwrap();
        let path = self.first_in_path.as_ref().map_or(path.clone(), |first| format!("{first}:{path}"));
        let out = Command::new("timeout")
            .arg(format!("{}s", timeout.as_secs_f32()))
            .args(["/bin/sh", "-c", command])
            .env("PATH", path)
            .current_dir(dir.unwrap_or("/"))
            .output()
            .map_err(|error| TargetError { action: "run".into(), reason: error.to_string() })?;
        let ended = if out.status.code() == Some(124) { Ended::ByTimeout } else { Ended::ByItself };
        Ok(Ran {
            exit: out.status.code().filter(|_| ended == Ended::ByItself),
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
            written: (out.stdout.len() + out.stderr.len()) as u64,
            ended,
        })
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, TargetError> {
        let Ok(file) = std::fs::File::open(path) else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).unwrap();
        Ok(Some(bytes))
    }

    fn connect(
        &self,
        host: &str,
        port: u16,
        request: &[u8],
        timeout: Duration,
    ) -> Result<Option<Vec<u8>>, TargetError> {
        let Ok(mut stream) = TcpStream::connect((host, port)) else { return Ok(None) };
        stream.set_read_timeout(Some(timeout)).unwrap();
        stream.write_all(request).unwrap();
        let mut bytes = Vec::new();
        if !request.is_empty() {
            let _ = stream.take(OUTPUT_LIMIT).read_to_end(&mut bytes);
        }
        Ok(Some(bytes))
    }
}

fn step(toml: &str) -> Step {
    parse(&format!("name = \"it\"\n{toml}\n"), Path::new("step.toml")).unwrap()
}

fn evaluate(toml: &str) -> Outcome {
    let here = Here { first_in_path: None };
    step(toml).evaluate(&here, Context { dir: Some("/"), budget: Duration::from_secs(20), pace: 1 }).unwrap()
}

#[test]
fn one_form_in_files_and_in_documents() {
    let table = [
        r#"run = "true""#,
        "run = \"x\"\ntimeout = \"1500ms\"\nsuperficial = true\n[expect]\nexit = 1\nstdout_matches = \"^a$\"",
        "run = \"x\"\nmetric = { name = \"r\", regex = \"([0-9.]+) req/s\", worse_than_control = \"20%\" }",
        "run = \"x\"\nrepeat = 9\nmetric = { name = \"s\", regex = \"(\\\\d+) s\", worse_than_control = \"5%\", better = \"lower\" }",
        r#"http = { url = "http://[::1]:8080/a?b=c", status = 404, body_contains = "x", headers = { Content-Type = "text/html" } }"#,
        r#"tcp = { host = "127.0.0.1", port = 22 }"#,
        r#"unit = { name = "nginx.service", state = "active" }"#,
        r#"file = { path = "/etc/x", contains = "y" }"#,
        r#"package = { name = "libc6", version = "2.36-9+deb12u10" }"#,
        r#"package = { name = "telnetd", state = "absent" }"#,
        r#"port = { number = 53, protocol = "udp" }"#,
        r#"port = { number = 23, state = "closed" }"#,
        "run = \"x\"\nrepeat = 3\nredact = [\"token=(\\\\S+)\"]\n[expect]\nstdout_json = { \"$.a[0]\" = 1, \"$.b\" = [\"x\", true] }",
        "run = \"x\"\nexpect = { stdout = \"a\", stderr = \"\", stderr_matches = \"b\", stderr_json = { \"$\" = {} } }",
        r#"http = { url = "http://h/", body_matches = "^x", body_json = { "$.status" = "ok" } }"#,
        r#"file = { path = "/etc/x", mode = "0644", matches = "^y" }"#,
        r#"file = { path = "/etc/x", state = "absent" }"#,
        r#"wait = { until = { unit = { name = "a.service", state = "active" } }, limit = "30s" }"#,
        r#"wait = { until = { run = "test -e /x", expect = { exit = 1 } }, limit = "30s" }"#,
        "reboot = true",
        r#"copy-in = { from = "a/b.conf", to = "/etc/b.conf", mode = "0600" }"#,
        r#"copy-out = { from = "/var/log/x.log", limit = "2MiB" }"#,
        r#"sleep = { for = "2s", why = "the cache is written every second" }"#,
    ];
    for toml in table {
        let step = step(toml);
        let json = serde_json::to_string(&step).unwrap();
        assert_eq!(serde_json::from_str::<Step>(&json).unwrap(), step, "{json}");
        // The document says what the file said: the same keys with the same values, and nothing else.
        let written: toml::Value = toml::from_str(&format!("name = \"it\"\n{toml}\n")).unwrap();
        let written = serde_json::to_value(written).unwrap();
        let document: serde_json::Value = serde_json::from_str(&json).unwrap();
        let document = match document.get("timeout").and_then(|timeout| timeout.as_str()) {
            Some("1500ms") | None => document,
            other => panic!("{other:?}"),
        };
        assert_eq!(document, written);
    }
}

#[test]
fn wrong_steps_cannot_be_written() {
    let table = [
        (
            "",
            r#"step "it" does nothing: give it one of run, http, tcp, unit, file, package, port, wait, reboot, copy-in, copy-out, screenshot, sleep, barrier"#,
        ),
        ("run = \"true\"\ntcp = { host = \"h\", port = 1 }", r#"step "it" is of more than one kind (run, tcp)"#),
        ("tcp = { host = \"h\", port = 1 }\nexpect = { exit = 0 }", r#"expect goes with run only, and this is tcp"#),
        ("run = \"\"", "run is empty"),
        (
            "run = \"x\"\nexpect = { stdout_matches = \"a(\" }",
            r#"3:29: key "expect.stdout_matches": expected a regular"#,
        ),
        ("run = \"x\"\nexpect = { exot = 0 }", r#"unknown key "exot" in "expect": did you mean "exit"?"#),
        ("http = { url = \"https://h/\" }", "TLS is not spoken"),
        ("http = { url = \"http://h:99999/\" }", "no number from 0 to 65535"),
        ("http = { url = \"h\" }", "expected an address http://"),
        ("http = { url = \"http://h/ x\" }", "percent-encoded"),
        ("http = { url = \"http://h/\", status = 1 }", "1 is no HTTP status"),
        ("unit = { name = \"nginx; reboot\", state = \"active\" }", "expected a unit name"),
        ("unit = { name = \"nginx.service\", state = \"actve\" }", r#""actve" is no state of a unit"#),
        ("file = { path = \"etc/passwd\" }", "expected an absolute path"),
        ("file = { path = \"/x\", sha256 = \"12\" }", "expected 64 hexadecimal digits"),
        ("package = { name = \"a b\" }", "expected a package name"),
        (
            "run = \"x\"\nmetric = { name = \"n\", regex = \"([0-9]+)\", worse_than_control = \"20\" }",
            r#"such as "20%""#,
        ),
        (
            "run = \"x\"\nmetric = { name = \"n\", regex = \"[0-9]+\", worse_than_control = \"20%\" }",
            "has no group for the number",
        ),
        (
            "run = \"x\"\nmetric = { name = \"n\", regex = \"([0-9]+)\", worse_than_control = \"100%\" }",
            "100% worse is nothing at all",
        ),
        (
            "run = \"x\"\nmetric = { name = \"\", regex = \"([0-9]+)\", worse_than_control = \"10%\" }",
            "no name of a metric",
        ),
        (
            "run = \"x\"\nmetric = { name = \"n\", regex = \"([0-9]+)\", worse_than_control = \"1%\", better = \"faster\" }",
            r#"key "metric.better": unknown value "faster""#,
        ),
        ("run = \"x\"\nexpect = { stdout_json = { \"a.b\" = 1 } }", "expected a JSONPath query such as"),
        ("run = \"x\"\nrepeat = 0", r#"key "repeat": expected a number of times from 1 to 1000, found 0"#),
        ("run = \"x\"\nredact = [\"a*\"]", "a pattern of redact matches everything"),
        ("port = { number = 0 }", "0 is no port"),
        ("file = { path = \"/x\", mode = \"rw-\" }", r#"key "file.mode": expected permission bits in octal"#),
        ("file = { path = \"/x\", state = \"absent\", mode = \"0644\" }", "an absent file has no mode"),
        ("wait = { until = { }, limit = \"1s\" }", "what is waited for does nothing: give it one of run"),
        ("wait = { until = { reboot = true }, limit = \"1s\" }", r#"unknown key "reboot" in "wait.until""#),
        ("wait = { until = { run = \"x\" } }", r#"missing key "limit" in "wait""#),
        ("wait = { until = { run = \"x\" }, limit = \"1s\" }\ntimeout = \"2s\"", "wait has its own limit"),
        (
            "wait = { until = { tcp = { host = \"h\", port = 1 }, expect = { exit = 1 } }, limit = \"1s\" }",
            "expect goes with run only, and this is tcp",
        ),
        ("reboot = false", "expected true, found false"),
        ("reboot = true\nrepeat = 2", "only what looks at the machine can be repeated"),
        ("copy-in = { from = \"../x\", to = \"/x\" }", "expected a path of a file in the scenario's folder"),
        ("copy-in = { from = \"/x\", to = \"/x\" }", "expected a path of a file in the scenario's folder"),
        ("copy-out = { from = \"/x\", limit = \"9MiB\" }", "the limit of copy-out is from 1B to 8MiB"),
        ("sleep = { for = \"6s\", why = \"x\" }", "a sleep is at most 5 s: use wait"),
        ("sleep = { for = \"5s\", why = \" \" }", "a sleep says why"),
        ("sleep = { for = \"5s\" }", r#"missing key "why" in "sleep""#),
        ("run = \"x\"\ntimeout = 5", r#"key "timeout": expected a length of time"#),
    ];
    for (toml, expected) in table {
        let text = format!("name = \"it\"\n{toml}\n");
        let found = parse::<Step>(&text, Path::new("step.toml")).expect_err(toml).to_string();
        assert!(found.contains(expected), "\n   input {toml}\nexpected {expected}\n   found {found}");
        assert!(found.starts_with("step.toml:") && !found.contains('\n'), "{found}");
    }
}

#[test]
fn commands() {
    let table = [
        ("run = \"true\"", Status::Pass, ""),
        ("run = \"exit 3\"", Status::Fail, "exit 3, expected 0"),
        ("run = \"exit 3\"\nexpect = { exit = 3 }", Status::Pass, ""),
        ("run = \"echo no docker here; exit 77\"", Status::Skip, "exit 77: no docker here"),
        ("run = \"exit 77\"\nexpect = { exit = 77 }", Status::Pass, ""),
        ("run = \"kill -9 $$\"", Status::Fail, "it was killed by a signal, expected exit 0"),
        ("run = \"sleep 20\"\ntimeout = \"200ms\"", Status::Fail, "it ran longer than 0.2 s"),
        ("run = \"echo abc\"\nexpect = { stdout_contains = \"b\" }", Status::Pass, ""),
        ("run = \"echo abc\"\nexpect = { stdout_contains = \"x\" }", Status::Fail, "stdout does not contain \"x\""),
        ("run = \"echo abc\"\nexpect = { stdout_matches = \"^a.c$\" }", Status::Pass, ""),
        ("run = \"echo abc\"\nexpect = { stdout_matches = \"^b\" }", Status::Fail, "stdout does not match \"^b\""),
        ("run = \"echo e >&2\"\nexpect = { stderr_contains = \"f\" }", Status::Fail, "stderr does not contain \"f\""),
    ];
    for (toml, status, reason) in table {
        let outcome = evaluate(toml);
        assert_eq!((outcome.status, outcome.reason.as_str()), (status, reason), "{toml}");
    }
    let outcome = evaluate("run = \"seq 1 20000; echo end\"");
    assert!(outcome.output.len() < 20_000 && outcome.output.starts_with("1\n2\n") && outcome.output.ends_with("end"));
    assert!(outcome.output.contains("bytes left out"));
}

/// What came out, by every way of looking at it.
#[test]
fn outputs() {
    const JSON: &str = r#"run = "echo '{\"state\":\"ok\",\"n\":2,\"list\":[{\"id\":1},{\"id\":2.0}]}'""#;
    let table = [
        ("run = \"echo abc\"\nexpect = { stdout = \"abc\" }".to_owned(), ""),
        ("run = \"printf 'a\\\\nb'\"\nexpect = { stdout = \"a\\nb\\n\", stderr = \"\" }".to_owned(), ""),
        ("run = \"echo abcd\"\nexpect = { stdout = \"abc\" }".to_owned(), "stdout is \"abcd\", expected \"abc\""),
        ("run = \"echo e >&2\"\nexpect = { stderr_matches = \"^f\" }".to_owned(), "stderr does not match \"^f\""),
        ("run = \"echo e >&2\"\nexpect = { stderr = \"\" }".to_owned(), "stderr is \"e\", expected \"\""),
        (format!("{JSON}\nexpect = {{ stdout_json = {{ \"$.state\" = \"ok\", \"$.n\" = 2.0 }} }}"), ""),
        (format!("{JSON}\nexpect = {{ stdout_json = {{ \"$.list[*].id\" = [1, 2] }} }}"), ""),
        (format!("{JSON}\nexpect = {{ stdout_json = {{ \"$.list[?@.id > 1].id\" = 2 }} }}"), ""),
        (
            format!("{JSON}\nexpect = {{ stdout_json = {{ \"$.state\" = \"bad\" }} }}"),
            "$.state in stdout is \"\\\"ok\\\"\", expected \"bad\"",
        ),
        (
            format!("{JSON}\nexpect = {{ stdout_json = {{ \"$.gone\" = 1 }} }}"),
            "$.gone in stdout is nothing, expected 1",
        ),
        (
            format!("{JSON}\nexpect = {{ stdout_json = {{ \"$.list[*].id\" = [1] }} }}"),
            "$.list[*].id in stdout is 2 values, expected [1]",
        ),
        (
            "run = \"echo no\"\nexpect = { stdout_json = { \"$\" = 1 } }".to_owned(),
            "stdout is not JSON: expected ident at line 1 column 2",
        ),
    ];
    for (toml, reason) in table {
        let outcome = evaluate(&toml);
        let status = if reason.is_empty() { Status::Pass } else { Status::Fail };
        assert_eq!((outcome.status, outcome.reason.as_str()), (status, reason), "{toml}");
    }
}

#[test]
fn waits() {
    let dir = tempfile_dir("wait");
    let flag = dir.join("flag");
    let count = dir.join("count");
    let later = format!("(sleep 0.3; touch {0}) >/dev/null 2>&1 & test ! -e {0}", flag.display());
    assert_eq!(evaluate(&format!("run = {later:?}")).status, Status::Pass);
    let outcome = evaluate(&format!("wait = {{ until = {{ file = {{ path = {flag:?} }} }}, limit = \"10s\" }}"));
    assert_eq!((outcome.status, outcome.reason.as_str()), (Status::Pass, ""));
    assert!(outcome.ms < 5_000, "{outcome:?}");
    let never = evaluate("wait = { until = { tcp = { host = \"127.0.0.1\", port = 1 } }, limit = \"400ms\" }");
    assert_eq!(never.reason, "not within 0.4 s: no connection to 127.0.0.1:1");
    assert!(never.ms >= 400 && never.ms < 5_000, "{never:?}");
    // It cannot come to hold: no look but the first.
    let looks = format!("echo x >>{}; no-such-command", count.display());
    let outcome = evaluate(&format!("wait = {{ until = {{ run = {looks:?} }}, limit = \"10s\" }}"));
    assert_eq!(outcome.reason, "exit 127, expected 0: waiting is no use");
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\n");
    let skip = evaluate("wait = { until = { run = \"exit 77\" }, limit = \"10s\" }");
    assert_eq!(skip.status, Status::Skip);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn repeated_until_it_fails() {
    let dir = tempfile_dir("repeat");
    let count = dir.join("count");
    let command = format!("echo x >>{0}; test $(wc -l <{0}) -lt 3", count.display());
    let outcome = evaluate(&format!("run = {command:?}\nrepeat = 5"));
    assert_eq!((outcome.status, outcome.reason.as_str()), (Status::Fail, "time 3 of 5: exit 1, expected 0"));
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\nx\nx\n");
    let metric = "metric = { name = \"n\", regex = \"([0-9]+)\", worse_than_control = \"20%\" }";
    let outcome = evaluate(&format!("run = \"echo 7\"\nrepeat = 3\n{metric}"));
    assert_eq!((outcome.status, outcome.output.as_str()), (Status::Pass, "7"));
    assert_eq!(outcome.samples.iter().map(|sample| sample.number()).collect::<Vec<_>>(), [7.0; 3]);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn secrets_are_taken_out_of_output_and_reason() {
    let run = "run = \"echo user=a token=hunter2; echo hunter2 >&2\"";
    let outcome = evaluate(&format!("{run}\nredact = [\"token=(\\\\S+)\"]"));
    assert_eq!(outcome.output, "user=a token=[redacted]\nhunter2");
    let outcome = evaluate(&format!("{run}\nredact = [\"hunter.\"]\nexpect = {{ stdout = \"x\" }}"));
    assert_eq!(outcome.output, "user=a token=[redacted]\n[redacted]");
    assert_eq!(outcome.reason, "stdout is \"user=a token=[redacted]\", expected \"x\"");
}

#[test]
fn secrets_are_taken_out_before_anything_is_quoted() {
    let reason = |run: &str, redact: &str, expect: &str| {
        evaluate(&format!("run = '''{run}'''\nredact = ['''{redact}''']\n{expect}")).reason
    };
    let two_lines = "printf 'ok\\npassword: hunter2\\n'";
    let said = reason(two_lines, r"^password: (\S+)", "expect = { stdout = \"x\" }");
    assert_eq!(said, r#"stdout is "ok\npassword: [redacted]", expected "x""#);
    let (json, wanted) = (r#"echo '{"token": "hunter2"}'"#, "expect = { stdout_json = { \"$.token\" = \"x\" } }");
    let said = reason(json, r#""token": "(\w+)""#, wanted);
    assert_eq!(said, r#"$.token in stdout is "\"[redacted]\"", expected "x""#);
    // What is left is no JSON.
    assert_eq!(reason(json, r#""token": .*"#, wanted), r#"$.token in stdout is [redacted], expected "x""#);
    assert_eq!(reason("echo password: hunter2; exit 77", r"^password: (\S+)", ""), "exit 77: password: [redacted]");
}

#[test]
fn secrets_are_taken_out_of_what_is_no_text_as_well() {
    let pattern: Pattern = r"^password: (\S+)".parse().unwrap();
    assert_eq!(*pattern.redact_bytes(b"\xff\xfe\npassword: hunter2\nend"), *b"\xff\xfe\npassword: [redacted]\nend");
    let whole: Pattern = "hunter.".parse().unwrap();
    assert_eq!(*whole.redact_bytes(b"\xc3hunter2\xc3"), *b"\xc3[redacted]\xc3");
}

#[test]
fn what_the_lab_alone_does_fails_on_a_host() {
    assert_eq!(evaluate("reboot = true").reason, "reboot is done by the lab alone, never on a host");
}

/// A folder of this test's own.
fn tempfile_dir(name: &str) -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("patchlab-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Serves one canned answer to one connection and gives its port.
fn serve(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let read = stream.read(&mut request).unwrap();
        assert!(request[..read].starts_with(b"GET /x?y HTTP/1.1\r\nHost: 127.0.0.1:"), "{request:?}");
        stream.write_all(answer).unwrap();
    });
    port
}

#[test]
fn http_answers() {
    let table: &[(&'static [u8], &str, Status, &str)] = &[
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nWelcome", r#"body_contains = "Welcome""#, Status::Pass, ""),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", r#"body_contains = "the end""#, Status::Pass, ""),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nWelc\r\n3;x=y\r\nome\r\n0\r\n\r\n",
            r#"body_contains = "Welcome""#,
            Status::Pass,
            "",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nWelc",
            r#"body_contains = "Welcome""#,
            Status::Fail,
            "the body does not contain \"Welcome\" (it came cut short)",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n", "status = 204", Status::Pass, ""),
        (b"HTTP/1.1 200 OK\r\n\r\n{\"a\":1}", r#"body_json = { "$.a" = 1 }"#, Status::Pass, ""),
        (b"HTTP/1.1 200 OK\r\n\r\nno", r#"body_matches = "^y""#, Status::Fail, "the body does not match \"^y\""),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\nno", "", Status::Fail, "status 502, expected 200"),
        (b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\n", r#"headers = { x-a = "b" }"#, Status::Pass, ""),
        (
            b"HTTP/1.1 200 OK\r\nX-A: c\r\n\r\n",
            r#"headers = { X-A = "b" }"#,
            Status::Fail,
            "header X-A: expected \"b\", found c",
        ),
        (b"", "", Status::Fail, "the connection was closed without an answer"),
        (b"SSH-2.0-OpenSSH\r\n", "", Status::Fail, "no HTTP answer: \"SSH-2.0-OpenSSH\\r\\n\""),
        (b"FTP/1.1 200 OK\r\n\r\n", "", Status::Fail, "no HTTP status line: \"FTP/1.1 200 OK\""),
    ];
    for (answer, expect, status, reason) in table {
        let comma = if expect.is_empty() { "" } else { ", " };
        let port = serve(answer);
        let outcome = evaluate(&format!("http = {{ url = \"http://127.0.0.1:{port}/x?y\"{comma}{expect} }}"));
        assert_eq!((outcome.status, outcome.reason.as_str()), (*status, *reason), "{}", answer.escape_ascii());
    }
    // Port 1 on loopback: nobody listens there.
    assert_eq!(evaluate("http = { url = \"http://127.0.0.1:1/\" }").reason, "no connection to 127.0.0.1:1");
}

#[test]
fn connections_and_ports() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(evaluate(&format!("tcp = {{ host = \"127.0.0.1\", port = {port} }}")).status, Status::Pass);
    assert_eq!(evaluate(&format!("port = {{ number = {port} }}")).status, Status::Pass);
    assert_eq!(evaluate("tcp = { host = \"127.0.0.1\", port = 1 }").status, Status::Fail);
    assert_eq!(evaluate("port = { number = 1 }").reason, "nothing listens on tcp port 1");
    assert_eq!(evaluate("port = { number = 1, state = \"closed\" }").status, Status::Pass);
    let closed = evaluate(&format!("port = {{ number = {port}, state = \"closed\" }}"));
    assert_eq!(closed.reason, format!("something listens on tcp port {port}, expected nothing"));
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let outcome = evaluate(&format!("port = {{ number = {port}, protocol = \"udp\" }}"));
    assert_eq!(outcome.status, Status::Pass);
}

#[test]
fn files() {
    let path = std::env::temp_dir().join(format!("patchlab-file-{}", std::process::id()));
    std::fs::write(&path, "PermitRootLogin no\n").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    let digest = Digest::of("PermitRootLogin no\n");
    let at = format!("file = {{ path = {path:?}");
    let table = [
        (" }".to_owned(), Status::Pass),
        (format!(", sha256 = \"{digest}\" }}"), Status::Pass),
        (format!(", sha256 = \"{}\" }}", Digest::of("")), Status::Fail),
        (", contains = \"Login no\" }".to_owned(), Status::Pass),
        (", contains = \"Login yes\" }".to_owned(), Status::Fail),
        (", matches = \"^Permit.* no$\" }".to_owned(), Status::Pass),
        (", matches = \"^Login\" }".to_owned(), Status::Fail),
        (", mode = \"0640\" }".to_owned(), Status::Pass),
        (", mode = \"640\", contains = \"Login\" }".to_owned(), Status::Pass),
        (", mode = \"4640\" }".to_owned(), Status::Fail),
        (", state = \"absent\" }".to_owned(), Status::Fail),
    ];
    for (rest, status) in table {
        assert_eq!(evaluate(&format!("{at}{rest}")).status, status, "{rest}");
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(evaluate("file = { path = \"/nonexistent\" }").reason, "/nonexistent does not exist");
    assert_eq!(evaluate("file = { path = \"/nonexistent's\", state = \"absent\" }").status, Status::Pass);
    // A folder is there, and has no content.
    assert_eq!(evaluate("file = { path = \"/etc\" }").status, Status::Pass);
    let folder = evaluate("file = { path = \"/etc\", contains = \"x\" }");
    assert_eq!(folder.reason, "/etc is a directory, expected a file with content");
    // A link that leads nowhere is neither there nor absent.
    let link = std::env::temp_dir().join(format!("patchlab-link-{}", std::process::id()));
    std::os::unix::fs::symlink("/nonexistent", &link).unwrap();
    assert_eq!(evaluate(&format!("file = {{ path = {link:?} }}")).status, Status::Fail);
    assert_eq!(evaluate(&format!("file = {{ path = {link:?}, state = \"absent\" }}")).status, Status::Fail);
    std::fs::remove_file(&link).unwrap();
}

#[test]
fn packages() {
    if !Path::new("/usr/bin/dpkg-query").exists() {
        eprintln!("skipped: no dpkg on this machine");
        return;
    }
    assert_eq!(evaluate("package = { name = \"dpkg\" }").status, Status::Pass);
    let wrong = evaluate("package = { name = \"dpkg\", version = \"0\" }");
    assert!(wrong.reason.ends_with(", expected 0"), "{wrong:?}");
    assert_eq!(evaluate("package = { name = \"no-such-package\" }").reason, "no-such-package is not installed");
    assert_eq!(evaluate("package = { name = \"no-such-package\", state = \"absent\" }").status, Status::Pass);
    assert_eq!(evaluate("package = { name = \"dpkg\", state = \"absent\" }").status, Status::Fail);
}

/// A container has no systemd: a program of that name answers as systemctl(1) does, on its way first and there the next time.
#[test]
fn units() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = std::env::temp_dir().join(format!("patchlab-unit-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let program = dir.join("systemctl");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n*gone.service) echo LoadState=not-found; echo ActiveState=inactive;;\n\
         *slow.service) echo LoadState=loaded; echo SubState=x; echo Result=success\n\
         if [ -e {0}/seen ]; then echo ActiveState=active; else echo ActiveState=activating; : >{0}/seen; fi;;\n\
         *) echo LoadState=loaded; echo ActiveState=failed; echo SubState=failed; echo Result=exit-code;;\nesac\n",
        dir.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let here = Here { first_in_path: Some(dir.display().to_string()) };
    let context = Context { dir: None, budget: Duration::from_secs(20), pace: 1 };
    let table = [
        ("gone.service", "active", Status::Fail, "there is no unit gone.service"),
        ("slow.service", "active", Status::Pass, ""),
        ("nginx.service", "active", Status::Fail, "nginx.service is failed, expected active"),
        ("nginx.service", "failed", Status::Pass, ""),
    ];
    let wait = step("wait = { until = { unit = { name = \"nginx.service\", state = \"active\" } }, limit = \"19s\" }");
    let outcome = wait.evaluate(&here, context).unwrap();
    assert_eq!(outcome.reason, "nginx.service is failed, expected active: waiting is no use");
    assert!(outcome.ms < 5_000, "{outcome:?}");
    for (name, state, status, reason) in table {
        let step = step(&format!("unit = {{ name = \"{name}\", state = \"{state}\" }}"));
        let outcome = step.evaluate(&here, context).unwrap();
        assert_eq!((outcome.status, outcome.reason.as_str()), (status, reason), "{name}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_time_that_nobody_said_goes_by_the_machines_pace_and_one_that_is_said_does_not() {
    let seconds = Duration::from_secs;
    let (usual, said) = (step("run = \"x\""), step("run = \"x\"\ntimeout = \"30s\""));
    assert_eq!((usual.time(seconds(900), 1), usual.time(seconds(900), 8)), (seconds(60), seconds(480)));
    assert_eq!((usual.time(seconds(100), 8), said.time(seconds(900), 8)), (seconds(100), seconds(30)));
}
