//! What of the ports that two machines listen on differs. A port that a program chose is compared by its number. One of the range from
//! which the kernel gives numbers to whoever asks for none (`ip_local_port_range`) has another at each start: of these it counts how many
//! a program has, by protocol and address.

use std::collections::BTreeMap;

use super::allowed;
use crate::manifest::{Port, PortRange};

/// What one machine listens on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Listening {
    /// The lab's own left out.
    ports: Vec<Port>,
    given: PortRange,
}

/// Whether a port that was chosen is the same in another program's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chosen {
    /// It is not.
    ByOneProgram,
    /// It is.
    ByAnyProgram,
}

/// By what two ports are the same.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Likeness<'a> {
    protocol: &'a str,
    address: &'a str,
    number: Option<u16>,
    process: Option<&'a str>,
}

impl Listening {
    /// On these ports; `given` is the range of those that the kernel chooses.
    pub(crate) fn on(ports: impl IntoIterator<Item = Port>, given: PortRange) -> Self {
        Self { ports: ports.into_iter().filter(|port| allowed::port(port).is_none()).collect(), given }
    }

    fn alike(&self, chosen: Chosen) -> BTreeMap<Likeness<'_>, Vec<&Port>> {
        let mut found: BTreeMap<Likeness<'_>, Vec<&Port>> = BTreeMap::new();
        for port in &self.ports {
            let likeness = likeness(port, self.given, chosen);
            let alike = found.entry(likeness).or_default();
            if !alike.contains(&port) {
                alike.push(port);
            }
        }
        found
    }

    /// Ports that `self` listens on and the `other` does not.
    pub(crate) fn without(&self, other: &Self, chosen: Chosen) -> Vec<Port> {
        let others = other.alike(chosen);
        let more = self.alike(chosen).into_iter().flat_map(|(likeness, mut ports)| {
            let there = others.get(&likeness).map_or(&[][..], Vec::as_slice);
            let count = match likeness.number {
                Some(_) if !there.is_empty() => 0,
                Some(_) => ports.len(),
                None => ports.len().saturating_sub(there.len()),
            };
            // Those with numbers of their own are the ones to be told.
            ports.sort_by_key(|port| there.contains(port));
            ports.truncate(count);
            ports
        });
        let mut more: Vec<Port> = more.cloned().collect();
        more.sort();
        more
    }

    /// Whether one of `ports` is, on this machine, the same as `port` is.
    pub(crate) fn has_like(&self, port: &Port, ports: &[Port]) -> bool {
        let of = |port| likeness(port, self.given, Chosen::ByOneProgram);
        ports.iter().any(|other| of(other) == of(port))
    }
}

fn likeness(port: &Port, given: PortRange, chosen: Chosen) -> Likeness<'_> {
    let number = Some(port.port).filter(|number| !given.has(*number));
    let process = port.process.as_deref().filter(|_| number.is_none() || chosen == Chosen::ByOneProgram);
    Likeness { protocol: &port.protocol, address: &port.address, number, process }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(number: u16, process: &str) -> Port {
        Port { protocol: "udp".into(), address: "0.0.0.0".into(), port: number, process: Some(process.into()) }
    }

    fn on(ports: &[Port]) -> Listening {
        Listening::on(ports.iter().cloned(), PortRange::default())
    }

    #[test]
    fn ports_that_the_kernel_gives_are_counted_and_others_have_their_numbers() {
        let before = on(&[udp(5353, "avahi-daemon"), udp(41_000, "avahi-daemon")]);
        let restarted = on(&[udp(5353, "avahi-daemon"), udp(50_123, "avahi-daemon")]);
        let none = Vec::<Port>::new();
        assert_eq!(restarted.without(&before, Chosen::ByOneProgram), none);
        assert_eq!(before.without(&restarted, Chosen::ByOneProgram), none);
        // One more, another program's, and one of a number that somebody chose.
        let more = on(&[udp(5354, "avahi-daemon"), udp(41_000, "avahi-daemon"), udp(42_000, "avahi-daemon")]);
        let numbers = |ports: Vec<Port>| ports.into_iter().map(|port| port.port).collect::<Vec<_>>();
        assert_eq!(numbers(more.without(&before, Chosen::ByOneProgram)), [5354, 42_000]);
        assert_eq!(numbers(before.without(&more, Chosen::ByOneProgram)), [5353]);
        let other = on(&[udp(5353, "avahi-daemon"), udp(41_000, "rpc.statd")]);
        assert_eq!(numbers(other.without(&before, Chosen::ByAnyProgram)), [41_000]);
        let narrow = Listening::on([udp(41_000, "rpc.statd")], PortRange { first: 50_000, last: 51_000 });
        assert_eq!(numbers(narrow.without(&on(&[]), Chosen::ByAnyProgram)), [41_000]);
    }

    #[test]
    fn a_chosen_port_may_be_in_other_hands() {
        let (nginx, apache) = (on(&[udp(80, "nginx")]), on(&[udp(80, "apache2")]));
        assert_eq!(apache.without(&nginx, Chosen::ByAnyProgram), []);
        assert_eq!(apache.without(&nginx, Chosen::ByOneProgram), [udp(80, "apache2")]);
    }
}
