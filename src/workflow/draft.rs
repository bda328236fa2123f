//! A definition while it is read: its templates, and every mistake that was found.

use std::cell::Cell;
use std::rc::Rc;

use serde_json::Value;

use super::definition::{Step, UsedKind};
use super::inputs::Inputs;
use super::limits::{CODE_BYTES_MAX, PROBLEMS_MAX};
use super::literals::multiplied;
use super::names::{Named, Use, code_bytes, code_of, uses};
use super::problem::Problem;
use super::set::StepSet;
use super::shape::Shape;
use super::template::{Template, Templates};
use crate::config::suggest::nearest;

/// What a step's result has for templates.
const RESULT: [&str; 7] = ["state", "output", "text", "json", "error", "items", "rounds"];

#[derive(Debug)]
pub(super) struct Draft {
    pub(super) templates: Templates,
    pub(super) problems: Vec<Problem>,
    pub(super) kinds: Vec<UsedKind>,
    /// Regular expressions that there may be yet, in all definitions around this one, too.
    pub(super) patterns: Rc<Cell<usize>>,
    written: Vec<Written>,
}

/// A template whose names are looked at once all steps are known.
#[derive(Debug)]
struct Written {
    path: String,
    source: String,
    code: bool,
    template: Template,
    scope: Names,
}

/// What a template may name besides `inputs`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub(super) steps: StepNames,
    /// What there is in this one place, such as `item`.
    pub(super) own: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepNames {
    /// No step: there are none yet.
    None,
    /// Every step: they have all ended.
    All,
    /// Those that have ended before this one begins.
    Before(usize),
    /// Those and the latest result of this one.
    BeforeAnd(usize),
}

impl Names {
    /// The same, with the step's own result.
    pub(super) fn and_itself(self) -> Self {
        match self.steps {
            StepNames::Before(step) => Self { steps: StepNames::BeforeAnd(step), ..self },
            _ => self,
        }
    }
}

impl Draft {
    pub(super) fn new(patterns: Rc<Cell<usize>>) -> Self {
        Self {
            patterns,
            templates: Templates::new(),
            problems: Vec::new(),
            kinds: Vec::new(),
            written: Vec::new(),
        }
    }

    pub(super) fn problem(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem::new(path, message));
    }

    /// A string that is an expression.
    pub(super) fn expression(
        &mut self,
        path: &str,
        source: &str,
        scope: Names,
    ) -> Option<Template> {
        if !self.compiles_small(path, source, true) {
            return None;
        }
        let template = self.templates.add_expression(path, source);
        self.keep(path, source, true, template, scope)
    }

    /// A string that is a template and gives text.
    pub(super) fn template(&mut self, path: &str, source: &str, scope: Names) -> Option<Template> {
        if !self.compiles_small(path, source, false) {
            return None;
        }
        let template = self.templates.add_text(path, source);
        self.keep(path, source, false, template, scope)
    }

    /// Whether there is little to compile; otherwise notes it.
    fn compiles_small(&mut self, path: &str, source: &str, code: bool) -> bool {
        let bytes = code_bytes(source, code);
        if bytes > CODE_BYTES_MAX {
            let why = format!("has {bytes} bytes of code: at most {CODE_BYTES_MAX} are allowed");
            self.problem(path, why);
            return false;
        }
        let line = code_of(source, code).iter().find_map(|tokens| multiplied(tokens));
        if line.is_some() {
            let why = "text and lists that are written out cannot be multiplied";
            self.problems.push(Problem::new(path, why).in_line(line));
        }
        line.is_none()
    }

    fn keep(
        &mut self,
        path: &str,
        source: &str,
        code: bool,
        template: Result<Template, Problem>,
        scope: Names,
    ) -> Option<Template> {
        let template = match template {
            Ok(template) => template,
            Err(problem) => {
                self.problems.push(problem);
                return None;
            }
        };
        self.written.push(Written {
            path: path.to_owned(),
            source: source.to_owned(),
            code,
            template: template.clone(),
            scope,
        });
        Some(template)
    }

    /// Text, with or without templates in it.
    pub(super) fn text(&mut self, path: &str, source: &str, scope: Names) -> Shape {
        let template = if is_plain(source) { None } else { self.template(path, source, scope) };
        template.map_or_else(|| Shape::fixed(&Value::from(source)), Shape::Text)
    }

    /// JSON, with or without templates in its strings.
    pub(super) fn shape(&mut self, path: &str, value: &Value, scope: Names) -> Shape {
        match value {
            Value::String(source) if !self.compiles_small(path, source, false) => {
                Shape::fixed(&Value::Null)
            }
            Value::String(source) => match self.templates.sole_expression(source) {
                Some(inner) => self
                    .expression(path, inner, scope)
                    .map_or_else(|| Shape::fixed(&Value::Null), Shape::Value),
                None => self.text(path, source, scope),
            },
            Value::Array(items) => {
                let item = |(i, item)| self.shape(&format!("{path}[{i}]"), item, scope);
                Shape::list(items.iter().enumerate().map(item).collect())
            }
            Value::Object(fields) => {
                let field = |(name, value): (&String, &Value)| {
                    (name.clone(), self.shape(&format!("{path}.{name}"), value, scope))
                };
                Shape::table(fields.iter().map(field).collect())
            }
            plain => Shape::fixed(plain),
        }
    }

    /// Looks at every name in every template.
    pub(super) fn check_names(&mut self, steps: &[Step], inputs: &Inputs) {
        for written in std::mem::take(&mut self.written) {
            if self.problems.len() > PROBLEMS_MAX {
                return;
            }
            let uses = uses(&written.source, written.code);
            let mut found: Vec<(usize, String)> = uses
                .iter()
                .filter_map(|used| {
                    let why = match &used.what {
                        Named::Filter(name) if !self.templates.has_filter(name) => {
                            format!("unknown filter: {name}")
                        }
                        Named::Test(name) if !self.templates.has_test(name) => {
                            format!("unknown test: {name}")
                        }
                        Named::Variable(path) => wrong(path, written.scope, steps, inputs)?,
                        _ => return None,
                    };
                    Some((used.line, why))
                })
                .take(PROBLEMS_MAX)
                .collect();
            for name in self.templates.asked(&written.template) {
                if let Some(why) = unknown(&name, written.scope) {
                    found.push((line_of(&name, &uses), why));
                }
            }
            found.sort();
            found.dedup();
            let problem = |(line, why)| Problem::new(&written.path, why).in_line(Some(line));
            self.problems.extend(found.into_iter().map(problem));
        }
    }
}

fn line_of(name: &str, uses: &[Use]) -> usize {
    let named = |used: &&Use| matches!(&used.what, Named::Variable(path) if path[..1] == [name]);
    uses.iter().find(named).map_or(1, |used| used.line)
}

/// Why a variable that is none of the template's own is not there, if so.
fn unknown(name: &str, scope: Names) -> Option<String> {
    let mut known = scope.own.to_vec();
    known.push("inputs");
    if scope.steps != StepNames::None {
        known.push("steps");
    }
    // About steps there is more to say.
    if known.contains(&name) || name == "steps" {
        return None;
    }
    Some(match nearest(name, &known) {
        Some(meant) => format!("there is no {name} here; did you mean {meant}?"),
        None => format!("there is no {name} here: there is {}", known.join(", ")),
    })
}

/// What is wrong with `inputs.…` or `steps.…`, if so.
fn wrong(path: &[String], scope: Names, steps: &[Step], inputs: &Inputs) -> Option<String> {
    let name = path.get(1).map(String::as_str);
    match (path.first()?.as_str(), name) {
        ("inputs", Some(name)) if !inputs.names().contains(&name) => Some(inputs.unknown(name)),
        ("steps", None) => Some("steps as a whole is nothing: name one, as in steps.NAME".into()),
        ("steps", Some(name)) => wrong_step(name, path.get(2), scope.steps, steps),
        _ => None,
    }
}

fn wrong_step(
    name: &str,
    field: Option<&String>,
    seen: StepNames,
    steps: &[Step],
) -> Option<String> {
    if seen == StepNames::None {
        return Some("no step has run yet: there is only inputs".to_owned());
    }
    let Some(found) = steps.iter().position(|step| step.name == name) else {
        return Some(no_step(name, steps.iter().map(|step| step.name.as_str())));
    };
    let sees = |step: &usize| steps.get(*step).map_or(StepSet::default(), |step| step.sees);
    let why = match &seen {
        StepNames::Before(step) if *step == found => {
            format!("steps.{name} is this step itself: it has no result yet")
        }
        StepNames::Before(step) | StepNames::BeforeAnd(step)
            if *step != found && !sees(step).contains(found) =>
        {
            format!("steps.{name} may not have ended by then: add {name} to needs")
        }
        _ => {
            let field = field.filter(|field| !RESULT.contains(&field.as_str()))?;
            let meant = nearest(field, &RESULT).map(|meant| format!("; did you mean {meant}?"));
            let known = format!(": it has {}", RESULT.join(", "));
            format!("steps.{name} has no {field}{}", meant.unwrap_or(known))
        }
    };
    Some(why)
}

/// Whether text has no template in it.
pub(super) fn is_plain(text: &str) -> bool {
    !["{{", "{%", "{#"].iter().any(|brace| text.contains(brace))
}

/// The sentence about a step that there is none of.
pub(super) fn no_step<'a>(name: &str, steps: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = steps.collect();
    match nearest(name, &known) {
        Some(meant) => format!("there is no step {name}; did you mean {meant}?"),
        None => format!("there is no step {name}"),
    }
}
