//! What `forq run` is to run: a file of tasks, or one task.

use std::path::Path;

use crate::cli::args::TaskOptions;
use crate::cli::jsonl::{self, Numbered};
use crate::cli::{CliError, input, when, workflow};
use crate::task::{NewTask, empty_object};

/// What is to be submitted.
pub(super) enum Work {
    /// From the command line.
    One(Box<NewTask>),
    /// From a file.
    Lines(Vec<Numbered>),
}

impl Work {
    pub(super) fn tasks(&self) -> impl Iterator<Item = &NewTask> {
        let (one, lines) = match self {
            Work::One(task) => (Some(&**task), &[][..]),
            Work::Lines(lines) => (None, &lines[..]),
        };
        one.into_iter().chain(lines.iter().map(|numbered| &numbered.task))
    }
}

/// Reads a file of tasks, or the one task of this kind and input.
pub(super) fn read(what: &str, input: Option<&str>, sets: &[String]) -> Result<Work, CliError> {
    let file = Path::new(what);
    let extension = file.extension().map(|extension| extension.to_string_lossy().into_owned());
    match (extension.as_deref(), input) {
        (Some("jsonl"), Some(_)) => {
            Err(CliError::invalid("an INPUT is for a single task: a file's lines have their own"))
        }
        (Some("jsonl"), None) => {
            let text = input::file_or_stdin(file)?;
            Ok(Work::Lines(jsonl::read(&text, &TaskOptions::default(), when::now_ms())?))
        }
        (Some("toml"), Some(_)) => {
            Err(CliError::invalid("a workflow's inputs are given with --set NAME=VALUE"))
        }
        (Some("toml"), None) => {
            workflow::task_of_file(file, sets).map(|task| Work::One(Box::new(task)))
        }
        _ if what == workflow::KIND && input.is_some() => {
            let input = input.unwrap_or_default();
            workflow::task_of_input(input, sets).map(|task| Work::One(Box::new(task)))
        }
        _ if !sets.is_empty() => {
            Err(CliError::invalid("--set is for workflows, whose files end in .toml"))
        }
        _ if what.contains('/') => {
            let error = format!("{what}: a file of tasks ends in .jsonl, a workflow in .toml");
            Err(CliError::invalid(error))
        }
        (_, input) => {
            let input = input.map_or_else(|| Ok(empty_object()), input::json)?;
            Ok(Work::One(Box::new(NewTask::new(what, input))))
        }
    }
}

/// What a task is called above its text: the beginning of its prompt, if it has one.
pub(super) fn title(task: &NewTask) -> String {
    const TITLE_CHARS_MAX: usize = 90;
    #[derive(serde::Deserialize)]
    struct Prompted {
        prompt: String,
    }
    let prompt = serde_json::from_str(task.input.get()).map(|Prompted { prompt }| prompt);
    let line = prompt.ok().and_then(|prompt| prompt.lines().next().map(str::to_owned));
    match line {
        Some(line) if line.chars().count() > TITLE_CHARS_MAX => {
            line.chars().take(TITLE_CHARS_MAX - 1).chain(['…']).collect()
        }
        Some(line) => line,
        None => task.kind.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Exit;

    #[test]
    fn a_kind_is_one_task_and_a_file_is_many() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tasks.jsonl");
        std::fs::write(&file, "{\"kind\":\"noop\"}\n\n{\"kind\":\"chat\",\"input\":{}}\n").unwrap();
        let kinds = |what: &str, input: Option<&str>| {
            let work = read(what, input, &[]).unwrap();
            work.tasks()
                .map(|task| (task.kind.clone(), task.input.get().to_owned()))
                .collect::<Vec<_>>()
        };
        let pair = |kind: &str, input: &str| (kind.to_owned(), input.to_owned());
        assert_eq!(kinds("noop", None), [pair("noop", "{}")]);
        assert_eq!(kinds("sleep", Some("{\"seconds\":1}")), [pair("sleep", "{\"seconds\":1}")]);
        assert_eq!(kinds(file.to_str().unwrap(), None), [pair("noop", "{}"), pair("chat", "{}")]);
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_the_cure() {
        for (what, input, expected) in [
            ("no/such.jsonl", None, "cannot read no/such.jsonl"),
            ("tasks.jsonl", Some("{}"), "for a single task"),
            ("no/workflow.toml", None, "cannot read no/workflow.toml"),
            ("novel/workflow.toml", Some("{}"), "--set NAME=VALUE"),
            ("./tasks.txt", None, "ends in .jsonl"),
            ("chat", Some("{nope"), "input: not JSON"),
        ] {
            let error = read(what, input, &[]).err().unwrap();
            assert_eq!(error.exit, Exit::Invalid, "{what}");
            assert!(error.message.contains(expected), "{what}: {error}");
        }
    }

    #[test]
    fn titles_are_the_beginning_of_a_prompt() {
        let of = |input: serde_json::Value| {
            title(&NewTask::new("chat", serde_json::value::to_raw_value(&input).unwrap()))
        };
        assert_eq!(of(serde_json::json!({ "prompt": "Sum up:\n\nthis" })), "Sum up:");
        assert_eq!(of(serde_json::json!({ "messages": [] })), "chat");
        let long = of(serde_json::json!({ "prompt": "ä".repeat(200) }));
        assert_eq!((long.chars().count(), long.ends_with('…')), (90, true));
    }
}
