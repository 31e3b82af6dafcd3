//! A signed archive in a folder, of index files alone: what is only looked up needs no packages.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use patchlab_protocol::Digest;

/// An archive of the suite bookworm, and the key that signs it.
pub struct Archive {
    root: PathBuf,
    home: PathBuf,
}

impl Archive {
    /// Makes a key; nothing is published yet. apt reads all of it as a user of its own.
    pub fn new(root: &Path) -> Self {
        let home = root.join("gnupg");
        fs::create_dir_all(root.join("dists/bookworm/main/binary-amd64")).unwrap();
        fs::create_dir(&home).unwrap();
        let archive = Self { root: root.to_owned(), home };
        let user = ["--quick-generate-key", "an archive of a test <archive@example.org>", "ed25519", "sign", "never"];
        archive.gpg(&user);
        archive.gpg(&["--output", &archive.keyring(), "--export"]);
        archive
    }

    /// How it is named to apt.
    pub fn line(&self) -> String {
        format!("deb [signed-by={}] file:{} bookworm main", self.keyring(), self.root.display())
    }

    /// Publishes these packages and no others, signed.
    pub fn publish(&self, packages: &[(&str, &str)]) {
        let stanza = |(name, version): &(&str, &str)| {
            format!(
                "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n\
                 Installed-Size: 10\nFilename: pool/{name}_{version}_all.deb\nSize: 1\nSHA256: {}\nDescription: x\n\n",
                Digest::of(name)
            )
        };
        let index: String = packages.iter().map(stanza).collect();
        fs::write(self.packages(), &index).unwrap();
        let release = format!(
            "Origin: a test\nSuite: oldstable\nCodename: bookworm\nDate: {}\nArchitectures: amd64\nComponents: main\n\
             SHA256:\n {} {} main/binary-amd64/Packages\n",
            jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S UTC"),
            Digest::of(&index),
            index.len()
        );
        let (plain, signed) = (self.root.join("Release"), self.root.join("dists/bookworm/InRelease"));
        fs::write(&plain, release).unwrap();
        self.gpg(&["--yes", "--output", &signed.display().to_string(), "--clearsign", &plain.display().to_string()]);
    }

    /// Its index file.
    pub fn packages(&self) -> PathBuf {
        self.root.join("dists/bookworm/main/binary-amd64/Packages")
    }

    fn keyring(&self) -> String {
        self.root.join("archive.gpg").display().to_string()
    }

    fn gpg(&self, arguments: &[&str]) {
        let mut command = Command::new("gpg");
        command.args(["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", "--homedir"]);
        let ran = command.arg(&self.home).args(arguments).output().unwrap();
        assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // The agent that gpg started for its key.
        let _ = Command::new("gpgconf").arg("--homedir").arg(&self.home).args(["--kill", "all"]).output();
    }
}
