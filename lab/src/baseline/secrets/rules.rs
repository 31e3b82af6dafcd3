//! What is a secret: by where a file lies, by what it says, or by both. The expressions are perl's, which looks inside the system.

use super::SecretKind::{
    self, HostCertificate, HostKey, Keytab, NetworkKey, PasswordHash as Hashes, PrivateKey, Token,
};

/// What a file must say.
#[derive(Debug, Clone, Copy)]
pub(super) enum Text {
    /// Anything.
    Any,
    /// Something that meets an expression.
    Holds(&'static str),
    /// A line gives a secret to a name: `DB_PASSWORD=…`, `token: …`, `requirepass …`.
    Assigned,
    /// Hashes of passwords.
    Hashes,
}

/// How a file is scrubbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scrubbing {
    /// It is overwritten and removed.
    Remove,
    /// The secret in it is overwritten: without the file, a system or a program does not start.
    Mask,
}

/// A file that meets both is a secret of that kind.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) kind: SecretKind,
    /// What its path must meet; nothing where any does.
    pub(super) path: &'static str,
    pub(super) text: Text,
}

impl Text {
    /// As the search takes it.
    pub(super) fn argument(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Holds(expression) => expression,
            Self::Assigned => "assigned",
            Self::Hashes => "hashes",
        }
    }
}

impl Rule {
    /// How what meets it is scrubbed.
    pub(super) fn scrubbing(&self) -> Scrubbing {
        match self.text {
            Text::Any | Text::Holds(_) => Scrubbing::Remove,
            Text::Assigned | Text::Hashes => Scrubbing::Mask,
        }
    }
}

const fn at(kind: SecretKind, path: &'static str) -> Rule {
    Rule { kind, path, text: Text::Any }
}

const fn says(kind: SecretKind, path: &'static str, text: Text) -> Rule {
    Rule { kind, path, text }
}

/// All that is known. The first that a file meets counts: what is removed whole comes before what is masked.
pub(super) const RULES: &[Rule] = &[
    // Account files lie where others with hashes lie.
    says(Hashes, r"^/(?:etc|var/backups)/g?shadow(?:-|\.bak)?$", Text::Hashes),
    at(HostKey, r"^/etc/ssh/ssh_host_[^/]*_key$"),
    at(HostCertificate, r"^/etc/ssh/ssh_host_[^/]*-cert\.pub$"),
    // A managed host's agent: who it is, and the passphrases and keys by which its manager reaches it.
    at(HostKey, r"^/etc/patchlab-agent/host\.pem$"),
    at(Token, r"^/etc/patchlab-agent/agent\.toml$|^/var/lib/patchlab-agent/snmp-users\.json$"),
    at(Keytab, r"\.keytab$|^/var/lib/krb5kdc/(?:principal|stash|\.k5\.)|^/var/kerberos/krb5kdc/(?:principal|\.k5\.)"),
    at(Token, r"^/(?:tmp|var/tmp|home/.*)/krb5cc"),
    at(NetworkKey, r"^/etc/(?:NetworkManager/system-connections|wpa_supplicant)/(?!.*\.sh$)|^/var/lib/iwd/"),
    says(NetworkKey, r"^/etc/ppp/(?:chap|pap)-secrets$", Text::Holds(r"^[ \t]*[^#\s]")),
    at(
        PrivateKey,
        concat!(
            r"^/etc/wireguard/|^/etc/ipsec\.secrets$|^/etc/ipsec\.d/private/|^/etc/swanctl/(?:private|rsa|ecdsa|pkcs8)/",
            r"|^/var/lib/systemd/credential\.secret$|^/etc/credstore(?:\.encrypted)?/|/private-keys-v1\.d/|/secring\.gpg$",
            r"|\.(?:p12|pfx|jks|keystore|kdbx|ppk)$|^/etc/(?:munge/munge\.key|corosync/authkey|pacemaker/authkey)$",
            r"|^/etc/cryptsetup-keys\.d/|^/etc/(?:luks|keys)/",
        ),
    ),
    at(
        Token,
        concat!(
            r"/(?:\.netrc|\.pgpass|\.my\.cnf|\.mylogin\.cnf|\.git-credentials|\.pypirc|\.vault-token|\.s3cfg|\.boto|\.htpasswd",
            r"|\.smbcredentials|\.fetchmailrc|\.msmtprc|\.rediscli_auth)$",
            r"|/(?:\.aws/credentials|\.docker/config\.json|\.dockercfg|\.kube/config|\.config/gh/hosts\.yml|\.azure/accessTokens\.json",
            r"|\.azure/msal_token_cache\.json|\.cargo/credentials(?:\.toml)?|\.gem/credentials|\.config/containers/auth\.json",
            r"|\.config/gcloud/(?:credentials\.db|access_tokens\.db|application_default_credentials\.json)",
            r"|\.(?:config/)?composer/auth\.json|\.config/rclone/rclone\.conf|\.terraform\.d/credentials\.tfrc\.json)$",
            r"|^/etc/apt/auth\.conf(?:\.d/.*)?$|^/etc/mysql/debian\.cnf$|^/etc/(?:ldap|pam_ldap|libnss-ldap|nslcd)\.secret$",
            r"|^/etc/postfix/(?:sasl/)?sasl_passwd(?:\.db)?$|^/etc/(?:bind/|named/)?rndc\.key$|^/etc/msmtprc$",
            r"|^/var/lib/samba/private/(?:secrets|passdb)\.[tl]db$|^/var/lib/(?:net-)?snmp/snmpd\.conf$",
            r"|^/etc/kubernetes/[^/]*\.conf$|^/var/lib/rancher/k3s/server/(?:token|node-token)$|^/etc/rancher/k3s/k3s\.yaml$",
        ),
    ),
    says(Token, r"^/etc/exim4/passwd\.client$", Text::Holds(r"^[ \t]*[^#\s]")),
    says(Token, r"^/var/cache/debconf/passwords\.dat", Text::Holds(r"^Value: *\S")),
    at(
        SecretKind::History,
        concat!(
            r"/\.(?:bash|zsh|ash|sh|mysql|mariadb|psql|sqlite|python|node_repl|rediscli|irb|php|R)_?history$|/\.history$",
            r"|/(?:\.lesshst|\.viminfo|fish_history)$",
            r"|^/var/lib/cloud/instances/[^/]+/(?:(?:user|vendor)-data2?\.txt|cloud-config\.txt|obj\.pkl)",
            r"|^/var/lib/cloud/seed/.*/(?:user|vendor)-data$",
            r"|^/var/log/installer/autoinstall-user-data$|^/root/(?:anaconda|original)-ks\.cfg$",
        ),
    ),
    says(
        PrivateKey,
        "",
        Text::Holds(concat!(
            r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:\s|\\[nr])+[A-Za-z0-9+/=]",
            r"|^-----BEGIN OpenVPN Static key|^---- BEGIN SSH2 ENCRYPTED PRIVATE KEY|^AGE-SECRET-KEY-1[A-Z0-9]{50}",
            r"|^PuTTY-User-Key-File-|^[ \t]*PrivateKey[ \t]*=[ \t]*[A-Za-z0-9+/]{43}=",
        )),
    ),
    says(
        Token,
        "",
        Text::Holds(concat!(
            r#"AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{50}|glpat-[A-Za-z0-9_-]{20}|xox[abps]-[A-Za-z0-9-]{10}"#,
            r#"|sk_live_[A-Za-z0-9]{20}|hvs\.[A-Za-z0-9_-]{24}|"private_key_id"|_auth(?:Token)?=|client-key-data:|AccountKey=[A-Za-z0-9+/]{40}"#,
        )),
    ),
    // An authority's certificate is how others are known, and not who this host is.
    says(
        HostCertificate,
        concat!(
            r"^(?!/usr/local/share/ca-certificates/|/etc/pki/(?:ca-trust|tls/certs/ca-)|/etc/ca-certificates/",
            r"|/etc/ssl/certs/ca-certificates\.crt$|.*/(?:cacert|ca-bundle|ca)\.(?:pem|crt)$)",
        ),
        Text::Holds(r"^-----BEGIN (?:TRUSTED )?CERTIFICATE-----\r?\n[A-Za-z0-9+/]"),
    ),
    says(Hashes, r"^/(?!usr/)(?!.*/node_modules/)", Text::Hashes),
    says(NetworkKey, r"^/etc/netplan/|^/etc/network/interfaces", Text::Assigned),
    says(
        Token,
        concat!(
            r"^/etc/(?!pam\.d/|apparmor\.d/|selinux/|alternatives/|ssl/certs/|services$|passwd|group)",
            r"|/\.env(?:\.[^/]*)?$|\.env$|/environment\.d/|/\.config/[^/]+/[^/]*\.(?:conf|toml|ini|ya?ml|json)$",
            r"|^/(?:srv|opt|home|root|var/www|usr/local)/(?!.*/(?:node_modules|site-packages|dist-packages|vendor|tests?)/)",
            r".*/(?:application|config|settings|database|parameters|credentials|secrets?|passwords?|wp-config)(?:[-.][^/]*)?",
            r"\.(?:ya?ml|properties|ini|toml|json|conf|cnf|cfg|php|txt|xml)$",
        ),
        Text::Assigned,
    ),
];
