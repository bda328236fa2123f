//! What a task asks for, and what the broker must know of it.

use std::collections::BTreeMap;
use std::rc::Rc;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::services::{Service, Tool};
use super::template::Templates;
use crate::handler::{Needs, parse_input};
use crate::worker::handlers::key::{half_digest, write_in_order};

/// Most names that an error lists.
const LISTED_MAX: usize = 20;
/// Changes with what a key is made of.
const KEY_VERSION: &str = "tool 1";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    tool: String,
    #[serde(default)]
    params: Map<String, Value>,
    #[serde(default)]
    cache: Value,
}

/// What a task says about answers that were given before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CacheWish {
    /// Nothing, or `true`: as its tool has it.
    Use,
    /// `"refresh"`: a new answer, which may be given again.
    Refresh,
    /// `false`: neither take one nor keep one.
    Never,
}

/// A checked input.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) tool: Rc<Tool>,
    params: Map<String, Value>,
    cache: CacheWish,
    /// What is sent to each of the tool's services.
    pub(super) requests: Vec<Request>,
}

/// What is sent to one service, but for its API key.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

/// Reads an input into what it means; the error names the field.
pub(super) fn read(
    input: &RawValue,
    tools: &BTreeMap<String, Rc<Tool>>,
    templates: &Templates,
) -> Result<Asked, String> {
    let Fields { tool, params, cache } = parse_input(input)?;
    let tool = Rc::clone(tools.get(&tool).ok_or_else(|| unknown(&tool, tools))?);
    let cache = match cache {
        Value::Null | Value::Bool(true) => CacheWish::Use,
        Value::Bool(false) => CacheWish::Never,
        Value::String(word) if word == "refresh" => CacheWish::Refresh,
        _ => return Err("input.cache: give true, false or \"refresh\"".to_owned()),
    };
    let request = |service| Request::render(&tool.name, service, templates, &params);
    let requests = tool.services.iter().map(request).collect::<Result<_, _>>()?;
    Ok(Asked { tool, params, cache, requests })
}

fn unknown(name: &str, tools: &BTreeMap<String, Rc<Tool>>) -> String {
    if tools.is_empty() {
        return format!("input.tool: there is no tool '{name}': add a [tools.{name}]");
    }
    let more = if tools.len() > LISTED_MAX { ", …" } else { "" };
    let known: Vec<_> = tools.keys().take(LISTED_MAX).map(String::as_str).collect();
    format!("input.tool: there is no tool '{name}': give {}{more}", known.join(", "))
}

impl Request {
    fn render(
        tool: &str,
        service: &Service,
        templates: &Templates,
        params: &Map<String, Value>,
    ) -> Result<Self, String> {
        let place = format!("tools.{tool}.services.{}", service.name);
        let text = |field: &str| templates.render(&format!("{place}.{field}"), params);
        let url = text("url")?;
        let url = Url::parse(&url)
            .map_err(|error| format!("input.params: {url:?}: {error}, in {place}.url"))?;
        let mut headers = HeaderMap::new();
        for name in service.headers.keys() {
            let value = text(&format!("headers.{name}"))?;
            let place = format!("{place}.headers.{name}");
            let key = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| format!("{place} is not a header's name"))?;
            let value = HeaderValue::from_str(&value)
                .map_err(|_| format!("input.params: only printable ASCII may be in {place}"))?;
            headers.insert(key, value);
        }
        let body = if service.body.is_some() { text("body")? } else { String::new() };
        Ok(Self { url, headers, body })
    }
}

impl Asked {
    /// What the broker must know of it.
    pub(super) fn needs(&self) -> Needs {
        let keeps = self.tool.is_cached && self.cache != CacheWish::Never;
        Needs {
            gate: self.tool.gate.clone(),
            cache_key: keeps.then(|| self.key()),
            cache_refresh: keeps && self.cache == CacheWish::Refresh,
            ..Needs::default()
        }
    }

    /// The same for equal calls, as long as the configuration says the same of the tool.
    fn key(&self) -> u128 {
        let mut text = format!("{KEY_VERSION}\n{}\n", self.tool.name);
        for service in &self.tool.services {
            text.push_str(&format!("{} {}\n", service.method, service.name));
            for (name, template) in service.templates(&self.tool.name) {
                text.push_str(&format!("{name}={template:?}\n"));
            }
        }
        write_in_order(&Value::Object(self.params.clone()), &mut text);
        half_digest(&text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::tools;
    use super::*;
    use crate::worker::handlers::testing::raw;

    const TWO: &str = r#"
        [tools.find]
        chain = ["main", "backup"]
        cache_ttl = "1m"
        [tools.find.services.main]
        url = "http://main/{{ params.kind | default('web') }}?q={{ params.q | urlencode }}"
        headers.X-Lang = "{{ params.lang | default('en') }}"
        [tools.find.services.backup]
        url = "http://backup"
        method = "POST"
        body = '{"query": {{ params.q | tojson }}}'
        [tools.plain]
        chain = ["s"]
        services.s.url = "http://s"
    "#;

    fn asked(config: &str, input: &Value) -> Result<Asked, String> {
        let tools = tools(config);
        let templates = Templates::read(tools.values()).unwrap();
        read(&raw(input.to_string()), &tools, &templates)
    }

    #[test]
    fn each_service_has_its_request() {
        let params = json!({ "q": "a & \"b\"\n漢", "kind": "x/y" });
        let asked = asked(TWO, &json!({ "tool": "find", "params": params })).unwrap();
        let [main, backup] = &asked.requests[..] else { unreachable!() };
        assert_eq!(main.url.as_str(), "http://main/x/y?q=a%20%26%20%22b%22%0A%E6%BC%A2");
        assert_eq!(
            (&main.headers["x-lang"], main.body.as_str()),
            (&HeaderValue::from_static("en"), "")
        );
        let body: Value = serde_json::from_str(&backup.body).unwrap();
        assert_eq!(body, json!({ "query": "a & \"b\"\n漢" }));
        assert_eq!(asked.tool.services[1].server, "find/backup");
    }

    #[test]
    fn errors_name_the_field() {
        for (input, start) in [
            (json!({}), "input: missing field `tool`"),
            (json!({"tool": 5}), "input.tool: "),
            (json!({"tool": "fnd"}), "input.tool: there is no tool 'fnd': give find, plain"),
            (json!({"tool": "plain", "params": []}), "input.params: "),
            (json!({"tool": "plain", "prams": {}}), "input: unknown field `prams`"),
            (json!({"tool": "plain", "cache": "no"}), "input.cache: give true, false or"),
            (json!({"tool": "find", "params": {"q": "a", "lang": "\n"}}), "input.params: only pri"),
        ] {
            // An unknown field is named by its path, too.
            let error = asked(TWO, &input).unwrap_err().replace("input.prams: ", "input: ");
            assert!(error.starts_with(start), "{input}: {error}");
        }
        let nothing = asked("", &json!({"tool": "x"})).unwrap_err();
        assert_eq!(nothing, "input.tool: there is no tool 'x': add a [tools.x]");
    }

    #[test]
    fn a_missing_parameter_is_named() {
        let error = asked(TWO, &json!({"tool": "find"})).unwrap_err();
        assert!(error.starts_with("input.params: ") && error.contains("params.q"), "{error}");
        assert!(error.ends_with("in tools.find.services.main.url"), "{error}");
    }

    #[test]
    fn answers_are_kept_as_the_tool_and_the_task_say() {
        for (tool, cache, keeps, refreshes) in [
            ("find", Value::Null, true, false),
            ("find", json!(true), true, false),
            ("find", json!(false), false, false),
            ("find", json!("refresh"), true, true),
            ("plain", json!(true), false, false),
            ("plain", json!("refresh"), false, false),
        ] {
            let input = json!({"tool": tool, "params": {"q": ""}, "cache": cache});
            let needs = asked(TWO, &input).unwrap().needs();
            assert_eq!((needs.cache_key.is_some(), needs.cache_refresh), (keeps, refreshes));
            assert_eq!(needs.gate, format!("t:{tool}"));
        }
    }

    #[test]
    fn equal_calls_have_one_key() {
        let key = |config: &str, params: &str| {
            let params: Value = serde_json::from_str(params).unwrap();
            let asked = asked(config, &json!({"tool": "find", "params": params}));
            format!("{:032x}", asked.unwrap().needs().cache_key.unwrap())
        };
        let plain = key(TWO, r#"{"q":"a","x":{"b":1,"c":2}}"#);
        assert_eq!(key(TWO, r#"{"x":{"c":2,"b":1},"q":"a"}"#), plain);
        assert_ne!(key(TWO, r#"{"q":"b","x":{"b":1,"c":2}}"#), plain);
        assert_ne!(
            key(&TWO.replace("//backup", "//other"), r#"{"q":"a","x":{"b":1,"c":2}}"#),
            plain
        );
        assert_eq!(plain, "0a8a9cd3429b6c94acf6154a16a0716a", "the same for ever");
    }
}
