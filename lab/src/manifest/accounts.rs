//! Users and groups of a machine: passwd(5), group(5), and of shadow(5) whether a password lets anybody in, never the password.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Who is known to a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounts {
    /// Users by name.
    pub users: BTreeMap<String, User>,
    /// Groups by name.
    pub groups: BTreeMap<String, Group>,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Number.
    pub uid: u32,
    /// Number of its own group.
    pub gid: u32,
    /// Home folder.
    pub home: String,
    /// Program that a login starts.
    pub shell: String,
    /// Whether a password lets anybody in.
    pub password: Password,
}

/// Whether a password lets anybody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Password {
    /// None does: the field begins with `!` or `*`, or there is no line in shadow(5).
    Locked,
    /// One does.
    Set,
    /// Everybody gets in without one: the field is empty.
    Empty,
}

impl Password {
    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::Set => "set",
            Self::Empty => "empty",
        }
    }
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Number.
    pub gid: u32,
    /// Users in it beside those whose own it is, sorted.
    pub members: Vec<String>,
}

/// From passwd(5), group(5), and `NAME:locked|set|empty` lines.
pub(super) fn parse(passwd: &str, group: &str, shadow: &str) -> Accounts {
    let passwords: BTreeMap<&str, Password> = shadow
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter_map(|(name, state)| {
            let password = [Password::Locked, Password::Set, Password::Empty].into_iter().find(|p| p.name() == state);
            Some((name, password?))
        })
        .collect();
    let user = |line: &str| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let (home, shell) = (fields.nth(1)?.to_owned(), fields.next()?.to_owned());
        let password = passwords.get(name).copied().unwrap_or(Password::Locked);
        Some((name.to_owned(), User { uid, gid, home, shell, password }))
    };
    let group_of = |line: &str| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        let mut members: Vec<String> =
            fields.next()?.split(',').filter(|member| !member.is_empty()).map(str::to_owned).collect();
        members.sort();
        Some((name.to_owned(), Group { gid, members }))
    };
    Accounts { users: passwd.lines().filter_map(user).collect(), groups: group.lines().filter_map(group_of).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_with_the_lock_and_never_the_password() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33:a, b:/var/www:/usr/sbin/nologin\nbad line\nnew:x:1000:1000::/home/new:\n";
        let group = "root:x:0:\nwww-data:x:33:new,adm\n";
        let accounts = parse(passwd, group, "root:set\nwww-data:locked\nnew:empty\n");
        let states: Vec<(&str, u32, &str)> =
            accounts.users.iter().map(|(name, user)| (name.as_str(), user.uid, user.password.name())).collect();
        assert_eq!(states, [("new", 1000, "empty"), ("root", 0, "set"), ("www-data", 33, "locked")]);
        assert_eq!((accounts.users["new"].shell.as_str(), accounts.users["root"].home.as_str()), ("", "/root"));
        assert_eq!(accounts.groups["www-data"].members, ["adm", "new"]);
        // Without a line in shadow(5) nobody gets in by a password.
        assert_eq!(parse(passwd, group, "").users["root"].password, Password::Locked);
    }
}
