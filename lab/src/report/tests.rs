use serde_json::{Value, json};

use super::*;

fn verdict() -> Value {
    json!({
        "schema": SCHEMA, "order": "a".repeat(64), "id": "PO-1", "verdict": "passed", "reason": "all hold", "total_ms": 9,
        "baselines": [{
            "name": "b@1", "digest": "b".repeat(64), "verdict": "passed", "reason": "", "reboot_needed": false,
            "apply_ms": 5, "rollback_ms": 4, "total_ms": 9, "transaction": ["upgrade nginx amd64 1 -> 2"],
            "clone": { "rung": "template-clone", "ready_ms": 900, "handshake_ms": 100 },
            "rollback": { "status": "proven", "reason": "" },
            "diff": { "packages": [], "files": [], "units": [], "ports_opened": [], "ports_closed": [] },
            "scenarios": [{ "name": "web-smoke", "phase": "applied", "verdict": "pass", "reason": "", "steps": [{
                "name": "front page", "verdict": "pass",
                "control": { "status": "pass", "exit": 0, "ms": 3, "output": "200", "reason": "" },
                "patched": { "status": "pass", "exit": 0, "ms": 3, "output": "200", "reason": "" },
            }] }],
        }],
    })
}

fn read(value: &Value) -> Result<Report, ReportError> {
    Report::from_json(value.to_string().as_bytes())
}

/// Adds a field that nobody knows to every object in a value.
fn with_news(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(with_news);
            fields.insert("of_a_later_patchlab".into(), json!({ "some": ["thing"] }));
        }
        Value::Array(items) => items.iter_mut().for_each(with_news),
        _ => {}
    }
}

#[test]
fn what_was_written_is_read() {
    let report = read(&verdict()).unwrap();
    assert_eq!(read(&serde_json::to_value(&report).unwrap()).unwrap(), report);
    assert_eq!(report.baselines[0].scenarios[0].steps.len(), 1);
}

#[test]
fn fields_of_a_later_patchlab_are_passed_over_at_every_depth() {
    let mut later = verdict();
    with_news(&mut later);
    assert_ne!(later, verdict());
    assert_eq!(read(&later).unwrap(), read(&verdict()).unwrap());
}

#[test]
fn what_cannot_be_decided_on_is_refused_by_name() {
    let mut other = verdict();
    other["schema"] = json!(SCHEMA + 1);
    other.as_object_mut().unwrap().remove("baselines");
    assert!(matches!(read(&other), Err(ReportError::Schema(found)) if found == SCHEMA + 1));
    for without in ["schema", "order", "verdict", "baselines"] {
        let mut poorer = verdict();
        poorer.as_object_mut().unwrap().remove(without);
        let error = read(&poorer).unwrap_err();
        assert!(matches!(&error, ReportError::NotAVerdict(why) if why.to_string().contains(without)), "{error}");
    }
    let large = vec![b' '; REPORT_BYTES + 1];
    assert!(matches!(Report::from_json(&large), Err(ReportError::TooLarge(_))));
}
