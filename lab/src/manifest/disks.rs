//! Where a machine has files of its own: the root, and whatever else is mounted from its disks.

use std::collections::BTreeSet;

/// A shell function `disks`: what [`PROGRAM`] prints; its arguments are folders below which nothing is listed.
pub(crate) fn shell() -> String {
    // One process, and none of what a guest has besides: perl is what the lab needs of every one.
    format!("disks() {{ perl -e '{PROGRAM}' \"$@\"; }}\n")
}

/// The program itself says what is listed and what is not.
const PROGRAM: &str = include_str!("disks.pl");

/// What was printed: mount points, whatever their file systems are.
pub(super) fn parse(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.split_once('\t')).map(|(_, point)| point.to_owned()).collect()
}

/// Mount points whose files only one of two lists, as a lab that listed the root's alone did not say (`None`).
pub(crate) fn listed_by_one<'m>(
    one: Option<&'m BTreeSet<String>>,
    other: Option<&'m BTreeSet<String>>,
) -> BTreeSet<&'m str> {
    match (one, other) {
        (None, Some(points)) | (Some(points), None) => {
            points.iter().map(String::as_str).filter(|at| *at != "/").collect()
        }
        _ => BTreeSet::new(),
    }
}

/// Whether a path lies on what is mounted at one of these points. The points themselves are seen from outside, too.
pub(crate) fn is_below(points: &BTreeSet<&str>, path: &str) -> bool {
    !points.is_empty() && path.match_indices('/').skip(1).any(|(at, _)| points.contains(&path[..at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_between_apostrophes_has_none() {
        assert!(!PROGRAM.contains('\''));
    }

    #[test]
    fn what_an_older_lab_did_not_list() {
        let points = parse("timed\t/\nwhole\t/boot/efi\ntimed\t/srv/a b\n");
        let unknown = listed_by_one(Some(&points), None);
        assert_eq!(unknown, ["/boot/efi", "/srv/a b"].into());
        assert!(is_below(&unknown, "/boot/efi/EFI/x") && is_below(&unknown, "/srv/a b/c/d"));
        assert!(!is_below(&unknown, "/boot/efi") && !is_below(&unknown, "/boot/efi2/x") && !is_below(&unknown, "/etc"));
        // Both say what they list: what only one has mounted is a difference.
        assert_eq!(listed_by_one(Some(&points), Some(&["/".to_owned()].into())), [].into());
    }
}
