//! A boot loader's menu, whichever loader it is.

use super::{Release, Unable};

/// What a loader can boot, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Menu {
    /// Its entries; those of submenus at their submenu's place.
    pub entries: Vec<Entry>,
}

/// One that boots a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What the loader calls it; `SUBMENU>ENTRY` in GRUB's submenus.
    pub id: String,
    /// The kernel.
    pub release: Release,
    /// Its command line.
    pub options: String,
}

impl Entry {
    /// Whether a kernel that panics reboots by itself: `panic=` with anything but 0 (kernel-parameters). The last one counts.
    pub fn reboots_on_panic(&self) -> bool {
        let found = self.options.split_whitespace().filter_map(|word| word.strip_prefix("panic=")).next_back();
        found.and_then(|seconds| seconds.parse::<i64>().ok()).is_some_and(|seconds| seconds != 0)
    }

    /// Whether it boots to a shell for repairs.
    fn is_for_repairs(&self) -> bool {
        self.options.split_whitespace().any(|word| matches!(word, "single" | "recovery" | "rescue" | "emergency"))
            || self.id.contains("rescue")
    }
}

impl Menu {
    /// The entry of one kernel that will stay its own when others come: its name says which kernel it boots.
    ///
    /// # Errors
    /// There is none.
    pub fn of(&self, release: &str) -> Result<&Entry, Unable> {
        let is_its =
            |entry: &&Entry| entry.release == release && !entry.is_for_repairs() && own(&entry.id).contains(release);
        self.entries.iter().find(is_its).ok_or_else(|| Unable::NoEntry(release.to_owned()))
    }

    /// The one that is booted where none is chosen.
    pub fn first(&self) -> Option<&Entry> {
        self.entries.first()
    }

    /// Whether an entry of this name is there.
    pub fn has(&self, id: &str) -> bool {
        self.entries.iter().any(|entry| entry.id == id)
    }
}

/// An entry's own name, without its submenus'.
fn own(id: &str) -> &str {
    id.rsplit_once('>').map_or(id, |(_, own)| own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_reboots_only_when_the_command_line_says_so() {
        let reboots = |options: &str| {
            Entry { id: String::new(), release: String::new(), options: options.into() }.reboots_on_panic()
        };
        assert!(reboots("ro panic=30") && reboots("panic=-1 quiet") && reboots("panic=0 panic=5"));
        assert!(!reboots("ro quiet") && !reboots("panic=0") && !reboots("panic=5 panic=0"));
        assert!(!reboots("panic_on_oops=1 oops=panic") && !reboots("panic=soon"));
    }

    #[test]
    fn an_entry_for_repairs_is_nobodys_way_back() {
        let entry = |id: &str, options: &str| Entry { id: id.into(), release: "6.1".into(), options: options.into() };
        let menu =
            Menu { entries: vec![entry("linux-6.1-recovery", "single panic=5"), entry("a>linux-6.1", "panic=5")] };
        assert_eq!(menu.of("6.1").unwrap().id, "a>linux-6.1");
        assert!(menu.has("linux-6.1-recovery") && menu.of("6.2").is_err());
        // A submenu's name is no entry's.
        assert!(Menu { entries: vec![entry("menu-6.1>first", "panic=5")] }.of("6.1").is_err());
    }
}
