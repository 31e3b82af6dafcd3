//! The far end of the one cable of a machine that another libvirt started.
//!
//! Such a machine's emulator is in that libvirt's network namespace, where a user network of its own would reach whatever the host does.
//! So it has none: its card leads into a socket in the worker's folder. At the other end, in the worker's namespace, an emulator without a
//! machine gives it the same user network with the same ports that every machine of the lab has, and the same nothing beyond it.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use super::{
    Forward, LabError,
    domain::{EMULATOR, netdev},
    failed,
};

/// An emulator without a machine. Dropping it takes the network away.
#[derive(Debug)]
pub(super) struct Panel(Child);

impl Panel {
    /// Joins the socket, at which a machine's emulator listens, to a user network that these ports lead into.
    pub(super) fn join(socket: &Path, forwards: &[Forward]) -> Result<Self, LabError> {
        let cable = format!("stream,id=cable,server=off,addr.type=unix,addr.path={}", socket.display());
        let child = Command::new(EMULATOR)
            .args(["-machine", "none", "-nodefaults", "-display", "none", "-sandbox", "on"])
            .args(["-netdev", &netdev(forwards), "-netdev", "hubport,id=inside,hubid=0,netdev=lab-net"])
            .args(["-netdev", &cable, "-netdev", "hubport,id=outside,hubid=0,netdev=cable"])
            .stdin(Stdio::null())
            .spawn()
            .map_err(failed("run", Path::new(EMULATOR)))?;
        Ok(Self(child))
    }
}

impl Drop for Panel {
    fn drop(&mut self) {
        // It may have ended by itself when its machine did.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
