//! The inside of a machine, reached through the QEMU guest agent over virtio-serial.
//!
//! What answers there is not trusted. Whatever is asked has a [`Budget`], however often the agent says that it is not ready yet; libvirt gives
//! an answer of more than 10 MiB up, and one that is not what was asked for is an error. Of a command's output a bounded part is brought
//! back ([`RUN`]); files are read in chunks.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use patchlab_check::{
    Target,
    target::{Ended, OUTPUT_LIMIT, Ran, TargetError},
};
use serde::Deserialize;
use serde_json::{Value, json};
use virt::domain::Domain;

use super::{Budget, GuestTime};

/// Bytes read by one agent command: 1 MiB, far below libvirt's limit for an answer.
const CHUNK: u64 = 1024 * 1024;

/// Bytes written by one agent command.
const INPUT_CHUNK: usize = 72 * 1024;
/// Most bytes of a request. What does not fit into the agent's socket at once, some 200 KiB on Linux, libvirt 9 begins to send anew in the
/// middle, and the agent never answers again.
const REQUEST_BYTES: usize = 128 * 1024;

/// How long the clock may take to be read.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a file may take to be read when nothing else is said; and how long closing one may.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a file may take to be written, where nothing else limits it.
const PUT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a file may take to be closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a command may outlive the guest's own limit before the machine counts as broken.
const GRACE: Duration = Duration::from_secs(30);

/// The guest agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("machine {machine}: {action}: {reason}")]
pub struct GuestError {
    /// Which machine.
    pub machine: String,
    /// What was asked.
    pub action: String,
    /// What came back.
    pub reason: String,
    /// Whether there was any answer.
    pub answer: Answer,
}

/// Whether the agent answered at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The agent said no.
    Refused,
    /// No agent answered.
    None,
}

/// The inside of one machine.
#[derive(Debug, Clone)]
pub struct Guest {
    domain: Domain,
    machine: String,
    time: GuestTime,
}

/// How a guest's process ended, with all it wrote up to the limit.
#[derive(Debug)]
pub(crate) struct Executed {
    pub(crate) exit: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

#[derive(Deserialize)]
struct Started {
    pid: i64,
}

#[derive(Deserialize)]
struct ExecStatus {
    exited: bool,
    exitcode: Option<i32>,
    #[serde(rename = "out-data", default)]
    out: String,
    #[serde(rename = "err-data", default)]
    err: String,
}

#[derive(Deserialize)]
struct ReadChunk {
    #[serde(rename = "buf-b64", default)]
    data: String,
    eof: bool,
}

#[derive(Deserialize)]
struct Written {
    count: usize,
}

impl Guest {
    pub(crate) fn new(domain: Domain, machine: String, time: GuestTime) -> Self {
        Self { domain, machine, time }
    }

    fn error(&self, action: &str, reason: impl ToString, answer: Answer) -> GuestError {
        GuestError { machine: self.machine.clone(), action: action.to_owned(), reason: reason.to_string(), answer }
    }

    /// What is in the guest is not as it may be.
    pub(crate) fn refused(&self, action: &str, reason: impl ToString) -> GuestError {
        self.error(action, reason, Answer::Refused)
    }

    /// One agent command, in what is left of a budget.
    fn ask(&self, command: &str, arguments: &Value, budget: Budget) -> Result<Value, GuestError> {
        let _awaiting = self.time.awaiting();
        let request = json!({ "execute": command, "arguments": arguments }).to_string();
        if request.len() > REQUEST_BYTES {
            let reason =
                format!("{} bytes are more than can be said to a guest at once, {REQUEST_BYTES}", request.len());
            return Err(self.error(command, reason, Answer::Refused));
        }
        let answer = self.domain.qemu_agent_command(&request, budget.command_s(), 0).map_err(|error| {
            let answer = match error.message().contains("unable to execute QEMU agent command") {
                true => Answer::Refused,
                false => Answer::None,
            };
            self.error(command, error.message(), answer)
        })?;
        returned(&answer).map_err(|reason| self.error(command, reason, Answer::Refused))
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self, action: &str, value: Value) -> Result<T, GuestError> {
        serde_json::from_value(value).map_err(|error| self.error(action, error, Answer::Refused))
    }

    fn decode(&self, action: &str, data: &str) -> Result<Vec<u8>, GuestError> {
        BASE64.decode(data).map_err(|error| self.error(action, error, Answer::Refused))
    }

    /// Whether the agent answers within a second.
    pub(crate) fn ping(&self) -> Result<(), GuestError> {
        self.ask("guest-ping", &json!({}), Budget::of(Duration::from_secs(1))).map(drop)
    }

    /// Its clock, nanoseconds since 1970.
    pub(crate) fn clock_ns(&self) -> Result<i64, GuestError> {
        self.parse("guest-get-time", self.ask("guest-get-time", &json!({}), Budget::of(CLOCK_TIMEOUT))?)
    }

    /// Starts a program and waits for its end, at most for `timeout`.
    pub(crate) fn exec(&self, argv: &[&str], input: &[u8], timeout: Duration) -> Result<Executed, GuestError> {
        let action = || format!("run {}", argv.join(" ").chars().take(200).collect::<String>());
        let (program, rest) = argv.split_first().ok_or_else(|| self.error("run", "nothing to run", Answer::Refused))?;
        let mut arguments = json!({ "path": program, "arg": rest, "capture-output": true });
        if !input.is_empty() {
            arguments["input-data"] = BASE64.encode(input).into();
        }
        let _awaiting = self.time.awaiting();
        let budget = Budget::of(timeout);
        let started: Started = self.parse("guest-exec", self.ask("guest-exec", &arguments, budget)?)?;
        let pid = json!({ "pid": started.pid });
        // The agent cannot tell us; so ask, often at first for what ends at once, then less.
        let mut pause = Duration::from_millis(2);
        loop {
            let status: ExecStatus = self.parse("guest-exec-status", self.ask("guest-exec-status", &pid, budget)?)?;
            if status.exited {
                let stdout = self.decode("guest-exec-status", &status.out)?;
                let stderr = self.decode("guest-exec-status", &status.err)?;
                return Ok(Executed { exit: status.exitcode, stdout, stderr });
            }
            if budget.is_over() {
                return Err(self.error(&action(), format!("no end after {} s", budget.seconds()), Answer::None));
            }
            std::thread::sleep(pause);
            pause = (pause * 3 / 2).min(Duration::from_millis(100));
        }
    }

    /// Runs a shell script with arguments that must exit 0, and gives its output.
    pub(crate) fn script(&self, script: &str, arguments: &[&str], timeout: Duration) -> Result<Vec<u8>, GuestError> {
        let argv = [&["/bin/sh", "-c", script, "lab"], arguments].concat();
        let executed = self.exec(&argv, &[], timeout)?;
        if executed.exit == Some(0) {
            return Ok(executed.stdout);
        }
        let said = String::from_utf8_lossy(&executed.stderr);
        let reason = format!("exit {:?}: {}", executed.exit, said.trim().chars().take(400).collect::<String>());
        let action = script.trim().lines().next().unwrap_or_default();
        Err(self.error(&format!("run {action}"), reason, Answer::Refused))
    }

    /// Runs a command line for at most `timeout`; for how it ended `patience` is waited in all.
    pub(super) fn run_within(
        &self,
        command: &str,
        dir: &str,
        (timeout, patience): (Duration, Duration),
    ) -> Result<Ran, GuestError> {
        let seconds = format!("{:.1}", timeout.as_secs_f64().max(0.1));
        let limit = OUTPUT_LIMIT.to_string();
        let executed = self.exec(&["/usr/bin/perl", "-e", RUN, command, &seconds, dir, &limit], &[], patience)?;
        // The guest's own kernel ended it, for want of memory: so it ended the command.
        let killed = || Ran {
            exit: None,
            stdout: String::new(),
            stderr: "what ran the command was killed".into(),
            written: 0,
            ended: Ended::ByItself,
        };
        ran(&executed).or_else(|| executed.exit.is_none().then(killed)).ok_or_else(|| {
            let said: String = String::from_utf8_lossy(&executed.stderr).trim().chars().take(400).collect();
            self.refused("run", format!("the command could not be started, or what runs it was ended: {said}"))
        })
    }

    /// Writes a file whole, with its folders; `mode` are permission bits.
    pub fn put_file(&self, path: &str, bytes: &[u8], mode: u32) -> Result<(), GuestError> {
        self.put_file_within(path, bytes, mode, PUT_TIMEOUT)
    }

    /// The same, in all at most for `timeout`.
    pub(crate) fn put_file_within(
        &self,
        path: &str,
        bytes: &[u8],
        mode: u32,
        timeout: Duration,
    ) -> Result<(), GuestError> {
        let begun = Instant::now();
        let left = || timeout.saturating_sub(begun.elapsed());
        let mode = format!("{mode:o}");
        let (first, rest) = bytes.split_at(bytes.len().min(INPUT_CHUNK));
        let begin = r#"mkdir -p "$(dirname "$1")" && umask 077 && cat >"$1.incoming""#;
        let finish = r#"chmod "$2" "$1.incoming" && mv -f "$1.incoming" "$1""#;
        let step = |script: &str, input: &[u8]| -> Result<(), GuestError> {
            // The agent leaves standard input open when there is no input.
            let script = if input.is_empty() { format!("exec </dev/null; {script}") } else { script.to_owned() };
            let executed = self.exec(&["/bin/sh", "-c", &script, "lab", path, &mode], input, left())?;
            match executed.exit {
                Some(0) => Ok(()),
                exit => {
                    let reason = format!("exit {exit:?}: {}", String::from_utf8_lossy(&executed.stderr).trim());
                    Err(self.error(&format!("write {path}"), reason, Answer::Refused))
                }
            }
        };
        if rest.is_empty() {
            return step(&format!("{begin} && {finish}"), first);
        }
        step(begin, first)?;
        self.append(&format!("{path}.incoming"), rest, Budget::of(left()))?;
        step(finish, &[])
    }

    /// Writes files of at most [`INPUT_CHUNK`] together into a folder, each whole.
    pub fn put_files(&self, dir: &str, files: &[(&str, &[u8])], mode: u32) -> Result<(), GuestError> {
        let action = || format!("write files into {dir}");
        let input: Vec<u8> = files.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        if input.is_empty() || input.len() > INPUT_CHUNK {
            let reason = format!("{} bytes: expected 1 to {INPUT_CHUNK}", input.len());
            return Err(self.error(&action(), reason, Answer::Refused));
        }
        // head(1) reads no byte more than it is asked for: the next file begins there.
        let script = r#"umask 077; mkdir -p "$1" && cd "$1" || exit 1; mode=$2; name=; shift 2
for word; do
  case $name in
  "") name=$word; continue ;;
  esac
  head -c "$word" >"$name.incoming" && chmod "$mode" "$name.incoming" && mv -f "$name.incoming" "$name" || exit 1
  name=
done"#;
        let mode = format!("{mode:o}");
        let sizes: Vec<String> = files.iter().map(|(_, bytes)| bytes.len().to_string()).collect();
        let pairs = files.iter().zip(&sizes).flat_map(|((name, _), size)| [*name, size.as_str()]);
        let argv: Vec<&str> = ["/bin/sh", "-c", script, "lab", dir, &mode].into_iter().chain(pairs).collect();
        let executed = self.exec(&argv, &input, Duration::from_secs(120))?;
        match executed.exit {
            Some(0) => Ok(()),
            exit => {
                let reason = format!("exit {exit:?}: {}", String::from_utf8_lossy(&executed.stderr).trim());
                Err(self.error(&action(), reason, Answer::Refused))
            }
        }
    }

    /// Writes at the end of a file that is there. No process is started for it, which costs a guest more than the bytes do.
    fn append(&self, path: &str, bytes: &[u8], budget: Budget) -> Result<(), GuestError> {
        let handle = self.ask("guest-file-open", &json!({ "path": path, "mode": "a" }), budget)?;
        let write = |chunk: &[u8]| -> Result<(), GuestError> {
            let arguments = json!({ "handle": handle, "buf-b64": BASE64.encode(chunk) });
            let written: Written = self.parse("guest-file-write", self.ask("guest-file-write", &arguments, budget)?)?;
            if written.count == chunk.len() {
                return Ok(());
            }
            let reason = format!("{} of {} bytes were written", written.count, chunk.len());
            Err(self.error(&format!("write {path}"), reason, Answer::Refused))
        };
        let wrote = bytes.chunks(INPUT_CHUNK).try_for_each(write);
        let closed = self.ask("guest-file-close", &json!({ "handle": handle }), Budget::of(CLOSE_TIMEOUT));
        wrote?;
        closed.map(drop)
    }

    /// Reads a file from its begin to its end or `limit` bytes, in chunks; `None` when it does not exist.
    pub(crate) fn read_file(&self, path: &str, limit: u64, timeout: Duration) -> Result<Option<Vec<u8>>, GuestError> {
        let budget = Budget::of(timeout);
        let opened = self.ask("guest-file-open", &json!({ "path": path, "mode": "r" }), budget);
        let handle: i64 = match opened {
            Ok(handle) => self.parse("guest-file-open", handle)?,
            Err(error) if error.reason.contains("No such file or directory") => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = self.read_handle(path, handle, limit, budget);
        let closed = self.ask("guest-file-close", &json!({ "handle": handle }), Budget::of(CLOSE_TIMEOUT));
        let bytes = bytes?;
        closed?;
        Ok(Some(bytes))
    }

    fn read_handle(&self, path: &str, handle: i64, limit: u64, budget: Budget) -> Result<Vec<u8>, GuestError> {
        let mut bytes = Vec::new();
        loop {
            let left = limit.saturating_sub(bytes.len() as u64);
            if left == 0 {
                return Ok(bytes);
            }
            if budget.is_over() {
                let reason = format!("{} bytes came in {} s, and no end", bytes.len(), budget.seconds());
                return Err(self.error(&format!("read {path}"), reason, Answer::None));
            }
            let count = left.min(CHUNK);
            let arguments = json!({ "handle": handle, "count": count });
            let chunk: ReadChunk = self.parse("guest-file-read", self.ask("guest-file-read", &arguments, budget)?)?;
            let data = self.decode("guest-file-read", &chunk.data)?;
            if data.len() as u64 > count {
                let reason = format!("it gave {} bytes where {count} were asked for", data.len());
                return Err(self.error("guest-file-read", reason, Answer::Refused));
            }
            let end = chunk.eof || data.is_empty();
            bytes.extend(data);
            if end {
                return Ok(bytes);
            }
        }
    }
}

/// What the agent returned, from the text of its answer.
fn returned(answer: &str) -> Result<Value, String> {
    match serde_json::from_str(answer) {
        Ok(Value::Object(mut fields)) => fields.remove("return").ok_or_else(|| "its answer returns nothing".to_owned()),
        Ok(_) => Err("its answer is no object".into()),
        Err(error) => Err(format!("its answer is no JSON: {error}")),
    }
}

/// Runs a command line within limits. See the file.
const RUN: &str = include_str!("run.pl");

/// Sends standard input to a TCP port and shows what comes back. bash, since nothing else is sure to be there.
const CONNECT: &str = r#"
exec 3<>"/dev/tcp/$1/$2" || exit 7
cat >&3
timeout "$3" head -c "$4" <&3
exit 0
"#;

/// How long an answer to an empty request is waited for: bash cannot close one side only.
const EMPTY_REQUEST_WAIT: Duration = Duration::from_secs(1);

impl Target for Guest {
    fn run(&self, command: &str, dir: Option<&str>, timeout: Duration) -> Result<Ran, TargetError> {
        self.run_within(command, dir.unwrap_or("/"), (timeout, timeout + GRACE)).map_err(target_error)
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, TargetError> {
        self.read_file(path, limit, READ_TIMEOUT).map_err(target_error)
    }

    fn connect(
        &self,
        host: &str,
        port: u16,
        request: &[u8],
        timeout: Duration,
    ) -> Result<Option<Vec<u8>>, TargetError> {
        let port = port.to_string();
        let wait = if request.is_empty() { timeout.min(EMPTY_REQUEST_WAIT) } else { timeout };
        let wait = format!("{:.1}", wait.as_secs_f64().max(0.1));
        let overall = format!("{:.1}", timeout.as_secs_f64().max(0.1) + 1.0);
        let limit = OUTPUT_LIMIT.to_string();
        let script = if request.is_empty() { CONNECT.replace("cat >&3\n", "") } else { CONNECT.to_owned() };
        let argv = ["timeout", &overall, "/bin/bash", "-c", &script, "lab", host, &port, &wait, &limit];
        let executed = self.exec(&argv, request, timeout + GRACE).map_err(target_error)?;
        match executed.exit {
            Some(0) => Ok(Some(executed.stdout)),
            // 7: refused; 124: the connection itself timed out; 1: bash's own word for a host that it cannot resolve.
            Some(1 | 7 | 124) => Ok(None),
            exit => Err(TargetError {
                action: format!("machine {}: connect to {host} port {port}", self.machine),
                reason: format!("exit {exit:?}: {}", String::from_utf8_lossy(&executed.stderr).trim()),
            }),
        }
    }
}

/// What [`RUN`] said of a command; `None` when it did not come to say how the command ended.
fn ran(executed: &Executed) -> Option<Ran> {
    let at = executed.stderr.iter().rposition(|byte| *byte == 0)?;
    let (stderr, last) = executed.stderr.split_at(at);
    let (written, word) = std::str::from_utf8(&last[1..]).ok()?.split_once(' ')?;
    let ended = match word {
        "itself" => Ended::ByItself,
        "timeout" => Ended::ByTimeout,
        _ => return None,
    };
    // A signal ended it, or the lack of time.
    let exit = executed.exit.filter(|code| *code <= 128 && ended == Ended::ByItself);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&executed.stdout), text(stderr));
    Some(Ran { exit, stdout, stderr, written: written.parse().ok()?, ended })
}

fn target_error(error: GuestError) -> TargetError {
    TargetError { action: format!("machine {}: {}", error.machine, error.action), reason: error.reason }
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Command, Stdio},
        time::Instant,
    };

    use proptest::prelude::*;

    use super::*;

    /// Runs a command line as a guest does, but here.
    fn here(command: &str, seconds: &str, folder: &str, limit: &str) -> Ran {
        let output =
            Command::new("perl").args(["-e", RUN, command, seconds, folder, limit]).stdin(Stdio::null()).output();
        let output = output.unwrap();
        let executed = Executed { exit: output.status.code(), stdout: output.stdout, stderr: output.stderr };
        ran(&executed).unwrap_or_else(|| panic!("{executed:?}"))
    }

    #[test]
    fn a_command_is_run_and_how_it_ended_is_told() {
        let ran = here("pwd; echo no >&2; exit 124", "20", "/tmp", "1000");
        assert_eq!((ran.exit, ran.ended, ran.written), (Some(124), Ended::ByItself, 8));
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("/tmp\n", "no\n"));
        assert_eq!(here("kill -SEGV $$", "20", "/", "1000").exit, None);
        let nowhere = here("true", "20", "/there/is/none", "1000");
        assert_eq!((nowhere.exit, nowhere.stderr.contains("No such file")), (Some(2), true), "{nowhere:?}");
        assert_eq!(here("printf 'a\\0b' >&2", "20", "/", "1000").stderr, "a\0b");
    }

    #[test]
    fn of_a_gigabyte_the_ends_are_kept_and_how_much_it_was_is_told() {
        let ran = here("echo first; yes | head -c 1000000000; echo last", "60", "/", "1000");
        assert_eq!((ran.exit, ran.written), (Some(0), 1_000_000_011));
        let (head, tail) = ran.stdout.split_once("\n… 999999011 bytes left out …\n").expect(&ran.stdout);
        assert!(head.starts_with("first\ny\n") && tail.ends_with("y\nlast\n"), "{head} {tail}");
        assert_eq!(head.len() + tail.len(), 1000);
    }

    #[test]
    fn one_that_ignores_its_end_is_killed_with_all_that_it_started() {
        let begun = Instant::now();
        let ran = here("trap '' TERM; sleep 61 & echo $!; while :; do sleep 1; done", "0.5", "/", "1000");
        assert_eq!((ran.exit, ran.ended), (None, Ended::ByTimeout));
        assert!(begun.elapsed() < Duration::from_secs(20));
        // The kernel takes its time to end what was killed.
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", ran.stdout.trim())).unwrap_or_default();
        while !(stat().is_empty() || stat().contains(") Z ")) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{}", stat());
            std::thread::sleep(Duration::from_millis(10));
        }
        // One that is never silent ends in time as well.
        assert_eq!(here("yes", "0.5", "/", "1000").ended, Ended::ByTimeout);
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn what_a_command_leaves_running_holds_nobody_up_and_may_go_on_writing() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("alive");
        let begun = Instant::now();
        let script = format!("(sleep 3; echo late; echo later; mkdir {}) & echo done", mark.display());
        assert_eq!(here(&script, "20", "/", "1000").stdout, "done\n");
        while !mark.exists() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it was ended by what it wrote");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(here("timeout 3 yes & echo done", "20", "/", "1000").exit, Some(0));
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn an_answer_is_an_object_that_returns_something() {
        assert_eq!(returned(r#"{"return": {"pid": 7}}"#), Ok(json!({ "pid": 7 })));
        for answer in ["", "[]", "7", "null", r#"{"error": {}}"#, r#"{"return""#, &"[".repeat(100_000)] {
            assert!(returned(answer).is_err(), "{answer:.20}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_an_agent_says_breaks_the_lab(answer in ".*", stderr in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = returned(&answer);
            let _ = ran(&Executed { exit: Some(0), stdout: Vec::new(), stderr });
        }
    }
}
