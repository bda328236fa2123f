//! JSON with templates in it.

use minijinja::Value;
use serde_json::value::RawValue;

use super::problem::Problem;
use super::template::{Template, Templates};

impl Default for Shape {
    fn default() -> Self {
        Shape::Fixed("{}".into())
    }
}

/// A value of a definition whose strings are templates.
#[derive(Debug)]
pub(super) enum Shape {
    /// JSON as it stands: there is no template in it.
    Fixed(Box<str>),
    /// A template: its text.
    Text(Template),
    /// A string that is one expression: its value.
    Value(Template),
    List(Vec<Shape>),
    Table(Vec<(String, Shape)>),
}

impl Shape {
    pub(super) fn fixed(json: &serde_json::Value) -> Self {
        Shape::Fixed(json.to_string().into())
    }

    /// A list; one without templates needs no work later.
    pub(super) fn list(items: Vec<Shape>) -> Self {
        let fixed: Option<Vec<&str>> = items.iter().map(Shape::as_fixed).collect();
        match fixed {
            Some(fixed) => Shape::Fixed(format!("[{}]", fixed.join(",")).into()),
            None => Shape::List(items),
        }
    }

    /// The same of a table.
    pub(super) fn table(fields: Vec<(String, Shape)>) -> Self {
        let field = |(name, shape): &(String, Shape)| {
            let name = serde_json::Value::from(name.as_str());
            shape.as_fixed().map(|value| format!("{name}:{value}"))
        };
        let fixed: Option<Vec<String>> = fields.iter().map(field).collect();
        match fixed {
            Some(fixed) => Shape::Fixed(format!("{{{}}}", fixed.join(",")).into()),
            None => Shape::Table(fields),
        }
    }

    fn as_fixed(&self) -> Option<&str> {
        match self {
            Shape::Fixed(json) => Some(json),
            _ => None,
        }
    }

    /// Writes its JSON.
    pub(super) fn write(
        &self,
        templates: &Templates,
        scope: &Value,
        out: &mut String,
    ) -> Result<(), Problem> {
        match self {
            Shape::Fixed(json) => out.push_str(json),
            Shape::Text(template) => push_json(&templates.text(template, scope)?, out)?,
            Shape::Value(template) => push_json(&templates.value(template, scope)?, out)?,
            Shape::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    item.write(templates, scope, out)?;
                }
                out.push(']');
            }
            Shape::Table(fields) => {
                out.push('{');
                for (i, (name, shape)) in fields.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    push_json(name, out)?;
                    out.push(':');
                    shape.write(templates, scope, out)?;
                }
                out.push('}');
            }
        }
        Ok(())
    }

    /// Its JSON, to be passed on.
    pub(super) fn json(
        &self,
        templates: &Templates,
        scope: &Value,
    ) -> Result<Box<RawValue>, Problem> {
        let mut text = String::new();
        self.write(templates, scope, &mut text)?;
        raw(text)
    }

    /// Its value, for other templates.
    pub(super) fn value(&self, templates: &Templates, scope: &Value) -> Result<Value, Problem> {
        let mut text = String::new();
        self.write(templates, scope, &mut text)?;
        serde_json::from_str(&text).map_err(no_json)
    }
}

/// JSON text of ours.
pub(super) fn raw(text: String) -> Result<Box<RawValue>, Problem> {
    RawValue::from_string(text).map_err(no_json)
}

/// The JSON of a value.
pub(super) fn push_json<T: serde::Serialize + ?Sized>(
    value: &T,
    out: &mut String,
) -> Result<(), Problem> {
    out.push_str(&serde_json::to_string(value).map_err(no_json)?);
    Ok(())
}

fn no_json(error: serde_json::Error) -> Problem {
    Problem::new("", format!("a value that JSON cannot hold: {error}"))
}
