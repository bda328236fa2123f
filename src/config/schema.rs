//! The JSON Schema of `forq.toml`: the shapes and words from the types, the bounds from the
//! rules.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::Config;
use super::kind::{Kind, name_pattern};
use super::rules::{RULES, Rule};

/// The JSON Schema (draft 2020-12) that editors check a `forq.toml` with.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
    });
    let mut root = settings.into_generator().into_root_schema_for::<Config>().to_value();
    drop_nulls(&mut root);
    for rule in RULES {
        bound(&mut root, rule);
        bound_names(&mut root, rule);
    }
    if let Some(root) = root.as_object_mut() {
        root.insert("title".to_owned(), json!("forq.toml"));
    }
    root
}

/// Drops each default that is null: TOML has no null, an absent key is absent.
fn drop_nulls(schema: &mut Value) {
    if let Some(map) = schema.as_object_mut() {
        map.retain(|_, value| !value.is_null());
        map.values_mut().for_each(drop_nulls);
    }
}

/// Writes what a rule says into the schema of its key.
fn bound(root: &mut Value, rule: &Rule) {
    let mut parts: Vec<_> = rule.parts().collect();
    let Some(name) = parts.pop() else { return };
    let Some(section) = at(root, &parts) else { return };
    if rule.required
        && let Some(section) = section.as_object_mut()
    {
        require(section, name);
    }
    let Some(key) = at(section, &[name]) else { return };
    if let Kind::Items(rules) = rule.kind
        && let Some(items) = key.get_mut("items")
    {
        rules.iter().for_each(|rule| bound(items, rule));
    }
    let Some(key) = key.as_object_mut() else { return };
    if rule.required {
        key.remove("default");
    }
    match rule.kind {
        Kind::Count(min, max) => limit(key, json!(min), json!(max)),
        Kind::Number(min, max) => limit(key, json!(min), json!(max)),
        Kind::Size(min, max) => limit(key, json!(min), json!(max)),
        _ => {}
    }
    if !matches!(rule.kind, Kind::OneOf(_)) {
        let said = key.get("description").and_then(Value::as_str).unwrap_or_default();
        let text = format!("{said}\n\nAllowed: {}.", rule.kind.allowed());
        key.insert("description".to_owned(), json!(text));
    }
}

/// The schema of what stands under `parts` in the section of a schema.
fn at<'a>(schema: &'a mut Value, parts: &[&str]) -> Option<&'a mut Value> {
    parts.iter().try_fold(schema, |schema, part| match *part {
        "*" => schema.get_mut("additionalProperties"),
        part => schema.get_mut("properties")?.get_mut(part),
    })
}

/// Writes which names each section of a user's names takes.
fn bound_names(root: &mut Value, rule: &Rule) {
    let parts: Vec<_> = rule.parts().collect();
    for (index, _) in parts.iter().enumerate().filter(|(_, part)| **part == "*") {
        let path = parts.get(..index).unwrap_or_default();
        let section = path.last().copied().unwrap_or_default();
        if let Some(named) = at(root, path).and_then(Value::as_object_mut) {
            named.insert("propertyNames".to_owned(), json!({ "pattern": name_pattern(section) }));
        }
    }
}

fn limit(key: &mut Map<String, Value>, min: Value, max: Value) {
    // The width of our integers is nobody's business.
    key.remove("format");
    key.insert("minimum".to_owned(), min);
    key.insert("maximum".to_owned(), max);
}

fn require(section: &mut Map<String, Value>, name: &str) {
    let required = section.entry("required").or_insert_with(|| json!([]));
    if let Some(names) = required.as_array_mut() {
        names.push(json!(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::rules::SCHEDULE_RULES;

    #[test]
    fn the_schema_has_every_key_with_its_bounds_and_its_meaning() {
        let schema = schema();
        let item =
            SCHEDULE_RULES.iter().map(|rule| (rule, &schema["properties"]["schedule"]["items"]));
        for (rule, root) in RULES.iter().map(|rule| (rule, &schema)).chain(item) {
            let at = rule.parts().fold(root, |schema, part| match part {
                "*" => &schema["additionalProperties"],
                part => &schema["properties"][part],
            });
            let said = at["description"].as_str().unwrap_or_default();
            assert!(said.len() > 10, "{} has no description: {at}", rule.pattern);
            assert_ne!(at.get("default"), Some(&Value::Null), "{}", rule.pattern);
        }
        let workers = &schema["properties"]["workers"];
        assert_eq!(workers["properties"]["min"]["minimum"], 0);
        assert_eq!(workers["properties"]["min"]["maximum"], 1024);
        assert_eq!(workers["properties"]["boot_timeout"]["default"], "10s");
        assert_eq!(workers["properties"]["scale_down_after"]["default"], "1m");
        assert_eq!(workers["additionalProperties"], false);
        let schedule = &schema["properties"]["schedule"]["items"];
        assert_eq!(schedule["required"], json!(["name", "input"]));
        assert_eq!(schedule["properties"]["priority"]["maximum"], 9);
        assert_eq!(schedule["properties"]["kind"]["default"], "chat");
        let services =
            &schema["properties"]["tools"]["additionalProperties"]["properties"]["services"];
        assert_eq!(services["propertyNames"]["pattern"], "^[a-z0-9_-]{1,64}$");
        let headers = &services["additionalProperties"]["properties"]["headers"];
        assert!(headers["propertyNames"]["pattern"].as_str().unwrap().contains("`|~"), "{headers}");
        let provider = &schema["properties"]["providers"]["additionalProperties"];
        assert_eq!(provider["required"], json!(["base_url"]));
        assert!(!schema.to_string().contains("null"), "there is no null in TOML");
        assert!(!schema.to_string().contains("$ref"), "editors read inline schemas best");
    }
}
