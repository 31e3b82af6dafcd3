//! The lab's user and its groups, as the system's files name them.

use std::{fs, os::unix::fs::MetadataExt as _};

use super::{WorkerError, failed};

/// A system user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups: those that it is a member of, and own the accelerator.
    pub(super) groups: Vec<u32>,
}

/// The user with that name, if there is one.
pub(super) fn lookup(name: &str) -> Result<Option<User>, WorkerError> {
    let passwd = fs::read_to_string("/etc/passwd").map_err(failed("read", "/etc/passwd"))?;
    let group = fs::read_to_string("/etc/group").map_err(failed("read", "/etc/group"))?;
    let kvm = fs::metadata("/dev/kvm").ok().map(|metadata| metadata.gid());
    Ok(parse(&passwd, &group, name, kvm))
}

/// Only the group that owns the accelerator is passed on: a worker needs no other.
fn parse(passwd: &str, group: &str, name: &str, kvm: Option<u32>) -> Option<User> {
    let fields: Vec<&str> = passwd.lines().map(|line| line.split(':').collect()).find(|f: &Vec<_>| f[0] == name)?;
    let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
    let groups = group
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let number = fields.get(2)?.parse().ok()?;
            fields.get(3)?.split(',').any(|member| member == name).then_some(number)
        })
        .filter(|number| Some(*number) == kvm && *number != 0)
        .collect();
    Some(User { uid, gid, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_accelerators_group_is_passed_on() {
        let passwd = "root:x:0:0::/:/bin/sh\nlab:x:7:8::/nonexistent:/usr/sbin/nologin\n";
        let group = "root:x:0:lab\nkvm:x:44:a,lab\nadm:x:4:lab\n";
        let user = |kvm| parse(passwd, group, "lab", kvm).unwrap().groups;
        assert_eq!((user(Some(44)), user(Some(0)), user(None)), (vec![44], vec![], vec![]));
        assert_eq!(parse(passwd, group, "nobody", None), None);
    }
}
