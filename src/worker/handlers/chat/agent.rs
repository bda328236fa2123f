//! What an agent's tasks are like, unless they say otherwise. Pure.

use std::collections::BTreeMap;

use super::route::listed;
use crate::openai::{ChatRequest, Message};

/// Messages that tell a model what it is; the second is OpenAI's newer name.
const SYSTEM_ROLES: [&str; 2] = ["system", "developer"];

/// The agents that tasks may name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Agents {
    agents: BTreeMap<String, Agent>,
}

/// What one agent's tasks are like. Its priority and budget are the broker's business.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    /// What it asks for; `None`: what any task does.
    pub(crate) model: Option<String>,
    /// Its system prompt.
    pub(crate) prompt: Option<String>,
}

impl Agents {
    /// Adds one.
    pub(crate) fn add(&mut self, name: &str, agent: Agent) {
        self.agents.insert(name.to_owned(), agent);
    }

    /// Gives a request its agent's model, and its prompt in front, where it has none of its own.
    /// The error is one sentence with the cure.
    pub(super) fn complete(&self, name: &str, request: &mut ChatRequest) -> Result<(), String> {
        let agent = self.agents.get(name).ok_or_else(|| self.unknown(name))?;
        if request.model.is_none() {
            request.model.clone_from(&agent.model);
        }
        let messages = request.messages.get_or_insert_default();
        let is_told = messages.iter().any(|message| SYSTEM_ROLES.contains(&message.role.as_str()));
        if let Some(prompt) = agent.prompt.as_deref().filter(|_| !is_told) {
            messages.insert(0, Message::text("system", prompt));
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> String {
        let cure = match self.agents.is_empty() {
            true => "none is configured: add an [agents.NAME]".to_owned(),
            false => format!("give one of {}", listed(self.agents.keys())),
        };
        format!("input.agent: there is no agent '{name}': {cure}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::input;
    use super::*;
    use crate::worker::handlers::testing::raw;

    fn agents() -> Agents {
        let mut agents = Agents::default();
        let text = |text: &str| Some(text.to_owned());
        agents.add("host", Agent { model: text("fast"), prompt: text("Be kind.") });
        agents.add("plain", Agent { model: None, prompt: None });
        agents
    }

    fn completed(input: Value) -> (Option<String>, Value) {
        let mut asked = input::read(&raw(input.to_string())).unwrap();
        agents().complete(&asked.agent.unwrap(), &mut asked.request).unwrap();
        (asked.request.model, serde_json::to_value(asked.request.messages).unwrap())
    }

    #[test]
    fn a_task_takes_what_it_does_not_say_itself() {
        let user = json!({"role": "user", "content": "hi"});
        let system = |text: &str| json!({"role": "system", "content": text});
        let developer = json!({"role": "developer", "content": "Be brief."});
        let earlier = json!({"role": "assistant", "content": "hello"});
        for (input, model, messages) in [
            (json!({"prompt": "hi"}), Some("fast"), json!([system("Be kind."), user])),
            (
                json!({"prompt": "hi", "model": "own"}),
                Some("own"),
                json!([system("Be kind."), user]),
            ),
            (json!({"prompt": "hi", "system": "No."}), Some("fast"), json!([system("No."), user])),
            (json!({"prompt": "hi", "system": ""}), Some("fast"), json!([system(""), user])),
            (
                json!({"messages": [user, earlier, user]}),
                Some("fast"),
                json!([system("Be kind."), user, earlier, user]),
            ),
            // Wherever in a conversation it stands.
            (
                json!({"messages": [user, system("No."), user]}),
                Some("fast"),
                json!([user, system("No."), user]),
            ),
            (json!({"messages": [developer, user]}), Some("fast"), json!([developer, user])),
        ] {
            let mut input = input;
            input["agent"] = "host".into();
            assert_eq!(completed(input.clone()), (model.map(str::to_owned), messages), "{input}");
        }
        let plain = completed(json!({"prompt": "hi", "agent": "plain"}));
        assert_eq!(plain, (None, json!([user])));
    }

    #[test]
    fn an_unknown_agent_is_told_of_the_known_ones() {
        let mut request = ChatRequest::default();
        for (agents, error) in [
            (agents(), "input.agent: there is no agent 'x': give one of host, plain"),
            (
                Agents::default(),
                "input.agent: there is no agent 'x': none is configured: add an [agents.NAME]",
            ),
        ] {
            assert_eq!(agents.complete("x", &mut request).unwrap_err(), error);
        }
    }
}
