//! What the documents show is real: examples are read by the readers that people's files meet, command lines by the command line's
//! own parser, links and paths lead somewhere, and the lists of folders and commands are those of the tree and the program.
//!
//! Every check is a function from text to complaints, and has a test of its own on a text that is wrong.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use clap::{CommandFactory as _, Parser as _, error::ErrorKind};
use patchlab::cli::Cli;

/// What a document says that is not so.
type Complaints = Vec<String>;

/// Absolute paths that a document may name: places of an installed system.
const PLACES: [&str; 8] = ["/var/lib/patchlab", "/var/log/", "/etc/", "/dev/", "/run/", "/usr/", "/proc", "/boot"];
/// Folders that every system has (Filesystem Hierarchy Standard), named as such and not for what somebody keeps there.
const FOLDERS: [&str; 7] = ["/etc", "/root", "/home", "/srv", "/opt", "/usr", "/var"];
/// What stands in an example where a reader puts something of his own, and a value that the parser takes for it.
const PLACEHOLDERS: [(&str, &str); 5] = [
    ("IP:PORT", "127.0.0.1:1"),
    ("SECONDS", "1"),
    ("NUMBER", "1"),
    ("TIME", "2027-01-01T00:00:00Z"),
    ("DIGEST", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every document, by its path from the root.
fn documents() -> Vec<(String, String)> {
    let mut names = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned()];
    for entry in fs::read_dir(root().join("docs")).expect("there are docs") {
        let name = entry.expect("docs can be listed").file_name().into_string().expect("a name in UTF-8");
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    names.sort();
    names.into_iter().map(|name| (name.clone(), fs::read_to_string(root().join(&name)).expect(&name))).collect()
}

/// Asks a question of every document and demands that nobody complains.
fn none_complains(ask: impl Fn(&str, &str) -> Complaints) {
    let all: Complaints = documents()
        .iter()
        .flat_map(|(name, text)| ask(name, text).into_iter().map(move |complaint| format!("{name}: {complaint}")))
        .collect();
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

/// A fenced or indented block: what stands behind the fence, and the lines.
struct Block<'a> {
    info: &'a str,
    lines: Vec<&'a str>,
}

/// The blocks of a document, and its other lines.
fn parts(text: &str) -> (Vec<Block<'_>>, Vec<&str>) {
    let (mut blocks, mut prose) = (Vec::new(), Vec::new());
    let mut fence: Option<Block<'_>> = None;
    for line in text.lines() {
        match (fence.take(), line.strip_prefix("```")) {
            (Some(block), Some(_)) => blocks.push(block),
            (Some(mut block), None) => {
                block.lines.push(line);
                fence = Some(block);
            }
            (None, Some(info)) => fence = Some(Block { info: info.trim(), lines: Vec::new() }),
            (None, None) => match line.strip_prefix("    ") {
                Some(code) => blocks.push(Block { info: "", lines: vec![code] }),
                None => prose.push(line),
            },
        }
    }
    blocks.extend(fence);
    (blocks, prose)
}

/// What stands in backticks.
fn quoted<'a>(prose: &[&'a str]) -> Vec<&'a str> {
    prose.iter().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

// --- examples ---

/// Reads every TOML block by the reader that its fence names.
fn examples(text: &str) -> Complaints {
    let blocks = parts(text).0;
    blocks.iter().filter(|block| block.info.starts_with("toml")).filter_map(|block| example(block).err()).collect()
}

fn example(block: &Block<'_>) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let text = block.lines.join("\n");
    let write = |name: &str| {
        let path = folder.path().join(name);
        fs::write(&path, &text).map(|()| path).map_err(|error| error.to_string())
    };
    let read = match block.info {
        "toml recipe" => {
            // The overlay that the example names is the one that ships with the project.
            let overlay = folder.path().join("debian-12-web");
            fs::create_dir(&overlay).map_err(|error| error.to_string())?;
            // And the image is somebody's own.
            fs::write(folder.path().join("web-01.qcow2"), "").map_err(|error| error.to_string())?;
            patchlab_lab::recipe::Recipe::read(&write("recipe.toml")?).map(drop).map_err(|error| error.to_string())
        }
        "toml scenario" => {
            let dir = folder.path().join("web-smoke");
            fs::create_dir(&dir).map_err(|error| error.to_string())?;
            fs::copy(root().join("scenarios/web-smoke/load.sh"), dir.join("load.sh")).map_err(|e| e.to_string())?;
            write("web-smoke/scenario.toml")?;
            patchlab_lab::scenario::Scenario::read(&dir).map(drop).map_err(|error| error.to_string())
        }
        "toml fixture" => {
            write(patchlab_lab::scenario::FIXTURE_FILE)?;
            let parameters = patchlab_check::written::Combination::default();
            let read = patchlab_lab::scenario::Fixture::read(folder.path(), &parameters);
            read.map(drop).map_err(|error| error.to_string())
        }
        "toml order" => patchlab_check::written::read::<patchlab::order::Written>(&write("order.toml")?)
            .map(drop)
            .map_err(|error| error.to_string()),
        "toml settings" => {
            write("patchlab.toml")?;
            let data =
                patchlab::place::Data::open(Some(folder.path().to_owned())).map_err(|error| error.to_string())?;
            patchlab::lab::pool::Pool::of(&data, &[]).map(drop).map_err(|error| error.to_string())
        }
        other => Err(format!(
            "a block says ```{other}, which is none of ```toml recipe, scenario, fixture, order or settings"
        )),
    };
    read.map_err(|error| format!("{error}\n{text}"))
}

#[test]
fn every_example_is_read_by_the_real_reader() {
    none_complains(|_, text| examples(text));
    let files = fs::read_to_string(root().join("docs/files.md")).unwrap();
    let kinds: BTreeSet<&str> = parts(&files).0.iter().map(|block| block.info).filter(|i| !i.is_empty()).collect();
    assert_eq!(kinds, BTreeSet::from(["toml recipe", "toml scenario", "toml fixture", "toml order", "toml settings"]));
}

#[test]
fn a_wrong_example_is_complained_about() {
    let files = fs::read_to_string(root().join("docs/files.md")).unwrap();
    assert_eq!(examples(&files), Complaints::new());
    for (right, wrong, complaint) in [
        ("packages = [\"nginx\", \"openssl\"", "pakages = [\"nginx\", \"openssl\"", "pakages"),
        ("memory = \"512MiB\"", "memory = \"512 apples\"", "memory"),
        ("[[check]] ", "[[chek]] ", "chek"),
        ("validations = 2", "validations = 0", "nonzero"),
        ("severity = \"important\"", "severity = \"dire\"", "severity"),
        ("```toml recipe", "```toml", "none of"),
    ] {
        assert!(files.contains(right), "{right}");
        let found = examples(&files.replacen(right, wrong, 1));
        assert!(found.len() == 1 && found[0].contains(complaint), "{wrong}: {found:?}");
    }
}

// --- command lines ---

/// Every command line of this program that a text shows.
fn command_lines(text: &str) -> Vec<String> {
    let (blocks, prose) = parts(text);
    let mut shown: Vec<String> = Vec::new();
    let mut joined = String::new();
    for line in blocks.iter().flat_map(|block| &block.lines) {
        joined += line;
        // A backslash at the end of a line: the command goes on.
        if let Some(part) = joined.strip_suffix('\\') {
            joined = part.to_owned();
            continue;
        }
        shown.push(std::mem::take(&mut joined));
    }
    shown.extend(quoted(&prose).into_iter().map(str::to_owned));
    shown
        .iter()
        .map(|line| line.trim().trim_start_matches("$ ").split("  #").next().unwrap_or_default().trim())
        .filter(|line| line.split_whitespace().next() == Some("patchlab"))
        .map(|line| line.trim_end_matches(" &").to_owned())
        .collect()
}

/// The words of a command line, as a shell takes them apart: what stands in quotes is one.
fn words_of(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Whether the parser takes a line. `…` stands for what the reader knows; a command alone is its name.
fn accepts(line: &str) -> Result<(), String> {
    let mut words = words_of(line);
    // The general form.
    if words.get(1).is_some_and(|word| word == "COMMAND") {
        words.remove(1);
    }
    for word in &mut words {
        let bare = word.trim_matches(['<', '>', '[', ']', '.', '…']);
        if let Some((_, value)) = PLACEHOLDERS.iter().find(|(name, _)| *name == bare) {
            *word = (*value).to_owned();
        } else if bare.is_empty() {
            return known(&words);
        } else if word.starts_with('<') {
            *word = bare.to_owned();
        }
    }
    match Cli::try_parse_from(&words) {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(()),
            // Named, not shown.
            ErrorKind::MissingRequiredArgument | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                if words.iter().all(|word| !word.starts_with('-')) =>
            {
                known(&words)
            }
            _ => Err(format!("`{line}`: {}", error.to_string().lines().next().unwrap_or_default())),
        },
    }
}

/// Whether the words before the first option name a command, and every option is one of it.
fn known(words: &[String]) -> Result<(), String> {
    let mut cli = Cli::command();
    cli.build();
    let mut command = &cli;
    for word in words.iter().skip(1) {
        if let Some(option) = word.strip_prefix("--") {
            let name = option.split('=').next().unwrap_or_default();
            if !command.get_arguments().any(|argument| argument.get_long() == Some(name)) {
                return Err(format!("`{}`: no option --{name}", words.join(" ")));
            }
        } else if let Some(sub) = command.find_subcommand(word) {
            command = sub;
        } else if command.has_subcommands() && word.chars().all(|c| c.is_ascii_lowercase()) {
            return Err(format!("`{}`: no command {word}", words.join(" ")));
        }
    }
    Ok(())
}

fn wrong_lines(text: &str) -> Complaints {
    command_lines(text).iter().filter_map(|line| accepts(line).err()).collect()
}

#[test]
fn every_command_line_shown_is_accepted_by_the_parser() {
    none_complains(|_, text| wrong_lines(text));
    let lines: usize = documents().iter().map(|(_, text)| command_lines(text).len()).sum();
    assert!(lines >= 10, "only {lines} command lines were found: does the search still see them?");
}

#[test]
fn every_example_of_the_help_is_accepted_by_the_parser() {
    let mut helps = Vec::new();
    commands(&Cli::command(), "", &mut |path, command| {
        helps.extend(command.get_after_help().map(|help| (path.to_owned(), help.to_string())));
    });
    assert!(!helps.is_empty());
    for (path, help) in helps {
        let indented: String = help.lines().map(|line| format!("  {line}\n")).collect();
        assert_eq!(wrong_lines(&indented), Complaints::new(), "{path}");
    }
}

#[test]
fn a_wrong_command_line_is_complained_about() {
    for right in [
        "    patchlab lab gc --dry-run   # only says it\n",
        "```sh\n$ patchlab host enroll web-1 --address IP:PORT \\\n    --site <SITE> --out DIR\n```",
        "say `patchlab order draft …` and `patchlab order draft --upgrade …`, or `patchlab COMMAND --help`",
        "`patchlab order draft` drafts",
        "    patchlab order revoke PO-1 --reason 'two words' --key FILE\n",
    ] {
        assert_eq!((command_lines(right).is_empty(), wrong_lines(right)), (false, Complaints::new()), "{right}");
    }
    for wrong in [
        "    patchlab lab gv\n",
        "```\npatchlab lab gc --dry-rum\n```",
        "`patchlab order drift …`",
        "`patchlab order draft --upgrad …`",
        "`patchlab order drift`",
        "    patchlab order revoke PO-1 --reason two words --key FILE\n",
        "    patchlab host enroll web-1 --address nowhere --site SITE --out DIR\n",
    ] {
        assert_eq!(wrong_lines(wrong).len(), 1, "{wrong}");
    }
}

// --- the list of commands ---

/// Calls `see` with every command that is not hidden, by its path.
fn commands(command: &clap::Command, path: &str, see: &mut impl FnMut(&str, &clap::Command)) {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        let path = format!("{path} {}", sub.get_name()).trim().to_owned();
        see(&path, sub);
        commands(sub, &path, see);
    }
}

/// The commands named in the first column of a table: `` `host enroll \| list` `` names two.
fn named_commands(text: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    for row in rows.map(|row| row.replace("\\|", "\u{1}")) {
        let column = format!("`{}", row.split('|').next().unwrap_or_default());
        for span in quoted(&[&column]) {
            let (first, others) = span.split_once('\u{1}').unwrap_or((span, ""));
            // What a reader puts in, as NAME, is not part of a command's name.
            let words = |part: &str| {
                let is_name = |word: &&str| !word.chars().all(|c| c.is_ascii_uppercase());
                part.split_whitespace().filter(is_name).collect::<Vec<_>>().join(" ")
            };
            let first = words(first);
            let noun = first.split_whitespace().next().unwrap_or_default().to_owned();
            named.insert(first);
            let others = others.split('\u{1}').map(words).filter(|verb| !verb.is_empty());
            named.extend(others.map(|verb| format!("{noun} {verb}")));
        }
    }
    named
}

/// The commands that do something, rather than hold others.
fn real_commands() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    commands(&Cli::command(), "", &mut |path, command| {
        if !command.has_subcommands() {
            all.insert(path.to_owned());
        }
    });
    all
}

fn commands_section(text: &str) -> &str {
    text.split("\n## ").next().unwrap_or_default()
}

#[test]
fn every_command_stands_in_the_list_of_commands_and_no_other() {
    let text = fs::read_to_string(root().join("docs/commands.md")).unwrap();
    assert_eq!(named_commands(commands_section(&text)), real_commands());
}

#[test]
fn the_list_of_commands_is_read_as_people_read_it() {
    let named = named_commands(
        "| `key generate`, `root init \\| sign KEY` | keys | no |\n| `doctor` | can `this` run | no |\n",
    );
    assert_eq!(named, ["doctor", "key generate", "root init", "root sign"].map(str::to_owned).into());
}

// --- links, paths, folders ---

/// Links that lead nowhere: a file that is not there, or a heading that the file does not have.
fn dead_links(name: &str, text: &str) -> Complaints {
    let base = Path::new(name).parent().unwrap_or(Path::new("")).to_owned();
    let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    links
        .filter(|link| !link.contains("://") && !link.starts_with("mailto:"))
        .filter_map(|link| {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = if file.is_empty() { root().join(name) } else { root().join(&base).join(file) };
            if !path.exists() {
                return Some(format!("the link {link} leads nowhere"));
            }
            let there = || fs::read_to_string(&path).unwrap_or_default();
            (!anchor.is_empty() && !headings(&there()).contains(anchor))
                .then(|| format!("the link {link} names a heading that is not there"))
        })
        .collect()
}

/// Headings as links name them.
fn headings(text: &str) -> BTreeSet<String> {
    let titles = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    titles
        .map(|title| {
            let kept = title.to_lowercase().replace(' ', "-");
            kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
        })
        .collect()
}

/// Files of the tree that are named in backticks and are not there.
fn missing_files(text: &str) -> Complaints {
    let (_, prose) = parts(text);
    let folders = top_folders();
    quoted(&prose)
        .into_iter()
        .filter(|span| !span.contains(|c: char| c.is_whitespace() || "{*<…".contains(c)))
        .filter(|span| span.split_once('/').is_some_and(|(first, _)| folders.contains(first)))
        .filter(|span| !root().join(span).exists())
        .map(|span| format!("`{span}` is not there"))
        .collect()
}

/// Absolute paths that are no place of an installed system.
fn strange_places(text: &str) -> Complaints {
    text.split(|c: char| c.is_whitespace() || "`'\"()<>,;|".contains(c))
        .map(|word| word.trim_end_matches(['.', ':']))
        .filter(|word| word.starts_with('/') && word.len() > 1 && !word.starts_with("//"))
        .filter(|word| !FOLDERS.contains(word))
        .filter(|word| !PLACES.iter().any(|place| word.starts_with(place)))
        .map(|word| format!("{word} is a place of somebody's own machine"))
        .collect()
}

#[test]
fn every_link_and_every_file_named_leads_somewhere() {
    none_complains(dead_links);
    none_complains(|_, text| missing_files(text));
}

#[test]
fn no_document_names_a_place_of_somebodys_own_machine() {
    none_complains(|_, text| strange_places(text));
}

#[test]
fn dead_links_and_strange_places_are_complained_about() {
    let link = |text: &str| dead_links("docs/files.md", text);
    assert_eq!(link("[a](commands.md#exit-codes) [b](../README.md) [c](https://example.org/x)"), Complaints::new());
    assert_eq!(link("[a](comands.md) [b](commands.md#exit-code) [c](README.md)").len(), 3);
    assert_eq!(missing_files("`lab/src/lib.rs`, `lab/src/{a,b}.rs`, `nginx/conf`"), Complaints::new());
    assert_eq!(missing_files("`lab/src/no-such.rs`").len(), 1);
    assert_eq!(strange_places("in /var/lib/patchlab/demo, by `a/b` or `/etc/nginx`. http://a/b"), Complaints::new());
    assert_eq!(strange_places("in `/home/ann/patchlab`: or (/srv/x)").len(), 2);
}

/// Folders at the top of the tree, apart from hidden ones and what is built.
fn top_folders() -> BTreeSet<String> {
    let entries = fs::read_dir(root()).expect("the tree can be listed").map(|entry| entry.expect("it too"));
    entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().expect("a name in UTF-8"))
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect()
}

/// The first column of the README's table of folders.
fn listed_folders(readme: &str) -> BTreeSet<String> {
    let section = readme.split("\n## ").find(|section| section.starts_with("Where things are")).unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split('`').next()).map(|folder| folder.trim_end_matches('/').to_owned()).collect()
}

#[test]
fn the_list_of_folders_is_the_trees() {
    let workspace: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let mut folders = top_folders();
    folders.extend(members.iter().map(|member| member.as_str().unwrap().to_owned()));
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert_eq!(listed_folders(&readme), folders);
    let poorer = readme.replace("| `images/` |", "| images |");
    assert_ne!(listed_folders(&poorer), folders);
}
