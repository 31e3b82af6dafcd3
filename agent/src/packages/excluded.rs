//! Files that dpkg is told not to unpack (`path-exclude` and `path-include` of dpkg.cfg(5), as images that are to be small have it). dpkg
//! lists them as a package's own all the same, and misses them when it verifies.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use super::pattern::glob;

/// Largest configuration file that is read, bytes.
const FILE_BYTES: u64 = 256 * 1024;

/// What dpkg does with a file that a pattern matches.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Exclude(String),
    Include(String),
}

/// The rules, in the order in which dpkg reads them: the last that matches counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Excluded(Vec<Rule>);

impl Excluded {
    /// Reads `dpkg.cfg.d/*`, by name, and then `dpkg.cfg` in a folder.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let mut files = match fs::read_dir(folder.join("dpkg.cfg.d")) {
            Err(error) if absent(&error) => Vec::new(),
            found => found?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?,
        };
        files.retain(|path| path.file_name().is_some_and(|name| is_read(&name.to_string_lossy())));
        files.sort();
        files.push(folder.join("dpkg.cfg"));
        let mut rules = Self::default();
        for path in files {
            let mut text = String::new();
            match fs::File::open(&path).and_then(|file| file.take(FILE_BYTES).read_to_string(&mut text)) {
                Err(error) if absent(&error) => continue,
                read => read?,
            };
            rules.0.extend(text.lines().filter_map(rule));
        }
        Ok(rules)
    }

    /// Whether dpkg does not unpack the file at an absolute path.
    pub fn has(&self, path: &str) -> bool {
        let decides = |rule: &&Rule| match rule {
            Rule::Exclude(pattern) | Rule::Include(pattern) => glob(pattern, path),
        };
        matches!(self.0.iter().rev().find(decides), Some(Rule::Exclude(_)))
    }
}

/// Names of files that dpkg reads in a folder of configuration.
fn is_read(name: &str) -> bool {
    name.bytes().all(|sign| sign.is_ascii_alphanumeric() || matches!(sign, b'-' | b'_'))
}

/// A line: an option's name, and its value after blanks or an equals sign, in quotes or not.
fn rule(line: &str) -> Option<Rule> {
    let (name, value) = line.trim().split_once(|sign: char| sign == '=' || sign.is_whitespace())?;
    let value = value.trim_start_matches(|sign: char| sign == '=' || sign.is_whitespace());
    let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    let pattern = quoted.unwrap_or(value).to_owned();
    match name {
        "path-exclude" => Some(Rule::Exclude(pattern)),
        "path-include" => Some(Rule::Include(pattern)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_that_matches_counts_and_other_files_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Excluded::read(folder.path()).unwrap(), Excluded::default());
        let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        fs::create_dir(folder.path().join("dpkg.cfg.d")).unwrap();
        put(
            "dpkg.cfg.d/docker",
            "# small\npath-exclude=/usr/share/doc/*\npath-exclude \"/usr/share/man/*\"\nforce-unsafe-io\n",
        );
        put("dpkg.cfg.d/zz", "path-include = /usr/share/doc/*/copyright\n");
        put("dpkg.cfg.d/old.dpkg-old", "path-exclude=/usr/bin/*\n");
        put("dpkg.cfg", "log /var/log/dpkg.log\n");
        let excluded = Excluded::read(folder.path()).unwrap();
        let cases = [
            ("/usr/share/doc/web/README", true),
            ("/usr/share/doc/web/copyright", false),
            ("/usr/share/man/man1/web.1.gz", true),
            ("/usr/bin/web", false),
        ];
        for (path, expected) in cases {
            assert_eq!(excluded.has(path), expected, "{path}");
        }
    }
}
