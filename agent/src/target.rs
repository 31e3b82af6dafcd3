//! This host as the target of steps.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream, ToSocketAddrs as _},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use patchlab_check::target::{OUTPUT_LIMIT, Ran, Target, TargetError};

use crate::process::{self, Finished, ProcessMark};

/// This host. Commands and connections are its own; files are read below `root`.
#[derive(Debug, Clone)]
pub struct LocalTarget {
    root: PathBuf,
}

impl LocalTarget {
    /// The system below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where its files are.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

fn broken(action: impl Into<String>) -> impl FnOnce(io::Error) -> TargetError {
    let action = action.into();
    move |error| TargetError { action, reason: error.to_string() }
}

fn run(
    command: &str,
    dir: Option<&str>,
    timeout: Duration,
    started: impl FnOnce(ProcessMark),
) -> Result<Ran, TargetError> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).current_dir(dir.unwrap_or("/")).env("LC_ALL", "C");
    let finished = process::run(&mut shell, Instant::now() + timeout, OUTPUT_LIMIT, started)
        .map_err(broken(format!("run {command:?}")))?;
    let Finished { exit, stdout, stderr, written, ended } = finished;
    Ok(Ran { exit, stdout, stderr, written, ended })
}

/// This host, where every command is told before it is waited for.
pub struct Watched {
    target: LocalTarget,
    started: Mutex<Box<dyn FnMut(ProcessMark) + Send>>,
}

impl Watched {
    /// The same target; `started` is told its commands.
    pub fn new(target: LocalTarget, started: impl FnMut(ProcessMark) + Send + 'static) -> Self {
        Self { target, started: Mutex::new(Box::new(started)) }
    }
}

impl Target for Watched {
    fn run(&self, command: &str, dir: Option<&str>, timeout: Duration) -> Result<Ran, TargetError> {
        run(command, dir, timeout, |mark| self.started.lock().unwrap_or_else(PoisonError::into_inner)(mark))
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, TargetError> {
        self.target.read(path, limit)
    }

    fn connect(
        &self,
        host: &str,
        port: u16,
        request: &[u8],
        timeout: Duration,
    ) -> Result<Option<Vec<u8>>, TargetError> {
        self.target.connect(host, port, request, timeout)
    }
}

impl Target for LocalTarget {
    fn run(&self, command: &str, dir: Option<&str>, timeout: Duration) -> Result<Ran, TargetError> {
        run(command, dir, timeout, |_| {})
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, TargetError> {
        let path = self.root.join(path.trim_start_matches('/'));
        let mut bytes = Vec::new();
        match fs::File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(broken(format!("read {}", path.display()))(error)),
        }
    }

    fn connect(
        &self,
        host: &str,
        port: u16,
        request: &[u8],
        timeout: Duration,
    ) -> Result<Option<Vec<u8>>, TargetError> {
        let deadline = Instant::now() + timeout;
        let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let action = format!("connect to {host} port {port}");
        let addresses = (host, port).to_socket_addrs().map_err(broken(&*action))?;
        let Some(mut stream) = addresses.into_iter().find_map(|to| TcpStream::connect_timeout(&to, left()).ok()) else {
            return Ok(None);
        };
        stream.set_write_timeout(Some(left())).map_err(broken(&*action))?;
        // The peer may close before it has read all; what it said before counts.
        let sent = stream.write_all(request);
        if request.is_empty() || sent.is_err() {
            stream.shutdown(Shutdown::Write).ok();
        }
        let mut answer = Vec::new();
        let mut buffer = [0; 16 * 1024];
        while Instant::now() < deadline && (answer.len() as u64) < OUTPUT_LIMIT {
            stream.set_read_timeout(Some(left())).map_err(broken(&*action))?;
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(read) => answer.extend_from_slice(&buffer[..read]),
            }
        }
        answer.truncate(usize::try_from(OUTPUT_LIMIT).unwrap_or(usize::MAX));
        Ok(Some(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_below_the_root_and_may_be_absent() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("there"), "yes").unwrap();
        let target = LocalTarget::new(root.path());
        assert_eq!(target.read("/there", 2).unwrap().as_deref(), Some(&b"ye"[..]));
        assert_eq!(target.read("/not-there", 2).unwrap(), None);
    }

    #[test]
    fn a_connection_gives_the_answer_or_none_when_refused() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(b"pong").unwrap();
        });
        let target = LocalTarget::new("/");
        let answer = target.connect("127.0.0.1", port, b"ping", Duration::from_secs(5)).unwrap();
        assert_eq!(answer.as_deref(), Some(&b"pong"[..]));
        server.join().unwrap();
        assert_eq!(target.connect("127.0.0.1", port, b"ping", Duration::from_secs(5)).unwrap(), None);
    }
}
