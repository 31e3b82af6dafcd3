//! A diff in groups, and on one screen.

use patchlab_check::written::ByteSize;

use super::{Change, Diff, DiskPlace, FileChange};

/// Lines that the summary has at most, about one screen; the whole is in the JSON.
const SCREEN: usize = 30;
/// Most lines of one group on it.
const LINES: usize = 6;

/// What differs of one sort.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Which sort, e.g. `packages`.
    pub name: &'static str,
    /// A line each.
    pub rows: Vec<Row>,
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// How.
    pub change: Change,
    /// What, for people.
    pub text: String,
}

impl Change {
    /// `+`, `-` or `~`.
    pub fn sign(self) -> char {
        match self {
            Self::Added => '+',
            Self::Removed => '-',
            Self::Changed => '~',
        }
    }
}

impl Group {
    /// How many of which, e.g. `+1 ~2`.
    pub fn counts(&self) -> String {
        let count = |wanted: Change| self.rows.iter().filter(|row| row.change == wanted).count();
        let all = [Change::Added, Change::Removed, Change::Changed].map(|change| (change, count(change)));
        let shown =
            all.iter().filter(|(_, count)| *count > 0).map(|(change, count)| format!("{}{count}", change.sign()));
        shown.collect::<Vec<_>>().join(" ")
    }
}

impl Group {
    /// All of it on one line, for the middle of a sentence.
    pub fn line(&self) -> String {
        let rows = self.rows.iter().take(LINES).map(|row| format!("{} {}", row.change.sign(), row.text));
        let more =
            if self.rows.len() > LINES { format!(" … and {} more", self.rows.len() - LINES) } else { String::new() };
        format!("{} {}{more}", self.name, rows.collect::<Vec<_>>().join(", "))
    }
}

/// The diff in groups, those without a difference left out. Files of a changed package are counted beside it, and configuration files and
/// leftovers have groups of their own: the files that stay are the ones to look at.
pub fn groups(diff: &Diff) -> Vec<Group> {
    let mut groups = vec![
        group("packages", packages(diff)),
        group("configuration", configuration(diff)),
        group("leftovers", diff.leftovers.iter().map(|left| row(left.change, left.path.clone())).collect()),
        group("files", files(diff)),
        group("users", accounts(&diff.users)),
        group("groups", accounts(&diff.groups)),
        group(
            "units",
            diff.units.iter().map(|unit| moved(&unit.unit, Some(&unit.from), Some(&unit.to), "absent")).collect(),
        ),
        group("ports", ports(diff)),
        group("kernel", kernel(diff)),
        group("modules", modules(diff)),
        group("disk", disk(diff)),
        group("restarts", restarts(diff)),
    ];
    groups.retain(|group| !group.rows.is_empty());
    groups
}

fn group(name: &'static str, rows: Vec<Row>) -> Group {
    Group { name, rows }
}

fn row(change: Change, text: String) -> Row {
    Row { change, text }
}

/// `NAME FROM -> TO`, or what is there where the other has nothing.
fn moved(name: &str, from: Option<&String>, to: Option<&String>, nothing: &str) -> Row {
    let from = from.filter(|from| *from != nothing);
    match (from, to.filter(|to| *to != nothing)) {
        (Some(from), Some(to)) => row(Change::Changed, format!("{name} {from} -> {to}")),
        (None, Some(to)) => row(Change::Added, format!("{name} {to}")),
        (from, None) => row(Change::Removed, from.map_or_else(|| name.to_owned(), |from| format!("{name} {from}"))),
    }
}

fn packages(diff: &Diff) -> Vec<Row> {
    let package = |change: &super::PackageChange| {
        let files = match change.files {
            0 => String::new(),
            1 => " (1 file)".into(),
            count => format!(" ({count} files)"),
        };
        let Row { change, text } = moved(&change.package, change.from.as_ref(), change.to.as_ref(), "");
        row(change, text + &files)
    };
    diff.packages.iter().map(package).collect()
}

fn configuration(diff: &Diff) -> Vec<Row> {
    let file = |change: &super::ConfigurationChange| {
        let by = change.by.describe(change.package.as_deref());
        let before = if change.was_altered { ", was altered before" } else { "" };
        row(change.change, format!("{} ({by}{before})", change.path))
    };
    diff.configuration.iter().map(file).collect()
}

fn files(diff: &Diff) -> Vec<Row> {
    let elsewhere = |file: &&FileChange| {
        let of = |package: &String| diff.packages.iter().any(|change| change.package == *package);
        file.package.as_ref().is_some_and(of)
            || diff.configuration.iter().any(|change| change.path == file.path)
            || diff.leftovers.iter().any(|left| left.path == file.path)
    };
    let file = |file: &FileChange| {
        let owner = file.package.as_deref().unwrap_or("no package's");
        let told: Vec<&str> = file.aspects.iter().map(String::as_str).chain([owner]).collect();
        row(file.change, format!("{} ({})", file.path, told.join(", ")))
    };
    let mut rows: Vec<Row> = diff.files.iter().filter(|file| !elsewhere(file)).map(file).collect();
    if diff.files_omitted > 0 {
        let all =
            diff.files_in.as_ref().map_or_else(String::new, |file| format!(", all are in {file} of the run's record"));
        rows.push(row(Change::Changed, format!("{} more files are not listed{all}", diff.files_omitted)));
    }
    rows
}

fn accounts(changes: &[super::AccountChange]) -> Vec<Row> {
    changes
        .iter()
        .map(|change| row(change.change, format!("{} ({})", change.name, change.details.join(", "))))
        .collect()
}

fn ports(diff: &Diff) -> Vec<Row> {
    let port = |change: Change| {
        move |port: &crate::manifest::Port| {
            let process = port.process.as_ref().map_or(String::new(), |process| format!(" {process}"));
            row(change, format!("{} {}:{}{process}", port.protocol, port.address, port.port))
        }
    };
    let opened = diff.ports_opened.iter().map(port(Change::Added));
    opened.chain(diff.ports_closed.iter().map(port(Change::Removed))).collect()
}

fn kernel(diff: &Diff) -> Vec<Row> {
    let running = diff.kernel.iter().map(|kernel| moved("running", Some(&kernel.from), Some(&kernel.to), ""));
    let mut rows: Vec<Row> = running.collect();
    if let Some(kernels) = &diff.kernels {
        rows.extend(kernels.installed.iter().map(|release| row(Change::Added, format!("installed {release}"))));
        rows.extend(kernels.removed.iter().map(|release| row(Change::Removed, format!("installed {release}"))));
        rows.extend(kernels.boot.iter().map(|[from, to]| moved("boot", Some(from), Some(to), "")));
    }
    rows
}

fn modules(diff: &Diff) -> Vec<Row> {
    let Some(kernels) = &diff.kernels else { return Vec::new() };
    let loaded = kernels.modules_loaded.iter().map(|module| row(Change::Added, module.clone()));
    loaded.chain(kernels.modules_unloaded.iter().map(|module| row(Change::Removed, module.clone()))).collect()
}

fn disk(diff: &Diff) -> Vec<Row> {
    let place = |change: &super::DiskChange| {
        let (more, by) = (change.to >= change.from, change.from.abs_diff(change.to));
        let of = match change.of {
            DiskPlace::FileSystem => "file system ",
            DiskPlace::Folder => "",
        };
        let sign = if more { '+' } else { '-' };
        row(Change::Changed, format!("{of}{} {sign}{} to {}", change.path, rounded(by), rounded(change.to)))
    };
    diff.disk.iter().map(place).collect()
}

/// Whole mebibytes, rounded to the nearest.
fn rounded(bytes: u64) -> ByteSize {
    ByteSize((bytes + (1 << 19)) >> 20 << 20)
}

fn restarts(diff: &Diff) -> Vec<Row> {
    let Some(restarts) = &diff.restarts else { return Vec::new() };
    let reboot = restarts.reboot.iter().map(|reason| row(Change::Added, format!("reboot: {reason}")));
    let units = restarts.units.iter().map(|(unit, files)| {
        let first = files.first().map_or("", String::as_str);
        let more = if files.len() > 1 { format!(" and {} more", files.len() - 1) } else { String::new() };
        row(Change::Added, format!("{unit} runs {first}{more}, which is gone"))
    });
    reboot.chain(units).collect()
}

/// The diff as a table of about one screen: a group's name and counts, then its rows.
pub fn summary(diff: &Diff) -> String {
    let groups = groups(diff);
    if groups.is_empty() {
        return "nothing differs\n".into();
    }
    let shown = |most: usize| groups.iter().map(|group| group.rows.len().min(most + 1)).sum::<usize>();
    let most = (1..=LINES).rev().find(|most| shown(*most) <= SCREEN).unwrap_or(1);
    let counts: Vec<String> = groups.iter().map(Group::counts).collect();
    let name_width = groups.iter().map(|group| group.name.len()).max().unwrap_or(0);
    let counts_width = counts.iter().map(String::len).max().unwrap_or(0);
    let mut lines = Vec::new();
    for (group, counts) in groups.iter().zip(&counts) {
        let head = format!("{:<name_width$}  {counts:<counts_width$}", group.name);
        let blank = " ".repeat(head.len());
        let rows = group.rows.iter().take(most).map(|row| format!("{} {}", row.change.sign(), row.text));
        let mut rows: Vec<String> = rows.collect();
        if group.rows.len() > most {
            rows.push(format!("… and {} more", group.rows.len() - most));
        }
        lines.extend(
            rows.iter().enumerate().map(|(at, row)| format!("{}  {row}", if at == 0 { &head } else { &blank })),
        );
    }
    lines.join("\n") + "\n"
}
