//! What a Debian package depends on (Debian policy 7.1): the alternatives of each dependency, and how their versions must be. Pure.

use debversion::Version;

use crate::recipe::is_package;

/// Alternatives of one dependency that are read.
const ALTERNATIVES: usize = 50;

/// What a package needs: of each dependency, one of the alternatives.
pub type Depends = Vec<Vec<Relation>>;

/// A package that another needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Its name, without an architecture.
    pub name: String,
    /// How its version must be.
    pub bound: Bound,
}

/// How a version must be (Debian policy 7.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// However it is.
    Any,
    /// `<<`
    Earlier(Version),
    /// `<=`
    AtMost(Version),
    /// `=`
    Exactly(Version),
    /// `>=`
    AtLeast(Version),
    /// `>>`
    Later(Version),
    /// It says something that is not understood.
    Unreadable,
}

/// Reads a dependency field: `a (>= 1), b | c:any (= 2)`. A name that can be no package's is left out.
pub fn depends(field: &str) -> Depends {
    let alternatives = |clause: &str| clause.split('|').take(ALTERNATIVES).filter_map(Relation::read).collect();
    field.split(',').filter(|clause| !clause.trim().is_empty()).map(alternatives).collect()
}

impl Relation {
    fn read(text: &str) -> Option<Self> {
        let (name, rest) = text.split_once('(').unwrap_or((text, ""));
        // `python3:any` is python3 of whatever architecture: there is one here.
        let name = name.split([':', '[', '<']).next().unwrap_or_default().trim();
        let inside = rest.split(')').next().unwrap_or_default().trim();
        is_package(name).then(|| Self { name: name.to_owned(), bound: Bound::read(inside) })
    }

    /// Whether that version will do: none does when the bound could not be read.
    pub fn takes(&self, version: &Version) -> bool {
        match &self.bound {
            Bound::Any => true,
            Bound::Earlier(than) => version < than,
            Bound::AtMost(than) => version <= than,
            Bound::Exactly(than) => version == than,
            Bound::AtLeast(than) => version >= than,
            Bound::Later(than) => version > than,
            Bound::Unreadable => false,
        }
    }
}

impl Bound {
    /// Sign and version, as they are written; nothing for [`Bound::Any`].
    pub fn written(&self) -> Option<(&'static str, String)> {
        let (sign, version) = match self {
            Self::Any => return None,
            Self::Earlier(version) => ("<<", version),
            Self::AtMost(version) => ("<=", version),
            Self::Exactly(version) => ("=", version),
            Self::AtLeast(version) => (">=", version),
            Self::Later(version) => (">>", version),
            Self::Unreadable => return Some(("?", String::new())),
        };
        Some((sign, version.to_string()))
    }

    fn read(text: &str) -> Self {
        if text.is_empty() {
            return Self::Any;
        }
        let version = text.trim_start_matches(['<', '=', '>']);
        let bound = match &text[..text.len() - version.len()] {
            "<<" => Self::Earlier,
            // The old signs mean what the policy says they meant.
            "<=" | "<" => Self::AtMost,
            "=" => Self::Exactly,
            ">=" | ">" => Self::AtLeast,
            ">>" => Self::Later,
            _ => return Self::Unreadable,
        };
        version.trim().parse().map_or(Self::Unreadable, bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_relate_as_the_policy_says() {
        for (text, version, takes) in [
            ("a1", "1.0", true),
            ("libc6 (>= 2.36)", "2.36-9+deb12u10", true),
            ("libc6 (>= 2.36)", "2.35-1", false),
            ("libc6 (>= 1.0)", "1.0~rc1", false),
            ("login (<< 1:4.13)", "2:1.0", false),
            ("login (<< 2-1)", "2-1", false),
            ("login (<= 2-1)", "2-1", true),
            ("login (< 2-1)", "2-1", true),
            ("nginx-common (= 1.22.1-9)", "1.22.1-9+deb12u1", false),
            ("python3:any", "3.11.2-1+b1", true),
            ("libfoo(<=1.0~rc1)", "1.0", false),
            ("libfoo (>> 1.0~rc1)", "1.0", true),
            ("libfoo (>> 5)", "1:0.9", true),
            ("libfoo (? 2)", "2", false),
            ("libfoo (>= _)", "2", false),
        ] {
            let relation = Relation::read(text).unwrap();
            assert_eq!(relation.takes(&version.parse().unwrap()), takes, "{text} {version}");
        }
        assert!(Relation::read("${shlibs:Depends}").is_none());
    }

    #[test]
    fn a_dependency_field_is_read() {
        let read = depends("libc6 (>= 2.34), aa:any (<< 1~), bb | cc (= 2) , , perl:native [amd64]");
        let names: Vec<Vec<&str>> =
            read.iter().map(|clause| clause.iter().map(|one| one.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["libc6"], vec!["aa"], vec!["bb", "cc"], vec!["perl"]]);
        assert_eq!(read[0][0].bound, Bound::AtLeast("2.34".parse().unwrap()));
        assert_eq!((&read[2][0].bound, &read[3][0].bound), (&Bound::Any, &Bound::Any));
    }
}
