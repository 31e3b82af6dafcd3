//! Ports that something listens on, by `/proc/net`, and the unit whose process that is, by `/proc/PID/fd` and `/proc/PID/cgroup`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use patchlab_protocol::description::{LINES, Port, Transport, UNIT_BYTES};

use super::text;

/// Most that is read of one table, bytes: a line has 150, and a busy server some ten thousand connections.
const TABLE_BYTES: u64 = 8 * 1024 * 1024;
/// Most open files that are looked at to find out whose a port is.
const LINKS: usize = 50_000;
/// `TCP_LISTEN` and `TCP_CLOSE` of the kernel's `tcp_states.h`; a UDP socket that is not connected is in the second.
const STATES: [(Transport, &str, &str); 4] = [
    (Transport::Tcp, "tcp", "0A"),
    (Transport::Tcp, "tcp6", "0A"),
    (Transport::Udp, "udp", "07"),
    (Transport::Udp, "udp6", "07"),
];

/// The listening ports of the system below `root`, sorted. UDP ports that the kernel gives to whoever asks something are left out: they
/// come and go.
pub fn listening(root: &Path) -> Vec<Port> {
    let range = text(&root.join("proc/sys/net/ipv4/ip_local_port_range"), 64);
    let range: Vec<u16> = range.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let passing = |port: u16| matches!(range[..], [from, to] if (from..=to).contains(&port));
    let mut found: Vec<(Socket, Transport)> = Vec::new();
    for (transport, table, state) in STATES {
        let table = text(&root.join("proc/net").join(table), TABLE_BYTES);
        let sockets = table.lines().filter_map(|line| Socket::of(line, state));
        found.extend(sockets.filter(|s| transport == Transport::Tcp || !passing(s.port)).map(|s| (s, transport)));
    }
    found.sort_by_key(|(socket, transport)| (*transport, socket.port, socket.address));
    found.dedup_by_key(|(socket, transport)| (*transport, socket.port, socket.address));
    found.truncate(LINES);
    let units = units(root, &found.iter().map(|(socket, _)| socket.inode).collect());
    let port = |(socket, transport): (Socket, Transport)| Port {
        transport,
        port: socket.port,
        address: socket.address,
        unit: units.get(&socket.inode).cloned(),
    };
    found.into_iter().map(port).collect()
}

/// A line of `/proc/net/tcp` and its kin (proc(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    address: IpAddr,
    port: u16,
    inode: u64,
}

impl Socket {
    fn of(line: &str, state: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, found, _, _, _, _, _, inode, ..] = words[..] else { return None };
        let (address, port) = local.split_once(':')?;
        (found == state).then_some(())?;
        Some(Self { address: host(address)?, port: u16::from_str_radix(port, 16).ok()?, inode: inode.parse().ok()? })
    }
}

/// An address: 32-bit words in the machine's own order, little-endian wherever the agent is built for.
fn host(digits: &str) -> Option<IpAddr> {
    let word = |digits: &str| u32::from_str_radix(digits, 16).ok().map(u32::to_le_bytes);
    match digits.len() {
        8 => Some(Ipv4Addr::from(word(digits)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (n, place) in bytes.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(digits.get(n * 8..n * 8 + 8)?)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// The units whose processes have these sockets open, as far as they are found among the first [`LINKS`] open files.
fn units(root: &Path, inodes: &BTreeSet<u64>) -> BTreeMap<u64, String> {
    let mut found = BTreeMap::new();
    let mut left = LINKS;
    let processes = fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    let numbered = processes.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    for process in numbered {
        if found.len() == inodes.len() {
            break;
        }
        let mut unit = None;
        for link in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Some(fewer) = left.checked_sub(1) else { return found };
            left = fewer;
            let Ok(target) = fs::read_link(link.path()) else { continue };
            let inode = target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            let Some(inode) = inode.filter(|inode| inodes.contains(inode)) else { continue };
            let unit = unit.get_or_insert_with(|| unit_of(&text(&process.path().join("cgroup"), 4096)));
            if let Some(unit) = unit {
                found.insert(inode, unit.clone());
            }
        }
    }
    found
}

/// The innermost unit of a process's control group (cgroups(7)): of version 2, or systemd's own of version 1.
fn unit_of(cgroup: &str) -> Option<String> {
    let path = cgroup.lines().find_map(|line| {
        line.strip_prefix("0::").or_else(|| line.split_once(":name=systemd:").map(|(_, path)| path))
    })?;
    let is_unit = |part: &&str| part.ends_with(".service") || part.ends_with(".socket") || part.ends_with(".scope");
    let unit = path.split('/').rev().find(is_unit)?;
    let fits = unit.len() <= UNIT_BYTES && !unit.contains(|c: char| c.is_whitespace() || c.is_control());
    fits.then(|| unit.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (place, said) in files {
            let path = root.path().join("proc").join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, said).unwrap();
        }
        root
    }

    #[test]
    fn ports_are_told_with_address_and_unit_and_those_that_come_and_go_are_not() {
        let tcp = format!(
            "{HEAD}   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n\
             {}   1: 0100007F:0CEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000   105        0 4712 1 0\n\
             {}   2: 0A00020F:0050 0A000202:D431 01 00000000:00000000 00:00000000 00000000    33        0 4713 1 0\n",
            "", ""
        );
        let tcp6 = format!(
            "{HEAD}   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 4714 1 0\n"
        );
        let udp = format!(
            "{HEAD}   1: 00000000:00A1 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4715 2 0\n   2: 00000000:D431 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4716 2 0\n"
        );
        let root = root(&[
            ("net/tcp", &tcp),
            ("net/tcp6", &tcp6),
            ("net/udp", &udp),
            ("sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
            ("812/cgroup", "0::/system.slice/nginx.service\n"),
            ("813/cgroup", "12:cpu:/\n1:name=systemd:/system.slice/mariadb.service\n"),
        ]);
        for (process, inode) in [("812", 4711), ("813", 4712)] {
            let folder = root.path().join("proc").join(process).join("fd");
            fs::create_dir(&folder).unwrap();
            symlink("/dev/null", folder.join("0")).unwrap();
            symlink(format!("socket:[{inode}]"), folder.join("7")).unwrap();
        }
        let lines: Vec<String> = listening(root.path()).iter().map(ToString::to_string).collect();
        let expected = [
            "port tcp 80 0.0.0.0 nginx.service",
            "port tcp 3306 127.0.0.1 mariadb.service",
            "port tcp 8080 ::1 -",
            "port udp 161 0.0.0.0 -",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_is_no_table_says_nothing_and_many_ports_are_cut() {
        let nonsense = root(&[("net/tcp", "nonsense\n0: 1 2 0A 4 5 6 7 8 9\n1: ZZ:80 x 0A a b c d e 5\n")]);
        assert!(listening(nonsense.path()).is_empty());
        let line = |n: u16| format!("{n}: 00000000:{n:04X} 00000000:0000 0A 0:0 00:0 0 0 0 {n} 1 0\n");
        let many = root(&[("net/tcp", &(1..2000).map(line).collect::<String>())]);
        assert_eq!(listening(many.path()).len(), LINES);
    }

    /// This machine's own tables, by their own kernel.
    #[test]
    fn a_port_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = listening(Path::new("/"));
        assert!(found.iter().any(|p| p.port == port && p.transport == Transport::Tcp), "{port}: {found:?}");
    }
}
