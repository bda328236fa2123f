//! Whole configurations: what loads, what is refused and in which words.

use std::time::Duration;

use proptest::prelude::*;

use super::key::Key;
use super::rules::{RULES, Rule};
use super::*;

/// The example that the documentation shows.
const EXAMPLE: &str = include_str!("../../tests/fixtures/forq.toml");

fn file(text: &str) -> Sources {
    Sources { file: Some(("forq.toml".into(), text.to_owned())), ..Sources::default() }
}

fn env(pairs: &[(&str, &str)]) -> Sources {
    let env = pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    Sources { env, ..Sources::default() }
}

fn flag(key: &str, value: impl Into<Value>, flag: &str) -> Override {
    Override { key: key.to_owned(), value: value.into(), flag: flag.to_owned() }
}

fn errors(sources: &Sources) -> String {
    load(sources).unwrap_err().to_string()
}

#[test]
fn nothing_at_all_is_the_defaults() {
    let loaded = load(&Sources::default()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert!(loaded.origins.is_empty() && loaded.warnings.is_empty());
}

#[test]
fn the_example_loads() {
    let loaded = load(&file(EXAMPLE)).unwrap();
    let config = &loaded.config;
    assert_eq!(config.workers, Workers::default());
    assert_eq!(config.queue, Queue { result_ttl: Duration::from_secs(86_400), ..Queue::default() });
    assert_eq!(
        config.queues["tenant-a"],
        NamedQueue { weight: 2, max_running: Some(20), daily_budget: None }
    );
    let provider = &config.providers["deepseek"];
    assert_eq!(provider.base_url, "https://api.deepseek.com/v1");
    assert_eq!(provider.api_key_env.as_deref(), Some("DEEPSEEK_API_KEY"));
    assert_eq!(
        (provider.max_concurrent, provider.rpm, provider.tpm),
        (Some(50), Some(500), Some(200_000))
    );
    assert_eq!(provider.price, Some(Price { input_per_mtok: 0.27, output_per_mtok: 1.1 }));
    assert_eq!(provider.breaker, Breaker::default());
    assert_eq!(config.models["default"].chain.len(), 3);
    assert_eq!(config.models["default"].cache_ttl, Duration::from_secs(600));
    assert_eq!(config.http.listen, Some("127.0.0.1:8321".parse().unwrap()));
    assert_eq!(config.agents["host"].priority, Some(9));
    // It names two fallbacks that it does not configure.
    assert_eq!(loaded.warnings.len(), 2);
    assert!(
        loaded.warnings[0].ends_with(
            "models.default.chain: \"openai/gpt-4o-mini\" is skipped until there is a [providers.openai]"
        ),
        "{}",
        loaded.warnings[0]
    );
}

/// Each file, and the whole of what is said about it.
const BAD_FILES: &[(&str, &str)] = &[
    (
        "\n[workers]\nmax = 0",
        "forq.toml line 3: workers.max = 0: must be a whole number from 1 to 1024",
    ),
    (
        "workers.min = -1",
        "forq.toml line 1: workers.min = -1: must be a whole number from 0 to 1024",
    ),
    (
        "workers.min = 2.5",
        "forq.toml line 1: workers.min = 2.5: must be a whole number from 0 to 1024",
    ),
    (
        "workers.min = 99999999999999999999",
        "forq.toml line 1: workers.min = 100000000000000000000.0: must be a whole number from 0 to 1024",
    ),
    ("[workers]\nmn = 3", "forq.toml line 2: unknown key workers.mn; did you mean min?"),
    ("[worker]\nmin = 3", "forq.toml line 1: unknown key worker; did you mean workers?"),
    (
        "[log]\ncolour = true",
        "forq.toml line 2: unknown key log.colour; allowed here: format, level, file",
    ),
    (
        "\"a\\nb\" = 1",
        "forq.toml line 1: unknown key \"a\\nb\"; allowed here: workers, queue, queues, log, providers, models, tools, cache, sessions, http, agents, schedule",
    ),
    (
        "workers = 3",
        "forq.toml line 1: workers must be a section: write [workers] and its keys below",
    ),
    (
        "[[workers]]\nmin = 3",
        "forq.toml line 1: workers must be a section: write [workers] and its keys below",
    ),
    (
        "workers.min.x = 3",
        "forq.toml line 1: workers.min = { x = 3 }: must be a whole number from 0 to 1024",
    ),
    (
        "[workers]\nmin = 5\nmax = 4",
        "forq.toml line 2: workers.min = 5: is above workers.max = 4 (forq.toml line 3): raise max or lower min",
    ),
    (
        "workers.scale_down_after = '0s'",
        "forq.toml line 1: workers.scale_down_after = \"0s\": must be a duration from \"1s\" to \"1d\"",
    ),
    (
        "workers.scale_down_after = '25h'",
        "forq.toml line 1: workers.scale_down_after = \"25h\": must be a duration from \"1s\" to \"1d\"",
    ),
    (
        "workers.heartbeat_timeout = '1s'",
        "forq.toml line 1: workers.heartbeat_timeout = \"1s\": is too close to the beat of 500ms, so that a busy worker would look dead: must be at least \"2s\"",
    ),
    (
        "queue.task_timeout = 10",
        "forq.toml line 1: queue.task_timeout = 10: must be a duration from \"1ms\" to \"3650d\"",
    ),
    (
        "queue.task_timeout = '0s'",
        "forq.toml line 1: queue.task_timeout = \"0s\": must be a duration from \"1ms\" to \"3650d\"",
    ),
    (
        "queue.task_timeout = '-10s'",
        "forq.toml line 1: queue.task_timeout = \"-10s\": is negative: a duration must be 0s or more",
    ),
    (
        "queue.task_timeout = 'soon'",
        "forq.toml line 1: queue.task_timeout = \"soon\": is not a duration: write a number and its unit, such as 250ms, 30s, 10m, 1h30m or 2d",
    ),
    (
        "queue.input_bytes_max = '1GiB'",
        "forq.toml line 1: queue.input_bytes_max = \"1GiB\": must be a size from \"1KiB\" to \"256MiB\"",
    ),
    (
        "queue.durability = 'maybe'",
        "forq.toml line 1: queue.durability = \"maybe\": must be one of \"fsync\", \"os\", \"none\"",
    ),
    (
        "queue.retry_backoff = '2m'",
        "forq.toml line 1: queue.retry_backoff = \"2m\": is above queue.retry_backoff_max = \"1m\" (default): raise that or lower this",
    ),
    (
        "queue.retry_backoff_max = '10ms'",
        "forq.toml line 1: queue.retry_backoff_max = \"10ms\": is below queue.retry_backoff = \"1s\" (default): raise this or lower that",
    ),
    (
        "queue.memory_high = 2",
        "forq.toml line 1: queue.memory_high = 2: must be a number from 0.05 to 1",
    ),
    (
        "[queues.'a b']",
        "forq.toml line 1: the name queues.\"a b\" must be 1 to 64 of A-Z, a-z, 0-9, _ . : -",
    ),
    (
        "[queues.a]\nweight = 1001",
        "forq.toml line 2: queues.a.weight = 1001: must be a whole number from 1 to 1000",
    ),
    (
        "[providers.Open]\nbase_url = 'http://x'",
        "forq.toml line 1: the name providers.Open must be 1 to 64 of a-z, 0-9, _ and -",
    ),
    (
        "\n[providers.x]",
        "forq.toml line 2: providers.x.base_url is missing: it must be an http:// or https:// URL without user, query or fragment",
    ),
    (
        "[providers.x]\nbase_url = 'https://user:secret@x'",
        "forq.toml line 2: providers.x.base_url must be an http:// or https:// URL without user, query or fragment",
    ),
    (
        "[providers.x]\nbase_url = 'http://x'\napi_key_env = 'sk-secret'",
        "forq.toml line 3: providers.x.api_key_env must be the name of an environment variable (A-Z, a-z, 0-9, _), not the API key itself",
    ),
    (
        "[providers.x]\nbase_url = 'http://x'\napi_key_env = 'K'\napi_key_file = '/k'",
        "forq.toml line 4: providers.x.api_key_file contradicts providers.x.api_key_env (forq.toml line 3): keep one of them",
    ),
    (
        "[providers.x]\nbase_url = 'http://x'\nprice = { input_per_mtok = 1 }",
        "forq.toml line 3: providers.x.price.output_per_mtok is missing: it must be a number from 0 to 1000000000",
    ),
    (
        "[providers.x]\nbase_url = 'http://x'\ndaily_budget = 5",
        "forq.toml line 3: providers.x.daily_budget = 5: needs providers.x.price: without it nothing that it does costs anything",
    ),
    (
        "queue.daily_budget = -1",
        "forq.toml line 1: queue.daily_budget = -1: must be a number from 0 to 1000000000",
    ),
    (
        "cache.bytes_max = '17GiB'",
        "forq.toml line 1: cache.bytes_max = \"17GiB\": must be a size from \"0B\" to \"16GiB\"",
    ),
    (
        "sessions.turns_max = 0",
        "forq.toml line 1: sessions.turns_max = 0: must be a whole number from 1 to 1000",
    ),
    (
        "sessions.overflow = 'summarize'",
        "forq.toml line 1: sessions.overflow = \"summarize\": must be one of \"drop\", \"summarise\"",
    ),
    (
        "[models.default]\nchain = ['x/m']\nstreaming = 'bufferfirst'\n[providers.x]\nbase_url = 'http://x'",
        "forq.toml line 3: models.default.streaming = \"bufferfirst\": must be one of \"restart\", \"buffer_first\"",
    ),
    (
        "models.default.chain = ['nosuch/m']",
        "forq.toml line 1: models.default.chain = [\"nosuch/m\"]: the primary \"nosuch/m\" names an unknown provider: add [providers.nosuch]",
    ),
    (
        "models.default.chain = ['model']",
        "forq.toml line 1: models.default.chain = [\"model\"]: \"model\" is not \"provider/model\"",
    ),
    (
        "models.default.chain = []",
        "forq.toml line 1: models.default.chain = []: must be a list of 1 to 32 texts \"provider/model\", primary first, each once",
    ),
    (
        "[http]\nlisten = 'localhost'",
        "forq.toml line 2: http.listen = \"localhost\": must be an IP address and a port, such as \"127.0.0.1:8321\"",
    ),
    (
        "[agents.host]\npriority = 10",
        "forq.toml line 2: agents.host.priority = 10: must be a whole number from 0 to 9",
    ),
];

#[test]
fn bad_files_are_told_exactly() {
    for (text, sentence) in BAD_FILES {
        assert_eq!(&errors(&file(text)), sentence, "for {text}");
    }
}

#[test]
fn syntax_errors_keep_line_and_column() {
    let said = errors(&file("[workers]\nmin = = 3\n"));
    assert!(said.starts_with("forq.toml line 2, column 7: "), "{said}");
    let said = errors(&file("[workers]\nmin = 3\nmin = 4\n"));
    assert!(said.starts_with("forq.toml line 3, column 1: duplicate key"), "{said}");
}

#[test]
fn every_error_is_told_one_a_line_in_the_order_of_the_file() {
    let mut sources = file("[queue]\nmax_queued = 0\n[workers]\nmin = -1\nmux = 1\n");
    sources.env = env(&[("FORQ_WORKERS__MAX", "0")]).env;
    sources.flags.push(flag("workers.concurrency", 0, "--concurrency"));
    let said = errors(&sources);
    let starts: Vec<_> = said.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(
        starts,
        [
            "forq.toml line 2",
            "forq.toml line 4",
            "forq.toml line 5",
            "environment FORQ_WORKERS__MAX",
            "--concurrency 0",
        ],
        "{said}"
    );
}

#[test]
fn layers_win_in_their_order_and_are_remembered() {
    let mut sources =
        file("[workers]\nmin = 1\nmax = 64\nconcurrency = 8\n[log]\nlevel = 'warn'\n");
    sources.env = env(&[
        ("FORQ_WORKERS__MIN", "3"),
        ("FORQ_WORKERS__CONCURRENCY", "16"),
        ("FORQ_PROVIDERS__SIM__BASE_URL", "http://127.0.0.1:1"),
        ("FORQ_MODELS__DEFAULT__CHAIN", "[\"sim/sim-1\"]"),
        ("FORQ_AGENTS__HOST__PROMPT", "42"),
        ("FORQ_STATE_DIR", "/tmp/x"),
        ("FORQ_CONFIG", "/tmp/x.toml"),
        ("PATH__X", "/bin"),
    ])
    .env;
    sources.flags.push(flag("workers.min", 5, "--min-workers"));
    let Loaded { config, origins, .. } = load(&sources).unwrap();
    assert_eq!((config.workers.min, config.workers.max, config.workers.concurrency), (5, 64, 16));
    assert_eq!(config.providers["sim"].base_url, "http://127.0.0.1:1");
    assert_eq!(config.models["default"].chain, ["sim/sim-1"]);
    assert_eq!(config.agents["host"].prompt.as_deref(), Some("42"));
    let told: Vec<_> = origins.iter().map(|(key, origin)| format!("{key}: {origin}")).collect();
    assert_eq!(
        told,
        [
            "agents.host.prompt: environment FORQ_AGENTS__HOST__PROMPT",
            "log.level: forq.toml line 6",
            "models.default.chain: environment FORQ_MODELS__DEFAULT__CHAIN",
            "providers.sim.base_url: environment FORQ_PROVIDERS__SIM__BASE_URL",
            "workers.concurrency: environment FORQ_WORKERS__CONCURRENCY",
            "workers.max: forq.toml line 3",
            "workers.min: --min-workers",
        ]
    );
}

#[test]
fn bad_variables_and_options_are_named() {
    let table = [
        (
            ("FORQ_WORKERS__MIN", "many"),
            "environment FORQ_WORKERS__MIN: workers.min = \"many\": must be a whole number from 0 to 1024",
        ),
        (
            ("FORQ_WORKERS__MN", "1"),
            "environment FORQ_WORKERS__MN: unknown key workers.mn; did you mean min?",
        ),
        (
            ("FORQ_STATE__DIR", "/x"),
            "environment FORQ_STATE__DIR: unknown key state; allowed here: workers, queue, queues, log, providers, models, tools, cache, sessions, http, agents, schedule",
        ),
    ];
    for (pair, sentence) in table {
        assert_eq!(errors(&env(&[pair])), sentence);
    }
    let flags = vec![flag("workers.max", 0, "--max-workers")];
    let sources = Sources { flags, ..Sources::default() };
    assert_eq!(errors(&sources), "--max-workers 0: must be a whole number from 1 to 1024");
}

#[test]
fn the_bound_that_nobody_set_follows() {
    let bounds = |text: &str, cpus: u32| {
        let loaded = load(&Sources { cpus, ..file(text) }).unwrap();
        (loaded.config.workers.min, loaded.config.workers.max)
    };
    assert_eq!(bounds("", 1), (2, 4));
    assert_eq!(bounds("", 16), (2, 16));
    assert_eq!(bounds("workers.min = 40", 16), (40, 40));
    assert_eq!(bounds("workers.max = 1", 16), (1, 1));
    assert_eq!(bounds("workers.min = 0", 1), (0, 4));
}

#[test]
fn the_starter_loads_and_so_does_all_that_it_comments_out() {
    let defaults = load(&Sources::default()).unwrap().config;
    assert_eq!(load(&file(starter())).unwrap().config, defaults);

    let setting = |line: &str| {
        line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).map(str::to_owned)
    };
    let lines: Vec<_> =
        starter().lines().map(|line| setting(line).unwrap_or_else(|| line.to_owned())).collect();
    let loaded = load(&file(&lines.join("\n"))).unwrap();
    // What it shows as a default is the default.
    assert_eq!(loaded.config.workers, defaults.workers);
    assert_eq!(loaded.config.queue, Queue { daily_budget: Some(50.0), ..defaults.queue });
    assert_eq!(loaded.config.cache, defaults.cache);
    let summary_model = loaded.config.sessions.summary_model.clone();
    assert!(summary_model.is_some());
    assert_eq!(loaded.config.sessions, Sessions { summary_model, ..defaults.sessions });
    assert_eq!(loaded.config.models["default"].streaming, Streaming::default());
    let tool = &loaded.config.tools["search"];
    assert_eq!(
        (tool.timeout, tool.stale_ttl),
        (Tool::default().timeout, Tool::default().stale_ttl)
    );
    assert_eq!(tool.services["main"].method, Service::default().method);
    assert_eq!(loaded.config.log.format, defaults.log.format);
    assert_eq!(loaded.config.log.level, defaults.log.level);
    assert_eq!(loaded.config.providers["sim"].timeout, Provider::default().timeout);
    assert_eq!(loaded.config.providers["sim"].breaker, Breaker::default());
    // And it leaves nothing out.
    for rule in RULES {
        let is_of_rule =
            |key: &String| Rule::of(&Key::dotted(key)).is_some_and(|of| of.pattern == rule.pattern);
        // Two of the three places for an API key stand in its prose: only one may be set.
        let is_prose = ["api_key_file", "api_key_credential"]
            .iter()
            .any(|name| rule.pattern.ends_with(name) && starter().contains(name));
        let is_there = is_prose || loaded.origins.keys().any(is_of_rule);
        assert!(is_there, "{} is not in the starter file", rule.pattern);
    }
}

#[test]
fn the_examples_are_clean() {
    let examples = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap();
    let paths = examples.map(|entry| entry.unwrap().path());
    for path in paths.filter(|path| path.extension().is_some_and(|kind| kind == "toml")) {
        let loaded = load(&file(&std::fs::read_to_string(&path).unwrap())).unwrap();
        assert!(loaded.warnings.is_empty(), "{}: {:?}", path.display(), loaded.warnings);
    }
}

#[test]
fn the_effective_values_are_shown_with_their_origins() {
    let loaded = load(&file(EXAMPLE)).unwrap();
    let lines: Vec<_> = show(&loaded)
        .into_iter()
        .map(|shown| format!("{} = {} # {}", shown.key, shown.value, shown.origin))
        .collect();
    for line in [
        "queue.task_timeout = \"10m\" # forq.toml line 15",
        "workers.max_tasks_jitter = 0 # default",
        "workers.scale_down_after = \"1m\" # default",
        "workers.max_memory = \"512MiB\" # forq.toml line 9",
        "providers.deepseek.api_key_env = \"DEEPSEEK_API_KEY\" # forq.toml line 27",
        "providers.deepseek.price.input_per_mtok = 0.27 # forq.toml line 34",
    ] {
        assert!(lines.iter().any(|shown| shown == line), "{line} is not in {lines:#?}");
    }
    // What is shown is a configuration: the same one.
    let again = show(&loaded).into_iter().map(|shown| format!("{} = {}\n", shown.key, shown.value));
    assert_eq!(load(&file(&again.collect::<String>())).unwrap().config, loaded.config);
}

#[test]
fn a_file_is_read_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forq.toml");
    assert_eq!(read_sources(Some(&path), false).unwrap().file, None);
    let said = read_sources(Some(&path), true).unwrap_err().to_string();
    assert!(said.ends_with("forq.toml: no such file: write one with `forq config init`"), "{said}");
    std::fs::write(&path, "[workers]\n").unwrap();
    let file = read_sources(Some(&path), true).unwrap().file;
    assert_eq!(file, Some((path.clone(), "[workers]\n".to_owned())));
    std::fs::write(&path, b"ab\xff").unwrap();
    let said = read_sources(Some(&path), true).unwrap_err().to_string();
    assert!(said.ends_with("byte 2 is not UTF-8: save it as UTF-8 text"), "{said}");
    assert!(read_sources(Some(folder.path()), false).is_err());
}

/// Values of every shape, good and bad.
fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("1".to_owned()),
        Just("2.5".to_owned()),
        Just("true".to_owned()),
        Just("'30s'".to_owned()),
        Just("'64MiB'".to_owned()),
        Just("'text'".to_owned()),
        Just("'fsync'".to_owned()),
        Just("'http://x/v1'".to_owned()),
        Just("'127.0.0.1:1'".to_owned()),
        Just("['x/m', 'y/n']".to_owned()),
        Just("{ failures = 2, x = 1 }".to_owned()),
        Just("1979-05-27".to_owned()),
        Just("'{\"a\": []}'".to_owned()),
        Just("[{ name = 'a', every = '1m', input = { n = [1.5, nan] } }]".to_owned()),
        Just("[{ name = 'a', cron = '@daily', input.x = { y = 1 }, priority = 3 }]".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
    ]
}

proptest! {
    #[test]
    fn garbage_never_panics(text in ".{0,200}") {
        let _ = load(&file(&text));
        let _ = load(&env(&[("FORQ_WORKERS__MIN", &text), (&format!("FORQ_{text}__X"), "1")]));
    }

    /// Near misses reach deeper than noise.
    #[test]
    fn a_garbled_example_never_panics(from in 0..EXAMPLE.len(), cut in 0..40_usize, text in "[ -~\\n]{0,8}") {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        bytes.splice(from..(from + cut).min(EXAMPLE.len()), text.bytes());
        if let Err(errors) = load(&file(&String::from_utf8_lossy(&bytes))) {
            prop_assert!(errors.errors.iter().all(|error| error.to_string().lines().count() == 1));
        }
    }

    /// Whatever the rules let pass fits the types.
    #[test]
    fn rules_and_types_agree(picks in prop::collection::vec((0..RULES.len(), any_value()), 0..8)) {
        let lines: BTreeMap<_, _> = picks
            .into_iter()
            .map(|(index, value)| (RULES[index].pattern.replace('*', "x"), value))
            .collect();
        let text: String = lines.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        if let Err(errors) = load(&file(&text)) {
            prop_assert!(!errors.to_string().contains("disagree"), "{errors}");
        }
    }
}
