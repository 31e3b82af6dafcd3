//! Secrets in a system that somebody else made: where they lie and of which kind, never what they are.
//!
//! A captured system may hold private keys, tokens and password hashes of the real one. A baseline is copied, cloned and sent to other lab
//! hosts, so its recipe says what is to become of them: `refuse` (unless said otherwise), `scrub` or `keep`. They are looked for inside
//! the running system, by names and by what files begin with. Memory holds them too: a scrubbed system is shut down, and another boot
//! of it is frozen.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use patchlab_check::PackageSystem;
use serde::{Deserialize, Serialize};

use crate::machine::{Guest, GuestError};

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

/// Lists candidates: `NUL`-separated paths of files by name, then of files whose text says what they are, each in a section of its own.
/// Package-owned files below /usr are not looked at: what a vendor ships is no secret. `$1`: before which time (seconds).
const LOOK: &str = r#"
before=$1
cd / || exit 1
places=
for place in etc root home srv opt usr/local var/lib var/www var/spool; do [ -d "$place" ] && places="$places /$place"; done
files() { find $places -xdev \( -path /var/lib/dpkg -o -path /var/lib/apt -o -path /etc/ssl/certs \
  -o -path /var/lib/rpm -o -path /etc/pki/ca-trust/extracted \) -prune -o -type f \
  ! -newerct "@$before" -size +0 "$@" -print0; }
section() { printf '\0==> %s <==\0' "$1"; }
section names; files
section keys
files -size -1024k | xargs -0 -r grep -lZaE -e '-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY( BLOCK)?-----' -- 2>/dev/null
section tokens
files -size -1024k | xargs -0 -r grep -lZaE -e \
  'AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|glpat-[A-Za-z0-9_-]{20}|xox[abps]-[A-Za-z0-9-]{10}|"private_key_id"|_authToken=' -- 2>/dev/null
section certificates
files -size -1024k | xargs -0 -r grep -lZaE -e '-----BEGIN CERTIFICATE-----' -- 2>/dev/null
section owned
case $(package_system) in dpkg) cat /var/lib/dpkg/info/*.list;; rpm) rpm -qal;; esac 2>/dev/null | grep -E '^/(etc|opt|srv|var|root)/' | tr '\n' '\0'
section hashes
for name in shadow shadow- gshadow gshadow-; do
  [ -n "$(find "/etc/$name" ! -newerct "@$before" 2>/dev/null)" ] && grep -qE '^[^:]*:[^:!*]' "/etc/$name" && printf '/etc/%s\0' "$name"
done
exit 0
"#;

/// Overwrites and removes files; of password files it locks the hashes, in the same bytes. Arguments: paths. ssh gets host keys of its own
/// again. perl is part of Debian's essential set, and of what the lab needs.
const SCRUB: &str = r#"
for my $path (@ARGV) {
  next unless -f $path && !-l $path;
  my $size = -s $path;
  open(my $file, "+<", $path) or die "$path: $!";
  if ($path =~ m{^/etc/g?shadow-?$}) {
    local $/; my $text = <$file>;
    $text =~ s/^([^:\n]*:)([^:!*\n][^:\n]*)/$1 . "!" . ("*" x (length($2) - 1))/gme;
    seek($file, 0, 0); print $file $text; close($file) or die "$path: $!";
    next;
  }
  for (my $left = $size; $left > 0; $left -= 65536) { print $file "\0" x ($left < 65536 ? $left : 65536) }
  $file->flush(); $file->sync() if $file->can("sync");
  close($file) or die "$path: $!";
  unlink($path) or die "$path: $!";
}
system("ssh-keygen", "-A") if -x "/usr/bin/ssh-keygen" && -d "/etc/ssh" && grep { m{^/etc/ssh/ssh_host_} } @ARGV;
system("sync");
system("fstrim -a >/dev/null 2>&1");
exit 0;
"#;

impl SecretsPolicy {
    /// Does with a running system what its recipe says of secrets.
    ///
    /// # Errors
    /// It has any and may not, or some withstood being scrubbed.
    pub(super) fn apply(self, guest: &Guest, scope: Scope, timeout: Duration) -> Result<Secrets, SecretsError> {
        let found = look(guest, scope, timeout)?;
        match self {
            Self::Refuse if !found.is_empty() => return Err(SecretsError::Found(found)),
            Self::Scrub if !found.is_empty() => match scrub(guest, &found, timeout)? {
                left if left.is_empty() => {}
                left => return Err(SecretsError::Left(left)),
            },
            _ => {}
        }
        Ok(Secrets { policy: self, found })
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

/// Looks for secrets inside a running system.
fn look(guest: &Guest, scope: Scope, timeout: Duration) -> Result<Vec<Secret>, GuestError> {
    let before = match scope {
        // Later than any file.
        Scope::Whole => "4102444800".to_owned(),
        Scope::BeforeThisBoot => {
            let booted = guest.script("sed -n 's/^btime //p' /proc/stat", &[], timeout)?;
            String::from_utf8_lossy(&booted).trim().to_owned()
        }
    };
    let answer = "/run/patchlab-secrets";
    let script = format!("{}({LOOK}) >\"$2\"", PackageSystem::shell());
    guest.script(&script, &[&before, answer], timeout)?;
    let bytes = guest.read_file(answer, ANSWER_BYTES, timeout)?.unwrap_or_default();
    guest.script(r#"rm -f -- "$1""#, &[answer], timeout)?;
    Ok(judge(&String::from_utf8_lossy(&bytes)))
}

/// Overwrites and removes what was found; gives what is there all the same.
fn scrub(guest: &Guest, found: &[Secret], timeout: Duration) -> Result<Vec<Secret>, GuestError> {
    let paths: Vec<&str> = found.iter().map(|secret| secret.path.as_str()).collect();
    for paths in paths.chunks(100) {
        let perl = r#"code=$1; shift; exec /usr/bin/perl -MIO::Handle -e "$code" -- "$@""#;
        guest.script(perl, &[&[SCRUB][..], paths].concat(), timeout)?;
    }
    // What ssh was given anew lies where the old lay: only what is older than the scrubbing counts.
    let left = look(guest, Scope::Whole, timeout)?;
    let is_new = |secret: &Secret| secret.kind == SecretKind::HostKey;
    Ok(left.into_iter().filter(|secret| !is_new(secret) && found.contains(secret)).collect())
}

/// From the search's answer: what is a secret, by its path and by what its file says.
fn judge(answer: &str) -> Vec<Secret> {
    let mut sections: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut name = "";
    for word in answer.split('\0').filter(|word| !word.is_empty()) {
        match word.strip_prefix("==> ").and_then(|rest| rest.strip_suffix(" <==")) {
            Some(section) => name = section,
            None => sections.entry(name).or_default().push(word),
        }
    }
    let of = |name: &str| sections.get(name).cloned().unwrap_or_default();
    let owned: BTreeSet<&str> = of("owned").into_iter().collect();
    let own = |path: &&str| !owned.contains(path);
    let mut found: BTreeMap<&str, SecretKind> = BTreeMap::new();
    found.extend(of("certificates").into_iter().filter(own).map(|path| (path, SecretKind::HostCertificate)));
    found.extend(of("tokens").into_iter().filter(own).map(|path| (path, SecretKind::Token)));
    found.extend(of("keys").into_iter().filter(own).map(|path| (path, SecretKind::PrivateKey)));
    found.extend(of("names").into_iter().filter_map(|path| Some((path, by_name(path)?))));
    found.extend(of("hashes").into_iter().map(|path| (path, SecretKind::PasswordHash)));
    let secret = |(path, kind): (&str, SecretKind)| Secret { path: path.to_owned(), kind };
    found.into_iter().map(secret).take(FOUND).collect()
}

/// What a file is by where it lies.
fn by_name(path: &str) -> Option<SecretKind> {
    let (folder, name) = path.rsplit_once('/')?;
    let ends = |end: &str| path.ends_with(end);
    if folder == "/etc/ssh" && name.starts_with("ssh_host_") {
        return match (name.ends_with("_key"), name.ends_with("-cert.pub")) {
            (true, _) => Some(SecretKind::HostKey),
            (_, true) => Some(SecretKind::HostCertificate),
            _ => None,
        };
    }
    if ends(".keytab") {
        return Some(SecretKind::Keytab);
    }
    let connections = ["/etc/NetworkManager/system-connections/", "/etc/wpa_supplicant/", "/var/lib/iwd/"];
    if connections.iter().any(|folder| path.starts_with(folder)) && !ends(".sh") {
        return Some(SecretKind::NetworkKey);
    }
    if path.starts_with("/etc/wireguard/")
        || path == "/etc/ipsec.secrets"
        || path == "/var/lib/systemd/credential.secret"
    {
        return Some(SecretKind::PrivateKey);
    }
    let tokens =
        [".netrc", ".pgpass", ".my.cnf", ".git-credentials", ".pypirc", ".vault-token", ".s3cfg", ".boto", ".htpasswd"];
    let token_paths = [
        "/.aws/credentials",
        "/.docker/config.json",
        "/.kube/config",
        "/.config/gcloud/credentials.db",
        "/.config/gcloud/application_default_credentials.json",
        "/.config/gh/hosts.yml",
        "/.azure/accessTokens.json",
        "/.cargo/credentials.toml",
        "/etc/apt/auth.conf",
        "/etc/mysql/debian.cnf",
    ];
    if tokens.contains(&name) || token_paths.iter().any(|end| ends(end)) || path.starts_with("/etc/apt/auth.conf.d/") {
        return Some(SecretKind::Token);
    }
    let histories =
        [".bash_history", ".zsh_history", ".ash_history", ".mysql_history", ".psql_history", ".python_history"];
    let given = path.starts_with("/var/lib/cloud/instances/") && name.starts_with("user-data.txt");
    (histories.contains(&name) || given).then_some(SecretKind::History)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_files_are() {
        for (path, kind) in [
            ("/etc/ssh/ssh_host_ed25519_key", Some(SecretKind::HostKey)),
            ("/etc/ssh/ssh_host_ed25519_key.pub", None),
            ("/etc/ssh/ssh_host_rsa_key-cert.pub", Some(SecretKind::HostCertificate)),
            ("/etc/krb5.keytab", Some(SecretKind::Keytab)),
            ("/etc/NetworkManager/system-connections/office.nmconnection", Some(SecretKind::NetworkKey)),
            ("/etc/wpa_supplicant/action_wpa.sh", None),
            ("/etc/wireguard/wg0.conf", Some(SecretKind::PrivateKey)),
            ("/home/a/.aws/credentials", Some(SecretKind::Token)),
            ("/root/.netrc", Some(SecretKind::Token)),
            ("/etc/apt/auth.conf.d/x.conf", Some(SecretKind::Token)),
            ("/root/.bash_history", Some(SecretKind::History)),
            ("/var/lib/cloud/instances/i-1/user-data.txt", Some(SecretKind::History)),
            ("/etc/hostname", None),
            ("/home/a/netrc.txt", None),
        ] {
            assert_eq!(by_name(path), kind, "{path}");
        }
    }

    #[test]
    fn what_a_package_owns_is_no_secret_unless_its_name_says_so() {
        let sections = [
            ("names", &["/etc/hosts", "/root/.pgpass"][..]),
            ("keys", &["/etc/ssl/private/www.key", "/etc/example/test.key"]),
            ("tokens", &["/srv/app/.env", "/etc/ssl/private/www.key"]),
            ("certificates", &["/etc/nginx/www.crt"]),
            ("owned", &["/etc/example/test.key"]),
            ("hashes", &["/etc/shadow"]),
        ];
        let answer: String =
            sections.iter().map(|(name, paths)| format!("\0==> {name} <==\0{}\0", paths.join("\0"))).collect();
        let found: Vec<_> = judge(&answer).into_iter().map(|secret| (secret.path, secret.kind)).collect();
        let expected = [
            ("/etc/nginx/www.crt", SecretKind::HostCertificate),
            ("/etc/shadow", SecretKind::PasswordHash),
            ("/etc/ssl/private/www.key", SecretKind::PrivateKey),
            ("/root/.pgpass", SecretKind::Token),
            ("/srv/app/.env", SecretKind::Token),
        ];
        assert_eq!(found, expected.map(|(path, kind)| (path.to_owned(), kind)));
    }
}
