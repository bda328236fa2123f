//! What is sent to services: templates of the configuration, with the parameters of a task in them.

use std::rc::Rc;

use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, context};
use serde_json::Map;

use super::services::{Service, Tool};
use crate::templates;

/// Steps that a template may take: loops over what a task sends must not hold up a loop of ours.
const STEPS_MAX: u64 = 100_000;
/// The one name that a template is given.
const PARAMS: &str = "params";

/// Every template of every tool, by the key that it has in the configuration.
pub(super) struct Templates(Environment<'static>);

impl Templates {
    /// Reads them all. The error names the first that cannot be rendered whatever the parameters.
    pub(super) fn read<'a>(tools: impl Iterator<Item = &'a Rc<Tool>>) -> Result<Self, String> {
        let mut engine = engine();
        for tool in tools {
            for service in &tool.services {
                for (name, text) in service.templates(&tool.name) {
                    engine
                        .add_template_owned(name.clone(), text.to_owned())
                        .map_err(|error| format!("{name}: {}", reason(&error)))?;
                    knows_its_names(&engine, &name)?;
                    knows_its_filters(&engine, &name)?;
                }
                if service.has_key && !says_its_server(service) {
                    return Err(format!(
                        "tools.{}.services.{}.url: with an API key, everything up to the first / \
                         after the server must be plain text",
                        tool.name, service.name
                    ));
                }
            }
        }
        engine.set_undefined_behavior(UndefinedBehavior::Strict);
        Ok(Self(engine))
    }

    /// Renders a template. The error says what is wrong with the parameters.
    pub(super) fn render(
        &self,
        name: &str,
        params: &Map<String, serde_json::Value>,
    ) -> Result<String, String> {
        let failed = |error: Error| format!("input.params: {}, in {name}", reason(&error));
        let template = self.0.get_template(name).map_err(failed)?;
        let params = context! { params => Value::from(Serde(params)) };
        let text = templates::render(template, params).map_err(failed)?;
        String::from_utf8(text).map_err(|error| format!("{name}: {error}"))
    }
}

/// One that takes what is undefined for nothing: so more of a template is seen on trial.
fn engine() -> Environment<'static> {
    let mut engine = templates::engine(STEPS_MAX);
    engine.set_undefined_behavior(UndefinedBehavior::Chainable);
    engine
}

/// A template that asks for anything else than parameters would fail each time.
fn knows_its_names(engine: &Environment<'_>, name: &str) -> Result<(), String> {
    let template = engine.get_template(name).map_err(|error| format!("{name}: {error}"))?;
    let mut unknown: Vec<String> = template
        .undeclared_variables(false)
        .into_iter()
        .filter(|used| used != PARAMS && engine.globals().all(|(known, _)| known != used))
        .collect();
    unknown.sort_unstable();
    match unknown.first() {
        None => Ok(()),
        Some(unknown) => Err(format!(
            "{name}: there is no '{unknown}' here: a task's parameters are {PARAMS}.NAME"
        )),
    }
}

/// A filter, test or function that is not there fails whatever the parameters. Found on a trial
/// without any, as far as that goes.
fn knows_its_filters(engine: &Environment<'_>, name: &str) -> Result<(), String> {
    let template = engine.get_template(name).map_err(|error| format!("{name}: {error}"))?;
    let no_params = Value::from_iter(std::iter::empty::<(String, Value)>());
    match template.render(context! { params => no_params }) {
        Err(error) if is_unknown(&error) => Err(format!("{name}: {}", reason(&error))),
        _ => Ok(()),
    }
}

fn is_unknown(error: &Error) -> bool {
    use ErrorKind::{UnknownFilter, UnknownFunction, UnknownTest};
    matches!(error.kind(), UnknownFilter | UnknownFunction | UnknownTest)
}

/// Whether no parameter has a say in where the API key goes.
fn says_its_server(service: &Service) -> bool {
    let Some((plain, _)) = service.url.split_once('{') else { return true };
    plain.split_once("://").is_some_and(|(_, rest)| rest.contains(['/', '?', '#']))
}

/// An error without the name of its template.
fn reason(error: &Error) -> String {
    let kind = error.kind();
    if let (ErrorKind::UndefinedError, Some(detail)) = (kind, error.detail()) {
        return detail.to_owned();
    }
    let line = error.line().filter(|line| *line > 1).map(|line| format!(" in line {line}"));
    let line = line.unwrap_or_default();
    match error.detail() {
        Some(detail) => format!("{kind}: {detail}{line}"),
        None => format!("{kind}{line}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::tools;
    use super::*;
    use crate::templates::RENDERED_BYTES_MAX;

    fn service(text: &str) -> Result<Templates, String> {
        let tools = tools(&format!("[tools.t]\nchain = ['s']\n[tools.t.services.s]\n{text}"));
        Templates::read(tools.values())
    }

    fn rendered(url: &str, params: serde_json::Value) -> Result<String, String> {
        let templates = service(&format!("url = '''{url}'''")).unwrap();
        templates.render("tools.t.services.s.url", params.as_object().unwrap())
    }

    #[test]
    fn parameters_stand_in_templates() {
        for (url, rest) in [
            ("http://s/{{ params.a.b[1] }}", "2"),
            ("http://s/{{ params.none }}", "None"),
            ("http://s/{{ params.t }}", "<&>"),
            ("http://s/{{ params.t | urlencode }}", "%3C%26%3E"),
            (
                "http://s/{% for n in params.a.b %}{{ n }}{{ '/' if not loop.last }}{% endfor %}",
                "1/2",
            ),
            ("http://s/{% if params.x is defined %}x{% else %}y{% endif %}", "y"),
            ("http://s/{{ params.x | default('z') }}", "z"),
            ("http://s/{% for n in range(3) %}{{ n }}{% endfor %}", "012"),
        ] {
            let params = json!({"a": {"b": [1, 2]}, "none": null, "t": "<&>"});
            assert_eq!(rendered(url, params), Ok(format!("http://s/{rest}")), "{url}");
        }
    }

    #[test]
    fn what_cannot_be_rendered_is_told() {
        for (url, reason) in [
            ("http://s/{{ params.q }}", "input.params: `params.q` is undefined, in "),
            ("http://s/{{ params.q | urlencode }}", "input.params: `params.q` is undefined, in "),
            (
                "http://s/{{ params.q | tojson(indent=2) }}",
                "input.params: `params.q` is undefined, in ",
            ),
            ("http://s/{{ params.q | upper }}", "input.params: `params.q` is undefined, in "),
            ("http://s/{{ params.a.b.c }}", "input.params: `params.a.b` is undefined, in "),
            ("http://s/{{ params.a + 1 }}", "input.params: invalid operation: "),
            (
                "http://s/{% for a in range(1000) %}{% for b in range(1000) %}x{% endfor %}{% endfor %}",
                "input.params: engine ran out of fuel",
            ),
        ] {
            let error = rendered(url, json!({"a": {}})).unwrap_err();
            assert!(error.starts_with(reason), "{url}: {error}");
            assert!(error.ends_with("in tools.t.services.s.url"), "{url}: {error}");
        }
        let huge =
            rendered("http://s/{{ params.a }}", json!({"a": "x".repeat(RENDERED_BYTES_MAX)}));
        assert!(huge.is_err());
    }

    #[test]
    fn templates_that_never_work_are_refused() {
        for (text, said) in [
            ("url = 'http://s/{{ params.q'", "tools.t.services.s.url: syntax error: "),
            (
                "url = 'http://s'\nbody = 'a\n{% x %}'",
                "tools.t.services.s.body: syntax error: unknown statement x in line 2",
            ),
            (
                "url = 'http://s'\nheaders.X = '{{ params.q.r | nope }}'",
                "tools.t.services.s.headers.X: unknown filter: ",
            ),
            (
                "url = 'http://s/{{ input.q }}'",
                "tools.t.services.s.url: there is no 'input' here: a task's parameters are params.NAME",
            ),
        ] {
            let text = text.replace("'a\n{% x %}'", "'''a\n{% x %}'''");
            let error = service(&text).err().unwrap_or_default();
            assert!(error.starts_with(said), "{text}: {error}");
        }
    }

    #[test]
    fn no_parameter_says_where_a_key_goes() {
        for (url, good) in [
            ("http://s", true),
            ("http://s/{{ params.q }}", true),
            ("http://s?{{ params.q }}", true),
            ("http://s{{ params.q }}", false),
            ("http://{{ params.q }}/", false),
            ("http://s:80{% if true %}/{% endif %}", false),
        ] {
            let with_key = service(&format!("url = '{url}'\napi_key_env = 'K'"));
            assert_eq!(with_key.is_ok(), good, "{url}");
            assert!(service(&format!("url = '{url}'")).is_ok(), "{url}");
        }
    }
}
