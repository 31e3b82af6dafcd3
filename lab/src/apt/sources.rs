//! The repositories that a system names in its own files (sources.list(5)): one-line and deb822 forms become one list. Pure.
//!
//! The files come from inside a system that somebody else made, and the host's apt is to fetch what they name: only signed
//! repositories over http and https are taken, all else is passed over and named.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Repositories that are taken from one system.
const REPOSITORIES: usize = 200;
/// Components of the distributions' own repositories.
const OWN_COMPONENTS: &[&str] =
    &["main", "contrib", "non-free", "non-free-firmware", "restricted", "universe", "multiverse"];
/// What may stand behind a release's code name in a suite of the distribution's own.
const OWN_POCKETS: &[&str] = &["", "-updates", "-security", "-backports", "-proposed", "-proposed-updates", "/updates"];
/// Last parts of the paths under which mirrors serve a distribution.
const OWN_PATHS: &[&str] = &["debian", "debian-security", "ubuntu", "ubuntu-ports"];
/// Domains of the distributions themselves.
const OWN_DOMAINS: &[&str] = &["debian.org", "ubuntu.com"];

/// A repository of binary packages.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Repository {
    /// Where it is, over http or https, without credentials.
    pub uri: String,
    /// Its suite, e.g. `bookworm-security`; ends with a slash where it has no components.
    pub suite: String,
    /// Its components, e.g. `main`.
    pub components: Vec<String>,
    /// The keyring that checks it, by its path in the system; absent where any of the system's keys may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
}

impl Repository {
    /// As one line of sources.list(5).
    pub fn line(&self) -> String {
        let options = self.signed_by.as_ref().map_or_else(String::new, |path| format!("[signed-by={path}] "));
        let line = format!("deb {options}{} {} {}", self.uri, self.suite, self.components.join(" "));
        line.trim_end().to_owned()
    }

    /// Whether it is a part of the distribution whose release has that code name: by its suite, its components and where it is.
    pub fn is_own(&self, codename: &str) -> bool {
        let suite = !codename.is_empty()
            && self.suite.strip_prefix(codename).is_some_and(|pocket| OWN_POCKETS.contains(&pocket));
        let components = self.components.iter().all(|component| OWN_COMPONENTS.contains(&component.as_str()));
        let (_, rest) = self.uri.split_once("://").unwrap_or_default();
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let host = host.split(':').next().unwrap_or_default();
        let domain = OWN_DOMAINS.iter().any(|domain| {
            host == *domain || host.strip_suffix(domain).is_some_and(|subdomain| subdomain.ends_with('.'))
        });
        let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        suite && components && (domain || OWN_PATHS.contains(&last))
    }
}

/// What a system's files name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// Repositories that may be fetched from.
    pub repositories: Vec<Repository>,
    /// Keys that stand in the files themselves, by the paths that [`Repository::signed_by`] has for them.
    pub keys: BTreeMap<String, String>,
    /// The others, each with the reason.
    pub passed_over: Vec<String>,
}

/// Reads a system's files: paths with their texts, and lists of mirrors (`mirror+file:`) likewise.
pub fn read(files: &BTreeMap<String, String>, mirrors: &BTreeMap<String, String>) -> Sources {
    let mut sources = Sources::default();
    for (path, text) in files {
        let entries = if path.ends_with(".sources") { deb822(text) } else { one_line(text) };
        for entry in entries {
            for repository in entry.repositories(path, mirrors, &mut sources.keys) {
                match repository {
                    Ok(repository) if sources.repositories.len() >= REPOSITORIES => {
                        sources.passed_over.push(format!("{}: more than {REPOSITORIES}", repository.uri));
                        return sources;
                    }
                    Ok(repository) => sources.repositories.push(repository),
                    Err(reason) => sources.passed_over.push(reason),
                }
            }
        }
    }
    sources
}

/// One entry as written: every combination of its addresses and suites is a repository.
#[derive(Debug, Default)]
struct Entry {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    options: BTreeMap<String, String>,
}

impl Entry {
    fn repositories(
        self,
        file: &str,
        mirrors: &BTreeMap<String, String>,
        keys: &mut BTreeMap<String, String>,
    ) -> Vec<Result<Repository, String>> {
        let unchecked = ["trusted", "allow-insecure", "allow-weak", "allow-downgrade-to-insecure"];
        let says_yes = |option: &&str| self.options.get(*option).is_some_and(|value| value.trim() != "no");
        let unchecked = unchecked.iter().find(|option| says_yes(option));
        let signed_by = self.options.get("signed-by").and_then(|value| keyring(file, value, keys));
        let mut found = Vec::new();
        for uri in &self.uris {
            let named = legible(uri);
            if let Some(option) = unchecked {
                found.push(Err(format!("{named}: {option} turns its signature check off")));
                continue;
            }
            match resolved(uri, mirrors) {
                Ok(uri) => found.extend(self.suites.iter().map(|suite| {
                    let words = [suite].into_iter().chain(&self.components);
                    if let Some(word) = words.into_iter().find(|word| !is_word(word)) {
                        return Err(format!("{named}: {:?} is no name of a suite or component", legible(word)));
                    }
                    let (uri, components) = (uri.clone(), self.components.clone());
                    Ok(Repository { uri, suite: suite.clone(), components, signed_by: signed_by.clone() })
                })),
                Err(reason) => found.push(Err(format!("{named}: {reason}"))),
            }
        }
        found
    }
}

/// `deb [option=value …] URI SUITE COMPONENT…` lines; comments and sources of source packages are passed over.
fn one_line(text: &str) -> Vec<Entry> {
    let entry = |line: &str| {
        let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
        let mut rest = rest.strip_prefix([' ', '\t'])?.trim();
        let mut options = BTreeMap::new();
        if let Some(inside) = rest.strip_prefix('[') {
            let (inside, behind) = inside.split_once(']')?;
            let pairs = inside.split_whitespace().filter_map(|pair| pair.split_once('='));
            options = pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
            rest = behind.trim();
        }
        let mut words = rest.split_whitespace().map(str::to_owned);
        let (uri, suite) = (words.next()?, words.next()?);
        Some(Entry { uris: vec![uri], suites: vec![suite], components: words.collect(), options })
    };
    text.lines().filter_map(entry).collect()
}

/// deb822 stanzas that are enabled and hold binary packages.
fn deb822(text: &str) -> Vec<Entry> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let stanzas = lines.split(|line| line.trim().is_empty()).filter(|stanza| !stanza.is_empty());
    let entry = |stanza: &[&str]| {
        let mut fields: BTreeMap<String, String> = BTreeMap::new();
        let mut last = String::new();
        for line in stanza {
            match line.strip_prefix([' ', '\t']) {
                // A lone dot stands for an empty line.
                Some(more) => {
                    let more = if more.trim() == "." { "" } else { more };
                    fields.entry(last.clone()).or_default().push_str(&format!("\n{more}"));
                }
                None => {
                    let (name, value) = line.split_once(':')?;
                    last = name.trim().to_ascii_lowercase();
                    fields.insert(last.clone(), value.trim().to_owned());
                }
            }
        }
        let mut words = |name: &str| -> Vec<String> {
            fields.remove(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        };
        let off = words("enabled").iter().any(|word| matches!(word.as_str(), "no" | "false" | "0" | "off"));
        if off || !words("types").iter().any(|kind| kind == "deb") {
            return None;
        }
        let (uris, suites, components) = (words("uris"), words("suites"), words("components"));
        Some(Entry { uris, suites, components, options: fields })
    };
    stanzas.filter_map(entry).collect()
}

/// The keyring that an option names: a path in the system, a key that stands in the file, or none where it names several or
/// fingerprints: then any of the system's keys may sign.
fn keyring(file: &str, value: &str, keys: &mut BTreeMap<String, String>) -> Option<String> {
    let value = value.trim();
    if value.starts_with("-----BEGIN PGP PUBLIC KEY BLOCK-----") {
        let name: String = file.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let path = format!("/usr/share/keyrings/in{name}-{}.asc", keys.len());
        keys.insert(path.clone(), format!("{value}\n"));
        return Some(path);
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '+');
    (value.starts_with('/') && value.chars().all(plain)).then(|| value.to_owned())
}

/// An address that the host may fetch from.
fn resolved(uri: &str, mirrors: &BTreeMap<String, String>) -> Result<String, &'static str> {
    let uri = match uri.strip_prefix("mirror+file:") {
        Some(path) => {
            let path = format!("/{}", path.trim_start_matches('/'));
            let list = mirrors.get(&path).ok_or("its list of mirrors is not there")?;
            let first = list.lines().filter_map(|line| line.split_whitespace().next());
            first.into_iter().find(|word| !word.starts_with('#')).ok_or("its list of mirrors is empty")?
        }
        None => uri,
    };
    let rest = uri.strip_prefix("https://").or_else(|| uri.strip_prefix("http://"));
    let rest = rest.ok_or("only http and https are fetched from")?;
    if rest.split('/').next().is_some_and(|host| host.contains('@')) {
        return Err("its address holds credentials");
    }
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '[' | ']' | '"' | '\'' | '#' | '\\');
    if rest.is_empty() || !rest.chars().all(plain) || uri.len() > 1000 {
        Err("its address is none")
    } else {
        Ok(uri.to_owned())
    }
}

/// An address for people: what may be a password in it is not shown.
fn legible(uri: &str) -> String {
    let shown = match (uri.split_once("://"), uri.find('@')) {
        (Some((scheme, _)), Some(at)) => format!("{scheme}://…{}", &uri[at..]),
        _ => uri.to_owned(),
    };
    shown.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn is_word(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '~' | '/' | ':');
    !text.is_empty() && text.len() <= 200 && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[(&str, &str)]) -> Sources {
        let texts = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        let mirrors = [("/etc/apt/mirrors/debian.list", "# nearest\nhttps://mirror.example.org/debian\tpriority:1\n")];
        read(&texts(files), &texts(&mirrors))
    }

    fn lines(files: &[(&str, &str)]) -> Vec<String> {
        sources(files).repositories.iter().map(Repository::line).collect()
    }

    #[test]
    fn both_forms_become_one() {
        let list = "# deb http://no/ x main\ndeb-src http://h/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/k/a.gpg] http://h/debian bookworm main contrib # here\ndeb http://h/flat ./\n";
        assert_eq!(
            lines(&[("/etc/apt/sources.list", list)]),
            ["deb [signed-by=/k/a.gpg] http://h/debian bookworm main contrib", "deb http://h/flat ./"]
        );
        let stanzas = "Types: deb deb-src\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: bookworm bookworm-updates\n\
                       Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
                       # off\nEnabled: no\nTypes: deb\nURIs: http://off/\nSuites: x\nComponents: main\n\n\
                       Types: deb\nURIs: http://h/x\nSuites: y\nComponents: z\nSigned-By:\n \
                       -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----\n";
        let found = sources(&[("/etc/apt/sources.list.d/debian.sources", stanzas)]);
        let key = "/usr/share/keyrings/in-etc-apt-sources-list-d-debian-sources-0.asc";
        let keyring = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
        assert_eq!(
            found.repositories.iter().map(Repository::line).collect::<Vec<_>>(),
            [
                format!("deb {keyring} https://mirror.example.org/debian bookworm main"),
                format!("deb {keyring} https://mirror.example.org/debian bookworm-updates main"),
                format!("deb [signed-by={key}] http://h/x y z"),
            ]
        );
        let text = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nabc\n-----END PGP PUBLIC KEY BLOCK-----\n";
        assert_eq!(found.keys, [(key.to_owned(), text.to_owned())].into());
    }

    #[test]
    fn what_the_host_must_not_follow_is_passed_over_by_name() {
        for (line, reason) in [
            ("deb [trusted=yes] http://h/d s main", "http://h/d: trusted turns its signature check off"),
            ("deb file:/etc s main", "file:/etc: only http and https are fetched from"),
            ("deb ssh://h/d s main", "ssh://h/d: only http and https"),
            ("deb mirror+file:/etc/shadow s main", "mirror+file:/etc/shadow: its list of mirrors is not there"),
            ("deb https://me:secret@h/d s main", "https://…@h/d: its address holds credentials"),
            ("deb http://h/d s;reboot main", "http://h/d: \"s;reboot\" is no name"),
            ("deb http://h/\"d s main", "http://h/\"d: its address is none"),
        ] {
            let found = sources(&[("/etc/apt/sources.list", line)]);
            assert!(found.repositories.is_empty(), "{line}");
            assert!(found.passed_over[0].starts_with(reason), "{line}: {:?}", found.passed_over);
        }
        let many = "deb http://h/d s main\n".repeat(REPOSITORIES + 5);
        let found = sources(&[("/etc/apt/sources.list", &many)]);
        assert_eq!((found.repositories.len(), found.passed_over.len()), (REPOSITORIES, 1));
    }

    #[test]
    fn whose_a_repository_is() {
        for (line, own) in [
            ("deb http://mirror.example.org/debian bookworm main", true),
            ("deb http://security.debian.org/debian-security bookworm-security main contrib", true),
            ("deb http://mirror.example.net/pub/debian/ bookworm-updates main", true),
            ("deb http://ftp.debian.org:80/x bookworm/updates main", true),
            ("deb https://download.docker.com/linux/debian bookworm stable", false),
            ("deb https://apt.example.org/pub/repos/apt bookworm-pgdg main", false),
            ("deb https://packages.example.org/php/ bookworm main", false),
            ("deb http://mirror.example.org/debian trixie main", false),
            ("deb http://notdebian.org/x bookworm main", false),
        ] {
            let found = sources(&[("/etc/apt/sources.list", line)]);
            assert_eq!(found.repositories[0].is_own("bookworm"), own, "{line}");
        }
    }
}
