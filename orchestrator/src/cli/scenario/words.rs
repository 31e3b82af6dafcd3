//! Steps in words: what one does and what it expects, in the order in which it is written.

use patchlab_check::Step;
use serde_json::Value;

/// Keys of a step that say how it is run rather than what it does.
const MANNER: [&str; 8] = ["name", "timeout", "superficial", "metric", "machine", "until", "repeat", "redact"];

/// What a step does: the command line of `run`, else the kind and its particulars
/// (`http http://127.0.0.1/, status 200`); where, when that is not the machine under test, and until when, when it goes on.
pub(super) fn action(step: &Step) -> String {
    let fields = fields(step);
    let particulars = fields.iter().filter(|(key, _)| !MANNER.contains(&key.as_str()) && *key != "expect");
    let all: Vec<String> = particulars
        .map(|(key, value)| match (key.as_str(), value) {
            ("run", Value::String(command)) => command.clone(),
            (_, Value::Object(_)) => format!("{} {}", spoken(key), inside(value)),
            _ => format!("{} {}", spoken(key), plain(value)),
        })
        .collect();
    let place = step.machine.as_ref().map(|machine| format!("on {machine}: ")).unwrap_or_default();
    let until = step.until.as_ref().map(|until| format!("; goes on until {until:?}")).unwrap_or_default();
    format!("{place}{}{until}", all.join("; "))
}

/// What a step expects beyond that it works; empty when it expects nothing more.
pub(super) fn expectation(step: &Step) -> String {
    let fields = fields(step);
    let expect = fields.iter().find(|(key, _)| *key == "expect").map(|(_, value)| inside(value)).unwrap_or_default();
    let metric = fields.iter().find(|(key, _)| *key == "metric").map(|(_, value)| {
        let at = |key: &str| value.get(key).map(plain).unwrap_or_default();
        let better = if at("better").is_empty() { "higher".to_owned() } else { at("better") };
        format!("{} at most {} worse than without the patch ({better} is better)", at("name"), at("worse_than_control"))
    });
    [expect, metric.unwrap_or_default()].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}

/// The step as it is written, so that a kind that comes later has words too.
fn fields(step: &Step) -> Vec<(String, Value)> {
    match serde_json::to_value(step) {
        Ok(Value::Object(fields)) => fields.into_iter().collect(),
        _ => Vec::new(),
    }
}

/// The particulars of a table. What names it comes first, without its key.
fn inside(value: &Value) -> String {
    let Value::Object(fields) = value else { return plain(value) };
    let names = |key: &&String| ["name", "url", "path", "number", "host"].contains(&key.as_str());
    let named = fields.iter().filter(|(key, _)| names(key)).map(|(_, value)| plain(value));
    let others =
        fields.iter().filter(|(key, _)| !names(key)).map(|(key, value)| format!("{} {}", spoken(key), inside(value)));
    named.chain(others).collect::<Vec<_>>().join(", ")
}

fn plain(value: &Value) -> String {
    match value {
        // An empty one would not be seen at all.
        Value::String(text) if text.is_empty() || text.contains(char::is_whitespace) => format!("{text:?}"),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(inside).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn spoken(key: &str) -> String {
    key.replace(['_', '-'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(text: &str) -> Step {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn steps_are_told_as_they_are_written() {
        let http =
            step(r#"{"name":"page","http":{"url":"http://127.0.0.1/","status":200,"body_contains":"Welcome to"}}"#);
        assert_eq!(action(&http), "http http://127.0.0.1/, body contains \"Welcome to\", status 200");
        let run = step(r#"{"name":"config","run":"nginx -t","expect":{"exit":1,"stderr_contains":"bad"}}"#);
        assert_eq!(action(&run), "nginx -t");
        let more = step(r#"{"name":"page","run":"curl h","repeat":2,"redact":["x=(.)"]}"#);
        assert_eq!(action(&more), "curl h");
        assert_eq!(expectation(&run), "exit 1, stderr contains bad");
        let silent = step(r#"{"name":"quiet","run":"true","expect":{"stdout":"ok","stderr":""}}"#);
        assert_eq!(expectation(&silent), "stderr \"\", stdout ok");
        assert_eq!(action(&step(r#"{"name":"port","port":{"number":80}}"#)), "port 80");
        assert_eq!(expectation(&http), "");
        let beside = step(r#"{"name":"load","run":"./load.sh","machine":"client","until":"loaded"}"#);
        assert_eq!(action(&beside), "on client: ./load.sh; goes on until \"loaded\"");
        assert_eq!(action(&step(r#"{"name":"loaded","barrier":true}"#)), "barrier true");
    }
}
