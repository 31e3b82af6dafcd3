//! A diff on one screen.

use std::fmt::Write as _;

use super::{Change, Diff, FileChange};

/// Most lines shown of each section.
const LINES: usize = 6;

/// The diff as text of at most about thirty lines; the whole is in the JSON.
pub fn summary(diff: &Diff) -> String {
    let mut out = String::new();
    let packages = diff.packages.iter().map(|change| {
        let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".into());
        let files = match change.files {
            0 => String::new(),
            1 => " (1 file)".into(),
            count => format!(" ({count} files)"),
        };
        format!("{} {} -> {}{files}", change.package, version(&change.from), version(&change.to))
    });
    section(&mut out, "packages", packages.collect());
    // Files of a changed package are counted beside it; the others are the ones to look at.
    let told = |file: &&FileChange| {
        let of = |package: &String| diff.packages.iter().any(|change| change.package == *package);
        !file.package.as_ref().is_some_and(of)
    };
    let files = diff.files.iter().filter(told).map(|file| {
        let sign = match file.change {
            Change::Added => "+",
            Change::Removed => "-",
            Change::Changed => "~",
        };
        let aspects = if file.aspects.is_empty() { String::new() } else { format!(" ({})", file.aspects.join(", ")) };
        format!("{sign} {}{aspects}", file.path)
    });
    let mut files: Vec<String> = files.collect();
    if diff.files_omitted > 0 {
        files.push(format!("{} more files are not listed", diff.files_omitted));
    }
    section(&mut out, "files", files);
    let units = diff.units.iter().map(|unit| format!("{} {} -> {}", unit.unit, unit.from, unit.to));
    section(&mut out, "units", units.collect());
    let ports = [("+", &diff.ports_opened), ("-", &diff.ports_closed)].into_iter().flat_map(|(sign, ports)| {
        ports.iter().map(move |port| {
            let process = port.process.as_ref().map_or(String::new(), |process| format!(" {process}"));
            format!("{sign} {} {}:{}{process}", port.protocol, port.address, port.port)
        })
    });
    section(&mut out, "ports", ports.collect());
    let kernel = diff.kernel.iter().map(|kernel| format!("{} -> {}", kernel.from, kernel.to));
    section(&mut out, "kernel", kernel.collect());
    if out.is_empty() {
        out.push_str("nothing differs\n");
    }
    out
}

fn section(out: &mut String, name: &str, lines: Vec<String>) {
    for (index, line) in lines.iter().take(LINES).enumerate() {
        let name = if index == 0 { name } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<9} {line}");
    }
    if lines.len() > LINES {
        let _ = writeln!(out, "{:<9} … and {} more", "", lines.len() - LINES);
    }
}
