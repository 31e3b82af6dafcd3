//! The kernels on the disk, and which of them a change brought.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::Release;

/// Where boot partitions are mounted, and what is looked for there.
const PLACES: &[&str] = &[BOOT, "efi", "boot/efi"];
const BOOT: &str = "boot";

/// Kernels by release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Kernels(BTreeMap<Release, Image>);

/// By what an image is told from one that took its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    bytes: u64,
    /// Seconds since 1970.
    modified: i64,
}

/// What a change brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Brought {
    /// No kernel.
    Nothing,
    /// One beside the others; the newest when there are several.
    New(Release),
    /// Another image under a name that was there.
    Replaced(Release),
}

impl Kernels {
    /// Looks for them below `root`: `/boot/vmlinuz-RELEASE`, and `TOKEN/RELEASE/linux` where kernel-install(8) puts them.
    ///
    /// # Errors
    /// When a folder or an image cannot be read.
    pub fn look(root: &Path) -> io::Result<Self> {
        let image = |file: fs::Metadata| Image { bytes: file.len(), modified: file.mtime() };
        Ok(Self(images(root)?.into_iter().map(|(release, file, _)| (release, image(file))).collect()))
    }

    /// Whether this one is there.
    pub fn has(&self, release: &str) -> bool {
        self.0.contains_key(release)
    }

    /// What is there `now` and was not, or was another.
    pub fn brought(&self, now: &Self) -> Brought {
        let newest = |found: &mut dyn Iterator<Item = &Release>| found.max_by_key(|release| in_order(release)).cloned();
        if let Some(release) = newest(&mut now.0.keys().filter(|release| !self.has(release))) {
            return Brought::New(release);
        }
        let is_other = |(release, image): &(&Release, &Image)| self.0.get(*release) != Some(*image);
        newest(&mut now.0.iter().filter(is_other).map(|(release, _)| release))
            .map_or(Brought::Nothing, Brought::Replaced)
    }
}

#[cfg(test)]
impl Kernels {
    /// Kernels of these releases, each with an image of so many bytes.
    pub fn of(kernels: &[(&str, u64)]) -> Self {
        let image = |bytes| Image { bytes, modified: 0 };
        Self(kernels.iter().map(|(release, bytes)| ((*release).to_owned(), image(*bytes))).collect())
    }
}

/// Every image, with its release and the place that it is in.
fn images(root: &Path) -> io::Result<Vec<(Release, fs::Metadata, &'static str)>> {
    let mut found = Vec::new();
    let mut add = |release: &str, path: &Path, place: &'static str| -> io::Result<()> {
        // A link's target is what is booted; one that leads nowhere is no kernel.
        match fs::metadata(path) {
            Ok(file) if file.is_file() => {
                found.push((release.to_owned(), file, place));
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(error),
        }
    };
    for (name, path) in entries(&root.join(BOOT))? {
        if let Some(release) = name.strip_prefix("vmlinuz-").filter(|release| !release.ends_with(".old")) {
            add(release, &path, BOOT)?;
        }
    }
    for place in PLACES {
        for (_, token) in entries(&root.join(place))? {
            for (release, folder) in entries(&token)? {
                add(&release, &folder.join("linux"), place)?;
            }
        }
    }
    Ok(found)
}

/// The folders of the system below `root` in which its kernels are, where another one comes to, e.g. `/boot`.
///
/// # Errors
/// When a folder or an image cannot be read.
pub fn places(root: &Path) -> io::Result<Vec<String>> {
    let found: BTreeSet<&str> = images(root)?.into_iter().map(|(_, _, place)| place).collect();
    let found = if found.is_empty() { BTreeSet::from([BOOT]) } else { found };
    Ok(found.into_iter().map(|place| format!("/{place}")).collect())
}

/// The releases of the kernels on the disk below `root`, the newest last.
///
/// # Errors
/// When a folder or an image cannot be read.
pub fn installed(root: &Path) -> io::Result<Vec<Release>> {
    let mut found: Vec<Release> = images(root)?.into_iter().map(|(release, ..)| release).collect();
    found.sort_by(|one, other| in_order(one).cmp(&in_order(other)));
    found.dedup();
    Ok(found)
}

/// The release of the kernel that runs the system below `root`: the image that GRUB says it booted, else what the kernel says of itself. A
/// root without a `/proc` of its own runs on this one.
///
/// # Errors
/// When it cannot be read.
pub fn running(root: &Path) -> io::Result<Release> {
    let read = |place: &str| {
        let own = root.join(place);
        fs::read_to_string(if own.exists() { own } else { Path::new("/").join(place) })
    };
    if let Some(release) = booted(&read("proc/cmdline")?) {
        return Ok(release);
    }
    Ok(read("proc/sys/kernel/osrelease")?.trim().to_owned())
}

/// `BOOT_IMAGE=(hd0,msdos1)/boot/vmlinuz-RELEASE`, which GRUB puts before a kernel's command line.
fn booted(command_line: &str) -> Option<Release> {
    let image = command_line.split_whitespace().find_map(|word| word.strip_prefix("BOOT_IMAGE="))?;
    Some(image.rsplit_once("/vmlinuz-")?.1.trim_end_matches(".efi.signed").to_owned())
}

/// A kernel that was installed since this boot and is newer than the one that runs the system below `root`.
///
/// # Errors
/// When it cannot be looked for.
pub fn awaited(root: &Path) -> io::Result<Option<Release>> {
    let own = root.join("proc/stat");
    let stat = fs::read_to_string(if own.exists() { &own } else { Path::new("/proc/stat") })?;
    let booted = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<i64>().ok());
    let (Some(booted), running) = (booted, running(root)?) else { return Ok(None) };
    // The image's own time is that of its making; its inode changes when it comes.
    let mut came = images(root)?;
    came.retain(|(release, file, _)| in_order(release) > in_order(&running) && file.ctime() > booted);
    Ok(came.into_iter().map(|(release, ..)| release).max_by(|one, other| in_order(one).cmp(&in_order(other))))
}

/// What is in a folder; nothing where there is none.
pub(super) fn entries(folder: &Path) -> io::Result<Vec<(String, std::path::PathBuf)>> {
    let found = match fs::read_dir(folder) {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        found => found?,
    };
    found.map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))).collect()
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A release's parts, numbers as numbers: `6.1.0-9` comes before `6.1.0-50`.
pub(super) fn in_order(release: &str) -> Vec<(u64, &str)> {
    let parts = release.split(|c: char| !c.is_ascii_alphanumeric());
    parts.map(|part| part.parse().map_or((0, part), |number| (number, ""))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_that_came_is_what_a_change_brought() {
        let before = Kernels::of(&[("6.1.0-9-amd64", 1)]);
        let brought = |now: &[(&str, u64)]| before.brought(&Kernels::of(now));
        assert_eq!(brought(&[("6.1.0-9-amd64", 1)]), Brought::Nothing);
        assert_eq!(brought(&[]), Brought::Nothing, "one that goes is none that comes");
        assert_eq!(brought(&[("6.1.0-9-amd64", 2)]), Brought::Replaced("6.1.0-9-amd64".into()));
        let two = [("6.1.0-9-amd64", 2), ("6.1.0-10-amd64", 1), ("6.1.0-50-amd64", 1)];
        assert_eq!(brought(&two), Brought::New("6.1.0-50-amd64".into()));
    }

    #[test]
    fn a_newer_kernel_that_came_since_the_boot_is_awaited() {
        let root = tempfile::tempdir().unwrap();
        for (place, said) in [
            ("proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz-6.1.0-9-amd64 ro\n"),
            ("proc/stat", "cpu 1 2\nbtime 1000\n"),
            ("boot/vmlinuz-6.1.0-9-amd64", "kernel"),
            ("boot/vmlinuz-6.1.0-8-amd64", "older, and new on the disk"),
        ] {
            let path = root.path().join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, said).unwrap();
        }
        assert_eq!(awaited(root.path()).unwrap(), None);
        fs::write(root.path().join("boot/vmlinuz-6.1.0-50-amd64"), "kernel").unwrap();
        assert_eq!(awaited(root.path()).unwrap().as_deref(), Some("6.1.0-50-amd64"));
        // It was there at the last boot: somebody chose the older one.
        fs::write(root.path().join("proc/stat"), "btime 99999999999\n").unwrap();
        assert_eq!(awaited(root.path()).unwrap(), None);
    }

    #[test]
    fn kernels_are_found_where_debian_fedora_and_kernel_install_put_them() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Kernels::look(root.path()).unwrap(), Kernels::default());
        assert_eq!(places(root.path()).unwrap(), ["/boot"]);
        let put = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "kernel").unwrap();
        };
        put("boot/vmlinuz-6.1.0-9-amd64");
        put("boot/vmlinuz-6.1.0-8-amd64.old");
        put("boot/initrd.img-6.1.0-9-amd64");
        put("efi/0123456789abcdef/6.2.0/linux");
        std::os::unix::fs::symlink("nowhere", root.path().join("boot/vmlinuz-gone")).unwrap();
        assert_eq!(places(root.path()).unwrap(), ["/boot", "/efi"]);
        let found = Kernels::look(root.path()).unwrap();
        assert_eq!(found.0.keys().collect::<Vec<_>>(), ["6.1.0-9-amd64", "6.2.0"]);
        put("proc/sys/kernel/osrelease");
        put("proc/cmdline");
        assert_eq!(running(root.path()).unwrap(), "kernel");
        let line = "BOOT_IMAGE=(hd0,gpt2)/vmlinuz-6.2.9-300.fc38.x86_64 root=/dev/vda2 ro\n";
        fs::write(root.path().join("proc/cmdline"), line).unwrap();
        assert_eq!(running(root.path()).unwrap(), "6.2.9-300.fc38.x86_64");
        assert_eq!(booted("BOOT_IMAGE=/vmlinuz root=/dev/vda1"), None, "a link tells no release");
    }
}
