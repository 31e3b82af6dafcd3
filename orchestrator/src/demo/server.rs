//! The demonstration's server: a process of its own, started as a user would start it.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use anyhow::{Context as _, bail};

/// How long the server may take to open its doors: keys are read, the store is opened, the signer is started.
const START: Duration = Duration::from_secs(60);

/// A running server; ended in order when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    console: String,
}

impl Server {
    /// Starts `patchlab serve`, as `command`, and waits for its own word that every door is open: the first line that it writes. What
    /// it writes is kept in `log`.
    ///
    /// # Errors
    /// It cannot be started, ends, or says nothing in time.
    pub fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let mut kept = File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(kept.try_clone()?);
        let mut child = command.spawn().context("start the server")?;
        let lines = BufReader::new(child.stdout.take().context("the server has no standard output")?).lines();
        let (tell, told) = mpsc::channel();
        // Reads to the end, so that the server never writes into a full or closed pipe.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // A full disk must not stop the reading.
                let _ = writeln!(kept, "{line}");
                if let Some(console) = line.strip_prefix("console\t") {
                    let _ = tell.send(console.to_owned());
                }
            }
        });
        match told.recv_timeout(START) {
            Ok(console) => Ok(Self { child, console }),
            Err(RecvTimeoutError::Disconnected) => {
                let status = child.wait()?;
                bail!("the server ended with {status}: {}", last_line(log))
            }
            Err(RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the server opened no door within {} s: {}", START.as_secs(), last_line(log))
            }
        }
    }

    /// Where its console is.
    pub fn console(&self) -> &str {
        &self.console
    }
}

/// What it said last, and where the rest is.
fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    format!("{last} (its log: {})", log.display())
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It closes its doors in order; one that is gone already is as good.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_server_is_started_when_it_says_where_its_console_is() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = "echo 'console\thttp://127.0.0.1:1/'; exec sleep 600";
        let server = Server::start(shell(script), &log).unwrap();
        assert_eq!(server.console(), "http://127.0.0.1:1/");
        drop(server);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "console\thttp://127.0.0.1:1/\n");
    }

    #[test]
    fn one_that_ends_first_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let error = Server::start(shell("echo the port is taken >&2; exit 3"), &log).unwrap_err().to_string();
        assert!(error.contains("exit status: 3: the port is taken (its log: "), "{error}");
    }
}
