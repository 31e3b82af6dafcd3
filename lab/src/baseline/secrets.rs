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

/// Secrets that one look names. There may be more: scrubbing looks again until it finds no more.
const FOUND: usize = 1000;
/// How often what is found is scrubbed, each time as many as one look names.
const ROUNDS: usize = 10;
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
    /// Whether that is all.
    #[serde(default, skip_serializing_if = "Extent::is_all")]
    pub extent: Extent,
}

/// Whether all secrets are named, or only as many as are named at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// There are no more.
    #[default]
    All,
    /// The search ended when it had named as many as it may: there may be more.
    Part,
}

impl Extent {
    /// Of what one look found.
    fn of(found: &Found) -> Self {
        if found.len() < FOUND { Self::All } else { Self::Part }
    }

    fn is_all(&self) -> bool {
        *self == Self::All
    }

    /// The words behind those that are named.
    pub fn words(self) -> &'static str {
        match self {
            Self::All => "",
            Self::Part => ", and maybe more: no more than 1000 are named",
        }
    }
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
        let system = Running { guest, timeout };
        let (found, extent) = match self {
            Self::Scrub => (scrub(&system, scope)?, Extent::All),
            Self::Refuse | Self::Keep => {
                let found = system.look(scope)?;
                let extent = Extent::of(&found);
                (found, extent)
            }
        };
        let found: Vec<Secret> = found.into_keys().collect();
        if self == Self::Refuse && !found.is_empty() {
            return Err(SecretsError::Found(found, extent));
        }
        Ok(Secrets { policy: self, found, extent })
    }
}

/// Secrets stand in the way.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretsError {
    #[error("the system holds secrets: {}", named(.0, *.1))]
    Found(Vec<Secret>, Extent),
    #[error("secrets are there still after they were scrubbed: {}", named(.0, *.1))]
    Left(Vec<Secret>, Extent),
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// Secrets for people: all of them, so that each can be looked at.
pub(super) fn named(secrets: &[Secret], extent: Extent) -> String {
    let each: Vec<_> = secrets.iter().map(|secret| format!("{} ({})", secret.path, secret.kind.name())).collect();
    each.join(", ") + extent.words()
}

/// Secrets, each with how it is scrubbed.
type Found = BTreeMap<Secret, Scrubbing>;

/// A system that is searched and scrubbed.
trait System {
    /// Looks for secrets: at most [`FOUND`].
    fn look(&self, scope: Scope) -> Result<Found, GuestError>;
    /// Overwrites what was found.
    fn overwrite(&self, found: &Found) -> Result<(), GuestError>;
    /// When nothing is left to be overwritten.
    fn finish(&self, scrubbed: &Found) -> Result<(), GuestError>;
}

/// One that runs, asked from outside.
struct Running<'a> {
    guest: &'a Guest,
    /// How long each request may take.
    timeout: Duration,
}

impl System for Running<'_> {
    fn look(&self, scope: Scope) -> Result<Found, GuestError> {
        look(self.guest, scope, self.timeout)
    }

    fn overwrite(&self, found: &Found) -> Result<(), GuestError> {
        for part in scrubbed(found).chunks(200) {
            self.guest.script(SCRUB, &[&[PROGRAM][..], part].concat(), self.timeout)?;
        }
        Ok(())
    }

    fn finish(&self, scrubbed: &Found) -> Result<(), GuestError> {
        let lost_host_keys = scrubbed.keys().any(|secret| secret.path.starts_with("/etc/ssh/ssh_host_"));
        self.guest.script(AFTER, &[if lost_host_keys { "host-keys" } else { "" }], self.timeout).map(drop)
    }
}

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

/// Scrubs until a look at the whole system finds nothing that is to be scrubbed; gives all that was.
///
/// One look may not name all, a file that is masked may hold a secret of another kind, and the running system may write more.
///
/// # Errors
/// Something withstood, or there is more than [`ROUNDS`] looks name.
fn scrub(system: &impl System, scope: Scope) -> Result<Found, SecretsError> {
    let mut done = Found::new();
    let (mut found, mut searched) = (system.look(scope)?, scope);
    let mut rounds = 0;
    loop {
        let extent = Extent::of(&found);
        // A host key is made anew by whoever needs it.
        let withstood = |secret: &&Secret| secret.kind != SecretKind::HostKey && done.contains_key(secret);
        let left: Vec<Secret> = found.keys().filter(withstood).cloned().collect();
        if !left.is_empty() {
            return Err(SecretsError::Left(left, extent));
        }
        // What the boot itself made is nobody's secret, where it is not looked at.
        let is_due = |secret: &Secret| searched == scope && !done.contains_key(secret);
        let due: Found = found.clone().into_iter().filter(|(secret, _)| is_due(secret)).collect();
        searched = match (due.is_empty(), extent) {
            (false, _) if rounds == ROUNDS => return Err(SecretsError::Left(due.into_keys().collect(), extent)),
            (true, Extent::Part) => return Err(SecretsError::Left(found.into_keys().collect(), extent)),
            (true, Extent::All) if done.is_empty() => return Ok(done),
            (true, Extent::All) if searched == Scope::Whole => {
                system.finish(&done)?;
                return Ok(done);
            }
            (false, Extent::Part) => scope,
            // What was overwritten was changed in this boot: only a look at the whole sees whether it is gone.
            (_, Extent::All) => Scope::Whole,
        };
        if !due.is_empty() {
            system.overwrite(&due)?;
            rounds += 1;
        }
        done.extend(due);
        found = system.look(searched)?;
    }
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
