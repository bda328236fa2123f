//! `forq session`: conversations.

use clap::{Args, Subcommand};
use comfy_table::{Cell, CellAlignment};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{Client, unexpected};
use super::out::{Out, span};
use super::{CliError, Exit, Globals, args, when};
use crate::openai::Message;
use crate::protocol::control::{Reply, Request};
use crate::worker::handlers::chat::said;

#[derive(Debug, Args)]
pub(crate) struct SessionArgs {
    #[command(subcommand)]
    verb: SessionVerb,
}

#[derive(Debug, Subcommand)]
enum SessionVerb {
    /// List sessions, those that were used last first
    List {
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = args::at_least_one)]
        limit: u32,
    },
    /// Show a session's conversation
    Show(OneSession),
    /// Forget a session's conversation; a task of it that runs still adds its own turn, and those
    /// that wait begin anew
    Clear(OneSession),
}

#[derive(Debug, Args)]
struct OneSession {
    /// The session
    #[arg(value_name = "NAME")]
    name: String,
}

/// What `session list` is told of one.
#[derive(Deserialize)]
struct Listed {
    name: String,
    turns: u64,
    tokens: u64,
    last_used_at: Option<String>,
    waiting: u64,
    running: u64,
}

#[derive(Deserialize)]
struct List {
    sessions: Vec<Box<RawValue>>,
    more: bool,
}

#[derive(Deserialize)]
struct Conversation {
    summary: Option<String>,
    conversation: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    messages: Vec<Message>,
}

pub(crate) fn run(args: SessionArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let mut client = globals.connect()?;
    match args.verb {
        SessionVerb::List { limit } => list(&mut client, limit, out)?,
        SessionVerb::Show(OneSession { name }) => show(&mut client, name, out)?,
        SessionVerb::Clear(OneSession { name }) => clear(&mut client, name, out)?,
    }
    Ok(Exit::Done as u8)
}

fn ask(client: &mut Client, request: &Request) -> Result<Box<RawValue>, CliError> {
    match client.call(request)? {
        Reply::Json { document } => Ok(document),
        other => Err(unexpected(&other)),
    }
}

fn read<'a, T: Deserialize<'a>>(document: &'a RawValue) -> Result<T, CliError> {
    serde_json::from_str(document.get())
        .map_err(|error| CliError::internal(format!("cannot read the daemon's sessions: {error}")))
}

fn list(client: &mut Client, limit: u32, out: &mut Out) -> Result<(), CliError> {
    let document = ask(client, &Request::Sessions { limit })?;
    let list: List = read(&document)?;
    if out.json {
        return list.sessions.iter().try_for_each(|session| out.line(session.get()));
    }
    if list.sessions.is_empty() {
        out.note("no sessions");
        return Ok(());
    }
    let now_ms = when::now_ms();
    let rows: Vec<Listed> =
        list.sessions.iter().map(|session| read(session)).collect::<Result<_, _>>()?;
    let header = ["SESSION", "TURNS", "TOKENS", "IDLE", "WAITING", "RUNNING"];
    out.table(&header, rows.iter().map(|session| row(session, now_ms)))?;
    if list.more {
        out.note("hint: there are more: --limit N");
    }
    Ok(())
}

fn row(session: &Listed, now_ms: i64) -> Vec<Cell> {
    let used = session.last_used_at.as_deref().and_then(|at| when::moment_ms(at).ok());
    let idle = used.map(|at_ms| span(u64::try_from(now_ms - at_ms).unwrap_or(0)));
    let number = |count: u64| Cell::new(count).set_alignment(CellAlignment::Right);
    vec![
        Cell::new(&session.name),
        number(session.turns),
        number(session.tokens),
        Cell::new(idle.unwrap_or_else(|| "-".to_owned())),
        number(session.waiting),
        number(session.running),
    ]
}

fn show(client: &mut Client, name: String, out: &mut Out) -> Result<(), CliError> {
    let document = ask(client, &Request::Session { name })?;
    if out.json {
        return out.line(document.get());
    }
    let Conversation { summary, conversation } = read(&document)?;
    if let Some(summary) = &summary {
        out.line(format_args!("summary: {summary}"))?;
    }
    for message in conversation.iter().flat_map(|turn| &turn.messages) {
        out.line(format_args!("{}: {}", message.role, said(message)))?;
    }
    if summary.is_none() && conversation.is_empty() {
        out.note("nothing was said yet");
    }
    Ok(())
}

fn clear(client: &mut Client, name: String, out: &mut Out) -> Result<(), CliError> {
    match client.call(&Request::SessionClear { name })? {
        Reply::Done { count } if out.json => out.value(&serde_json::json!({ "count": count })),
        Reply::Done { count } => out.line(format_args!("turns forgotten: {count}")),
        other => Err(unexpected(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::{Act, FakeDaemon};
    use serde_json::json;

    fn told(verb: &SessionVerb, json: bool) -> (String, String) {
        let daemon = FakeDaemon::new(|_, request| {
            let document = match request {
                Request::Sessions { limit: 7 } => json!({"more": true, "sessions": [
                    {"name": "a", "turns": 2, "tokens": 30, "last_used_at": "1970-01-01T00:00:00Z",
                     "waiting": 1, "running": 0},
                    {"name": "b", "turns": 0, "tokens": 0, "last_used_at": null, "waiting": 0,
                     "running": 1},
                ]}),
                Request::Session { name } if name == "a" => json!({
                    "name": "a", "summary": "They met.", "conversation": [{"messages": [
                        {"role": "user", "content": "Hi"},
                        {"role": "assistant", "content": "Ho"},
                    ]}],
                }),
                other => panic!("{other:?}"),
            };
            let document = serde_json::value::to_raw_value(&document).unwrap();
            vec![Act::Reply(Reply::Json { document })]
        });
        let state_dir = Some(daemon.instance.state_dir.clone());
        let globals = Globals { state_dir, ..Globals::default() };
        let (mut data, mut notes) = (Vec::new(), Vec::new());
        let mut out = Out::into(&mut data, &mut notes, json);
        let verb = match verb {
            SessionVerb::List { limit } => SessionVerb::List { limit: *limit },
            _ => SessionVerb::Show(OneSession { name: "a".to_owned() }),
        };
        assert_eq!(run(SessionArgs { verb }, &globals, &mut out).unwrap(), 0);
        drop(out);
        (String::from_utf8(data).unwrap(), String::from_utf8(notes).unwrap())
    }

    #[test]
    fn sessions_are_a_table_or_a_line_each() {
        let (table, notes) = told(&SessionVerb::List { limit: 7 }, false);
        let lines: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["SESSION", "TURNS", "TOKENS", "IDLE", "WAITING", "RUNNING"]);
        assert_eq!((lines[1][0], lines[1][1], lines[1][4]), ("a", "2", "1"));
        assert_eq!(lines[2], ["b", "0", "0", "-", "0", "1"]);
        assert!(notes.contains("--limit"), "{notes}");
        let (json, _) = told(&SessionVerb::List { limit: 7 }, true);
        assert!(json.lines().count() == 2 && json.contains("\"name\":\"b\""), "{json}");
    }

    #[test]
    fn a_conversation_reads_like_one() {
        let show = SessionVerb::Show(OneSession { name: "a".to_owned() });
        let (text, _) = told(&show, false);
        assert_eq!(text, "summary: They met.\nuser: Hi\nassistant: Ho\n");
        assert!(told(&show, true).0.contains("\"summary\":\"They met.\""));
    }
}
