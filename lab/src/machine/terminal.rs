//! A terminal of a machine: a port of its serial bus more, plugged while it runs, so that every baseline will do; and a shell of root's
//! behind it, on a pseudo-terminal that script(1) makes in the guest.

use std::time::Duration;

use serde_json::json;

use super::{Lab, LabError, Machine, clone::CLONE_TIMEOUT};

/// The port's name in the guest, below `/dev/virtio-ports`.
const PORT: &str = "org.patchlab.terminal";
/// The socket that leads to a machine's terminal, in its worker's folder; who connects sits there.
pub const TERMINAL: &str = "terminal";
/// The port's other end, in the emulator.
const WIRE: &str = "lab-terminal";
/// How long a shell may go on.
const SESSION: Duration = Duration::from_secs(24 * 60 * 60);

/// A shell on the port, until it ends; its exit code is what is printed, or nothing where there is no script(1). Arguments: the port's name,
/// seconds to wait for it, the terminal's kind, its rows, its columns. The port can be opened once, and at a time.
const SHELL: &str = r#"
port=/dev/virtio-ports/$1 end=$(($(date +%s) + $2))
command -v script >/dev/null || exit 0
until [ -e "$port" ]; do
  [ "$(date +%s)" -lt "$end" ] || { echo "no $port shows up within $2 s" >&2; exit 1; }
  sleep 0.1
done
if command -v bash >/dev/null; then shell='bash -il'; else shell='sh -il'; fi
exec 3<>"$port" || exit 1
cd /root || cd /
code=0
env -i HOME=/root USER=root LOGNAME=root LANG=C.UTF-8 TERM="$3" \
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  script -qec "stty sane rows $4 cols $5; exec $shell" /dev/null <&3 >&3 2>&3 || code=$?
echo "$code"
"#;

/// What whoever looks on has.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tty {
    /// `TERM`: its kind, as terminfo(5) names it.
    pub kind: String,
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// A machine's terminal that nobody sits at yet.
#[derive(Debug)]
pub struct Terminal<'m> {
    machine: &'m Machine,
}

impl Machine {
    /// Gives it a terminal. It has one at most.
    ///
    /// # Errors
    /// Its emulator does not take the port.
    pub fn terminal(&self, lab: &Lab) -> Result<Terminal<'_>, LabError> {
        let address = json!({ "type": "unix", "data": { "path": lab.places.work.join(TERMINAL) } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": true, "wait": false } });
        self.monitor("chardev-add", json!({ "id": WIRE, "backend": backend }))?;
        let port = json!({ "driver": "virtserialport", "id": "lab-terminal-port", "chardev": WIRE, "name": PORT });
        self.monitor("device_add", port)?;
        Ok(Terminal { machine: self })
    }
}

impl Terminal<'_> {
    /// Runs a shell there, until it ends; who looks on is connected before. Gives its exit code; `None` where the guest has no script(1).
    ///
    /// # Errors
    /// The guest does not find the port, or its agent is gone.
    pub fn shell(&self, tty: &Tty) -> Result<Option<i32>, LabError> {
        let patience = CLONE_TIMEOUT * self.machine.hardware.accelerator.factor();
        let numbers = [patience.as_secs(), tty.rows.into(), tty.columns.into()].map(|number| number.to_string());
        let [patience, rows, columns] = &numbers;
        let arguments = [PORT, patience.as_str(), &tty.kind, rows, columns];
        let said = self.machine.guest().script(SHELL, &arguments, SESSION)?;
        Ok(String::from_utf8_lossy(&said).trim().parse().ok())
    }
}
