//! The text of a drafted recipe: what it is in comments, for who reads and corrects it, then the keys. Pure.

use std::fmt::Write as _;

use super::{Draft, Unmatched, Why};

/// Names on one line of a comment, in characters.
const COLUMNS: usize = 110;

impl Why {
    /// For people.
    pub fn sentence(&self) -> String {
        match self {
            Self::OtherVersion => "another version".into(),
            Self::NeededNewer { by } => format!("{} needs it newer", plain(by)),
            Self::NotThere => "not there".into(),
            Self::OtherArchitecture => "another architecture".into(),
            Self::NotTaken => "apt does not install it so".into(),
        }
    }
}

impl Draft {
    /// The recipe's file.
    pub fn text(&self) -> String {
        let mut text = self.account();
        // Nothing here needs escaping: names and versions were checked for their letters.
        let _ = writeln!(text, "name = \"{}\"", self.name);
        let (family, release, arch) = (&self.os.family, &self.os.release, &self.os.arch);
        let _ = writeln!(text, "os = {{ family = \"{family}\", release = \"{release}\", arch = \"{arch}\" }}");
        let pockets: Vec<String> = self.pockets.iter().map(|pocket| format!("\"{}\"", pocket.name())).collect();
        let (suite, pockets) = (&self.suite, pockets.join(", "));
        let _ = writeln!(text, "source = {{ kind = \"mmdebstrap\", suite = \"{suite}\", pockets = [{pockets}] }}");
        if let Some(kernel) = &self.kernel {
            let _ = writeln!(text, "kernel = \"{kernel}\"");
        }
        text.push_str("packages = [\n");
        for package in &self.packages {
            let _ = writeln!(text, "    \"{package}\",");
        }
        text.push_str("]\n");
        let _ = writeln!(text, "memory = \"1GiB\"\nvcpus = 2\ndisk = \"{}GiB\"", self.disk_gib);
        text.push_str("# ready = { units = [\"nginx.service\"] }           # what must be up before it is frozen\n");
        text.push_str("# represents = { tags = [\"web\"], packages = [] }   # which hosts it speaks for\n");
        text
    }

    /// How near it comes to its host.
    fn account(&self) -> String {
        let others = self.unmatched.len();
        let mut text = format!(
            "# Drafted by `patchlab baseline draft` from the packages of host {}: {} of {} in the very version, {others} not.\n\
             # Named is what does not come as a dependency; a version stands where the suites have a newer one too.\n",
            plain(&self.host),
            self.exact,
            self.installed
        );
        if let Some(reason) = &self.refused {
            let _ = writeln!(
                text,
                "#\n# apt cannot install these together, so it cannot be built as it is: {}",
                plain(reason)
            );
        }
        if self.kernel.is_none() {
            text.push_str("#\n# No kernel package of the host's is in the suites: the builder's own is taken.\n");
        }
        if others > 0 {
            text.push_str("#\n# Not as on the host (package, the host's version, the version here, why):\n");
        }
        for Unmatched { name, arch, host, mirror, why } in &self.unmatched {
            let (name, arch, host) = (plain(name), plain(arch), plain(host));
            let here = mirror.as_deref().unwrap_or("-");
            let _ = writeln!(text, "#   {name}:{arch}  {host}  {here}  {}", why.sentence());
        }
        if !self.beside.is_empty() {
            text.push_str("#\n# Beside the host's packages it will have:\n");
            let mut line = String::from("#  ");
            for name in &self.beside {
                if line.len() + name.len() > COLUMNS {
                    let _ = writeln!(text, "{line}");
                    line = String::from("#  ");
                }
                let _ = write!(line, " {name}");
            }
            let _ = writeln!(text, "{line}");
        }
        text.push('\n');
        text
    }
}

/// A text from elsewhere for a comment: it stays on its line.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect()
}
