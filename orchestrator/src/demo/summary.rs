//! What the demonstration says at its end: what it showed and how long that took, where the results are, and what to try next.

use std::{fmt::Write as _, path::Path};

use super::{After, Shown, stage::quoted};
use crate::legible::millis;

/// The end summary.
pub fn text(shown: &Shown, source: &Path, after: After) -> String {
    let mut text = String::from("\nWhat was shown\n");
    let width = shown.stages.iter().map(|stage| stage.title.len()).max().unwrap_or(0);
    for stage in &shown.stages {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {}  {:<width$}  {:>10}", stage.number, stage.title, millis(stage.ms));
    }
    let _ = writeln!(text, "     {:<width$}  {:>10}", "in all", millis(shown.ms));
    let path = |path: &Path| quoted(&path.display().to_string());
    let console = match after {
        After::Keep => format!("{}  (until Ctrl-C)", shown.console),
        After::Stop => format!("{}  (while the server runs: --keep leaves it on)", shown.console),
    };
    let _ = writeln!(text, "\nWhere it is\n  report   {}", path(&shown.report.join("index.html")));
    let _ = writeln!(text, "  console  {console}\n  data     {}", path(&shown.data));
    let patchlab = format!("patchlab --data {}", path(&shown.data));
    let order = |name: &str| path(&shown.data.join("orders").join(name).join("order.toml"));
    let scenarios = path(&source.join("scenarios"));
    text += "\nWhat to try next\n";
    let server = match after {
        After::Keep => ("in another terminal: what the server knows", format!("{patchlab} order list")),
        After::Stop => ("the console again, on what was stored", format!("{patchlab} serve")),
    };
    for (why, command) in [
        server,
        ("the stored baseline", format!("{patchlab} baseline list")),
        ("a scenario of your own in the folder, checked", format!("patchlab scenario lint {scenarios}")),
        ("and proven on clones", format!("{patchlab} lab validate --order {} --scenarios {scenarios}", order("good"))),
        (
            "which package breaks the bad order, found by further validations",
            format!("{patchlab} lab validate --order {} --scenarios {scenarios}", order("bad")),
        ),
    ] {
        let _ = writeln!(text, "  {why}:\n    {command}");
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{cli::Cli, demo::Finished};

    fn shown() -> Shown {
        let stage = |number, title: &str, ms| Finished { number, title: title.into(), ms, result: String::new() };
        Shown {
            stages: vec![stage(1, "doctor", 900), stage(2, "baseline: a running system", 219_000)],
            ms: 219_900,
            data: "/srv/patch lab/demo".into(),
            console: "http://127.0.0.1:8470/".into(),
            report: "/srv/patch lab/demo/report".into(),
        }
    }

    #[test]
    fn the_summary_aligns_names_every_place_and_says_what_to_try() {
        let text = text(&shown(), Path::new("."), After::Stop);
        assert!(text.contains("  1  doctor                          900 ms\n"), "{text}");
        assert!(text.contains("  2  baseline: a running system  3 min 39 s\n"), "{text}");
        assert!(text.contains("report   '/srv/patch lab/demo/report/index.html'\n"), "{text}");
        assert!(text.contains("console  http://127.0.0.1:8470/  (while the server runs"), "{text}");
    }

    #[test]
    fn every_command_it_names_is_one() {
        for after in [After::Stop, After::Keep] {
            let mut shown = shown();
            shown.data = "/srv/demo".into();
            let text = text(&shown, Path::new("."), after);
            let commands: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("    patchlab")).collect();
            assert_eq!(commands.len(), 5, "{text}");
            for command in commands {
                let words = std::iter::once("patchlab").chain(command.split_whitespace());
                assert!(Cli::try_parse_from(words).is_ok(), "{command}");
            }
        }
    }
}
