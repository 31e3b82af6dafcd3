//! The memory that this host can give: what the kernel says of it (proc_meminfo(5), Documentation/accounting/psi.rst) and what this
//! process's own control groups leave of it (Documentation/admin-guide/cgroup-v2.rst).

use std::{fs, io, path::Path};

/// What can be had, and how scarce it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HostMemory {
    /// What can be had without swapping (`MemAvailable`), or what this process's control groups leave if that is less, MiB.
    pub available_mib: u64,
    /// Share of the last ten seconds in which something waited for memory, percent (`some avg10` of
    /// `/proc/pressure/memory`); 0 where the kernel does not say.
    pub pressure: f64,
}

impl HostMemory {
    /// As it is now.
    ///
    /// # Errors
    /// `/proc/meminfo` cannot be read, or does not say what is available.
    pub fn now() -> io::Result<Self> {
        let free = available_mib(&fs::read_to_string("/proc/meminfo")?)
            .ok_or_else(|| io::Error::other("/proc/meminfo does not say MemAvailable"))?;
        let pressure = fs::read_to_string("/proc/pressure/memory").ok();
        Ok(Self {
            available_mib: group_mib().map_or(free, |left| left.min(free)),
            pressure: pressure.as_deref().and_then(avg10).unwrap_or(0.0),
        })
    }
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib >> 10)
}

fn avg10(pressure: &str) -> Option<f64> {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

/// What control groups of version 2 leave to this process, MiB; `None` without a limit.
fn group_mib() -> Option<u64> {
    let group = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = group.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    let root = Path::new("/sys/fs/cgroup");
    let number = |dir: &Path, name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    // A limit above counts as well.
    let groups = root.join(path);
    let groups = groups.ancestors().take_while(|dir| dir.starts_with(root));
    let left = groups.filter_map(|dir| {
        let limit = number(dir, "memory.max")?;
        Some(limit.saturating_sub(number(dir, "memory.current").unwrap_or(0)) >> 20)
    });
    left.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        assert_eq!(available_mib("MemTotal: 9 kB\nMemAvailable:   2097152 kB\n"), Some(2048));
        assert_eq!(available_mib("MemTotal: 9 kB\n"), None);
        let text = "some avg10=1.25 avg60=0.00 avg300=0.00 total=1\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!((avg10(text), avg10("")), (Some(1.25), None));
        assert!(HostMemory::now().unwrap().available_mib > 0, "this machine has some");
    }
}
