//! The engine: every template of a workflow, compiled once.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, context};
use sha2::{Digest, Sha256};

use super::limits::TEMPLATE_STEPS_MAX;
use super::problem::Problem;
use crate::templates::{self, defined};

/// What an expression's value is called inside of the engine.
const VALUE: &str = "it";
/// The filter that lets nothing undefined pass.
const GIVEN: &str = "given";

/// A template or expression, by its path in the definition.
#[derive(Clone, Debug)]
pub(super) struct Template(Box<str>);

/// All of a workflow. Nothing in them depends on time or chance: an advance is worked out again
/// after a crash.
#[derive(Debug)]
pub(super) struct Templates(Environment<'static>);

impl Templates {
    pub(super) fn new() -> Self {
        let mut engine = templates::engine(TEMPLATE_STEPS_MAX);
        engine.set_undefined_behavior(UndefinedBehavior::Strict);
        if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
            engine.set_syntax(syntax);
        }
        // It shows what a template should not depend on.
        engine.remove_global("debug");
        // A loop could put a list into a list with it, without end: that takes the stack.
        engine.remove_global("namespace");
        engine.add_filter(GIVEN, |value: Value| defined(&value).cloned());
        engine.add_filter("sha256", |text: &str| sha256(text));
        Self(engine)
    }

    /// Adds a template that gives text.
    pub(super) fn add_text(&mut self, path: &str, source: &str) -> Result<Template, Problem> {
        self.add(path, source.to_owned())
    }

    /// Adds an expression, which gives a value.
    pub(super) fn add_expression(&mut self, path: &str, source: &str) -> Result<Template, Problem> {
        self.0.compile_expression(source).map(drop).map_err(|error| problem(path, &error))?;
        // The engine keeps compiled templates, but no expressions.
        self.add(path, format!("{{% set {VALUE} = ({source})|{GIVEN} %}}"))
    }

    fn add(&mut self, path: &str, source: String) -> Result<Template, Problem> {
        self.0
            .add_template_owned(path.to_owned(), source)
            .map_err(|error| problem(path, &error))?;
        Ok(Template(path.into()))
    }

    /// Whether `source` is one expression in the braces of a template and nothing else: which.
    pub(super) fn sole_expression<'a>(&self, source: &'a str) -> Option<&'a str> {
        let inner = source.strip_prefix("{{")?.strip_suffix("}}")?;
        let inner = inner.strip_prefix('-').unwrap_or(inner);
        let inner = inner.strip_suffix('-').unwrap_or(inner);
        self.0.compile_expression(inner).is_ok().then_some(inner)
    }

    /// The names that a template asks for and does not bring itself, functions of the engine left
    /// out; sorted.
    pub(super) fn asked(&self, template: &Template) -> Vec<String> {
        let Ok(compiled) = self.0.get_template(&template.0) else { return Vec::new() };
        let is_global = |name: &String| self.0.globals().any(|(known, _)| known == name);
        let mut names: Vec<String> = compiled
            .undeclared_variables(false)
            .into_iter()
            .filter(|name| !is_global(name))
            .collect();
        names.sort_unstable();
        names
    }

    pub(super) fn has_filter(&self, name: &str) -> bool {
        self.knows("name is filter", name)
    }

    pub(super) fn has_test(&self, name: &str) -> bool {
        self.knows("name is test", name)
    }

    fn knows(&self, question: &'static str, name: &str) -> bool {
        let asked = self.0.compile_expression(question).and_then(|e| e.eval(context! { name }));
        asked.is_ok_and(|known| known.is_true())
    }

    /// Renders text.
    pub(super) fn text(&self, template: &Template, scope: &Value) -> Result<String, Problem> {
        let failed = |error: Error| problem(&template.0, &error);
        let compiled = self.0.get_template(&template.0).map_err(failed)?;
        let text = templates::render(compiled, scope.clone()).map_err(failed)?;
        String::from_utf8(text).map_err(|error| Problem::new(&*template.0, error.to_string()))
    }

    /// Works out an expression. Never undefined.
    pub(super) fn value(&self, template: &Template, scope: &Value) -> Result<Value, Problem> {
        let failed = |error: Error| problem(&template.0, &error);
        let compiled = self.0.get_template(&template.0).map_err(failed)?;
        let done = compiled.render_captured(scope.clone()).map_err(failed)?;
        Ok(done.state().lookup(VALUE).unwrap_or_default())
    }
}

/// The hexadecimal SHA-256 of text.
fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn problem(path: &str, error: &Error) -> Problem {
    let kind = error.kind();
    let message = match error.detail() {
        Some(detail) if kind == ErrorKind::UndefinedError => {
            let name = detail.strip_suffix(" is undefined").unwrap_or(detail);
            format!("{kind}: {}", name.trim_matches('`'))
        }
        Some(detail) => format!("{kind}: {detail}"),
        None => kind.to_string(),
    };
    Problem::new(path, message).in_line(error.line())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(source: &str) -> Result<String, String> {
        let mut templates = Templates::new();
        let scope = context! { a => 1, t => "<&>", list => vec![1, 2] };
        let template = templates.add_text("p", source).map_err(|problem| problem.to_string())?;
        templates.text(&template, &scope).map_err(|problem| problem.to_string())
    }

    #[test]
    fn text_is_rendered() {
        for (source, rendered) in [
            ("{{ a }}{{ t }}\n", "1<&>\n"),
            ("{{ nope | default('x') }}", "x"),
            ("{{ 'abc' | sha256 }}", &sha256("abc")),
            ("{{ list | tojson }}", "[1, 2]"),
        ] {
            assert_eq!(text(source), Ok(rendered.to_owned()), "{source}");
        }
        assert!(sha256("abc").starts_with("ba7816bf8f01cfea") && sha256("abc").len() == 64);
    }

    #[test]
    fn what_is_undefined_is_named() {
        for (source, said) in [
            ("\n{{ a.b.c }}", "p line 2: undefined value: a.b"),
            ("{{ nope }}", "p: undefined value: nope"),
            ("{{ nope | tojson }}", "p: undefined value: nope"),
            ("{{ a.b | urlencode }}", "p: undefined value: a.b"),
            ("{{ debug() }}", "p: unknown function: "),
            ("{% for x in range(9999) %}{% for y in range(9999) %}{% endfor %}{% endfor %}", "p: "),
        ] {
            let error = text(source).unwrap_err();
            assert!(error.starts_with(said), "{source}: {error}");
        }
    }

    #[test]
    fn expressions_give_values() {
        let mut templates = Templates::new();
        let scope = context! { list => vec![1, 2], n => 3 };
        let mut value = |source: &str| {
            let template = templates.add_expression("e", source)?;
            templates.value(&template, &scope)
        };
        assert_eq!(value("list").unwrap(), Value::from(vec![1, 2]));
        assert_eq!(value("n > 2 and '%}' != '}}'").unwrap(), Value::from(true));
        assert_eq!(value("n\n+ nope.x").unwrap_err().message, "undefined value: nope");
        assert_eq!(value("list.x").unwrap_err().message, "undefined value: list.x");
        assert!(value("n %}{{ n").is_err());
        assert!(value("n) | (n").is_err());
        let sole = |source| templates.sole_expression(source);
        assert_eq!(sole("{{ a }}"), Some(" a "));
        assert_eq!(sole("{{ '}}' }}"), Some(" '}}' "));
        assert_eq!((sole("{{ a }} {{ b }}"), sole(" {{ a }}")), (None, None));
    }
}
