//! Secrets in a system that somebody else made: where they lie and of which kind, never what they are.
//!
//! A captured system may hold private keys, tokens and password hashes of the real one. A baseline is copied, cloned and sent to other lab
//! hosts, so its recipe says what is to become of them: `refuse` (unless said otherwise), `scrub` or `keep`. They are looked for inside
//! the running system, by where files lie and by what they say ([`rules`]), on every file system of its disks. Memory holds them too: a
//! scrubbed system is shut down, and another boot of it is frozen.

mod rules;

use std::{collections::BTreeMap, time::Duration};

use patchlab_check::PackageSystem;
use serde::{Deserialize, Serialize};

use self::rules::{RULES, Scrubbing};
use crate::{
    machine::{Guest, GuestError},
    manifest::disks,
};

/// Secrets that are named.
const FOUND: usize = 1000;
/// Bytes of the answer that are read: 4 MiB.
const ANSWER_BYTES: u64 = 4 << 20;

/// What is to become of the secrets in a captured system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecretsPolicy {
    /// A system that has any does not become a baseline.
    #[default]
    Refuse,
    /// They are overwritten and removed, and password hashes locked, before anything is stored.
    Scrub,
    /// They stay, and are named.
    Keep,
}

/// A kind of secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretKind {
    /// A private key: PEM, OpenSSH, OpenPGP, WireGuard, IPsec.
    PrivateKey,
    /// A private key by which a host shows who it is: ssh host keys.
    HostKey,
    /// A certificate that was made for this host.
    HostCertificate,
    /// A Kerberos keytab.
    Keytab,
    /// Passwords and tokens of programs: clouds, registries, databases, repositories, netrc.
    Token,
    /// A key of a wireless network or another connection.
    NetworkKey,
    /// Hashes of passwords.
    PasswordHash,
    /// What somebody typed, or what cloud-init was given: both often hold secrets.
    History,
}

impl SecretKind {
    /// The words for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrivateKey => "private key",
            Self::HostKey => "host key",
            Self::HostCertificate => "host certificate",
            Self::Keytab => "keytab",
            Self::Token => "password or token",
            Self::NetworkKey => "network key",
            Self::PasswordHash => "password hashes",
            Self::History => "history",
        }
    }
}

/// A secret: where and what, never its content.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Secret {
    /// Its file.
    pub path: String,
    /// What it is.
    pub kind: SecretKind,
}

/// What was done about a captured system's secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// What its recipe asks for.
    pub policy: SecretsPolicy,
    /// What was found: there still under `keep`, gone under `scrub`.
    pub found: Vec<Secret>,
}

/// Which files a search looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// All.
    Whole,
    /// Those that were there before this boot: what a cloud image's first boot made (host keys) is nobody's secret.
    BeforeThisBoot,
}

/// The program that finds and scrubs. perl is part of Debian's essential set, and of what the lab needs.
const PROGRAM: &str = include_str!("secrets/secrets.pl");

/// Looks everywhere: program, answer, then what the program's `look` takes behind the root and before the package system.
const LOOK: &str = r#"
program=$1 answer=$2 before=$3; shift 3
disks | cut -f 2- | perl -e "$program" -- look '' "$before" "$(package_system)" "$@" >"$answer"
"#;

/// Scrubs: program, then what its `scrub` takes behind the root.
const SCRUB: &str = r#"
program=$1; shift
perl -MIO::Handle -e "$program" -- scrub '' "$@"
"#;

/// After a scrubbing: ssh gets host keys of its own again, should it have lost them.
const AFTER: &str = r#"
if [ "$1" = host-keys ] && command -v ssh-keygen >/dev/null && [ -d /etc/ssh ]; then ssh-keygen -A; fi
sync
fstrim -a >/dev/null 2>&1
exit 0
"#;

impl SecretsPolicy {
    /// Does with a running system what its recipe says of secrets.
    ///
    /// # Errors
    /// It has any and may not, or some withstood being scrubbed.
    pub(super) fn apply(self, guest: &Guest, scope: Scope, timeout: Duration) -> Result<Secrets, SecretsError> {
        let found = look(guest, scope, timeout)?;
        match self {
            Self::Refuse if !found.is_empty() => return Err(SecretsError::Found(found.into_keys().collect())),
            Self::Scrub if !found.is_empty() => match scrub(guest, &found, timeout)? {
                left if left.is_empty() => {}
                left => return Err(SecretsError::Left(left)),
            },
            _ => {}
        }
        Ok(Secrets { policy: self, found: found.into_keys().collect() })
    }
}

/// Secrets stand in the way.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretsError {
    #[error("the system holds secrets: {}", named(.0))]
    Found(Vec<Secret>),
    #[error("secrets are there still after they were scrubbed: {}", named(.0))]
    Left(Vec<Secret>),
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// Secrets for people: all of them, so that each can be looked at.
pub(super) fn named(secrets: &[Secret]) -> String {
    let each: Vec<_> = secrets.iter().map(|secret| format!("{} ({})", secret.path, secret.kind.name())).collect();
    each.join(", ")
}

/// Secrets, each with how it is scrubbed.
type Found = BTreeMap<Secret, Scrubbing>;

/// Looks for secrets inside a running system.
fn look(guest: &Guest, scope: Scope, timeout: Duration) -> Result<Found, GuestError> {
    let before = match scope {
        // Later than any file.
        Scope::Whole => "4102444800".to_owned(),
        Scope::BeforeThisBoot => {
            let booted = guest.script("sed -n 's/^btime //p' /proc/stat", &[], timeout)?;
            String::from_utf8_lossy(&booted).trim().to_owned()
        }
    };
    let answer = "/run/patchlab-secrets";
    let script = format!("{}{}{LOOK}", PackageSystem::shell(), disks::shell());
    let most = FOUND.to_string();
    let arguments = [PROGRAM, answer, &before, &most].into_iter().chain(searched());
    guest.script(&script, &arguments.collect::<Vec<_>>(), timeout)?;
    let bytes = guest.read_file(answer, ANSWER_BYTES, timeout)?.unwrap_or_default();
    guest.script(r#"rm -f -- "$1""#, &[answer], timeout)?;
    Ok(judge(&String::from_utf8_lossy(&bytes)))
}

/// The rules, as the search takes them.
fn searched<'a>() -> impl Iterator<Item = &'a str> {
    RULES.iter().flat_map(|rule| [rule.path, rule.text.argument()])
}

/// What was found, as the scrubbing takes it.
fn scrubbed(found: &Found) -> Vec<&str> {
    let how = |scrubbing: &Scrubbing| match scrubbing {
        Scrubbing::Remove => "remove",
        Scrubbing::Mask => "mask",
    };
    found.iter().flat_map(|(secret, scrubbing)| [how(scrubbing), secret.path.as_str()]).collect()
}

/// Overwrites what was found; gives what is there all the same.
fn scrub(guest: &Guest, found: &Found, timeout: Duration) -> Result<Vec<Secret>, GuestError> {
    for part in scrubbed(found).chunks(200) {
        guest.script(SCRUB, &[&[PROGRAM][..], part].concat(), timeout)?;
    }
    let lost_host_keys = found.keys().any(|secret| secret.path.starts_with("/etc/ssh/ssh_host_"));
    guest.script(AFTER, &[if lost_host_keys { "host-keys" } else { "" }], timeout)?;
    // What ssh was given anew lies where the old lay.
    let left = look(guest, Scope::Whole, timeout)?.into_keys();
    Ok(left.filter(|secret| secret.kind != SecretKind::HostKey && found.contains_key(secret)).collect())
}

/// From the search's answer: numbers of rules, each with the path of a file that meets it.
fn judge(answer: &str) -> Found {
    let mut words = answer.split('\0');
    let mut found = Found::new();
    while let (Some(number), Some(path)) = (words.next(), words.next()) {
        if let Some(rule) = number.parse().ok().and_then(|number: usize| RULES.get(number)) {
            found.insert(Secret { path: path.to_owned(), kind: rule.kind }, rule.scrubbing());
        }
    }
    found
}

#[cfg(test)]
mod tests;
