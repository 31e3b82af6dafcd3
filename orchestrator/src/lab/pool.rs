//! The hosts that lend machines to this lab: those of `patchlab.toml` in the data folder, those named on the command line instead, or this
//! machine alone.

use std::{collections::BTreeSet, num::NonZeroUsize, path::Path};

use patchlab_check::written::{self, ByteSize, Parameters, WrittenError};
use patchlab_lab::{
    LabHost,
    host::{Found, Libvirt},
};
use serde::Deserialize;

use crate::place::Data;

/// Most hosts of a pool.
const HOSTS: usize = 64;

/// Hosts that lend machines: at least one, each with a name of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool(Vec<LabHost>);

/// A host of a pool, looked at.
#[derive(Debug, Clone)]
pub struct Lender<'a> {
    /// Which.
    pub host: &'a LabHost,
    /// What it has, or why it lends nothing.
    pub found: Result<Found, String>,
}

impl Lender<'_> {
    /// Its name and why it lends nothing, when it does not.
    pub(super) fn out(&self) -> Option<String> {
        Some(format!("{}: {}", self.host.name, self.found.as_ref().err()?))
    }
}

/// `patchlab.toml` as written.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Written {
    /// The lab.
    #[serde(default)]
    lab: WrittenLab,
}

#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct WrittenLab {
    /// Hosts that lend machines; none is this machine alone.
    #[serde(default)]
    host: Vec<WrittenHost>,
}

/// A host that lends machines.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct WrittenHost {
    /// Its name, for people.
    name: String,
    /// URI of its libvirt: `qemu:///embed` (this machine, files below the data folder), `qemu:///embed?root=DIR` (files on another disk),
    /// or of a libvirt that runs by itself on this machine, such as `qemu:///system`.
    libvirt: String,
    /// How many validations it runs at once; as many as there are processors unless given.
    validations: Option<NonZeroUsize>,
    /// Memory that all its machines together may have; what is free unless given.
    memory: Option<ByteSize>,
}

impl Pool {
    /// This machine alone.
    pub fn here() -> Self {
        Self(vec![LabHost::here()])
    }

    /// Hosts that are named on the command line, by their URIs; without one, those of the file.
    ///
    /// # Errors
    /// The file cannot be read, or says what makes no sense: file, line and key are named.
    pub fn of(data: &Data, named: &[Libvirt]) -> Result<Self, WrittenError> {
        if named.is_empty() {
            return Self::read(&data.settings());
        }
        let mut known = BTreeSet::new();
        let once = named.iter().filter(|libvirt| known.insert(libvirt.to_string()));
        Ok(Self(once.map(|libvirt| LabHost::at(&libvirt.to_string(), libvirt.clone())).collect()))
    }

    fn read(path: &Path) -> Result<Self, WrittenError> {
        if !path.exists() {
            return Ok(Self::here());
        }
        let text = written::read_text(path)?;
        let found: Written = written::parse(&text, path)?;
        let mut hosts: Vec<LabHost> = Vec::new();
        for (number, host) in found.lab.host.into_iter().enumerate() {
            let wrong = |key: &str, problem: String| {
                WrittenError::at_key(path, &text, &format!("lab.host.{number}.{key}"), problem)
            };
            if host.name.is_empty() || host.name.len() > 64 || !host.name.chars().all(|c| c.is_ascii_graphic()) {
                let problem = format!("expected up to 64 letters, digits and signs, found {:?}", host.name);
                return Err(wrong("name", problem));
            }
            if hosts.iter().any(|other| other.name == host.name) {
                return Err(wrong("name", format!("there is a host {:?} already", host.name)));
            }
            if number >= HOSTS {
                return Err(wrong("name", format!("a pool has at most {HOSTS} hosts")));
            }
            let libvirt: Libvirt = host.libvirt.parse().map_err(|error| wrong("libvirt", format!("{error}")))?;
            if let Some(same) = hosts.iter().find(|other| other.libvirt == libvirt) {
                return Err(wrong("libvirt", format!("host {:?} has the same", same.name)));
            }
            let memory_mib = host.memory.map(|memory| memory.bytes() >> 20);
            hosts.push(LabHost { name: host.name, libvirt, validations: host.validations, memory_mib });
        }
        Ok(if hosts.is_empty() { Self::here() } else { Self(hosts) })
    }

    /// The JSON Schema of the file.
    pub fn schema() -> schemars::Schema {
        written::schema::<Written>(Parameters::None)
    }

    /// All of them.
    pub fn hosts(&self) -> &[LabHost] {
        &self.0
    }

    /// Whether nobody has to be told where something runs.
    pub fn is_here_alone(&self) -> bool {
        self.0 == [LabHost::here()]
    }

    /// Looks at each, all at once.
    pub fn look(&self, data: &Data) -> Vec<Lender<'_>> {
        let places = data.lab();
        std::thread::scope(|scope| {
            let looks: Vec<_> = self.0.iter().map(|host| (host, scope.spawn(|| look(host, &places)))).collect();
            let joined = looks.into_iter().map(|(host, looked)| {
                let found = looked.join().unwrap_or_else(|_| Err("looking at it broke".into()));
                Lender { host, found }
            });
            joined.collect()
        })
    }
}

/// What a host has, or why it lends nothing.
pub(super) fn look(host: &LabHost, places: &patchlab_lab::Places) -> Result<Found, String> {
    host.look(places).map_err(|error| format!("{:#}", anyhow::Error::from(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Pool, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("patchlab.toml"), text).unwrap();
        let data = Data::open(Some(dir.path().to_owned())).unwrap();
        Pool::of(&data, &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pool_is_read_with_what_each_host_lends() {
        let text = "[[lab.host]]\nname = \"fast\"\nlibvirt = \"qemu:///embed?root=/mnt/fast\"\nvalidations = 3\n\
                    memory = \"4GiB\"\n[[lab.host]]\nname = \"daemon\"\nlibvirt = \"qemu:///system\"\n";
        let pool = read(text).unwrap();
        let [fast, daemon] = pool.hosts() else { panic!("{pool:?}") };
        assert_eq!((fast.validations, fast.memory_mib), (NonZeroUsize::new(3), Some(4096)));
        assert_eq!((daemon.libvirt.to_string().as_str(), daemon.memory_mib), ("qemu:///system", None));
        assert!(!pool.is_here_alone());
        assert!(read("").unwrap().is_here_alone());
    }

    #[test]
    fn what_makes_no_sense_is_named_with_its_line() {
        let host = |name: &str, uri: &str| format!("[[lab.host]]\nname = \"{name}\"\nlibvirt = \"{uri}\"\n");
        for (text, line, why) in [
            (host("a", "/mnt"), 3, "a URI"),
            (host("", "qemu:///embed"), 2, "expected up to 64"),
            (host("a", "qemu:///embed") + &host("a", "qemu:///system"), 5, "already"),
            (host("a", "qemu:///embed") + &host("b", "qemu:///embed"), 6, "host \"a\" has the same"),
            (host("a", "qemu:///embed") + "validations = 0\n", 4, "nonzero"),
            (host("a", "qemu:///embed") + "memry = \"1GiB\"\n", 4, "memory"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(&format!("patchlab.toml:{line}:")) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn hosts_of_the_command_line_count_instead_each_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("patchlab.toml"), "wrong").unwrap();
        let data = Data::open(Some(dir.path().to_owned())).unwrap();
        let uri: Libvirt = format!("qemu:///embed?root={}", dir.path().display()).parse().unwrap();
        let gone: Libvirt = "qemu:///embed?root=/no/such/folder".parse().unwrap();
        let pool = Pool::of(&data, &[uri.clone(), gone, uri]).unwrap();
        let looked = pool.look(&data);
        assert_eq!(looked.len(), 2);
        assert!(looked[0].found.is_ok());
        assert!(looked[1].found.as_ref().is_err_and(|why| why.contains("/no/such/folder: no such folder")));
    }
}
