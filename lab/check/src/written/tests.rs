use serde::Deserialize;

use super::*;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Recipe {
    name: String,
    #[serde(default)]
    packages: Vec<String>,
    memory: Option<ByteSize>,
    vcpus: Option<u8>,
    os: Option<Os>,
    source: Option<Source>,
    severity: Option<Severity>,
    #[serde(default)]
    step: Vec<Inner>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Os {
    family: String,
    release: String,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[allow(dead_code)]
enum Source {
    Mmdebstrap {
        suite: String,
        #[serde(default)]
        pockets: Vec<String>,
    },
    Disk {
        path: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Severity {
    Low,
    Important,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Inner {
    name: String,
    timeout: Option<Span>,
    os: Option<Os>,
}

fn error(text: &str) -> String {
    parse::<Recipe>(text, Path::new("images/x.toml")).expect_err(text).to_string()
}

#[test]
fn every_slip_is_named_with_file_line_key_and_remedy() {
    let table = [
        // unknown keys: at the root, in inline and headed tables, in arrays of tables, in tagged enums
        (
            "name = \"x\"\n\n# c\npakages = []\n",
            r#"images/x.toml:4:1: unknown key "pakages": did you mean "packages"?"#,
        ),
        ("name = \"x\"\nfoo = 1\n", r#"images/x.toml:2:1: unknown key "foo": known keys, nearest first: "os", "#),
        (
            "name = \"x\"\nos = { family = \"debian\", relase = \"12\" }\n",
            r#"images/x.toml:2:27: unknown key "relase" in "os": did you mean "release"?"#,
        ),
        (
            "name = \"x\"\n[os]\nfamily = \"debian\"\nrelease = \"12\"\nfamilly = \"d\"\n",
            r#"images/x.toml:5:1: unknown key "familly" in "os": did you mean "family"?"#,
        ),
        (
            "name = \"x\"\n[[step]]\nname = \"a\"\n[[step]]\nname = \"b\"\ntimout = \"1s\"\n",
            r#"images/x.toml:6:1: unknown key "timout" in "step": did you mean "timeout"?"#,
        ),
        (
            "name = \"x\"\n[[step]]\nname = \"b\"\n[step.os]\nfamily = \"d\"\nrelese = \"1\"\n",
            r#"images/x.toml:6:1: unknown key "relese" in "step.os": did you mean "release"?"#,
        ),
        (
            "name = \"x\"\nsource = { kind = \"mmdebstrap\", suite = \"s\", pocket = [] }\n",
            r#"images/x.toml:2:46: unknown key "pocket" in "source": did you mean "pockets"?"#,
        ),
        // wrong words
        (
            "name = \"x\"\nsource = { kind = \"mmdebstrp\", suite = \"s\" }\n",
            r#"images/x.toml:2:19: key "source.kind": unknown value "mmdebstrp": did you mean "mmdebstrap"?"#,
        ),
        (
            "name = \"x\"\nseverity = \"importand\"\n",
            r#"images/x.toml:2:12: key "severity": unknown value "importand": did you mean "important"?"#,
        ),
        // missing keys
        ("packages = []\n", r#"images/x.toml:1:1: missing key "name""#),
        ("", r#"images/x.toml:1:1: missing key "name""#),
        ("name = \"x\"\nos = { family = \"debian\" }\n", r#"images/x.toml:2:6: missing key "release" in "os""#),
        (
            "name = \"x\"\n[[step]]\nname = \"a\"\n\n[[step]]\ntimeout = \"1s\"\n",
            r#"images/x.toml:5:1: missing key "name" in "step""#,
        ),
        ("name = \"x\"\n[os]\nfamily = \"debian\"\n", r#"images/x.toml:2:1: missing key "release" in "os""#),
        // wrong types and values
        ("name = 5\n", r#"images/x.toml:1:8: key "name": expected a string, found integer 5"#),
        (
            "name = \"x\"\npackages = \"nginx\"\n",
            r#"images/x.toml:2:12: key "packages": expected a sequence, found string "nginx""#,
        ),
        (
            "name = \"x\"\npackages = [\"a\", 5]\n",
            r#"images/x.toml:2:18: key "packages": expected a string, found integer 5"#,
        ),
        ("name = \"x\"\nvcpus = 300\n", r#"images/x.toml:2:9: key "vcpus": expected u8, found integer 300"#),
        (
            "name = \"x\"\nmemory = 512\n",
            r#"images/x.toml:2:10: key "memory": expected a size such as "512MiB" or "4GiB", found integer 512"#,
        ),
        (
            "name = \"x\"\nmemory = \"512 elephants\"\n",
            r#"images/x.toml:2:10: key "memory": expected a size such as "512MiB" or "4GiB", found "512 elephants""#,
        ),
        (
            "name = \"x\"\n[[step]]\nname = \"a\"\ntimeout = \"120\"\n",
            r#"images/x.toml:4:11: key "step.timeout": expected a length of time such as "500ms", "120s", "3min" or "1h", found "120""#,
        ),
        // no TOML; columns count characters
        ("name = \n", "images/x.toml:1:8: not valid TOML: "),
        ("name = \"x\"\nname = \"y\"\n", "images/x.toml:2:1: not valid TOML: duplicate key"),
        ("name = \"x\"\nos = { family = \"é\", relase = 1 }\n", r#"images/x.toml:2:22: unknown key "relase" in "os""#),
    ];
    let mut wrong = String::new();
    for (text, expected) in table {
        let found = error(text);
        if !found.starts_with(expected) || found.contains('\n') {
            wrong += &format!("\n   input {text:?}\nexpected {expected}\n   found {found}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn quantities() {
    for (text, ms) in
        [("500ms", 500), ("120s", 120_000), ("3min", 180_000), ("3 min", 180_000), ("1h", 3_600_000), ("0s", 0)]
    {
        assert_eq!(text.parse::<Span>().unwrap().0.as_millis(), ms, "{text}");
    }
    for text in ["", "s", "12", "-1s", "1.5s", "1 fortnight", "99999999999999999999s", "999999999999999999h"] {
        assert!(text.parse::<Span>().is_err(), "{text}");
    }
    for (text, bytes) in [("512MiB", 512 << 20), ("4GiB", 4 << 30), ("100MB", 100_000_000), ("0B", 0), ("3 KiB", 3072)]
    {
        assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes, "{text}");
    }
    for text in ["512", "MiB", "4gib", "99999999999TiB"] {
        assert!(text.parse::<ByteSize>().is_err(), "{text}");
    }
    for text in ["512MiB", "4GiB", "1025B", "0B"] {
        assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
    }
    for text in ["1500ms", "120s", "0s"] {
        let span: Span = text.parse().unwrap();
        assert_eq!(serde_json::to_string(&span).unwrap(), format!("{text:?}"));
        assert_eq!(serde_json::from_str::<Span>(&format!("{text:?}")).unwrap(), span);
    }
}

#[test]
fn a_problem_found_later_is_placed_at_its_key() {
    let text = "name = \"x\"\n\n[[step]]\nname = \"a\"\n[[step]]\nname = \"b\"\nrun = \"true\"\n";
    for (key, line) in [("name", 1), ("step.1.run", 7), ("step.1.http.url", 5), ("step.0.name", 4), ("nothing", 1)] {
        let error = WrittenError::at_key(Path::new("s.toml"), text, key, "odd");
        assert_eq!(error.line(), Some(line), "{key}");
    }
}

#[test]
fn files_have_limits() {
    let dir = std::env::temp_dir().join(format!("patchlab-written-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("x.toml");
    fs::write(&path, b"name = \"x\"\nos = \"\xff\"").unwrap();
    assert!(matches!(read::<Recipe>(&path), Err(WrittenError::NotText { line: 2, column: 7, .. })));
    fs::write(&path, vec![b'#'; FILE_BYTES as usize + 1]).unwrap();
    assert!(matches!(read::<Recipe>(&path), Err(WrittenError::TooLarge { .. })));
    assert!(matches!(read::<Recipe>(&dir), Err(WrittenError::Unreadable { .. })));
    assert!(matches!(read::<Recipe>(&dir.join("none")), Err(WrittenError::Unreadable { .. })));
    fs::remove_dir_all(&dir).unwrap();
}

#[derive(Debug, Deserialize, PartialEq)]
struct Asked {
    name: String,
    number: u16,
    url: String,
    run: Vec<String>,
    on: bool,
}

#[test]
fn parameters_stand_in_texts() {
    let text = "name = \"${kind}\"\nnumber = \"${port}\"\nurl = \"http://h:${port}/${kind}${port}\"\non = \"${on}\"\n\
        run = [\"echo ${HOME} $${port} ${x:-1} ${\", \"x${kind}\"]\n\
        [parameters]\nkind = \"web\"\non = true\nport = 80\nunused = 1\n[matrix]\nport = [8080, 443]\n";
    let path = Path::new("s.toml");
    let all = combinations(text, path).unwrap();
    let names: Vec<String> = all.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["[port=8080]", "[port=443]"]);
    let (asked, used) = parse_with::<Asked>(text, path, &all[1]).unwrap();
    let expected = Asked {
        name: "web".into(),
        number: 443,
        url: "http://h:443/web443".into(),
        run: vec!["echo ${HOME} ${port} ${x:-1} ${".into(), "xweb".into()],
        on: true,
    };
    assert_eq!(asked, expected);
    assert_eq!(used.into_iter().collect::<Vec<_>>(), ["kind", "on", "port"]);
    assert_eq!(combinations("a = 1\n", path).unwrap(), [Combination::default()]);
    let square = combinations("[matrix]\na = [1, 2]\nb = [\"x\", \"y\"]\n", path).unwrap();
    assert_eq!(
        square.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        "[a=1,b=x] [a=1,b=y] [a=2,b=x] [a=2,b=y]"
    );
}

#[test]
fn parameters_that_cannot_be_are_named_with_their_line() {
    let path = Path::new("s.toml");
    let many: Vec<String> = (0..=COMBINATIONS).map(|number| number.to_string()).collect();
    let table = [
        ("[matrix]\nport = []\n".to_owned(), r#"s.toml:2:1: key "matrix.port": no values"#),
        ("[matrix]\nport = [1, 1]\n".to_owned(), r#"s.toml:2:1: key "matrix.port": a value is there twice"#),
        ("[matrix]\nport = [\"a=b\"]\n".to_owned(), r#"s.toml:2:1: key "matrix.port": "a=b" cannot stand in a name"#),
        ("[parameters]\nPort = 1\n".to_owned(), r#"s.toml:2:1: key "parameters": "Port" is no parameter"#),
        (
            "[parameters]\nport = 1.5\n".to_owned(),
            r#"s.toml:2:8: key "parameters.port": expected a text, a whole number"#,
        ),
        (format!("[matrix]\nn = [{}]\n", many.join(",")), "s.toml:1:2: key \"matrix\": more than 32 combinations"),
    ];
    for (text, expected) in table {
        let found = combinations(&text, path).expect_err(expected).to_string();
        assert!(found.starts_with(expected), "\nexpected {expected}\n   found {found}");
    }
    let text = "name = \"x\"\nnumber = 1\nurl = \"a${prot}\"\nrun = []\non = true\n[parameters]\nport = 1\n";
    let found = parse_with::<Asked>(text, path, &combinations(text, path).unwrap()[0]).unwrap_err().to_string();
    assert!(found.starts_with(r#"s.toml:3:7: unknown parameter "prot", known are "port": say it"#), "{found}");
    // A value of the wrong type is placed where it is used.
    let text = "name = \"x\"\nnumber = \"${port}\"\nurl = \"\"\nrun = []\non = true\n[parameters]\nport = \"x\"\n";
    let found = parse_with::<Asked>(text, path, &combinations(text, path).unwrap()[0]).unwrap_err().to_string();
    assert!(found.starts_with(r#"s.toml:2:10: key "number": expected u16, found string "x""#), "{found}");
}

#[test]
fn every_unknown_key_is_told_and_not_what_follows_from_it() {
    let found = |text: &str| {
        let found = parse_all::<Recipe>(text, Path::new("x.toml"), &Combination::default());
        let told: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        (found.read.is_some(), told.join("\n"))
    };
    // At the root, in inline tables, in tables that serde buffers, in arrays of tables, more than once.
    let text = "name = \"x\"\npakages = []\nos = { family = \"a\", release = \"1\", relase = \"2\" }\n\
        source = { kind = \"disk\", path = \"x\", sha = 1 }\nfoo = 1\n\
        [[step]]\nname = \"a\"\ntimout = \"1s\"\n[[step]]\nname = \"b\"\ntimout = \"1s\"\n";
    let (is_read, told) = found(text);
    for expected in ["2:1: unknown key \"pakages\"", "3:37: unknown key \"relase\"", "5:1: unknown key \"foo\""] {
        assert!(told.contains(expected), "{expected}\n{told}");
    }
    assert!(told.contains("8:1: unknown key \"timout\"") && told.contains("11:1: unknown key \"timout\""), "{told}");
    assert!(told.contains("unknown key \"sha\"") && told.lines().count() == 6, "{told}");
    assert!(is_read);
    // What is missing under its right name is not told as well; what is wrong elsewhere is.
    let (is_read, told) = found("nam = \"x\"\n");
    assert_eq!((is_read, told.lines().count()), (false, 1), "{told}");
    let (is_read, told) = found("arch = 1\nname = 1\n");
    assert!(!is_read && told.contains("key \"name\": expected a string") && told.lines().count() == 2, "{told}");
}

#[test]
fn all_that_is_wrong_is_told_and_not_what_follows_from_it() {
    let found = |text: &str| {
        let found = parse_all::<Recipe>(text, Path::new("x.toml"), &Combination::default());
        (found.read.is_some(), found.errors.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let is_told = |text: &str, expected: &[&str]| {
        let (is_read, told) = found(text);
        assert!(!is_read, "{told:#?}");
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        expected.iter().zip(&told).for_each(|(part, told)| assert!(told.contains(part), "{part}\n{told}"));
    };
    let head = "name = \"x\"\nos = { family = \"a\", release = \"1\" }\nsource = { kind = \"disk\", path = \"x\" }\n";
    // A wrong type, a parameter, an unknown key, a missing one, each in a step of its own.
    let steps = "[[step]]\nname = 1\n[[step]]\nname = \"${prot}\"\n[[step]]\nname = \"c\"\ntimout = \"1s\"\n[[step]]\n\
        timeout = \"1s\"\n[[step]]\nname = \"e\"\n";
    let said = [
        "5:8: key \"step.name\"",
        "7:8: unknown parameter \"prot\"",
        "10:1: unknown key \"timout\"",
        "missing key \"name\"",
    ];
    is_told(&format!("{head}{steps}"), &said);
    // A key that is no element's, and what it hides no more.
    let text = head.replace("family = \"a\"", "family = 1");
    is_told(&format!("{text}{steps}"), &[&["2:17: key \"os.family\""], &said[..]].concat());
    // One that stands in an array of an array's.
    is_told(&format!("{head}[[step]]\nname = [[1], [2]]\n"), &["5:8: key \"step.name\""]);
    // No more than somebody reads.
    let many = "[[step]]\nname = 1\n".repeat(WRONG_AND_MORE);
    let (_, told) = found(&format!("{head}{many}"));
    assert_eq!(told.len(), WRONG_AND_MORE - 4);
    // Not TOML at all.
    is_told("name = \n", &["not valid TOML"]);
}

/// More than are told, which are one more than are read over.
const WRONG_AND_MORE: usize = 105;
