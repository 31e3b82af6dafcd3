//! What differs between two machines that are alike, made alike: names, numbers, addresses. Lines of both are compared afterwards.

use std::collections::BTreeSet;

/// Hexadecimal digits from which on they are an address or an id: `feedback` has seven.
const ID_DIGITS: usize = 8;
/// Lengths of the parts of a UUID (RFC 9562, section 4).
const UUID: [usize; 5] = [8, 4, 4, 4, 12];

/// Which digits are numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Digits {
    /// Every run of them.
    All,
    /// Those that do not follow a letter: `EXT4-fs` and `sda1` are names, `process 812` is a number.
    Loose,
}

/// A text with UUIDs as `UUID`, and as `N` addresses (`0x…`), runs of eight hexadecimal digits and more, as ids of machines, boots and
/// containers are, and numbers: an id may happen to be one.
pub(super) fn folded(text: &str, digits: Digits) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_name = false;
    while let Some(c) = rest.chars().next() {
        let hex = |text: &str| text.bytes().take_while(u8::is_ascii_hexdigit).count();
        let address = rest.strip_prefix("0x").map_or(0, hex);
        let id = hex(rest);
        let (taken, sign) = if let Some(length) = uuid(rest) {
            (length, "UUID")
        } else if address > 0 {
            (address + 2, "N")
        } else if id >= ID_DIGITS {
            (id, "N")
        } else if c.is_ascii_digit() && !(digits == Digits::Loose && in_name) {
            (rest.bytes().take_while(u8::is_ascii_digit).count(), "N")
        } else {
            in_name = c.is_ascii_alphabetic() || in_name && c.is_ascii_digit();
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        if !out.ends_with(sign) {
            out += sign;
        }
        in_name = false;
        rest = &rest[taken..];
    }
    out
}

/// The length of the UUID with which a text begins.
fn uuid(text: &str) -> Option<usize> {
    let mut at = 0;
    for (number, length) in UUID.into_iter().enumerate() {
        if number > 0 {
            at += text.get(at..)?.strip_prefix('-').map(|_| 1)?;
        }
        let part = text.get(at..at + length)?;
        if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        at += length;
    }
    Some(at)
}

/// Names of the machines of which texts are, from lines `host NAME`, as the collectors begin.
pub(super) fn hosts(texts: [&str; 2]) -> BTreeSet<String> {
    let name = |text: &str| text.lines().next()?.strip_prefix("host ").map(|name| name.trim().to_owned());
    texts.into_iter().filter_map(name).filter(|name| !name.is_empty()).collect()
}

/// A text without its line `host NAME`, and with the names of both machines, where they are words of their own, as `HOST`. Each clone has a
/// name of its own; both are replaced on both, since `control` is a word as well.
pub(super) fn without_names(text: &str, hosts: &BTreeSet<String>) -> String {
    let text = text.strip_prefix("host ").map_or(text, |rest| rest.split_once('\n').map_or("", |(_, rest)| rest));
    let is_of_a_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut text = text.to_owned();
    for host in hosts {
        let mut out = String::with_capacity(text.len());
        let mut copied = 0;
        for (at, _) in text.match_indices(host.as_str()) {
            let end = at + host.len();
            let alone = !text[..at].ends_with(is_of_a_word) && !text[end..].starts_with(is_of_a_word);
            if alone && at >= copied {
                out += &text[copied..at];
                out += "HOST";
                copied = end;
            }
        }
        out += &text[copied..];
        text = out;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_addresses_and_numbers_are_folded_and_words_are_not() {
        for (text, folded_text) in [
            ("sent 812 of 77 bytes", "sent N of N bytes"),
            ("boot 3f2a9b1c0d4e4f5a8b7c6d5e4f3a2b1c ended", "boot N ended"),
            ("root=UUID 01234567-89ab-cdef-0123-456789abcdef!", "root=UUID UUID!"),
            ("at 0x7ffe and ffff888003a4b000", "at N and N"),
            ("container veth3f2a9b1c", "container vethN"),
            ("feedback on a decade of cafes", "feedback on a decade of cafes"),
            ("took 1234567890 ns", "took N ns"),
        ] {
            assert_eq!(folded(text, Digits::All), folded_text);
        }
        assert_eq!(
            folded("EXT4-fs error (device sda1): inode 12", Digits::Loose),
            "EXT4-fs error (device sda1): inode N"
        );
    }

    #[test]
    fn names_of_both_machines_are_replaced_on_both() {
        let (control, patched) = ("host control\ncontrol: no control\n", "host patched\npatched: no control\n");
        let hosts = hosts([control, patched]);
        assert_eq!(without_names(control, &hosts), "HOST: no HOST\n");
        assert_eq!(without_names(patched, &hosts), without_names(control, &hosts));
        assert_eq!(without_names("host x\nuncontrolled", &hosts), "uncontrolled");
    }
}
