//! A system that rpm manages, built on the spot: packages by rpmbuild(8), signed, in a repository by createrepo_c(8) that is served over
//! http; and an image whose kernel and base are Debian's, and whose packages are what real dnf installed from that repository.
//!
//! It calls itself Fedora, so that its family is one whose package system is known; dpkg's database is not in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{bootable::BOOTABLE, served::Served};

/// `$1`: the repository's address. Leaves `key.asc`, and packages in folders by their version: 2 is an update, 3 serves no pages any more
/// and is not signed. `repository` has the first alone.
const PACKAGES: &str = r#"
set -eu
top=$PWD
export GNUPGHOME=$top/gpg HOME=$top
mkdir -m 700 gpg
gpg --batch --quiet --passphrase '' --quick-generate-key 'House <house@example.org>' rsa2048 sign never 2>gpg.log
gpg --armor --export house@example.org >key.asc
build() { # NAME VERSION; the rest of its specification comes from standard input
  { printf 'Name: %s\nVersion: %s\nRelease: 1.house\nSummary: test\nLicense: MIT\nBuildArch: noarch\nAutoReqProv: no\n' "$1" "$2"
    cat; } >"$1.spec"
  rpmbuild -bb --quiet --define "_topdir $top/top" --define "_rpmdir $2" --define '_rpmfilename %{NAME}-%{VERSION}.rpm' \
    --define '_build_id_links none' --define 'debug_package %{nil}' "$1.spec"
}
web() { # VERSION WORD FOLDER
  build house-web-common "$1" <<END
%description
%install
mkdir -p %{buildroot}/usr/share/house-web
echo 'house $2' >%{buildroot}/usr/share/house-web/index.html
%files
/usr/share/house-web
END
  build house-web "$1" <<END
Requires: house-web-common = $1
%description
%install
mkdir -p %{buildroot}/usr/lib/systemd/system %{buildroot}/etc
cat >%{buildroot}/usr/lib/systemd/system/house-web.service <<'UNIT'
[Service]
EnvironmentFile=/etc/house-web.conf
ExecStart=/usr/bin/python3 -m http.server 80 --directory $3
# Up when it answers.
ExecStartPost=/bin/sh -c 'until ss -Hltn sport = :80 | grep -q .; do sleep 0.2; done'
[Install]
WantedBy=multi-user.target
UNIT
echo 'WORD=$2' >%{buildroot}/etc/house-web.conf
%post
systemctl daemon-reload
systemctl try-restart house-web.service
%files
/usr/lib/systemd/system/house-web.service
%config(noreplace) /etc/house-web.conf
END
}
mkdir 1 2 3
# Who provides the shell here, says what the system is and where its packages are.
build house-repos 1 <<END
Provides: /bin/sh
%description
%install
mkdir -p %{buildroot}/usr/lib %{buildroot}/etc/yum.repos.d %{buildroot}/etc/pki/rpm-gpg %{buildroot}/etc/rpm
printf 'NAME=House\nID=fedora\nVERSION_ID=41\n' >%{buildroot}/usr/lib/os-release
printf '[house]\nname=House\nbaseurl=%s\ngpgcheck=1\ngpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-house\n' $1 \
  >%{buildroot}/etc/yum.repos.d/house.repo
cp $top/key.asc %{buildroot}/etc/pki/rpm-gpg/RPM-GPG-KEY-house
echo '%%_dbpath /var/lib/rpm' >%{buildroot}/etc/rpm/macros.house
%files
/usr/lib/os-release
/etc/yum.repos.d/house.repo
/etc/pki/rpm-gpg/RPM-GPG-KEY-house
/etc/rpm/macros.house
END
web 1 one /usr/share/house-web
web 2 two /usr/share/house-web
web 3 three /usr/share/house-web/gone
rpmsign --define '__gpg /usr/bin/gpg' --define '_gpg_name house@example.org' --addsign 1/* 2/* >/dev/null 2>&1
mkdir repository
cp 1/* repository
createrepo_c --quiet repository
"#;

/// `$1`: the new image; `$2`: the repository's address; `$3`: `cloud-image` or `disk`, as recipes call them. Run in a folder for what comes
/// between.
const IMAGE: &str = r#"
set -eu
image=$1 url=$2 kind=$3
include=systemd-sysv,udev,dbus,iproute2,procps,linux-image-cloud-amd64,perl,rpm,dnf,qemu-guest-agent
[ "$kind" = disk ] || include=$include,cloud-init,netplan.io
mmdebstrap --quiet --mode=root --variant=minbase --format=directory --include="$include" --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' bookworm root
# From here on it is a system of rpm's: dpkg knows of nothing, and rpm of what dnf installs.
rm -rf root/var/lib/dpkg root/var/lib/apt root/var/cache/apt root/etc/apt root/etc/debian_version root/root/.rpmdb
rm root/etc/os-release root/usr/lib/os-release
ln -s ../usr/lib/os-release root/etc/os-release
mkdir -p root/etc/rpm
echo '%_dbpath /var/lib/rpm' >root/etc/rpm/macros.first
mount -t proc proc root/proc
chroot root dnf --assumeyes --quiet --releasever=41 --setopt=reposdir=/none --repofrompath="house,$url" --nogpgcheck \
  install house-repos house-web
umount root/proc
rm -rf root/etc/rpm/macros.first root/var/cache/dnf root/etc/machine-id
: >root/etc/machine-id
if [ "$kind" = disk ]; then
  printf '[Match]\nType=ether\n[Network]\nDHCP=yes\n' >root/etc/systemd/network/10-house.network
else
  cat >root/etc/cloud/cloud.cfg.d/90-house.cfg <<'END'
cloud_init_modules: [write-files]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
END
fi
systemctl --root=root enable systemd-networkd.service house-web.service >/dev/null 2>&1
"#;

/// Nobody sends it anywhere.
const PLAIN: &str = r#"qemu-img convert -f raw -O qcow2 disk.raw "$image""#;

/// What kind of source an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Without cloud-init: it boots in half the time.
    Disk,
    /// With cloud-init.
    CloudImage,
}

impl Kind {
    /// As recipes have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::CloudImage => "cloud-image",
        }
    }
}

/// Its packages and their repository, which is served until this is dropped.
#[derive(Debug)]
pub struct Repository {
    folder: PathBuf,
    served: Served,
}

impl Repository {
    /// Builds packages and repository in a new folder in `dir`, and serves it.
    ///
    /// # Panics
    /// It cannot be built or served.
    pub fn build(dir: &Path) -> Self {
        let folder = dir.join("packages");
        fs::create_dir(&folder).expect("a folder");
        let served = Served::folder(folder.join("repository"));
        shell(Command::new("sh"), PACKAGES, &[&served.url], &folder);
        Self { folder, served }
    }

    /// A package's file.
    pub fn file(&self, name: &str, version: &str) -> PathBuf {
        self.folder.join(version).join(format!("{name}-{version}.rpm"))
    }

    /// Puts the update into the repository.
    ///
    /// # Panics
    /// It cannot.
    pub fn publish_update(&self) {
        shell(Command::new("sh"), "cp 2/* repository && createrepo_c --quiet --update repository", &[], &self.folder);
    }

    /// Builds the image, for a source of that kind, of a system whose packages come from here.
    ///
    /// # Panics
    /// It cannot be built.
    pub fn image(&self, kind: Kind, image: &Path, dir: &Path) {
        let work = dir.join("rpm-image");
        fs::create_dir(&work).expect("a folder");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh"]);
        let script = format!("{IMAGE}{BOOTABLE}{PLAIN}\n");
        shell(command, &script, &[&image.display().to_string(), &self.served.url, kind.name()], &work);
        fs::remove_dir_all(&work).expect("it goes");
    }
}

fn shell(mut command: Command, script: &str, arguments: &[&str], folder: &Path) {
    command.args(["-c", script, "sh"]).args(arguments).current_dir(folder).stdin(Stdio::null());
    let output = command.output().expect("it starts");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}
