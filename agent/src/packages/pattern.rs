//! Patterns by which people name packages and files to their package manager.

/// Whether a text matches a pattern of fnmatch(3): `*`, `?` and `[…]`.
pub fn glob(pattern: &str, text: &str) -> bool {
    let mut signs = pattern.chars();
    match signs.next() {
        None => text.is_empty(),
        Some('*') => {
            let rest = signs.as_str();
            let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.into_iter().any(|at| glob(rest, &text[at..]))
        }
        Some('[') if signs.as_str().contains(']') => {
            let (set, rest) = signs.as_str().split_once(']').unwrap_or_default();
            let mut text = text.chars();
            text.next().is_some_and(|sign| in_set(set, sign)) && glob(rest, text.as_str())
        }
        Some(sign) => {
            let mut text = text.chars();
            text.next().is_some_and(|found| sign == '?' || sign == found) && glob(signs.as_str(), text.as_str())
        }
    }
}

fn in_set(set: &str, sign: char) -> bool {
    let (set, negated) = set.strip_prefix(['!', '^']).map_or((set, false), |set| (set, true));
    let set: Vec<char> = set.chars().collect();
    let range = set.windows(3).any(|part| part[1] == '-' && (part[0]..=part[2]).contains(&sign));
    (range || set.contains(&sign)) != negated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_those_of_a_shell() {
        for (pattern, text, matches) in [
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("*", "", true),
            ("k[a-f]?", "kee", true),
            ("k[!a-f]", "ke", false),
            ("k[", "k[", true),
            ("kernel", "kernel-core", false),
        ] {
            assert_eq!(glob(pattern, text), matches, "{pattern} {text}");
        }
    }
}
