//! A network of some machines and nobody else.
//!
//! Every machine has a user network of its own, by which the lab reaches it. For a scenario with several machines each gets a second
//! card, plugged while it runs into the root port that libvirt leaves free: so every baseline will do, and none has to be frozen for it.
//! The first member's emulator holds the hub; the others' are joined to it by sockets in the worker's own folder, which no guest can
//! reach. Addresses are of the network that RFC 2544 sets aside for tests; names resolve by `/etc/hosts`, over which a file in memory is
//! mounted: when the network is gone, nothing of it is left on a machine's disk.

use std::{
    fmt::Write as _,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Lab, LabError, Machine, clone::CLONE_TIMEOUT, failed};

/// The first three parts of every member's address.
const NETWORK: [u8; 3] = [198, 18, 0];
/// The last part of the first member's.
const FIRST: u8 = 10;
/// How often a guest is asked whether it has let its card go.
const LOOK: Duration = Duration::from_millis(50);

/// Before the card is there, or has just come up in a boot: nothing that manages networks may take it. Arguments: the card's address, where the lab's files are.
const ANNOUNCE: &str = r#"
mkdir -p "$2" /run/systemd/network
printf '[Match]\nMACAddress=%s\n[Link]\nUnmanaged=yes\n' "$1" >/run/systemd/network/00-patchlab-lan.network
! systemctl is-active --quiet systemd-networkd.service || networkctl reload
"#;

/// When it is: an address and the others' names. Arguments: the card's address, where the lab's files are, the machine's IP address and
/// prefix, seconds to wait for the card, the lines for `/etc/hosts`.
const SETTLE: &str = r#"
card= end=$(($(date +%s) + $4))
while :; do
  for address in /sys/class/net/*/address; do
    [ "$(cat "$address")" != "$1" ] || card=${address%/address} card=${card##*/}
  done
  [ -z "$card" ] || break
  [ "$(date +%s)" -lt "$end" ] || { echo "no card $1 shows up within $4 s" >&2; exit 1; }
  sleep 0.1
done
ip link set dev "$card" up && ip address replace "$3" dev "$card" || exit 1
if mountpoint --quiet /etc/hosts; then umount /etc/hosts; fi
mkdir -p "$2" && { cat /etc/hosts; printf '%s' "$5"; } >"$2/hosts" && mount --bind "$2/hosts" /etc/hosts
"#;

/// Afterwards: as it was.
const LEAVE: &str = r#"
if mountpoint --quiet /etc/hosts; then umount /etc/hosts; fi
rm -rf -- "$1" /run/systemd/network/00-patchlab-lan.network
! systemctl is-active --quiet systemd-networkd.service || networkctl reload
"#;

/// Where the lab's files for the network are in a guest.
const GUEST_FOLDER: &str = "/run/patchlab-lan";

/// A network. Dropping it takes away nothing: [`Lan::leave`] does.
#[derive(Debug)]
pub struct Lan<'m> {
    members: Vec<Member<'m>>,
    hosts: String,
    /// Where its sockets are.
    folder: PathBuf,
    /// The name of each member's card and cable in its emulator: another network's that a machine was in before are not these.
    card: String,
    cable: String,
}

#[derive(Debug)]
struct Member<'m> {
    name: String,
    machine: &'m Machine,
    number: u8,
}

impl Member<'_> {
    fn address(&self) -> Ipv4Addr {
        let [a, b, c] = NETWORK;
        Ipv4Addr::new(a, b, c, FIRST.saturating_add(self.number))
    }

    /// Locally administered, and none of a user network's.
    fn mac(&self) -> String {
        format!("52:54:00:12:35:{:02x}", self.number)
    }

    fn timeout(&self) -> Duration {
        CLONE_TIMEOUT * self.machine.hardware.accelerator.factor()
    }
}

impl Lab {
    /// Joins machines, each under its name, in a network of their own; the first holds it together.
    ///
    /// # Errors
    /// A machine has no place for a second card, or does not take it.
    pub fn join<'m>(&self, machines: &[(&str, &'m Machine)]) -> Result<Lan<'m>, LabError> {
        let member = |(number, (name, machine)): (u8, &(&str, &'m Machine))| {
            let name = (*name).to_owned();
            Member { name, machine, number }
        };
        let members: Vec<Member<'m>> = (0..).zip(machines).map(member).collect();
        let hosts = members.iter().fold(String::from("\n"), |mut hosts, member| {
            // Writing to a string cannot fail.
            let _ = writeln!(hosts, "{} {}", member.address(), member.name);
            hosts
        });
        let number = self.next_number();
        let folder = self.places.work.join(format!("lan-{number}"));
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        let (card, cable) = (format!("lan-card-{number}"), format!("lan-cable-{number}"));
        let lan = Lan { members, hosts, folder, card, cable };
        let Some((hub, others)) = lan.members.split_first() else { return Ok(lan) };
        for other in others {
            let socket = json!({ "type": "unix", "path": lan.socket(other) });
            let [port, id] = lan.hub_ports(other);
            let arguments = json!({ "type": "stream", "id": id, "server": true, "addr": socket });
            hub.machine.monitor("netdev_add", arguments)?;
            let port = json!({ "type": "hubport", "id": port, "hubid": 1, "netdev": id });
            hub.machine.monitor("netdev_add", port)?;
        }
        lan.plug(hub, json!({ "type": "hubport", "id": lan.cable, "hubid": 1 }))?;
        for other in others {
            let socket = json!({ "type": "unix", "path": lan.socket(other) });
            lan.plug(other, json!({ "type": "stream", "id": lan.cable, "server": false, "addr": socket }))?;
        }
        Ok(lan)
    }
}

impl Lan<'_> {
    fn socket(&self, member: &Member<'_>) -> PathBuf {
        self.folder.join(&member.name)
    }

    /// By which a member hangs on the hub: the port, and what leads from it to the member.
    fn hub_ports(&self, member: &Member<'_>) -> [String; 2] {
        [format!("{}-{}-port", self.cable, member.name), format!("{}-{}", self.cable, member.name)]
    }

    fn plug(&self, member: &Member<'_>, cable: Value) -> Result<(), LabError> {
        let (machine, mac) = (member.machine, member.mac());
        Self::announce(member)?;
        let port = free_port(&machine.monitor("query-pci", json!({}))?).ok_or_else(|| LabError::Monitor {
            machine: machine.name().to_owned(),
            command: "query-pci".into(),
            reason: "it has no free port for a second network card: freeze its baseline again \
                     (`patchlab baseline refreeze NAME`)"
                .into(),
        })?;
        machine.monitor("netdev_add", cable)?;
        let (id, netdev) = (&self.card, &self.cable);
        let card = json!({ "driver": "virtio-net-pci", "id": id, "netdev": netdev, "mac": mac, "bus": port });
        machine.monitor("device_add", card)?;
        self.settle_member(member)
    }

    /// Gives a machine its address and the others' names; again after it was booted.
    ///
    /// # Errors
    /// It does not find its card, or takes no address.
    pub fn settle(&self, machine: &Machine) -> Result<(), LabError> {
        let member = self.members.iter().find(|member| std::ptr::eq(member.machine, machine));
        member.map_or(Ok(()), |member| Self::announce(member).and_then(|()| self.settle_member(member)))
    }

    fn announce(member: &Member<'_>) -> Result<(), LabError> {
        let said = member.machine.guest().script(ANNOUNCE, &[&member.mac(), GUEST_FOLDER], member.timeout());
        Ok(said.map(drop)?)
    }

    fn settle_member(&self, member: &Member<'_>) -> Result<(), LabError> {
        let (timeout, address) = (member.timeout(), format!("{}/24", member.address()));
        let patience = timeout.as_secs().to_string();
        let arguments = [&member.mac(), GUEST_FOLDER, &address, &patience, &self.hosts];
        Ok(member.machine.guest().script(SETTLE, &arguments, timeout * 2).map(drop)?)
    }

    /// Takes a member out of the network, and leaves it as it was.
    ///
    /// # Errors
    /// It does not let its card go.
    pub fn leave(&self, machine: &Machine) -> Result<(), LabError> {
        let Some(member) = self.members.iter().find(|member| std::ptr::eq(member.machine, machine)) else {
            return Ok(());
        };
        machine.guest().script(LEAVE, &[GUEST_FOLDER], member.timeout())?;
        let begun = Instant::now();
        // A guest lets a card go in its own time.
        while self.request_card(machine)? {
            if begun.elapsed() > member.timeout() {
                let (machine, event) = (machine.name().to_owned(), "the end of its second network card".to_owned());
                return Err(LabError::Timeout { machine, event, timeout: member.timeout(), evidence: String::new() });
            }
            std::thread::sleep(LOOK);
        }
        let ports = self.members.iter().filter(|other| member.number == 0 && other.number != 0);
        let mut cables = ports.flat_map(|other| self.hub_ports(other)).chain([self.cable.clone()]);
        cables.try_for_each(|id| machine.monitor("netdev_del", json!({ "id": id })).map(drop))
    }

    /// Takes its card from a member that is lost and lets nothing go any more: its emulator does when it is reset.
    pub fn forsake(&self, machine: &Machine) {
        if let Err(error) = self.request_card(machine) {
            tracing::debug!(machine = machine.name(), %error, "keeps the card of a network that is gone");
        }
    }

    /// Asks a guest for its card; whether it still has it.
    fn request_card(&self, machine: &Machine) -> Result<bool, LabError> {
        match machine.monitor("device_del", json!({ "id": self.card })) {
            Ok(_) => Ok(true),
            Err(LabError::Monitor { reason, .. }) if reason.contains("not found") => Ok(false),
            // It was asked before.
            Err(LabError::Monitor { reason, .. }) if reason.contains("unplug") => Ok(true),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Lan<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "left for the end of its worker");
        }
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The first port behind which there is nothing, of what `query-pci` says.
fn free_port(buses: &Value) -> Option<String> {
    let devices = buses.as_array()?.iter().flat_map(|bus| bus["devices"].as_array().into_iter().flatten());
    let is_free = |device: &&Value| {
        let behind = &device["pci_bridge"]["devices"];
        device["pci_bridge"].is_object() && behind.as_array().is_none_or(Vec::is_empty)
    };
    let named = devices.filter(is_free).filter_map(|device| device["qdev_id"].as_str());
    named.filter(|id| !id.is_empty()).map(str::to_owned).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_with_nothing_behind_it_is_free() {
        let port = |id: &str, behind: Value| json!({ "qdev_id": id, "pci_bridge": { "bus": {}, "devices": behind } });
        let buses = |ports: Vec<Value>| json!([{ "bus": 0, "devices": ports }]);
        let card = json!([{ "qdev_id": "net0" }]);
        let all = vec![json!({ "qdev_id": "" }), port("pci.1", card.clone()), port("pci.5", json!([]))];
        assert_eq!(free_port(&buses(all)).as_deref(), Some("pci.5"));
        assert_eq!(free_port(&buses(vec![port("pci.1", card)])), None);
        assert_eq!(free_port(&json!({})), None);
    }
}
