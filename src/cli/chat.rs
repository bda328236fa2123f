//! `forq chat`: ask a model, and see its answer as it comes.

use clap::Args;
use serde_json::json;

use super::args::TaskOptions;
use super::out::Out;
use super::{CliError, Globals, follow, input, submit, when};
use crate::task::NewTask;

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// What to say, or - for stdin
    prompt: String,
    /// The agent whose model, prompt and priority it has unless they are given
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// The model, by its name in the configuration [default: the agent's, or default]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// The system prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    options: TaskOptions,
}

pub(crate) fn run(args: ChatArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let mut chat = json!({ "prompt": input::text(args.prompt)? });
    for (name, value) in [("agent", args.agent), ("model", args.model), ("system", args.system)] {
        if let Some(value) = value {
            chat[name] = value.into();
        }
    }
    let chat = serde_json::value::to_raw_value(&chat)
        .map_err(|error| CliError::internal(format!("a prompt is not JSON: {error}")))?;
    let mut task = NewTask::new("chat", chat);
    args.options.complete(&mut task, when::now_ms());
    let mut client = globals.connect()?;
    let id = submit::submit_one(&mut client, task)?;
    follow::follow(&mut client, id, out)
}
