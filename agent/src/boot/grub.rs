//! GRUB's menu, as grub-mkconfig(8) writes it: which entry boots which kernel, and whether an entry is booted once. Pure.

use super::{Entry, Menu, environment::Environment};

/// What GRUB does without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Habits {
    pub(super) next: NextEntry,
    pub(super) otherwise: Otherwise,
}

/// Whether it looks for an entry to boot once, and forgets it before it boots it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextEntry {
    Looked,
    Ignored,
}

/// What it boots otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// The saved entry.
    Saved,
    /// One that stands in the menu.
    Fixed,
}

/// What a menu's own lines say.
pub(super) fn habits(text: &str) -> Habits {
    let has = |wanted: &str| text.lines().any(|line| line.split_whitespace().eq(wanted.split(' ')));
    let next = has("set default=\"${next_entry}\"") && has("save_env next_entry");
    let saved = has("set default=\"${saved_entry}\"");
    Habits {
        next: if next { NextEntry::Looked } else { NextEntry::Ignored },
        otherwise: if saved { Otherwise::Saved } else { Otherwise::Fixed },
    }
}

/// Whether the entries are files of their own (Boot Loader Specification), as Fedora's and its kin's are.
pub(super) fn has_entry_files(text: &str) -> bool {
    text.lines().any(|line| line.split_whitespace().next() == Some("blscfg"))
}

/// What a `{` opened.
enum Block {
    Submenu(String),
    Entry { id: String },
    Other,
}

/// The entries of a menu that boot a kernel.
pub(super) fn menu(text: &str) -> Menu {
    let (mut entries, mut open) = (Vec::new(), Vec::<Block>::new());
    for line in text.lines() {
        let words = words(line);
        match words.first().map(String::as_str) {
            Some("}") => drop(open.pop()),
            Some(kind @ ("menuentry" | "submenu")) if words.last().is_some_and(|last| last == "{") => {
                let id = id(&words);
                open.push(if kind == "submenu" { Block::Submenu(id) } else { Block::Entry { id } });
            }
            Some("linux" | "linux16" | "linuxefi") => {
                let is_in = |block: &Block| matches!(block, Block::Entry { .. });
                let (true, Some(image)) = (open.iter().any(is_in), words.get(1)) else { continue };
                let Some(release) = release(image) else { continue };
                let path: Vec<&str> = open.iter().filter_map(Block::name).collect();
                entries.push(Entry { id: path.join(">"), release, options: words[2..].join(" ") });
            }
            _ if words.last().is_some_and(|last| last == "{") => open.push(Block::Other),
            _ => {}
        }
    }
    Menu { entries }
}

impl Block {
    fn name(&self) -> Option<&str> {
        match self {
            Self::Submenu(id) | Self::Entry { id } => Some(id),
            Self::Other => None,
        }
    }
}

/// An entry file's entry, whose id is its file's name without `.conf`.
pub(super) fn entry_of_file(id: &str, text: &str, environment: &Environment) -> Option<Entry> {
    let value = |key: &str| text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(' '));
    let image = value("linux")?.trim();
    let release = value("version").map(|version| version.trim().to_owned()).or_else(|| release(image))?;
    let options = value("options").unwrap_or_default().split_whitespace();
    // `$kernelopts` is GRUB's variable; of any other nothing is known, and nothing is believed.
    let options = options.map(|word| word.strip_prefix('$').map_or(word, |name| environment.get(name).unwrap_or("")));
    Some(Entry { id: id.to_owned(), release, options: options.collect::<Vec<_>>().join(" ") })
}

/// `/boot/vmlinuz-RELEASE`, for GRUB below its own root, signed for EFI or not.
fn release(image: &str) -> Option<String> {
    let name = image.rsplit_once("vmlinuz-")?.1;
    Some(name.strip_suffix(".efi.signed").unwrap_or(name).to_owned())
}

/// What an entry is called: its id, else its title; a `>` in it is doubled, since a single one parts submenus.
fn id(words: &[String]) -> String {
    let after = |option: &str| words.iter().position(|word| word == option).and_then(|at| words.get(at + 1));
    let short = || words.iter().find_map(|word| word.strip_prefix("--id=").map(str::to_owned));
    let given = after("$menuentry_id_option").or_else(|| after("--id")).cloned().or_else(short);
    given.or_else(|| words.get(1).cloned()).unwrap_or_default().replace('>', ">>")
}

/// A line's words, as GRUB's shell parts them: quotes of both kinds, and a backslash before one character.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut characters = line.chars();
    let mut quote = None;
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(characters.next()),
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the form of those that Debian 12's update-grub makes; the real ones are read on machines of the lab.
    const DEBIAN: &str = r#"
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
else
   set default="${saved_entry}"
fi
function quietly {
  if [ -z "${chosen}" ]; then
    set menu_color_normal=black
  fi
}
menuentry 'A system' --class os $menuentry_id_option 'gnulinux-simple-7407c2dc-01e9-43cc-b969-7ca44b98ac07' {
	quietly
	if [ x$platform = xxen ]; then insmod one; insmod two; fi
	echo	'It comes ...'
	linux	/boot/vmlinuz-6.1.0-50-cloud-amd64 root=/dev/vda1 ro console=ttyS0 panic=5 quiet
	initrd	/boot/initrd.img-6.1.0-50-cloud-amd64
}
submenu 'More of it' $menuentry_id_option 'gnulinux-advanced-7407c2dc-01e9-43cc-b969-7ca44b98ac07' {
	menuentry 'A system, with a kernel of that name' --class os $menuentry_id_option 'gnulinux-6.1.0-50-cloud-amd64-advanced-7407c2dc-01e9-43cc-b969-7ca44b98ac07' {
		quietly
		linux	/boot/vmlinuz-6.1.0-50-cloud-amd64 root=/dev/vda1 ro console=ttyS0 panic=5 quiet
		initrd	/boot/initrd.img-6.1.0-50-cloud-amd64
	}
}
"#;

    #[test]
    fn entries_of_debians_menu_are_named_with_their_submenu() {
        let menu = menu(DEBIAN);
        let names: Vec<_> = menu.entries.iter().map(|entry| (entry.id.as_str(), entry.release.as_str())).collect();
        const ROOT: &str = "7407c2dc-01e9-43cc-b969-7ca44b98ac07";
        let release = "6.1.0-50-cloud-amd64";
        let own = format!("gnulinux-advanced-{ROOT}>gnulinux-{release}-advanced-{ROOT}");
        assert_eq!(names, [(format!("gnulinux-simple-{ROOT}").as_str(), release), (own.as_str(), release)]);
        assert_eq!(menu.of(release).unwrap().id, own, "the other is the newest kernel's, whichever that is");
        assert!(menu.of(release).unwrap().reboots_on_panic());
    }

    #[test]
    fn debians_menu_boots_once_and_otherwise_what_is_saved() {
        assert_eq!(habits(DEBIAN), Habits { next: NextEntry::Looked, otherwise: Otherwise::Saved });
        let fixed = DEBIAN.replace("set default=\"${saved_entry}\"", "set default=\"0\"");
        assert_eq!(habits(&fixed), Habits { next: NextEntry::Looked, otherwise: Otherwise::Fixed });
        let plain = "set timeout=0\nlinux /vmlinuz root=/dev/vda1\nboot\n";
        assert_eq!(habits(plain), Habits { next: NextEntry::Ignored, otherwise: Otherwise::Fixed });
        assert!(menu(plain).entries.is_empty() && !has_entry_files(DEBIAN));
    }

    #[test]
    fn an_entry_file_is_an_entry_with_grubs_variables_put_in() {
        let text = "title Fedora Linux (6.2.9-300.fc38.x86_64) 38\nversion 6.2.9-300.fc38.x86_64\n\
                    linux /vmlinuz-6.2.9-300.fc38.x86_64\ninitrd /initramfs-6.2.9-300.fc38.x86_64.img $tuned_initrd\n\
                    options $kernelopts $tuned_params\ngrub_users $grub_users\n";
        let mut environment = Environment::default();
        environment.set("kernelopts", Some("root=/dev/vda2 ro panic=30"));
        let entry = entry_of_file("abc-6.2.9-300.fc38.x86_64", text, &environment).unwrap();
        assert_eq!((entry.release.as_str(), entry.reboots_on_panic()), ("6.2.9-300.fc38.x86_64", true));
        assert!(!entry_of_file("x", text, &Environment::default()).unwrap().reboots_on_panic());
        assert_eq!(entry_of_file("x", "title no kernel\n", &environment), None);
        assert!(has_entry_files("insmod blscfg\nblscfg\n") && !has_entry_files("insmod blscfg\n"));
    }

    #[test]
    fn words_are_parted_as_grub_parts_them() {
        let line = "\tmenuentry 'it'\\''s \"it\"' --class \"a b\" --id=x\\ y {  # why";
        assert_eq!(words(line), ["menuentry", "it's \"it\"", "--class", "a b", "--id=x y", "{"]);
        assert_eq!(id(&words(line)), "x y");
        assert_eq!(id(&words("menuentry 'a > b' {")), "a >> b");
    }
}
