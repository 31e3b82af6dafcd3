//! JSON Schemas of files that people write, for editors.

use schemars::{
    JsonSchema, Schema,
    generate::SchemaSettings,
    transform::{RecursiveTransform, Transform, transform_subschemas},
};
use serde_json::{Value, json};

/// Whether texts of a file may stand for other values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameters {
    /// `${name}` stands for a value, see [`super::parse_with`].
    Used,
    /// A text is a text.
    None,
}

/// The schema of the files that are read into `T`, in draft 7, which editors for TOML know best.
pub fn schema<T: JsonSchema>(parameters: Parameters) -> Schema {
    let mut schema = SchemaSettings::draft07().for_deserialize().into_generator().into_root_schema_for::<T>();
    RecursiveTransform(without_null).transform(&mut schema);
    if parameters == Parameters::Used {
        OrParameter.transform(&mut schema);
    }
    schema
}

/// TOML has no null: what may be left out is left out.
fn without_null(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    if object.get("default").is_some_and(Value::is_null) {
        object.remove("default");
    }
    let is_null = |value: &Value| *value == json!("null") || value.get("type") == Some(&json!("null"));
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| !is_null(name));
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(any)) = object.get_mut("anyOf") {
        any.retain(|one| !is_null(one));
        match any.as_slice() {
            // What stands beside a reference is passed over by readers of this draft.
            [Value::Object(only)] if only.contains_key("$ref") => {
                let only = object.remove("anyOf");
                object.extend(only.map(|only| ("allOf".to_owned(), only)));
            }
            [Value::Object(only)] => {
                let only = only.clone();
                object.remove("anyOf");
                for (key, value) in only {
                    object.entry(key).or_insert(value);
                }
            }
            _ => {}
        }
    }
}

/// Lets a number, a truth, a word of a list, or a text of a certain form be a text with a parameter in it instead.
struct OrParameter;

impl Transform for OrParameter {
    fn transform(&mut self, schema: &mut Schema) {
        let words = schema.get("oneOf").and_then(Value::as_array).is_some_and(|all| all.iter().all(is_word));
        let formed_text = schema.get("type") == Some(&json!("string")) && schema.get("pattern").is_some();
        let scalar = schema.get("const").is_some()
            || schema.get("enum").is_some()
            || ["integer", "number", "boolean"].iter().any(|name| schema.get("type") == Some(&json!(name)));
        if !(words || formed_text || scalar) {
            return transform_subschemas(self, schema);
        }
        // Its own parts are left alone: what stands for it stands for all of it.
        let Some(object) = schema.as_object_mut() else { return };
        let description = object.remove("description");
        let plain = Value::Object(std::mem::take(object));
        object.extend(description.map(|text| ("description".to_owned(), text)));
        let text = "a text in which ${name} stands for a parameter's value";
        let parameter = json!({ "type": "string", "description": text, "pattern": r"\$\{[a-z][a-z0-9_-]*\}" });
        object.insert("anyOf".into(), json!([plain, parameter]));
    }
}

fn is_word(schema: &Value) -> bool {
    schema.get("const").is_some()
}
