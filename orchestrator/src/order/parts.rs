//! Which packages of an order only go together, by what they say they depend on: the parts that a bisection may try alone.
//!
//! A dependency (Debian policy 7.2: `Depends`, `Pre-Depends`) inside an order counts when what is installed before does not meet it; a
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
    apt::relation::{self, Bound, Depends, Relation},
    bisection::Part,
};
use patchlab_protocol::document::Order;

/// What a package file needs could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// The file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The tool.
    #[error("dpkg-deb on the file of {package}: {reason}")]
    Tool {
        /// Whose file.
        package: String,
        /// What went wrong.
        reason: String,
    },
}

/// A package of an order, before and after.
#[derive(Debug, Clone)]
struct Member {
    name: String,
    new: (String, Depends),
    /// Absent when the order brings it newly.
    old: Option<(String, Depends)>,
}

/// The parts of an order, from the dependencies in its package files.
pub fn parts(order: &Order, artifacts: &ArtifactStore) -> Result<Vec<Part>, PartsError> {
    let depends = |name: &str, digest: &Digest| depends_of(name, &artifacts.verify(digest)?);
    let mut members = Vec::new();
    for file in &order.install {
        let old = order.replaces.iter().find(|old| old.name == file.name);
        let old = match old {
            Some(old) => {
                let depends = old.file.as_ref().map(|file| depends(&file.name, &file.sha256)).transpose()?;
                Some((old.version.clone(), depends.unwrap_or_default()))
            }
            None => None,
        };
        let new = (file.version.clone(), depends(&file.name, &file.sha256)?);
        members.push(Member { name: file.name.clone(), new, old });
    }
    Ok(grouped(&members))
}

fn depends_of(package: &str, file: &Path) -> Result<Depends, PartsError> {
    let failed = |reason: String| PartsError::Tool { package: package.to_owned(), reason };
    let mut depends = Depends::new();
    for field in ["Pre-Depends", "Depends"] {
        let output = Command::new("dpkg-deb").arg("--field").arg(file).arg(field).output();
        let output = output.map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        depends.extend(relation::depends(&String::from_utf8_lossy(&output.stdout)));
    }
    Ok(depends)
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
fn needed<'a>(members: &'a [Member], depends: &'a Depends, state: State) -> impl Iterator<Item = usize> + 'a {
    depends.iter().filter_map(move |alternatives| {
        let inside = |one: &'a Relation| Some((members.iter().position(|member| member.name == one.name)?, one));
        let inside: Vec<(usize, &Relation)> = alternatives.iter().filter_map(inside).collect();
        let is_met = |(place, relation): &(usize, &Relation)| {
            members[*place].version(state).is_some_and(|version| meets(version, relation))
        };
        if inside.iter().any(is_met) { None } else { inside.first().map(|(place, _)| *place) }
    })
}

/// Whether a version is as it must be. What cannot be read is taken for unmet: too much goes along then, never too little.
fn meets(version: &str, relation: &Relation) -> bool {
    relation.bound == Bound::Any || version.parse().is_ok_and(|version| relation.takes(&version))
}

fn grouped(members: &[Member]) -> Vec<Part> {
    let mut needs: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); members.len()];
    for (place, member) in members.iter().enumerate() {
        // What it needs of the new, where the old will not do.
        needs[place].extend(needed(members, &member.new.1, State::Before).filter(|other| *other != place));
        // What would be left behind with a dependency that only the old met must come along.
        if let Some((_, depends)) = &member.old {
            for other in needed(members, depends, State::After).filter(|other| *other != place) {
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
        let side = |(version, depends): (&str, &str)| (version.to_owned(), relation::depends(depends));
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
        let found = grouped(&members);
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
        let found = grouped(&members);
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
        assert_eq!(names(&grouped(&members)), [("server".into(), vec![1]), ("plugin".into(), vec![])]);
    }
}
