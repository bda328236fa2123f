//! What is wrong with a definition or a run of it, and where that stands.

use std::collections::BTreeMap;
use std::fmt;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The value's path in the definition, such as `steps.check.prompt`; empty for the whole.
    pub(crate) path: String,
    /// The line within that value, from 1, where it is text of several lines.
    pub(crate) line: Option<usize>,
    /// What is wrong and what to do, in one sentence.
    pub(crate) message: String,
    /// The file and line, as far as the definition says where it came from.
    pub(crate) place: Option<Place>,
}

/// A line of a file; no line if it is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: String,
    pub(crate) line: Option<usize>,
}

impl Problem {
    /// One that is about the whole value at `path`.
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), line: None, message: message.into(), place: None }
    }

    pub(super) fn in_line(self, line: Option<usize>) -> Self {
        Self { line, ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { file, line }) = &self.place {
            write!(f, "{file}:")?;
            if let Some(line) = line {
                write!(f, "{line}:")?;
            }
            f.write_str(" ")?;
        }
        f.write_str(&self.path)?;
        let knows_line = self.place.as_ref().is_some_and(|place| place.line.is_some());
        if let Some(line) = self.line.filter(|line| !knows_line && *line > 1) {
            write!(f, " line {line}")?;
        }
        if !self.path.is_empty() {
            f.write_str(": ")?;
        }
        f.write_str(&self.message)
    }
}

/// Where a definition came from: whoever read the file says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) file: Option<String>,
    /// The line of each value, by its path; of text, the line of its first character.
    pub(super) lines: BTreeMap<String, usize>,
}

impl Source {
    /// Adds where the problem stands, unless a nested definition has.
    pub(super) fn locate(&self, problem: Problem) -> Problem {
        match (&problem.place, &self.file) {
            (None, Some(file)) => {
                let line = self.line(&problem);
                Problem { place: Some(Place { file: file.clone(), line }), ..problem }
            }
            _ => problem,
        }
    }

    /// The line of the value, or of the nearest around it.
    fn line(&self, problem: &Problem) -> Option<usize> {
        let mut path = problem.path.as_str();
        if let Some(first) = self.lines.get(path) {
            return Some(first + problem.line.unwrap_or(1).saturating_sub(1));
        }
        while let Some(end) = path.rfind(['.', '[', '#']) {
            path = path.get(..end)?;
            if let Some(line) = self.lines.get(path) {
                return Some(*line);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_say_where() {
        let source = Source {
            file: Some("novel.toml".to_owned()),
            lines: [("steps.plot.prompt".to_owned(), 12), ("steps.plot".to_owned(), 9)].into(),
        };
        for (path, line, said) in [
            ("steps.plot.prompt", Some(3), "novel.toml:14: steps.plot.prompt: no"),
            ("steps.plot.prompt", None, "novel.toml:12: steps.plot.prompt: no"),
            ("steps.plot.needs[1]", None, "novel.toml:9: steps.plot.needs[1]: no"),
            ("steps.plot#2", None, "novel.toml:9: steps.plot#2: no"),
            ("name", None, "novel.toml: name: no"),
            ("", None, "novel.toml: no"),
        ] {
            let problem = Problem::new(path, "no").in_line(line);
            assert_eq!(source.locate(problem).to_string(), said);
        }
        let plain = Problem::new("steps.plot.prompt", "no").in_line(Some(3));
        assert_eq!(Source::default().locate(plain).to_string(), "steps.plot.prompt line 3: no");
    }
}
