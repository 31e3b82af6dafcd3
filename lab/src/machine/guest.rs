//! The inside of a machine, reached through the QEMU guest agent over virtio-serial.
//!
//! Agent commands are kept short: a command's output goes to files in the guest, of which a bounded part is read back; files
//! are read in chunks.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use patchlab_check::{
    Target,
    target::{Ended, OUTPUT_LIMIT, Ran, TargetError},
};
use serde::Deserialize;
use serde_json::{Value, json};
use virt::domain::Domain;

use super::GuestTime;

/// Bytes read or written by one agent command: 1 MiB, far below libvirt's limit for a message.
const CHUNK: u64 = 1024 * 1024;

/// Bytes handed to a guest's command in one piece.
const INPUT_CHUNK: usize = 512 * 1024;

/// Seconds that one agent command may take. All of them only start, ask or read.
const COMMAND_TIMEOUT_S: i32 = 60;

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

impl Guest {
    pub(crate) fn new(domain: Domain, machine: String, time: GuestTime) -> Self {
        Self { domain, machine, time }
    }

    fn error(&self, action: &str, reason: impl ToString, answer: Answer) -> GuestError {
        GuestError { machine: self.machine.clone(), action: action.to_owned(), reason: reason.to_string(), answer }
    }

    /// One agent command.
    fn ask(&self, command: &str, arguments: &Value, timeout_s: i32) -> Result<Value, GuestError> {
        let _awaiting = self.time.awaiting();
        let request = json!({ "execute": command, "arguments": arguments }).to_string();
        let answer = self.domain.qemu_agent_command(&request, timeout_s, 0).map_err(|error| {
            let answer = match error.message().contains("unable to execute QEMU agent command") {
                true => Answer::Refused,
                false => Answer::None,
            };
            self.error(command, error.message(), answer)
        })?;
        let answer: Value =
            serde_json::from_str(&answer).map_err(|error| self.error(command, error, Answer::Refused))?;
        Ok(answer["return"].clone())
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self, action: &str, value: Value) -> Result<T, GuestError> {
        serde_json::from_value(value).map_err(|error| self.error(action, error, Answer::Refused))
    }

    fn decode(&self, action: &str, data: &str) -> Result<Vec<u8>, GuestError> {
        BASE64.decode(data).map_err(|error| self.error(action, error, Answer::Refused))
    }

    /// Whether the agent answers within a second.
    pub(crate) fn ping(&self) -> Result<(), GuestError> {
        self.ask("guest-ping", &json!({}), 1).map(drop)
    }

    /// Its clock, nanoseconds since 1970.
    pub(crate) fn clock_ns(&self) -> Result<i64, GuestError> {
        self.parse("guest-get-time", self.ask("guest-get-time", &json!({}), COMMAND_TIMEOUT_S)?)
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
        let started = self.ask("guest-exec", &arguments, COMMAND_TIMEOUT_S)?;
        let pid = json!({ "pid": started["pid"] });
        let deadline = Instant::now() + timeout;
        // The agent cannot tell us; so ask, often at first for what ends at once, then less.
        let mut pause = Duration::from_millis(2);
        loop {
            let status: ExecStatus =
                self.parse("guest-exec-status", self.ask("guest-exec-status", &pid, COMMAND_TIMEOUT_S)?)?;
            if status.exited {
                let stdout = self.decode("guest-exec-status", &status.out)?;
                let stderr = self.decode("guest-exec-status", &status.err)?;
                return Ok(Executed { exit: status.exitcode, stdout, stderr });
            }
            if Instant::now() > deadline {
                return Err(self.error(&action(), format!("no end after {} s", timeout.as_secs()), Answer::None));
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

    /// Writes a file whole, with its folders; `mode` are permission bits.
    pub fn put_file(&self, path: &str, bytes: &[u8], mode: u32) -> Result<(), GuestError> {
        let mode = format!("{mode:o}");
        let mut chunks = bytes.chunks(INPUT_CHUNK).peekable();
        let first = chunks.next().unwrap_or_default();
        let begin = r#"mkdir -p "$(dirname "$1")" && umask 077 && cat >"$1.incoming""#;
        let finish = r#"chmod "$2" "$1.incoming" && mv -f "$1.incoming" "$1""#;
        let timeout = Duration::from_secs(120);
        let step = |script: &str, input: &[u8]| -> Result<(), GuestError> {
            // The agent leaves standard input open when there is no input.
            let script = if input.is_empty() { format!("{script} </dev/null") } else { script.to_owned() };
            let executed = self.exec(&["/bin/sh", "-c", &script, "lab", path, &mode], input, timeout)?;
            match executed.exit {
                Some(0) => Ok(()),
                exit => {
                    let reason = format!("exit {exit:?}: {}", String::from_utf8_lossy(&executed.stderr).trim());
                    Err(self.error(&format!("write {path}"), reason, Answer::Refused))
                }
            }
        };
        if chunks.peek().is_none() {
            if first.is_empty() {
                return step(&format!(r#"{begin} </dev/null && {finish}"#), &[]);
            }
            return step(&format!("{begin} && {finish}"), first);
        }
        step(begin, first)?;
        for chunk in chunks {
            step(r#"cat >>"$1.incoming""#, chunk)?;
        }
        step(finish, &[])
    }

    /// Reads a file from `offset` 0 to its end or `limit` bytes, in chunks; `None` when it does not exist.
    pub(crate) fn read_file(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, GuestError> {
        let opened = self.ask("guest-file-open", &json!({ "path": path, "mode": "r" }), COMMAND_TIMEOUT_S);
        let handle = match opened {
            Ok(handle) => handle,
            Err(error) if error.reason.contains("No such file or directory") => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = self.read_handle(&handle, limit);
        let closed = self.ask("guest-file-close", &json!({ "handle": handle }), COMMAND_TIMEOUT_S);
        let bytes = bytes?;
        closed?;
        Ok(Some(bytes))
    }

    fn read_handle(&self, handle: &Value, limit: u64) -> Result<Vec<u8>, GuestError> {
        let mut bytes = Vec::new();
        loop {
            let left = limit.saturating_sub(bytes.len() as u64);
            if left == 0 {
                return Ok(bytes);
            }
            let arguments = json!({ "handle": handle, "count": left.min(CHUNK) });
            let chunk: ReadChunk =
                self.parse("guest-file-read", self.ask("guest-file-read", &arguments, COMMAND_TIMEOUT_S)?)?;
            let data = self.decode("guest-file-read", &chunk.data)?;
            let end = chunk.eof || data.is_empty();
            bytes.extend(data);
            if end {
                return Ok(bytes);
            }
        }
    }
}

/// Runs the command line with its output in files and its time limited; then shows the first bytes of both.
const RUN: &str = r#"
out=$(mktemp -d /tmp/lab.XXXXXXXX) || exit 125
cd "${3:-/}" 2>"$out/err" && timeout --kill-after=5 "$2" /bin/sh -c "$1" >"$out/out" 2>"$out/err" </dev/null
code=$?
head -c "$4" "$out/out"
head -c "$4" "$out/err" >&2
rm -rf "$out"
exit $code
"#;

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
        let begun = Instant::now();
        let seconds = format!("{:.1}", timeout.as_secs_f64().max(0.1));
        let limit = OUTPUT_LIMIT.to_string();
        let argv = ["/bin/sh", "-c", RUN, "lab", command, &seconds, dir.unwrap_or("/"), &limit];
        let executed = self.exec(&argv, &[], timeout + GRACE).map_err(target_error)?;
        let (exit, ended) = ending(executed.exit, begun.elapsed(), timeout);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ran { exit, stdout: text(&executed.stdout), stderr: text(&executed.stderr), ended })
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, TargetError> {
        self.read_file(path, limit).map_err(target_error)
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

/// What the exit status of `timeout` means: 124 also when the command itself said so, which the clock tells apart.
fn ending(exit: Option<i32>, elapsed: Duration, timeout: Duration) -> (Option<i32>, Ended) {
    match exit {
        Some(124 | 137) if elapsed >= timeout => (None, Ended::ByTimeout),
        Some(code) if code > 128 => (None, Ended::ByItself),
        other => (other, Ended::ByItself),
    }
}

fn target_error(error: GuestError) -> TargetError {
    TargetError { action: format!("machine {}: {}", error.machine, error.action), reason: error.reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commands_own_124_is_no_timeout() {
        let second = Duration::from_secs(1);
        assert_eq!(ending(Some(124), second / 2, second), (Some(124), Ended::ByItself));
        assert_eq!(ending(Some(124), second * 2, second), (None, Ended::ByTimeout));
        assert_eq!(ending(Some(139), second / 2, second), (None, Ended::ByItself));
        assert_eq!(ending(Some(3), second * 2, second), (Some(3), Ended::ByItself));
    }
}
