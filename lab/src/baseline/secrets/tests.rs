//! The search and the scrubbing, by their own program on a tree on the spot.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use super::*;

/// A tree with these files.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(&path[1..]);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn perl(root: &Path, work: &str, arguments: &[&str]) -> String {
    let mut child = Command::new("perl")
        .args(["-MIO::Handle", "-e", PROGRAM, "--", work])
        .arg(root)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("perl starts");
    child.stdin.take().unwrap().write_all(b"/\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn found(root: &Path) -> Found {
    found_before(root, "4102444800")
}

fn found_before(root: &Path, before: &str) -> Found {
    judge(&perl(root, "look", &[before, "dpkg", "1000"].into_iter().chain(searched()).collect::<Vec<_>>()))
}

/// A tree as a system that was booted at some time (seconds).
struct Tree<'a> {
    root: &'a Path,
    booted: String,
    /// Does what somebody else does after each scrubbing.
    meanwhile: &'a dyn Fn(&Path),
    finished: std::cell::Cell<usize>,
}

impl<'a> Tree<'a> {
    fn new(root: &'a Path, meanwhile: &'a dyn Fn(&Path)) -> Self {
        Self { root, booted: "0".into(), meanwhile, finished: Default::default() }
    }
}

impl System for Tree<'_> {
    fn look(&self, scope: Scope) -> Result<Found, GuestError> {
        Ok(match scope {
            Scope::Whole => found(self.root),
            Scope::BeforeThisBoot => found_before(self.root, &self.booted),
        })
    }

    fn overwrite(&self, found: &Found) -> Result<(), GuestError> {
        perl(self.root, "scrub", &scrubbed(found));
        (self.meanwhile)(self.root);
        Ok(())
    }

    fn finish(&self, scrubbed: &Found) -> Result<(), GuestError> {
        self.finished.set(scrubbed.len());
        Ok(())
    }
}

fn kinds(root: &Path) -> Vec<(String, SecretKind)> {
    found(root).into_keys().map(|secret| (secret.path, secret.kind)).collect()
}

const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----\n";
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMIIEvQ\n-----END CERTIFICATE-----\n";

#[test]
fn secrets_are_found_wherever_they_lie() {
    let secrets = [
        ("/etc/ssh/ssh_host_ed25519_key", "x", SecretKind::HostKey),
        ("/etc/ssh/ssh_host_rsa_key-cert.pub", "x", SecretKind::HostCertificate),
        ("/etc/patchlab-agent/host.pem", KEY, SecretKind::HostKey),
        ("/etc/patchlab-agent/agent.toml", "auth = \"x\"\n", SecretKind::Token),
        ("/etc/krb5.keytab", "x", SecretKind::Keytab),
        ("/tmp/krb5cc_0", "x", SecretKind::Token),
        ("/etc/NetworkManager/system-connections/office.nmconnection", "x", SecretKind::NetworkKey),
        ("/etc/network/interfaces", "auto wlan0\n  wpa-psk geheim123\n", SecretKind::NetworkKey),
        ("/etc/netplan/50.yaml", "network:\n  wifis:\n    w:\n      password: \"two words\"\n", SecretKind::NetworkKey),
        ("/etc/ppp/chap-secrets", "# client\nme * geheim *\n", SecretKind::NetworkKey),
        ("/etc/wireguard/wg0.conf", "x", SecretKind::PrivateKey),
        ("/home/a/.gnupg/private-keys-v1.d/AB.key", "Key: (private-key\n", SecretKind::PrivateKey),
        ("/data/app/tls.key", KEY, SecretKind::PrivateKey),
        ("/boot/initrd.key", KEY, SecretKind::PrivateKey),
        ("/var/spool/x/k", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n", SecretKind::PrivateKey),
        ("/opt/app/store.p12", "x", SecretKind::PrivateKey),
        (
            "/etc/systemd/network/wg.netdev",
            "PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n",
            SecretKind::PrivateKey,
        ),
        ("/home/a/.aws/credentials", "x", SecretKind::Token),
        ("/root/.netrc", "x", SecretKind::Token),
        ("/etc/apt/auth.conf.d/x.conf", "x", SecretKind::Token),
        ("/var/lib/samba/private/secrets.tdb", "x", SecretKind::Token),
        ("/var/lib/snmp/snmpd.conf", "usmUser 1 3 0x80\n", SecretKind::Token),
        ("/var/cache/debconf/passwords.dat", "Name: db/pw\nValue: geheim\n", SecretKind::Token),
        ("/srv/app/.env", "DEBUG=1\nDB_PASSWORD=geheim\n", SecretKind::Token),
        ("/srv/app/config/settings.yaml", "db:\n  apiKey: 0123456789\n", SecretKind::Token),
        ("/etc/default/app", "export API_TOKEN='geheim1'\n", SecretKind::Token),
        ("/etc/systemd/system/app.service", "[Service]\nEnvironment=CLIENT_SECRET=geheim1\n", SecretKind::Token),
        ("/etc/sssd/sssd.conf", "ldap_default_authtok = geheim\n", SecretKind::Token),
        ("/etc/redis/redis.conf", "# requirepass no\nrequirepass geheim\n", SecretKind::Token),
        ("/etc/app.json", "{\n \"password\": \"geheim\"\n}\n", SecretKind::Token),
        ("/home/a/notes", "ghp_0123456789abcdefghij0123456789abcdef\n", SecretKind::Token),
        ("/etc/nginx/users", "me:$apr1$abcdefgh$0123456789abcdef012345\n", SecretKind::PasswordHash),
        ("/etc/shadow", "root:$y$j9T$abc:1::\nbin:*:1::\n", SecretKind::PasswordHash),
        ("/var/backups/shadow.bak", "root:$y$j9T$abc:1::\n", SecretKind::PasswordHash),
        ("/root/.bash_history", "x", SecretKind::History),
        ("/home/a/.local/share/fish/fish_history", "x", SecretKind::History),
        ("/var/lib/cloud/instances/i-1/user-data.txt", "x", SecretKind::History),
        ("/var/lib/cloud/seed/nocloud/user-data", "x", SecretKind::History),
        ("/etc/nginx/www.crt", CERTIFICATE, SecretKind::HostCertificate),
        ("/etc/ssl/certs/www.pem", CERTIFICATE, SecretKind::HostCertificate),
        ("/usr/local/etc/own.key", KEY, SecretKind::PrivateKey),
    ];
    let dir = tree(&secrets.map(|(path, text, _)| (path, text)));
    let found: BTreeMap<_, _> = kinds(dir.path()).into_iter().collect();
    for (path, _, kind) in &secrets {
        assert_eq!(found.get(*path), Some(kind), "{path}");
    }
    assert_eq!(found.len(), secrets.len(), "{found:?}");
}

#[test]
fn what_only_looks_like_one_is_none() {
    let dir = tree(&[
        ("/etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA\n"),
        ("/etc/ssh/sshd_config", "PasswordAuthentication yes\n"),
        ("/etc/nsswitch.conf", "passwd:         files systemd\nshadow:         files\n"),
        ("/etc/pam.d/common-password", "password\t[success=1 default=ignore]\tpam_unix.so obscure yescrypt\n"),
        ("/etc/cloud/cloud.cfg.d/01_debian.cfg", "     lock_passwd: True\n     sudo: [\"ALL=(ALL) NOPASSWD:ALL\"]\n"),
        ("/etc/sudoers.d/90-cloud-init-users", "debian ALL=(ALL) NOPASSWD:ALL\n"),
        (
            "/etc/app.conf",
            "# password = geheim\npassword = ${DB_PASSWORD}\nsecret_key: /etc/app.key\ntoken = none\nserver_tokens off;\n",
        ),
        ("/etc/login.conf", "password_encryption = scram-sha-256\n"),
        ("/usr/local/share/ca-certificates/company.crt", CERTIFICATE),
        ("/etc/pki/ca-trust/source/anchors/company.crt", CERTIFICATE),
        ("/etc/ssl/certs/ca-certificates.crt", CERTIFICATE),
        ("/home/a/venv/certifi/cacert.pem", CERTIFICATE),
        ("/usr/share/doc/example.key", KEY),
        ("/run/key", KEY),
        ("/home/a/netrc.txt", "x"),
        ("/srv/app/node_modules/x/config.json", "{\"password\": \"example\"}\n"),
        ("/etc/shadow", "root:*:1::\nme:!$y$x:1::\nsync:!*:1::\n"),
        ("/etc/hostname", "web\n"),
        ("/root/.bash_history", ""),
    ]);
    assert_eq!(kinds(dir.path()), []);
}

#[test]
fn what_a_package_ships_is_none_until_somebody_changes_it() {
    let (shipped, changed) = ("password = example1\n", "password = geheim123\n");
    let sum = |text: &str| {
        let mut child = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()[..32].to_owned()
    };
    let status = format!("Package: a\nConffiles:\n /etc/a.conf {}\n /etc/b.conf {0} obsolete\n", sum(shipped));
    let sums = format!("{}  opt/a/test.key\n", sum(KEY));
    let dir = tree(&[
        ("/var/lib/dpkg/status", &status),
        ("/var/lib/dpkg/info/a:amd64.md5sums", &sums),
        ("/etc/a.conf", shipped),
        ("/etc/b.conf", shipped),
        ("/opt/a/test.key", KEY),
    ]);
    assert_eq!(kinds(dir.path()), []);
    fs::write(dir.path().join("etc/b.conf"), changed).unwrap();
    fs::write(dir.path().join("opt/a/test.key"), KEY.replace("MIIE", "MIIF")).unwrap();
    let found = kinds(dir.path());
    let expected = [("/etc/b.conf", SecretKind::Token), ("/opt/a/test.key", SecretKind::PrivateKey)];
    assert_eq!(found, expected.map(|(path, kind)| (path.to_owned(), kind)));
}

#[test]
fn scrubbing_takes_secrets_and_leaves_what_a_system_needs() {
    let fstab = "/dev/vda1 / ext4 defaults 0 1\n//nas/x /mnt cifs user=me,password=geheim,ro 0 0\n";
    let shadow = "root:$y$j9T$abc:19000:0::\nbin:*:19000::\n";
    let dir = tree(&[
        ("/etc/fstab", fstab),
        ("/etc/shadow", shadow),
        ("/etc/app.json", "{\"password\": \"geheim\", \"token\": \"geheim-too\", \"port\": 80}\n"),
        ("/etc/nginx/users", "me:$apr1$abcdefgh$0123456789abcdef012345\n"),
        ("/etc/own.key", KEY),
    ]);
    // Where nobody looks: what becomes of the bytes is seen there.
    let was_linked = dir.path().join("run/linked");
    fs::create_dir(dir.path().join("run")).unwrap();
    fs::hard_link(dir.path().join("etc/own.key"), &was_linked).unwrap();
    let found = found(dir.path());
    perl(dir.path(), "scrub", &scrubbed(&found));
    let text = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
    assert_eq!(text("etc/fstab"), fstab.replace("geheim", "******"));
    assert_eq!(text("etc/shadow"), "root:!*********:19000:0::\nbin:*:19000::\n");
    assert_eq!(text("etc/app.json"), "{\"password\": \"******\", \"token\": \"**********\", \"port\": 80}\n");
    assert!(!text("etc/nginx/users").contains("apr1"));
    assert!(!dir.path().join("etc/own.key").exists());
    assert!(fs::read(&was_linked).unwrap().iter().all(|byte| *byte == 0), "it is overwritten, not only removed");
    assert_eq!(kinds(dir.path()), []);
}

/// More secrets than one look names.
fn many(root: &Path, count: usize) {
    fs::create_dir_all(root.join("srv")).unwrap();
    for number in 0..count {
        fs::write(root.join(format!("srv/{number}.key")), KEY).unwrap();
    }
}

#[test]
fn scrubbing_goes_on_until_a_look_finds_no_more() {
    let dir = tree(&[("/etc/zz.conf", "password = geheim1\n")]);
    many(dir.path(), 2100);
    assert_eq!((found(dir.path()).len(), Extent::of(&found(dir.path()))), (1000, Extent::Part));
    let system = Tree::new(dir.path(), &|_| {});
    let gone = scrub(&system, Scope::Whole).unwrap();
    assert_eq!((gone.len(), system.finished.get(), kinds(dir.path())), (2101, 2101, vec![]));
    assert_eq!(fs::read_dir(dir.path().join("srv")).unwrap().count(), 0);
    assert!(scrub(&system, Scope::Whole).unwrap().is_empty());
}

#[test]
fn what_comes_again_or_without_end_is_left() {
    let dir = tree(&[("/etc/own.key", KEY), ("/etc/ssh/ssh_host_rsa_key", "x")]);
    // A host key that is made anew is no secret of anybody.
    let anew = |root: &Path| fs::write(root.join("etc/ssh/ssh_host_rsa_key"), "y").unwrap();
    assert_eq!(scrub(&Tree::new(dir.path(), &anew), Scope::Whole).unwrap().len(), 2);
    fs::write(dir.path().join("etc/own.key"), KEY).unwrap();
    let again = |root: &Path| fs::write(root.join("etc/own.key"), KEY).unwrap();
    let left = scrub(&Tree::new(dir.path(), &again), Scope::Whole).unwrap_err();
    assert!(left.to_string().ends_with("scrubbed: /etc/own.key (private key)"), "{left}");
    let rounds = std::cell::Cell::new(0);
    let endless = |root: &Path| {
        rounds.set(rounds.get() + 1);
        fs::remove_file(root.join("etc/own.key")).unwrap_or_default();
        fs::write(root.join(format!("etc/{}.key", rounds.get())), KEY).unwrap();
    };
    let left = scrub(&Tree::new(dir.path(), &endless), Scope::Whole).unwrap_err();
    assert!(left.to_string().ends_with("scrubbed: /etc/10.key (private key)"), "{left}");
}

#[test]
fn what_the_boot_made_stays_and_what_was_there_before_goes() {
    let dir = tree(&[("/etc/own.key", KEY), ("/etc/app.conf", "password = geheim1\n")]);
    let written = |path: &str| std::os::unix::fs::MetadataExt::ctime(&fs::metadata(dir.path().join(path)).unwrap());
    let booted = written("etc/own.key").max(written("etc/app.conf"));
    // Times of change are the file system's: the next second is another.
    fs::write(dir.path().join("etc/new.key"), KEY).unwrap();
    while written("etc/new.key") == booted {
        std::thread::sleep(Duration::from_millis(20));
        fs::write(dir.path().join("etc/new.key"), KEY).unwrap();
    }
    let system = Tree { booted: booted.to_string(), ..Tree::new(dir.path(), &|_| {}) };
    let gone: Vec<_> = scrub(&system, Scope::BeforeThisBoot).unwrap().into_keys().map(|gone| gone.path).collect();
    assert_eq!(gone, ["/etc/app.conf", "/etc/own.key"]);
    assert_eq!(kinds(dir.path()), [("/etc/new.key".to_owned(), SecretKind::PrivateKey)]);
}

#[test]
fn that_there_may_be_more_is_said() {
    let secret = Secret { path: "/a.key".into(), kind: SecretKind::PrivateKey };
    let told = SecretsError::Found(vec![secret.clone()], Extent::Part).to_string();
    assert!(told.ends_with("/a.key (private key), and maybe more: no more than 1000 are named"), "{told}");
    let all = Secrets { policy: SecretsPolicy::Keep, found: vec![secret], extent: Extent::All };
    let text = serde_json::to_string(&all).unwrap();
    assert!(!text.contains("extent"), "records from before have none: {text}");
    assert_eq!(serde_json::from_str::<Secrets>(&text).unwrap(), all);
}

#[test]
fn an_answer_names_rules_by_their_number() {
    assert_eq!(judge(""), Found::new());
    assert_eq!(judge("999\0/a\0x\0/b\0"), Found::new());
    let first = judge("1\0/etc/ssh/ssh_host_x_key\0").into_keys().next();
    assert_eq!(first.map(|secret| secret.kind), Some(SecretKind::HostKey));
}
