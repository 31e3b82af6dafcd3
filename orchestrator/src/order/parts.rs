//! Which packages of an order only go together, by what they say they depend on: the parts that a bisection may try alone.
//!
//! A dependency (Debian policy 7.2: `Depends`, `Pre-Depends`; rpm's `Requires`) inside an order counts when what is installed before does not meet it; a
//! package that stays behind counts too, when it cannot live with a newer one beside it. Packages that need each other are one
//! part. Conflicts are left to the package manager: a set that it refuses says nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use patchlab_check::Digest;
use patchlab_lab::{
    ArtifactError, ArtifactStore,
    apt::relation::{self, Relation},
    bisection::Part,
};
use patchlab_protocol::{PackageSystem, document::Order};

/// What a package file needs could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// The file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The tool.
    #[error("{tool} on the file of {package}: {reason}")]
    Tool {
        /// Which.
        tool: &'static str,
        /// Whose file.
        package: String,
        /// What went wrong.
        reason: String,
    },
}

/// One `|`-separated way to meet a dependency: a name, and how which version must relate.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Way {
    name: String,
    relation: Option<(String, String)>,
}

/// Dependencies, all of which must be met, each by any of its ways.
type Depends = Vec<Vec<Way>>;

/// A package of an order, before and after.
#[derive(Debug, Clone)]
struct Member {
    name: String,
    new: (String, Depends),
    /// Absent when the order brings it newly.
    old: Option<(String, Depends)>,
}

/// What a package file says.
#[derive(Debug, Clone, Default)]
struct Said {
    depends: Depends,
    /// What it provides beside its name: capabilities of rpm's.
    provides: BTreeSet<String>,
}

/// The parts of an order, from the dependencies in its package files; none of one that ships a script, which is never split.
pub fn parts(order: &Order, artifacts: &ArtifactStore) -> Result<Vec<Part>, PartsError> {
    let system = order.class.package_system().unwrap_or(PackageSystem::Dpkg);
    let said = |name: &str, digest: &Digest| {
        let file = artifacts.verify(digest)?;
        match system {
            PackageSystem::Dpkg => said_of_deb(name, &file),
            PackageSystem::Rpm => said_of_rpm(name, &file),
        }
    };
    let (mut members, mut provided) = (Vec::new(), Vec::new());
    for file in &order.install {
        let old = order.replaces.iter().find(|old| old.name == file.name);
        let new = said(&file.name, &file.sha256)?;
        let mut provides = Provided { new: new.provides, ..Provided::default() };
        let old = match old {
            Some(old) => {
                let said = old.file.as_ref().map(|back| said(&file.name, &back.sha256)).transpose()?;
                let said = said.unwrap_or_default();
                provides.old = said.provides;
                Some((old.version.clone(), said.depends))
            }
            None => None,
        };
        members.push(Member { name: file.name.clone(), new: (file.version.clone(), new.depends), old });
        provided.push(provides);
    }
    let members = named(members, &provided);
    Ok(grouped(&members, system))
}

/// What a member provides beside its name, after and before.
#[derive(Debug, Default)]
struct Provided {
    new: BTreeSet<String>,
    old: BTreeSet<String>,
}

/// The members with ways to capabilities turned into ways to the members that provide them, at the version that does.
fn named(members: Vec<Member>, provided: &[Provided]) -> Vec<Member> {
    let versions: Vec<_> = members
        .iter()
        .map(|one| (one.name.clone(), one.new.0.clone(), one.old.as_ref().map(|old| old.0.clone())))
        .collect();
    let way = |way: Way| -> Way {
        if versions.iter().any(|(name, ..)| *name == way.name) {
            return way;
        }
        let provider = versions.iter().zip(provided).find_map(|((name, new, old), provided)| {
            let relation = match (provided.new.contains(&way.name), provided.old.contains(&way.name)) {
                (true, true) => None,
                (true, false) => Some(("=".to_owned(), new.clone())),
                (false, true) => Some(("=".to_owned(), old.clone()?)),
                (false, false) => return None,
            };
            Some(Way { name: name.clone(), relation })
        });
        provider.unwrap_or(way)
    };
    let each = |depends: Depends| depends.into_iter().map(|ways| ways.into_iter().map(way).collect()).collect();
    let member = |one: Member| Member {
        name: one.name,
        new: (one.new.0, each(one.new.1)),
        old: one.old.map(|(version, depends)| (version, each(depends))),
    };
    members.into_iter().map(member).collect()
}

fn asked(tool: &'static str, package: &str, command: &mut Command) -> Result<String, PartsError> {
    let failed = |reason: String| PartsError::Tool { tool, package: package.to_owned(), reason };
    let output = command.env("LC_ALL", "C.UTF-8").output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn said_of_deb(package: &str, file: &Path) -> Result<Said, PartsError> {
    let mut depends = Depends::new();
    for field in ["Pre-Depends", "Depends"] {
        depends.extend(read(&asked(
            "dpkg-deb",
            package,
            Command::new("dpkg-deb").arg("--field").arg(file).arg(field),
        )?));
    }
    Ok(Said { depends, provides: BTreeSet::new() })
}

fn said_of_rpm(package: &str, file: &Path) -> Result<Said, PartsError> {
    let query =
        "[requires\\t%{REQUIRENAME}\\t%{REQUIREFLAGS:depflags}\\t%{REQUIREVERSION}\\n][provides\\t%{PROVIDENAME}\\n]";
    let mut command = Command::new("rpm");
    command.args(["-qp", "--nosignature", "--nomanifest", "--qf", query, "--"]).arg(file);
    Ok(read_rpm(&asked("rpm", package, &mut command)?))
}

/// Lines `requires NAME FLAGS VERSION` and `provides NAME`, by tabs. Dependencies with conditions in them are left to rpm.
fn read_rpm(text: &str) -> Said {
    let mut said = Said::default();
    for line in text.lines() {
        match line.split('\t').collect::<Vec<_>>()[..] {
            ["requires", name, flags, version] if !name.starts_with('(') => {
                let relation = (flags.trim().to_owned(), version.to_owned());
                let relation = Some(relation).filter(|(flags, version)| !flags.is_empty() && !version.is_empty());
                said.depends.push(vec![Way { name: name.to_owned(), relation }]);
            }
            ["provides", name] => {
                said.provides.insert(name.to_owned());
            }
            _ => {}
        }
    }
    said
}

/// `a (>= 1), b | c:any (= 2)`.
fn read(field: &str) -> Depends {
    let way = |relation: Relation| Way {
        name: relation.name,
        relation: relation.bound.written().map(|(sign, version)| (sign.to_owned(), version)),
    };
    let depends = relation::depends(field).into_iter();
    depends.map(|ways| ways.into_iter().map(way).collect()).collect()
}

/// Whether a version is as a way demands. What cannot be read is taken for unmet: too much goes along then, never too little.
fn meets(version: &str, way: &Way, system: PackageSystem) -> bool {
    let Some((sign, wanted)) = &way.relation else { return true };
    // To rpm a dependency that names no release is one on the version alone.
    let found = match (system, version.rsplit_once('-')) {
        (PackageSystem::Rpm, Some((short, _))) if !wanted.contains('-') => short,
        _ => version,
    };
    let Some(found) = system.compare(found, wanted) else { return false };
    match sign.as_str() {
        "<<" | "<" => found.is_lt(),
        "<=" => found.is_le(),
        "=" => found.is_eq(),
        ">=" => found.is_ge(),
        ">>" | ">" => found.is_gt(),
        _ => false,
    }
}

/// The version of a member that the others find.
#[derive(Debug, Clone, Copy)]
enum State {
    Before,
    After,
}

impl Member {
    fn version(&self, state: State) -> Option<&str> {
        match state {
            State::Before => self.old.as_ref().map(|(version, _)| version.as_str()),
            State::After => Some(&self.new.0),
        }
    }
}

/// The members that must change for `depends` to be met, when every other one is as `state` says.
fn needed<'a>(
    members: &'a [Member],
    depends: &'a Depends,
    state: State,
    system: PackageSystem,
) -> impl Iterator<Item = usize> + 'a {
    depends.iter().filter_map(move |ways| {
        let inside = |way: &'a Way| Some((members.iter().position(|member| member.name == way.name)?, way));
        let inside: Vec<(usize, &Way)> = ways.iter().filter_map(inside).collect();
        let is_met = |(place, way): &(usize, &Way)| {
            members[*place].version(state).is_some_and(|version| meets(version, way, system))
        };
        if inside.iter().any(is_met) { None } else { inside.first().map(|(place, _)| *place) }
    })
}

fn grouped(members: &[Member], system: PackageSystem) -> Vec<Part> {
    let mut needs: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); members.len()];
    for (place, member) in members.iter().enumerate() {
        // What it needs of the new, where the old will not do.
        needs[place].extend(needed(members, &member.new.1, State::Before, system).filter(|other| *other != place));
        // What would be left behind with a dependency that only the old met must come along.
        if let Some((_, depends)) = &member.old {
            for other in needed(members, depends, State::After, system).filter(|other| *other != place) {
                needs[other].insert(place);
            }
        }
    }
    let reach: Vec<BTreeSet<usize>> = (0..members.len()).map(|place| reach(&needs, place)).collect();
    // Members that reach each other are one part, named by the first of them.
    let first = |place: usize| {
        let together = reach[place].iter().copied().filter(|other| reach[*other].contains(&place));
        together.chain([place]).min().unwrap_or(place)
    };
    let heads: BTreeSet<usize> = (0..members.len()).map(first).collect();
    let numbers: BTreeMap<usize, usize> = heads.iter().enumerate().map(|(number, head)| (*head, number)).collect();
    let part = |head: &usize| {
        let inside: Vec<usize> = (0..members.len()).filter(|place| first(*place) == *head).collect();
        let outside =
            reach[*head].iter().map(|place| numbers[&first(*place)]).filter(|number| *number != numbers[head]);
        Part { packages: inside.iter().map(|place| members[*place].name.clone()).collect(), needs: outside.collect() }
    };
    heads.iter().map(part).collect()
}

fn reach(needs: &[BTreeSet<usize>], from: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open = vec![from];
    while let Some(place) = open.pop() {
        if found.insert(place) {
            open.extend(&needs[place]);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, new: (&str, &str), old: Option<(&str, &str)>) -> Member {
        let side = |(version, depends): (&str, &str)| (version.to_owned(), read(depends));
        Member { name: name.into(), new: side(new), old: old.map(side) }
    }

    fn names(parts: &[Part]) -> Vec<(String, Vec<usize>)> {
        let name = |part: &Part| part.packages.iter().cloned().collect::<Vec<_>>().join("+");
        parts.iter().map(|part| (name(part), part.needs.iter().copied().collect())).collect()
    }

    #[test]
    fn packages_of_one_version_only_go_together() {
        let members = [
            member("web", ("2", "web-common (= 2), libc"), Some(("1", "web-common (= 1)"))),
            member("web-common", ("2", ""), Some(("1", ""))),
            member("curl", ("8.1", "libcurl (>= 8)"), Some(("8.0", "libcurl (>= 8)"))),
            member("libcurl", ("8.1", ""), Some(("8.0", ""))),
        ];
        let found = grouped(&members, PackageSystem::Dpkg);
        assert_eq!(
            names(&found),
            [("web+web-common".into(), vec![]), ("curl".into(), vec![]), ("libcurl".into(), vec![])]
        );
    }

    #[test]
    fn what_is_new_needs_what_it_depends_on_and_not_the_other_way_round() {
        let members = [
            member("web", ("2", ""), Some(("1", ""))),
            member("tuning", ("1", "web (>= 2)"), None),
            member("theme", ("1", "tuning"), None),
            member("other", ("1", "web (>= 1)"), None),
        ];
        let found = grouped(&members, PackageSystem::Dpkg);
        let expected = [
            ("web".to_owned(), vec![]),
            ("tuning".to_owned(), vec![0]),
            ("theme".to_owned(), vec![0, 1]),
            ("other".to_owned(), vec![]),
        ];
        assert_eq!(names(&found), expected);
    }

    #[test]
    fn what_would_be_left_behind_comes_along() {
        // The plugin's old version lives only with the old server.
        let members = [
            member("server", ("2", ""), Some(("1", ""))),
            member("plugin", ("2", "server"), Some(("1", "server (<< 2)"))),
        ];
        assert_eq!(
            names(&grouped(&members, PackageSystem::Dpkg)),
            [("server".into(), vec![1]), ("plugin".into(), vec![])]
        );
    }

    #[test]
    fn packages_of_rpm_go_together_by_what_they_require_and_provide() {
        let said = read_rpm(
            "requires\trpmlib(PayloadFilesHavePrefix)\t<= \t4.0-1\nrequires\tlib\t >= \t1.5\nrequires\t(a if b)\t\t\n\
             requires\tlibx.so.2()(64bit)\t\t\nprovides\tweb\n",
        );
        assert_eq!((said.depends.len(), said.provides.len()), (3, 1));
        for (version, relation, met) in [
            ("2-1", ("=", "2"), true),
            ("2-1", (">", "2"), false),
            ("1:1-1", (">", "2-1"), true),
            ("2-1", ("<", "2-2"), true),
        ] {
            let way = Way { name: "a".into(), relation: Some((relation.0.into(), relation.1.into())) };
            assert_eq!(meets(version, &way, PackageSystem::Rpm), met, "{version} {relation:?}");
        }
        // web's new version needs a library's name that only the library's new version provides; the tool is content with either.
        let way = |name: &str| vec![vec![Way { name: name.into(), relation: None }]];
        let member = |name: &str, new: Depends, old: Depends| Member {
            name: name.into(),
            new: ("2-1".into(), new),
            old: Some(("1-1".into(), old)),
        };
        let members = vec![
            member("web", way("libx.so.2()"), way("libx.so.1()")),
            member("lib", Depends::new(), Depends::new()),
            member("tool", way("api"), way("api")),
        ];
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let lib = Provided { new: set(&["libx.so.2()", "api"]), old: set(&["libx.so.1()", "api"]) };
        let found = grouped(&named(members, &[Provided::default(), lib, Provided::default()]), PackageSystem::Rpm);
        assert_eq!(names(&found), [("lib+web".into(), vec![]), ("tool".into(), vec![])]);
    }
}
