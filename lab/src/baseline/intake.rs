//! A disk image that somebody else made, taken in: its bytes are copied and compared with their digest in one pass, so that what was
//! verified is what is used; then it is written to a raw disk of the size that the recipe says.
//!
//! Such an image is hostile until shown otherwise. A qcow2 may name other files of the host as its backing or its data: its header is
//! read here, by few lines, before any tool opens it. Tools then run as the lab's user, without a way to more rights, within limits, and
//! get open files instead of paths.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{OpenOptionsExt as _, chown, fchown},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use patchlab_check::Digest;
use serde::Deserialize;

use super::{BuildError, failed};
use crate::{
    recipe::{Image, Place},
    room::Bytes,
    worker::{self, WorkerError},
};

/// An image's file may be longer than the disk in it by its tables: 64 MiB.
const TABLES_BYTES: u64 = 64 << 20;
/// Bytes at the beginning of an image that say what it is.
const HEADER_BYTES: usize = 512;
/// What a disk that a BIOS boots, or one with a GPT, has at byte 510.
const BOOT_SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// Limits of a tool that reads such an image.
const TOOL_MEMORY: u64 = 4 << 30;
const TOOL_SECONDS: u64 = 600;

/// An image cannot be taken in. Nothing of it was used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IntakeError {
    /// It has another digest.
    #[error(
        "image {place} has digest {found}, and the recipe says {expected}: fetch it again from where you trust it, or correct sha256"
    )]
    Digest {
        /// Where it is.
        place: Place,
        /// What it has.
        found: Digest,
        /// What it should have.
        expected: Digest,
    },
    /// It is no disk image, or a broken one.
    #[error("image {place} cannot be used: {reason}")]
    Unusable {
        /// Where it is.
        place: Place,
        /// Why.
        reason: String,
    },
    /// It is made of more than itself.
    #[error(
        "image {place} {what}: only an image that is whole in itself is taken; make one with `qemu-img convert -O qcow2`"
    )]
    NotWhole {
        /// Where it is.
        place: Place,
        /// What it names.
        what: &'static str,
    },
    /// It is larger than the disk that the recipe asks for.
    #[error("image {place} holds a disk of {found}, and the recipe's `disk` is {disk}: raise it")]
    TooLarge {
        /// Where it is.
        place: Place,
        /// Its size.
        found: Bytes,
        /// The recipe's.
        disk: Bytes,
    },
    /// The lab could not talk to the system.
    #[error(
        "the system in image {place} lacks the package qemu-guest-agent: install it there before the disk is taken, or use kind = \
         \"cloud-image\" if it has cloud-init"
    )]
    NoAgent {
        /// Where it is.
        place: Place,
    },
    /// Another system is in it than the recipe says.
    #[error("the system in image {place} calls itself {found}, and the recipe's `os` is {said}: correct it")]
    OtherSystem {
        /// Where it is.
        place: Place,
        /// What it calls itself.
        found: String,
        /// What the recipe says.
        said: String,
    },
    /// It cannot be fetched.
    #[error("image {url} cannot be fetched: {reason}")]
    Fetch {
        /// Its address.
        url: String,
        /// What the tool said.
        reason: String,
    },
}

/// How an image holds its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Raw,
    Qcow2,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// Takes an image into `work`; gives a raw disk of `disk_bytes`.
pub(super) fn take_in(
    image: &Image,
    disk_bytes: u64,
    work: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<PathBuf, BuildError> {
    let place = &image.place;
    let unusable = |reason: String| IntakeError::Unusable { place: place.clone(), reason };
    let limit = disk_bytes + TABLES_BYTES;
    let too_long = || unusable(format!("it is longer than a disk of {} needs", Bytes(disk_bytes)));
    let source = match place {
        Place::Path(path) => path.clone(),
        Place::Url(url) => {
            say(&format!("fetching {url}"));
            fetch(url, image.sha256, limit, work)?.ok_or_else(too_long)?
        }
    };
    say("reading the image");
    let (copy, raw) = (work.join("image"), work.join("disk.raw"));
    let found = copy_verified(&source, &copy, limit)?;
    if let Place::Url(_) = place {
        fs::remove_file(&source).map_err(failed("remove", &source))?;
    }
    match found {
        None => return Err(too_long().into()),
        Some(found) if found != image.sha256 => {
            let (place, expected) = (place.clone(), image.sha256);
            return Err(IntakeError::Digest { place, found, expected }.into());
        }
        Some(_) => {}
    }
    let opened = File::open(&copy).map_err(failed("open", &copy))?;
    let mut header = Vec::new();
    (&opened).take(HEADER_BYTES as u64).read_to_end(&mut header).map_err(failed("read", &copy))?;
    let format = format_of(&header).map_err(|refusal| refusal.of(place))?;
    let tool = Confined { file: &opened, limit: disk_bytes };
    tool.examine(format, place, disk_bytes)?;
    say("writing the disk");
    tool.write_raw(format, &raw, disk_bytes).map_err(|reason| unusable(reason.to_string()))?;
    drop(opened);
    fs::remove_file(&copy).map_err(failed("remove", &copy))?;
    Ok(raw)
}

/// Why a header is refused.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Unusable(&'static str),
    NotWhole(&'static str),
}

impl Refusal {
    fn of(self, place: &Place) -> IntakeError {
        let place = place.clone();
        match self {
            Self::Unusable(reason) => IntakeError::Unusable { place, reason: reason.to_owned() },
            Self::NotWhole(what) => IntakeError::NotWhole { place, what },
        }
    }
}

/// What an image is, by its first bytes (QEMU's docs/interop/qcow2.txt).
fn format_of(header: &[u8]) -> Result<Format, Refusal> {
    let number = |at: usize, length: usize| {
        header.get(at..at + length).map(|bytes| bytes.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    if !header.starts_with(b"QFI\xfb") {
        return match header.get(510..512) {
            Some(signature) if signature == BOOT_SIGNATURE => Ok(Format::Raw),
            _ => Err(Refusal::Unusable("it is neither qcow2 nor a raw disk with a partition table")),
        };
    }
    let short = Refusal::Unusable("its qcow2 header is cut short");
    let (Some(version), Some(backing), Some(encryption)) = (number(4, 4), number(8, 8), number(32, 4)) else {
        return Err(short);
    };
    let features = match version {
        2 => 0,
        3 => number(72, 8).ok_or(short)?,
        _ => return Err(Refusal::Unusable("it is a qcow2 of a version that is not known (2 and 3 are)")),
    };
    if backing != 0 {
        return Err(Refusal::NotWhole("is a layer over a backing file"));
    }
    if features & 4 != 0 {
        return Err(Refusal::NotWhole("keeps its data in another file"));
    }
    if encryption != 0 {
        return Err(Refusal::Unusable("it is encrypted"));
    }
    Ok(Format::Qcow2)
}

/// Fetches an image by apt's own downloader, which every Debian host has and which knows the host's proxies; nothing when it has more than
/// `limit` bytes, of which no more are written, whatever the server says of its length.
fn fetch(url: &str, sha256: Digest, limit: u64, work: &Path) -> Result<Option<PathBuf>, BuildError> {
    let target = work.join("fetched");
    let output = Command::new("prlimit")
        .args(["--core=0", &format!("--fsize={limit}"), "--", "/usr/lib/apt/apt-helper"])
        .args(["--quiet=1", "download-file", url])
        .arg(&target)
        .arg(format!("SHA256:{sha256}"))
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .map_err(failed("run (packages apt, util-linux)", Path::new("/usr/lib/apt/apt-helper")))?;
    if output.status.success() {
        return Ok(Some(target));
    }
    // The limit ends the downloader's own process for this address; its complaint names a signal and no reason.
    if fs::metadata(&target).is_ok_and(|written| written.len() >= limit) {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let causes: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("E: ")).take(3).collect();
    let reason = if causes.is_empty() { said.trim().to_owned() } else { causes.join("; ") };
    Err(IntakeError::Fetch { url: url.to_owned(), reason }.into())
}

/// Gives what it reads, and writes it; blocks of zeroes become holes.
struct Tee<'a> {
    input: &'a mut dyn Read,
    output: &'a mut File,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        match &buffer[..length] {
            zeroes if zeroes.iter().all(|byte| *byte == 0) => {
                self.output.seek(SeekFrom::Current(length as i64)).map(drop)?;
            }
            bytes => self.output.write_all(bytes)?,
        }
        Ok(length)
    }
}

/// Copies a file that only the lab's user may read; says its digest, or nothing when it has more than `limit` bytes.
fn copy_verified(from: &Path, to: &Path, limit: u64) -> Result<Option<Digest>, BuildError> {
    let input = File::open(from).map_err(failed("read", from))?;
    let mut output =
        OpenOptions::new().write(true).create_new(true).mode(0o400).open(to).map_err(failed("create", to))?;
    let (digest, length) = Digest::of_reader(Tee { input: &mut input.take(limit + 1), output: &mut output })
        .map_err(failed("copy", from))?;
    if length > limit {
        return Ok(None);
    }
    output.set_len(length).map_err(failed("write", to))?;
    let (uid, gid) = worker::user()?;
    fchown(&output, Some(uid), Some(gid)).map_err(failed("hand over", to))?;
    Ok(Some(digest))
}

/// What `qemu-img info` says.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format: String,
    virtual_size: u64,
    backing_filename: Option<String>,
}

/// Tools on one open file of a stranger's.
pub(super) struct Confined<'a> {
    pub(super) file: &'a File,
    /// Bytes that a tool may write to a file.
    pub(super) limit: u64,
}

impl Confined<'_> {
    /// Runs a tool whose standard input is the file, which it finds as `/dev/fd/0`, and whose standard output is `output`.
    pub(super) fn run(&self, tool: &str, arguments: &[&str], output: Stdio) -> Result<Output, WorkerError> {
        let (uid, gid) = worker::user()?;
        let input = self.file.try_clone().and_then(|mut file| file.rewind().map(|()| file));
        let failed = |source| WorkerError::Io { action: "run", subject: tool.to_owned(), source };
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--no-new-privs", "--clear-groups", "--inh-caps=-all"])
            .args([format!("--reuid={uid}"), format!("--regid={gid}")])
            .args(["--", "prlimit", "--core=0"])
            .args([format!("--as={TOOL_MEMORY}"), format!("--cpu={TOOL_SECONDS}"), format!("--fsize={}", self.limit)])
            .args(["--", tool])
            .args(arguments)
            .env("LC_ALL", "C.UTF-8")
            .current_dir("/")
            .stdin(input.map_err(failed)?)
            .stdout(output)
            .stderr(Stdio::piped())
            .output()
            .map_err(|source| WorkerError::Io { action: "run", subject: tool.to_owned(), source })
    }

    /// Lets QEMU's own tool say what the image is, and that it is sound.
    fn examine(&self, format: Format, place: &Place, disk_bytes: u64) -> Result<(), BuildError> {
        let unusable = |reason: String| IntakeError::Unusable { place: place.clone(), reason };
        let asked = self.run("qemu-img", &["info", "--output=json", "--force-share", "/dev/fd/0"], Stdio::piped())?;
        let info: Info = match asked.status.success() {
            true => serde_json::from_slice(&asked.stdout).map_err(|error| unusable(error.to_string()))?,
            false => return Err(unusable(said(&asked)).into()),
        };
        if info.format != format.name() {
            return Err(unusable(format!("its form is {}: raw and qcow2 are taken", info.format)).into());
        }
        if info.backing_filename.is_some() {
            return Err(Refusal::NotWhole("is a layer over a backing file").of(place).into());
        }
        if info.virtual_size > disk_bytes {
            let (place, found, disk) = (place.clone(), Bytes(info.virtual_size), Bytes(disk_bytes));
            return Err(IntakeError::TooLarge { place, found, disk }.into());
        }
        if format == Format::Raw {
            return Ok(());
        }
        // What is cut off reads as zeroes: only its tables tell. 3: clusters that nothing uses, which harm nobody.
        let checked =
            self.run("qemu-img", &["check", "-q", "-f", "qcow2", "--force-share", "/dev/fd/0"], Stdio::piped())?;
        match checked.status.code() {
            Some(0 | 3) => Ok(()),
            _ => Err(unusable(format!("it is cut short or damaged: {}", said(&checked))).into()),
        }
    }

    /// Writes the disk in it to a new raw file of that size.
    fn write_raw(&self, format: Format, raw: &Path, bytes: u64) -> Result<(), BuildError> {
        let output = File::create_new(raw).and_then(|file| file.set_len(bytes).map(|()| file));
        let output = output.map_err(failed("create", raw))?;
        let (uid, gid) = worker::user()?;
        fchown(&output, Some(uid), Some(gid)).map_err(failed("hand over", raw))?;
        let convert = ["convert", "-n", "--target-is-zero", "-f", format.name(), "-O", "raw", "/dev/fd/0", "/dev/fd/1"];
        let ended = self.run("qemu-img", &convert, Stdio::from(output))?;
        chown(raw, Some(0), Some(0)).map_err(failed("take back", raw))?;
        match ended.status.success() {
            true => Ok(()),
            false => Err(BuildError::Tool {
                tool: "qemu-img (package qemu-utils)",
                subject: raw.display().to_string(),
                reason: said(&ended),
            }),
        }
    }
}

/// A tool's own words, on one line.
pub(super) fn said(output: &Output) -> String {
    let lines: Vec<String> = [&output.stderr, &output.stdout]
        .into_iter()
        .flat_map(|stream| String::from_utf8_lossy(stream).lines().map(str::to_owned).collect::<Vec<_>>())
        .map(|line| line.trim().chars().take(200).collect::<String>())
        .filter(|line| !line.is_empty())
        .take(3)
        .collect();
    if lines.is_empty() { output.status.to_string() } else { lines.join("; ") }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    /// A qcow2 header of that version with 8-byte numbers at these places.
    fn qcow2(version: u8, numbers: &[(usize, u64)]) -> Vec<u8> {
        let mut header = vec![0; HEADER_BYTES];
        header[..8].copy_from_slice(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, version]);
        for (at, number) in numbers {
            header[*at..at + 8].copy_from_slice(&number.to_be_bytes());
        }
        header
    }

    #[test]
    fn a_header_says_what_an_image_is_and_whether_it_is_whole() {
        let mut raw = vec![0; HEADER_BYTES];
        assert!(matches!(format_of(&raw), Err(Refusal::Unusable(_))));
        raw[510..].copy_from_slice(&BOOT_SIGNATURE);
        assert_eq!(format_of(&raw), Ok(Format::Raw));
        for version in [2, 3] {
            assert_eq!(format_of(&qcow2(version, &[])), Ok(Format::Qcow2));
            let backed = format_of(&qcow2(version, &[(8, 0x200)]));
            assert_eq!(backed, Err(Refusal::NotWhole("is a layer over a backing file")));
            assert_eq!(format_of(&qcow2(version, &[(32, 1 << 32)])), Err(Refusal::Unusable("it is encrypted")));
        }
        assert_eq!(format_of(&qcow2(3, &[(72, 4)])), Err(Refusal::NotWhole("keeps its data in another file")));
        // In version 2, something else stands there.
        assert_eq!(format_of(&qcow2(2, &[(72, 4)])), Ok(Format::Qcow2));
        for senseless in [&qcow2(4, &[])[..], &qcow2(3, &[])[..70], &qcow2(2, &[])[..30], b"QFI\xfb", b"", b"text"] {
            assert!(matches!(format_of(senseless), Err(Refusal::Unusable(_))), "{senseless:?}");
        }
    }

    #[test]
    fn a_server_that_never_ends_is_left_at_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let asked = peer.read(&mut [0; 4096]).unwrap();
            assert!(asked > 0);
            // No length, and no end.
            let mut sent = peer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = [&b"10000\r\n"[..], &[b'x'; 65536], b"\r\n"].concat();
            while sent.is_ok() {
                sent = peer.write_all(&chunk);
            }
        });
        let url = format!("http://{address}/endless.qcow2");
        let fetched = fetch(&url, Digest::of("x"), 1 << 20, dir.path()).unwrap();
        assert_eq!(fetched, None);
        let written = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
        assert_eq!(written.sum::<u64>(), 1 << 20);
        server.join().unwrap();
        // One that is not there is something else.
        let other = tempfile::tempdir().unwrap();
        let gone = fetch(&url, Digest::of("x"), 1 << 20, other.path()).unwrap_err().to_string();
        assert!(gone.contains("cannot be fetched"), "{gone}");
    }

    #[test]
    fn a_copy_is_what_was_read_with_holes_where_there_was_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("to");
        let mut bytes = vec![0; 600_000];
        bytes[300_000] = 7;
        let mut output = File::create_new(&path).unwrap();
        let (digest, length) = Digest::of_reader(Tee { input: &mut &bytes[..], output: &mut output }).unwrap();
        output.set_len(length).unwrap();
        assert_eq!((fs::read(&path).unwrap(), digest), (bytes.clone(), Digest::of(&bytes)));
    }
}
