use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::{baseline::StoredFile, places::Places};

/// Long enough for holes: memory is mostly zeros.
const RAM_BYTES: usize = 4 << 20;

struct Host {
    _dir: tempfile::TempDir,
    places: Places,
    store: Baselines,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of_data(dir.path());
        fs::create_dir_all(&places.baselines).unwrap();
        Self { store: Baselines::open(&places), places, _dir: dir }
    }

    /// A baseline whose disk holds that text, with one package file in its pool.
    fn with(disk: &str) -> Self {
        let host = Self::new();
        let mut ram = vec![0; RAM_BYTES];
        ram[RAM_BYTES / 2] = 7;
        let staged = host.places.baselines.join(".staged");
        let texts: [(&str, &[u8]); 6] = [
            ("apt/status", b"nginx"),
            ("disk.qcow2", disk.as_bytes()),
            ("domain.xml", b"<domain/>"),
            ("manifest.json", b"{}"),
            ("ram", &ram),
            ("state", b"devices"),
        ];
        let files = texts.map(|(name, text)| {
            let path = staged.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            (name.to_owned(), StoredFile { sha256: Digest::of(text), size: text.len() as u64 })
        });
        let package = host.places.baselines.join(".package");
        fs::write(&package, "nginx").unwrap();
        let (sha256, size) = ArtifactStore::open(&host.places.artifacts).unwrap().put(&package).unwrap();
        fs::remove_file(package).unwrap();
        let pool = |name: &str| PoolFile { name: name.into(), version: "1".into(), arch: "all".into(), size, sha256 };
        let record = Record { files: files.into(), pool: vec![pool("nginx"), pool("nginx-twin")], ..Record::empty() };
        host.store.adopt(&staged, record).unwrap();
        host
    }

    fn export(&self, name: &str) -> PathBuf {
        let parcel = self.places.baselines.join("../parcel");
        let _ = fs::remove_file(&parcel);
        self.store.export(name, &mut |baseline| baseline.full_name().into_bytes(), &parcel).unwrap();
        parcel
    }

    fn import(&self, parcel: &Path) -> Result<Imported, ParcelError> {
        self.store.import(parcel, &mut |offer| match offer.seal {
            b"web@1" | b"web@2" => Ok(()),
            other => Err(format!("who is {:?}?", String::from_utf8_lossy(other))),
        })
    }

    /// Nothing came, and nothing was left.
    fn is_untouched(&self) -> bool {
        let work = fs::read_dir(&self.places.work).map_or(0, Iterator::count);
        self.store.list().unwrap().is_empty() && work == 0
    }
}

/// The parts of a parcel, edited and packed again.
fn repacked(parcel: &Path, edit: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> PathBuf {
    let mut archive = tar::Archive::new(zstd::stream::read::Decoder::new(File::open(parcel).unwrap()).unwrap());
    let mut parts: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().display().to_string(), bytes)
        })
        .collect();
    edit(&mut parts);
    let path = parcel.with_extension("edited");
    let encoder = zstd::stream::write::Encoder::new(File::create(&path).unwrap(), LEVEL).unwrap();
    let mut tar = tar::Builder::new(encoder);
    for (name, bytes) in &parts {
        add(&mut tar, name, &mut bytes.as_slice()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap();
    path
}

#[test]
fn what_was_exported_comes_in_as_it_was_with_its_pool_and_its_holes() {
    let (from, to) = (Host::with("a disk"), Host::new());
    let parcel = from.export("web");
    let sent = from.store.get("web").unwrap();
    let Imported::New(came) = to.import(&parcel).unwrap() else { panic!("it was not there") };
    assert_eq!((came.digest, &came.record), (sent.digest, &sent.record));
    assert_eq!(to.store.verify("web@1").unwrap(), came);
    let artifacts = ArtifactStore::open(&to.places.artifacts).unwrap();
    artifacts.verify(&came.record.pool[0].sha256).unwrap();
    let ram = fs::metadata(came.file("ram")).unwrap();
    assert!(ram.len() == RAM_BYTES as u64 && ram.blocks() * 512 < ram.len() / 2, "{} blocks", ram.blocks());
    assert_eq!(to.import(&parcel).unwrap(), Imported::There(came));
    assert_eq!(fs::read_dir(&to.places.work).unwrap().count(), 0);
    let again = from.store.export("web", &mut |_| Vec::new(), &parcel);
    assert!(matches!(again, Err(ParcelError::Taken(_))), "{again:?}");
}

#[test]
fn where_its_number_is_taken_it_gets_the_next_and_is_known_again() {
    let (from, to) = (Host::with("a disk"), Host::with("another disk"));
    let parcel = from.export("web@1");
    let sent = from.store.get("web").unwrap();
    let Imported::New(came) = to.import(&parcel).unwrap() else { panic!("it was not there") };
    assert_eq!((came.full_name().as_str(), came.record.original), ("web@2", Some(sent.digest)));
    assert_eq!(to.store.verify("web@2").unwrap(), came);
    assert_eq!(to.import(&parcel).unwrap(), Imported::There(came.clone()));
    assert!(to.store.get("web@1").is_ok());
    // Whoever imports it again because it is broken is not told that it is there.
    fs::write(came.file("state"), "device?").unwrap();
    let error = to.import(&parcel).unwrap_err().to_string();
    assert!(error.contains("web@2: state was altered") && error.contains("baseline rm web@2"), "{error}");
    to.store.remove("web@2").unwrap();
    assert!(matches!(to.import(&parcel).unwrap(), Imported::New(again) if again.full_name() == "web@2"));
}

#[test]
fn what_is_not_admitted_is_not_unpacked() {
    let (from, to) = (Host::with("a disk"), Host::new());
    let parcel = repacked(&from.export("web"), |parts| parts[0].1 = b"me".to_vec());
    let error = to.import(&parcel).unwrap_err();
    assert!(matches!(&error, ParcelError::NotAdmitted { .. }), "{error}");
    assert!(error.to_string().contains("who is \"me\"?"), "{error}");
    assert!(to.is_untouched());
}

#[test]
fn one_that_is_cut_short_anywhere_is_refused_as_such() {
    let (from, to) = (Host::with("a disk"), Host::new());
    let whole = fs::read(from.export("web")).unwrap();
    let cut = to.places.baselines.join("../cut");
    for length in (0..whole.len()).step_by(whole.len() / 60) {
        fs::write(&cut, &whole[..length]).unwrap();
        let error = to.import(&cut).unwrap_err();
        assert!(matches!(&error, ParcelError::CutShort { .. }), "at {length} of {}: {error}", whole.len());
        assert!(to.is_untouched(), "at {length}");
    }
}

#[test]
fn one_byte_altered_anywhere_never_makes_another_baseline() {
    let from = Host::with("a disk");
    let sent = from.store.get("web").unwrap();
    let whole = fs::read(from.export("web")).unwrap();
    let (mut tried, mut refused) = (0, 0);
    for at in (0..whole.len()).step_by(whole.len() / 60) {
        let to = Host::new();
        let altered = to.places.baselines.join("../altered");
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&altered, &bytes).unwrap();
        tried += 1;
        match to.import(&altered) {
            // A bit that says nothing about the content, e.g. how large a window the decoder may need.
            Ok(Imported::New(came)) => assert_eq!(to.store.verify("web").unwrap().digest, sent.digest, "{came:?}"),
            Ok(other) => panic!("{other:?}"),
            Err(_) => {
                refused += 1;
                assert!(to.is_untouched(), "at {at}");
            }
        }
    }
    assert!(refused * 10 >= tried * 9, "{refused} of {tried}");
}

/// Edits the parts of a good parcel, imports that, and gives the refusal.
fn refusal(edit: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> String {
    let (from, to) = (Host::with("a disk"), Host::new());
    let error = to.import(&repacked(&from.export("web"), edit)).unwrap_err();
    assert!(to.is_untouched());
    error.to_string()
}

#[test]
fn the_part_that_is_not_as_the_record_says_is_named() {
    type Parts = Vec<(String, Vec<u8>)>;
    type Edit = Box<dyn FnOnce(&mut Parts)>;
    let record_says = |key: &str, value: serde_json::Value| {
        let key = key.to_owned();
        move |parts: &mut Parts| {
            let mut record: serde_json::Value = serde_json::from_slice(&parts[1].1).unwrap();
            *record.pointer_mut(&key).unwrap() = value;
            parts[1].1 = serde_json::to_vec(&record).unwrap();
        }
    };
    let is_ram = |part: &(String, Vec<u8>)| part.1.len() == RAM_BYTES;
    let cases: Vec<(&str, Edit)> = vec![
        ("ram has digest", Box::new(move |parts| parts.iter_mut().find(|part| is_ram(part)).unwrap().1[9] = 1)),
        ("nginx-twin 1 of its pool has digest", Box::new(|parts| parts.last_mut().unwrap().1 = b"evil!".to_vec())),
        ("more than 5", Box::new(|parts| parts.last_mut().unwrap().1 = b"longer than it was".to_vec())),
        ("nginx-twin 1 of its pool: fetch it again", Box::new(|parts| parts.last_mut().unwrap().1 = b"ngin".to_vec())),
        ("ends in nginx-twin 1 of its pool", Box::new(|parts| drop(parts.pop()))),
        ("there is more than its record names", Box::new(|parts| parts.push(("blobs/x".into(), b"x".to_vec())))),
        ("expected \"blobs/", Box::new(|parts| parts.swap(3, 4))),
        ("expected \"seal.json\", found \"baseline.json\"", Box::new(|parts| drop(parts.remove(0)))),
        ("seal.json: 4194304 bytes are more than 65536", Box::new(|parts| parts[0].1 = vec![0; RAM_BYTES])),
        ("no baseline is called", Box::new(record_says("/name", "../x".into()))),
        ("form 9", Box::new(record_says("/schema", 9.into()))),
        ("larger than 1024.0 GiB", Box::new(record_says("/files/ram/size", (2_u64 << 40).into()))),
        ("larger than 1024.0 GiB", Box::new(record_says("/files/ram/size", u64::MAX.into()))),
    ];
    for (said, edit) in cases {
        let error = refusal(edit);
        assert!(error.contains(said), "{said:?} is not in {error}");
    }
}

#[test]
fn a_record_leads_nowhere_but_below_its_folder() {
    let stored = StoredFile { sha256: Digest::of("x"), size: 1 };
    let with = |extra: &str| {
        let names = NEEDED.into_iter().chain([extra]);
        Record { files: names.map(|name| (name.to_owned(), stored)).collect(), ..Record::empty() }
    };
    assert_eq!(senseless(&with("apt/status")), None);
    for path in ["/etc/shadow", "../x", "apt/../../x", "", "./ram", "baseline.json"] {
        let reason = senseless(&with(path)).unwrap_or_else(|| panic!("{path:?} was let through"));
        assert!(reason.contains("not below its folder"), "{reason}");
    }
    let mut without = with("apt/status");
    without.files.remove("state");
    assert_eq!(senseless(&without).as_deref(), Some("it names no state"));
    for number in [0, u32::MAX] {
        let numbered = Record { number, ..with("apt/status") };
        assert!(senseless(&numbered).is_some_and(|reason| reason.contains(&format!("web@{number}"))));
    }
}

#[test]
fn an_altered_baseline_is_not_exported() {
    let host = Host::with("a disk");
    let baseline = host.store.get("web").unwrap();
    fs::write(baseline.file("disk.qcow2"), "a disc").unwrap();
    let parcel = host.places.baselines.join("../parcel");
    let error = host.store.export("web", &mut |_| Vec::new(), &parcel).unwrap_err();
    assert!(matches!(&error, ParcelError::Store(StoreError::Altered { file, .. }) if file == "disk.qcow2"), "{error}");
    fs::write(baseline.file("disk.qcow2"), "a disk").unwrap();
    fs::remove_file(ArtifactStore::open(&host.places.artifacts).unwrap().path(&Digest::of("nginx"))).unwrap();
    let error = host.store.export("web", &mut |_| Vec::new(), &parcel).unwrap_err().to_string();
    assert!(error.contains("nginx") && error.contains("missing"), "{error}");
    assert!(!parcel.exists());
}
