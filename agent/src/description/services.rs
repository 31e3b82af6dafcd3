//! Services that start by themselves or run, as systemctl(1) says.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use patchlab_protocol::description::{LINES, Service};

use crate::process;

/// Longest that systemctl may take.
const ASKING: Duration = Duration::from_secs(10);
/// Most that it may say, bytes.
const SAID_BYTES: u64 = 1024 * 1024;
/// Longest name of a unit (systemd's own limit is 255), and of a state, bytes.
const NAME_BYTES: usize = 200;

/// Where systemd says that it runs (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// The services of the system below `root`; none where there is no systemd. What runs, only the running system can say. When it does not
/// answer, they are what was seen `last`: a host whose systemd is busy has lost no service.
pub fn services(root: &Path, last: &[Service]) -> Vec<Service> {
    listed_by(Path::new("systemctl"), root, Path::new(BOOTED)).unwrap_or_else(|| last.to_vec())
}

/// What this systemctl lists; `None` when it does not say.
fn listed_by(systemctl: &Path, root: &Path, booted: &Path) -> Option<Vec<Service>> {
    let options = ["--type=service", "--no-legend", "--no-pager", "--plain"];
    let here = root == Path::new("/");
    let below = format!("--root={}", root.display());
    let mut files = Command::new(systemctl);
    files.arg("list-unit-files").args(options).args((!here).then_some(below));
    let mut units = Command::new(systemctl);
    units.args(["list-units", "--all"]).args(options);
    let files = said(&mut files)?;
    let units = if here && booted.exists() { said(&mut units)? } else { String::new() };
    Some(join(&files, &units))
}

/// `None` when it says nothing that counts; nothing where there is no such program.
fn said(command: &mut Command) -> Option<String> {
    let asked = process::run(command.env("LC_ALL", "C"), Instant::now() + ASKING, SAID_BYTES, |_| {});
    match asked {
        // Of an answer that is too long the middle is missing, and what is left is no list.
        Ok(finished) if finished.succeeded() && finished.written <= SAID_BYTES => Some(finished.stdout),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(String::new()),
        Ok(_) | Err(_) => None,
    }
}

/// `UNIT STATE …` of unit files, and `UNIT LOAD ACTIVE SUB …` of units: those that are enabled or not just inactive, sorted.
fn join(files: &str, units: &str) -> Vec<Service> {
    let mut found: BTreeMap<&str, [&str; 2]> = BTreeMap::new();
    for line in files.lines() {
        let mut words = line.split_whitespace();
        if let (Some(unit), Some(state)) = (words.next(), words.next()) {
            found.insert(unit, [state, "-"]);
        }
    }
    for line in units.lines() {
        // A mark before a unit that failed.
        let mut words = line.split_whitespace().skip_while(|word| !word.contains('.'));
        if let (Some(unit), Some(_), Some(active)) = (words.next(), words.next(), words.next()) {
            found.entry(unit).or_insert(["-", "-"])[1] = settled(active, words.next().unwrap_or_default());
        }
    }
    found.retain(|unit, [enabled, _]| enabled.starts_with("enabled") || !is_of_login(unit));
    let counts = |[enabled, active]: &[&str; 2]| enabled.starts_with("enabled") || !matches!(*active, "-" | "inactive");
    let short = |word: &str| word.len() <= NAME_BYTES;
    let told = found
        .into_iter()
        .filter(|(unit, states)| short(unit) && states.iter().all(|s| s.len() <= 20) && counts(states));
    let service = |(unit, [enabled, active]): (&str, [&str; 2])| Service {
        unit: unit.into(),
        enabled: enabled.into(),
        active: active.into(),
    };
    told.map(service).take(LINES).collect()
}

/// A state in which a unit stays: one on its way is where it came from, as a timer's job at work is, and each look would find another list.
fn settled<'s>(active: &'s str, sub: &str) -> &'s str {
    match active {
        // One that fails again and again is on no way.
        "activating" if sub != "auto-restart" => "inactive",
        "deactivating" => "inactive",
        "reloading" | "refreshing" => "active",
        stays => stays,
    }
}

/// Whether a unit is there because somebody is logged in.
fn is_of_login(unit: &str) -> bool {
    let instance = ["user@", "user-runtime-dir@"].iter().find_map(|template| unit.strip_prefix(template));
    instance.is_some_and(|instance| !instance.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// systemd 252 of Debian 12.
    const FILES: &str = "\
apt-daily.service                      static          -
cron.service                           enabled         enabled
getty@.service                         enabled         enabled
nginx.service                          enabled         enabled
rsync.service                          disabled        enabled
systemd-timesyncd.service              enabled         enabled
";
    const UNITS: &str = "\
apt-daily.service           loaded    inactive dead    Daily apt download activities
auditd.service              not-found inactive dead    auditd.service
cron.service                loaded    active   running Regular background program processing daemon
* nginx.service             loaded    failed   failed  A high performance web server and a reverse proxy server
dbus.service                loaded    active   running D-Bus System Message Bus
";

    #[test]
    fn a_failed_look_keeps_the_last() {
        use std::{fs, os::unix::fs::PermissionsExt as _};
        let folder = tempfile::tempdir().unwrap();
        let [program, answers, booted] = ["systemctl", "answers", "booted"].map(|name| folder.path().join(name));
        let says = format!(
            "#!/bin/sh\ntest -e {0} || exit 1\ncase $1 in list-unit-files) cat {0};; *) echo a.service loaded active running A;; esac\n",
            answers.display()
        );
        fs::write(&program, says).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(&answers, "a.service enabled enabled\n").unwrap();
        let told = |listed: Option<Vec<Service>>| -> Option<Vec<String>> {
            Some(listed?.iter().map(ToString::to_string).collect())
        };
        let look = |booted: &Path| told(listed_by(&program, Path::new("/"), booted));
        assert_eq!(look(&booted), Some(vec!["service a.service enabled -".to_owned()]), "nobody runs it");
        fs::create_dir(&booted).unwrap();
        assert_eq!(look(&booted), Some(vec!["service a.service enabled active".to_owned()]));
        fs::remove_file(&answers).unwrap();
        assert_eq!(look(&booted), None);
        assert_eq!(told(listed_by(&folder.path().join("none"), Path::new("/"), &booted)), Some(vec![]));
    }

    #[test]
    fn services_that_start_by_themselves_or_run_are_told() {
        let lines: Vec<String> = join(FILES, UNITS).iter().map(ToString::to_string).collect();
        let expected = [
            "service cron.service enabled active",
            "service dbus.service - active",
            "service getty@.service enabled -",
            "service nginx.service enabled failed",
            "service systemd-timesyncd.service enabled -",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_passes_by_itself_is_not_told() {
        let units = "\
user@1000.service             loaded active       running User Manager for UID 1000
user-runtime-dir@0.service    loaded active       exited  User Runtime Directory /run/user/0
apt-daily.service             loaded activating   start   Daily apt download activities
fstrim.service                loaded deactivating stop    Discard unused blocks
cron.service                  loaded reloading    reload  Regular background program processing daemon
web.service                   loaded activating   auto-restart The site
";
        let files = "apt-daily.service static -\nuser@.service static -\ncron.service enabled enabled\n";
        let lines: Vec<String> = join(files, units).iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["service cron.service enabled active", "service web.service - activating"]);
        // One that lingers by its own name is no guest.
        assert_eq!(join("user@7.service enabled -\n", units)[1].unit, "user@7.service");
    }

    #[test]
    fn neither_their_number_nor_their_names_are_without_limit() {
        let many: String = (0..2000).map(|n| format!("s{n}.service enabled enabled\n")).collect();
        assert_eq!(join(&many, "").len(), LINES);
        assert!(join(&format!("{}.service enabled\nx.service\n\n", "x".repeat(300)), "nonsense\n").is_empty());
    }
}
