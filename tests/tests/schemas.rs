//! The JSON Schemas in docs/schemas are those of the types, and say of files what the readers say: what ships and what the documents show
//! fits, and a slip of the pen does not.

use std::{
    fs,
    path::{Path, PathBuf},
};

use jsonschema::Validator;
use patchlab::schema::Form;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn validator(form: Form) -> Validator {
    jsonschema::draft7::new(form.schema().as_value()).expect("a schema that its own draft accepts")
}

/// What is wrong with a text as a file of that form, one line each.
fn complaints(validator: &Validator, text: &str) -> Vec<String> {
    let value: toml::Value = toml::from_str(text).expect("TOML");
    let value: Value = serde_json::to_value(value).expect("JSON");
    validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// The examples of a form in the documents.
fn examples(form: Form) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join("docs")).expect("there are docs") {
        let path = entry.expect("it can be listed").path();
        if path.extension().is_some_and(|extension| extension == "md") {
            let text = fs::read_to_string(path).expect("it can be read");
            let fence = format!("```toml {}\n", form.name());
            let blocks = text.split(&fence).skip(1);
            found.extend(blocks.filter_map(|rest| rest.split("\n```").next()).map(str::to_owned));
        }
    }
    found
}

/// Files of a form that ship, by path.
fn shipped(form: Form) -> Vec<PathBuf> {
    let of_folders = |folder: &str, file: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(root().join(folder))
            .expect(folder)
            .map(|entry| entry.expect("it can be listed").path().join(file));
        entries.filter(|path| path.is_file()).collect()
    };
    let files_in = |folder: &str| -> Vec<PathBuf> {
        let entries =
            fs::read_dir(root().join(folder)).expect(folder).map(|entry| entry.expect("it can be listed").path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
    };
    match form {
        Form::Scenario => ["scenarios", "tests/scenarios", "tests/bench/scenarios"]
            .iter()
            .flat_map(|folder| of_folders(folder, "scenario.toml"))
            .collect(),
        Form::Fixture => of_folders("tests/scenarios/fixtures", "fixture.toml"),
        Form::Recipe => [files_in("images"), files_in("tests/bench")].concat(),
        Form::Agent => files_in("agent/etc"),
        // Orders are people's own; the documents show what they write, and below is what draft writes.
        // So are settings.
        Form::Order | Form::Settings => Vec::new(),
    }
}

#[test]
fn the_schemas_in_the_documents_are_those_of_the_types() {
    for form in Form::ALL {
        let path = root().join(form.path());
        let text = fs::read_to_string(&path).unwrap_or_default();
        assert!(text == form.text(), "{}: not as generated; run: patchlab schema --out docs/schemas", form.path());
    }
    let files = fs::read_dir(root().join("docs/schemas")).unwrap().count();
    assert_eq!(files, Form::ALL.len(), "a file that no form has");
}

#[test]
fn what_ships_names_its_schema() {
    for form in Form::ALL.into_iter().filter(|form| *form != Form::Agent) {
        // A file on a host lies beside no schemas, and what a test reads need not.
        for path in shipped(form).iter().filter(|path| !path.starts_with(root().join("tests"))) {
            let text = fs::read_to_string(path).unwrap();
            let named = text.lines().next().and_then(|line| line.strip_prefix("#:schema "));
            let named = named.unwrap_or_else(|| panic!("{}: its first line names no schema", path.display()));
            let there = path.parent().unwrap().join(named).canonicalize().expect(named);
            assert_eq!(there, root().join(form.path()).canonicalize().unwrap(), "{}", path.display());
        }
    }
}

#[test]
fn what_ships_and_what_the_documents_show_fits() {
    for form in Form::ALL {
        let validator = validator(form);
        let examples = examples(form);
        // What an agent is told is explained in a file that ships.
        assert_eq!(examples.is_empty(), form == Form::Agent, "{}", form.name());
        for example in examples {
            assert_eq!(complaints(&validator, &example), Vec::<String>::new(), "{example}");
        }
        let shipped = shipped(form);
        assert_eq!(shipped.is_empty(), matches!(form, Form::Order | Form::Settings), "{}", form.name());
        for path in shipped {
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(complaints(&validator, &text), Vec::<String>::new(), "{}", path.display());
        }
    }
}

/// As `order draft` writes it.
const DRAFTED: &str = r#"
id = "PO-2026-0001"
title = "nginx"
severity = "important"
kind = "routine"
advisories = ["CVE-2026-0001"]
rollback = "proven"
not_after = "2027-01-01T00:00:00Z"

[[change]]
on = { family = "debian", release = "12", arch = "x86_64" }
upgrade = [{ name = "nginx", to = "1.22.1-9+deb12u11" }]

[[change.file]]
name = "nginx"
version = "1.22.1-9+deb12u11"
arch = "amd64"
size = 1000
sha256 = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
origin = "vendor-signed"
path = "nginx.deb"

[[change.replaces]]
name = "nginx"
version = "1.22.1-9"
arch = "amd64"
file = { size = 999, sha256 = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", origin = "vendor-signed" }

[[production]]
scenario = "web-smoke"
[production.step]
name = "front page"
http = { url = "http://127.0.0.1/", status = 200, body_contains = "Welcome" }
"#;

#[test]
fn a_drafted_order_is_read_and_fits() {
    let order = patchlab_check::written::parse::<patchlab::order::Written>(DRAFTED, Path::new("order.toml")).unwrap();
    let again = toml::to_string(&order).unwrap();
    for text in [DRAFTED, &again] {
        assert_eq!(complaints(&validator(Form::Order), text), Vec::<String>::new(), "{text}");
    }
}

/// A slip of the pen in an example: the form, what is right, what is written.
const SLIPS: &[(Form, &str, &str)] = &[
    (Form::Recipe, "packages = [\"nginx\"", "pakages = [\"nginx\""),
    (Form::Recipe, "memory = \"512MiB\"", "memory = \"512 apples\""),
    (Form::Recipe, "vcpus = 2", "vcpus = \"two\""),
    (Form::Recipe, "kind = \"mmdebstrap\"", "kind = \"debootstrap\""),
    (Form::Recipe, "pockets = [\"main\"]", "pockets = [\"man\"]"),
    (Form::Recipe, "name = \"debian-12-web\"\n", ""),
    (Form::Recipe, "timeout = \"120s\"", "timeout = 120"),
    (Form::Scenario, "owner = \"qa-web\"\n", ""),
    (Form::Scenario, "timeout = \"3min\"", "timeout = \"3 minutes\""),
    (Form::Scenario, "status = 200", "status = \"OK\""),
    (Form::Scenario, "url = \"http://127.0.0.1/\", status", "url = \"https://127.0.0.1/\", status"),
    (Form::Scenario, "run = \"nginx -t\"", "run = \"nginx -t\"\ntcp = { host = \"h\", port = 1 }"),
    (Form::Scenario, "run = \"nginx -t\"\n", ""),
    (Form::Scenario, "expect = { exit = 0 }", "expect = { exot = 0 }"),
    (Form::Scenario, "name = \"nginx.service\", state", "name = \"nginx service\", state"),
    (Form::Scenario, "worse_than_control = \"50%\"", "worse_than_control = 50"),
    (Form::Scenario, "better = \"lower\"", "better = \"less\""),
    (Form::Scenario, "kind = \"failed-units\"", "kind = \"failed-unit\""),
    (Form::Scenario, "[[check]] ", "[[chek]] "),
    (Form::Scenario, "repeat = 5", "repeat = 0"),
    (Form::Scenario, "mode = \"0644\"", "mode = \"rw-r--r--\""),
    (Form::Scenario, "reboot = true", "reboot = false"),
    (Form::Scenario, "until = { tcp", "untl = { tcp"),
    (Form::Scenario, "port = [80, 8080]", "port = 80"),
    (Form::Scenario, "ticket = \"QA-17\"", "tickt = \"QA-17\""),
    (Form::Fixture, "[[set-up]]", "[[setup]]"),
    (Form::Fixture, "run = \"userdel patchlab-probe\"", "rum = \"userdel patchlab-probe\""),
    (Form::Order, "severity = \"important\"", "severity = \"dire\""),
    (Form::Order, "id = \"PO-2026-0001\"\n", ""),
    (Form::Order, "upgrade = [{ name", "upgrade = [{ nam"),
    (Form::Order, "family = \"debian\"", "famly = \"debian\""),
];

#[test]
fn a_slip_of_the_pen_does_not_fit() {
    for (form, right, wrong) in SLIPS {
        let validator = validator(*form);
        let slipped: Vec<String> =
            examples(*form).iter().filter(|text| text.contains(right)).map(|text| text.replace(right, wrong)).collect();
        assert!(!slipped.is_empty(), "{right}: no example has it");
        for text in slipped {
            assert!(!complaints(&validator, &text).is_empty(), "{wrong}\n{text}");
        }
    }
    let validator = validator(Form::Order);
    for (right, wrong) in [
        ("origin = \"vendor-signed\"\npath", "origin = \"vendor\"\npath"),
        ("sha256 = \"aaaa", "sha256 = \"aa"),
        ("size = 1000", "size = -1"),
        ("rollback = \"proven\"", "rollback = \"sure\""),
        ("url = \"http://127", "url = \"127"),
    ] {
        assert!(DRAFTED.contains(right), "{right}");
        assert!(!complaints(&validator, &DRAFTED.replace(right, wrong)).is_empty(), "{wrong}");
    }
}

#[test]
fn every_key_is_described() {
    /// Names of keys without a word on what they are.
    fn silent(schema: &Value, found: &mut Vec<String>) {
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            let has_words =
                |value: &Value| ["description", "$ref", "allOf", "const"].iter().any(|key| value.get(key).is_some());
            found.extend(properties.iter().filter(|(_, value)| !has_words(value)).map(|(name, _)| name.clone()));
        }
        match schema {
            Value::Object(all) => all.values().for_each(|value| silent(value, found)),
            Value::Array(all) => all.iter().for_each(|value| silent(value, found)),
            _ => {}
        }
    }
    for form in Form::ALL {
        let mut found = Vec::new();
        silent(form.schema().as_value(), &mut found);
        assert_eq!(found, Vec::<String>::new(), "{}", form.name());
    }
}
