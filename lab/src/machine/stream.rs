//! QEMU's migration stream of a machine, to a file and from one.
//!
//! It goes through a socket in the worker's folder: QEMU opens files by itself only since 8.2, and Debian 12's own is 7.2.

use std::{
    fs::{self, File},
    io,
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::{LabError, Machine, failed};

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carried {
    /// Devices alone: the memory is in a file that both machines map.
    Devices,
    /// Devices and all of the memory.
    DevicesAndMemory,
}

/// Bytes per second at which QEMU may write. Its own limit is meant for a network and a machine that runs meanwhile.
const BANDWIDTH: u64 = 16 << 30;

impl Machine {
    /// Stops the processors and writes the machine's state to a file.
    pub(crate) fn write_state(&self, file: &Path, carried: Carried, timeout: Duration) -> Result<(), LabError> {
        self.pause()?;
        self.carry(carried)?;
        self.monitor("migrate-set-parameters", json!({ "max-bandwidth": BANDWIDTH }))?;
        let (socket, uri) = self.socket()?;
        let listener = UnixListener::bind(&socket).map_err(failed("open", &socket))?;
        let mut output = File::create(file).map_err(failed("create", file))?;
        let (told, taken) = thread::scope(|scope| {
            let taker = scope.spawn(|| take(&listener, &mut output, timeout));
            let told = self.monitor("migrate", uri).and_then(|_| self.await_written(timeout));
            if told.is_err() {
                // Nobody may have come to the socket, or nobody will leave it.
                let _ = self.monitor("migrate_cancel", json!({}));
                let _ = UnixStream::connect(&socket);
            }
            (told, taker.join())
        });
        told?;
        let broke = || io::Error::other("the thread that wrote it broke");
        taken.unwrap_or_else(|_| Err(broke())).map_err(failed("write", file))?;
        fs::remove_file(&socket).map_err(failed("remove", &socket))
    }

    fn await_written(&self, timeout: Duration) -> Result<(), LabError> {
        self.await_monitor("its state written", "query-migrate", timeout, |status| match status["status"].as_str() {
            Some("completed") => Ok(true),
            Some("failed") => Err(format!("its state was not written: {}", status["error-desc"])),
            _ => Ok(false),
        })
    }

    /// Loads a state from a file into a machine that waits for one, until all of it is there.
    pub(super) fn load(&self, file: &Path, carried: Carried, timeout: Duration) -> Result<(), LabError> {
        self.carry(carried)?;
        let (socket, uri) = self.socket()?;
        self.monitor("migrate-incoming", uri)?;
        send(file, &socket, timeout).map_err(failed("load", file))?;
        // A resume sent while the state still comes in is accepted and leaves the machine paused for ever.
        self.await_monitor("its state loaded", "query-status", timeout, |status| match status["status"].as_str() {
            Some("paused") => Ok(true),
            Some("inmigrate") => Ok(false),
            other => Err(format!("unexpected state {other:?} while its state was loading")),
        })?;
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &socket)(error)),
            _ => Ok(()),
        }
    }

    /// The same on both sides, or the stream is not understood.
    fn carry(&self, carried: Carried) -> Result<Value, LabError> {
        let state = carried == Carried::Devices;
        let capability = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": state }] });
        self.monitor("migrate-set-capabilities", capability)
    }

    /// A free path for the socket, and the monitor's argument that names it.
    fn socket(&self) -> Result<(PathBuf, Value), LabError> {
        let path = self.serial.with_extension("stream");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &path)(error)),
            _ => {}
        }
        let uri = json!({ "uri": format!("unix:{}", path.display()) });
        Ok((path, uri))
    }
}

fn take(listener: &UnixListener, output: &mut File, timeout: Duration) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(timeout))?;
    io::copy(&mut stream, output)?;
    Ok(())
}

fn send(file: &Path, socket: &Path, timeout: Duration) -> io::Result<()> {
    let mut input = File::open(file)?;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(timeout))?;
    io::copy(&mut input, &mut stream)?;
    stream.shutdown(Shutdown::Write)
}
