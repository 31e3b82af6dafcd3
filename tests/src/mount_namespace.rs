//! A mount namespace of a test's own: what is mounted in it is seen by what runs in it, and by nobody else.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

/// Held open by a process that waits; gone, with its mounts, when it is dropped.
#[derive(Debug)]
pub struct MountNamespace {
    holder: Child,
}

impl MountNamespace {
    /// A new one that sees what this process sees. Needs root.
    ///
    /// # Panics
    /// The kernel says no.
    pub fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare (package util-linux) starts");
        let mut line = String::new();
        let said = BufReader::new(holder.stdout.take().expect("its output")).read_line(&mut line);
        assert!(said.is_ok() && line == "ready\n", "no mount namespace could be made");
        Self { holder }
    }

    /// A command that runs in it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        // Its own working folder would be the namespace's root.
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).args(["--wd=.", "--"]).arg(program);
        command
    }

    /// `mount ARGUMENTS` in it.
    ///
    /// # Panics
    /// mount says no.
    pub fn mount(&self, arguments: &[&str]) {
        let output = self.command("mount").args(arguments).output().expect("nsenter (package util-linux) starts");
        assert!(output.status.success(), "mount {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Default for MountNamespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for MountNamespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
