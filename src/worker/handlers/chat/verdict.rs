//! What an error of a provider means for what comes next. Pure.

use crate::openai::ErrorDetail;
use crate::protocol::calls::CallOutcome;

/// What follows from a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Whether the same call may be answered later.
    pub(super) retryable: bool,
    /// Whether another provider may answer. If not, the request is bad everywhere.
    pub(super) goes_on: bool,
    /// What it says of the server: only [`CallOutcome::Failed`] counts for its breaker.
    pub(super) outcome: CallOutcome,
}

/// What only this server finds wrong with a request: it has no such model, its model has no room,
/// or it knows us not.
const ELSEWHERE_FINE: [&str; 17] = [
    "model_not_found",
    "model not found",
    "model not exist",
    "no such model",
    "unknown model",
    "invalid model",
    "not a valid model",
    "model does not exist",
    "context_length_exceeded",
    "context length",
    "context window",
    "context size",
    "maximum context",
    "prompt is too long",
    "api key",
    "credit balance",
    "insufficient_quota",
];

impl Verdict {
    /// The server is in trouble; it may be over soon.
    pub(super) const TROUBLE: Self =
        Self { retryable: true, goes_on: true, outcome: CallOutcome::Failed };
    /// What answers is no model that we can use.
    pub(super) const UNUSABLE: Self =
        Self { retryable: false, goes_on: true, outcome: CallOutcome::Failed };
    /// The call could not be made, so it says nothing of the server.
    pub(super) const NOT_CALLED: Self =
        Self { retryable: false, goes_on: true, outcome: CallOutcome::NotMade };
    /// The request is to nobody's liking.
    pub(super) const BAD_REQUEST: Self =
        Self { retryable: false, goes_on: false, outcome: CallOutcome::Refused };

    /// What an error means that came with `status`.
    pub(super) fn of(status: u16, detail: Option<&ErrorDetail>) -> Self {
        let passing = Self { outcome: CallOutcome::Refused, ..Self::TROUBLE };
        let here_only = Self { goes_on: true, ..Self::BAD_REQUEST };
        match status {
            500 if detail.is_some_and(blames_the_body) => Self::BAD_REQUEST,
            408 | 429 | 500.. => Self::TROUBLE,
            409 => passing,
            400 | 413 | 422 if detail.is_some_and(is_fine_elsewhere) => here_only,
            400 | 413 | 422 => Self::BAD_REQUEST,
            401..500 => here_only,
            // Redirects are not followed.
            _ => Self::UNUSABLE,
        }
    }

    /// What an error means that came inside an answer with a good status.
    pub(super) fn of_broken(detail: &ErrorDetail) -> Self {
        let ours = detail.kind.as_deref() == Some("invalid_request_error");
        let status = detail.status().unwrap_or(if ours { 400 } else { 500 });
        Self::of(status, Some(detail))
    }

    /// The same, with the server's own word on whether to ask again.
    pub(super) fn told(self, should_retry: Option<bool>) -> Self {
        let retryable = should_retry.unwrap_or(self.retryable);
        Self { retryable, goes_on: self.goes_on || retryable, ..self }
    }
}

/// llama-cpp-python's server answers 500 to a body that its schema refuses, and repeats what
/// pydantic says of it.
fn blames_the_body(detail: &ErrorDetail) -> bool {
    detail.message.contains("'loc': ('body'")
}

fn is_fine_elsewhere(detail: &ErrorDetail) -> bool {
    let code = detail.code.as_ref().and_then(|code| code.as_str()).unwrap_or_default();
    let kind = detail.kind.as_deref().unwrap_or_default();
    [code, kind, &detail.message].into_iter().any(|said| {
        let said = said.to_ascii_lowercase();
        // Between these words stands the model's name.
        let names_it = said.contains("model") && said.contains("does not exist");
        names_it || ELSEWHERE_FINE.iter().any(|words| said.contains(words))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(message: &str) -> ErrorDetail {
        ErrorDetail { message: message.into(), ..ErrorDetail::default() }
    }

    #[test]
    fn statuses_decide() {
        use CallOutcome::{Failed, Refused};
        for (status, retryable, goes_on, outcome) in [
            (302, false, true, Failed),
            (400, false, false, Refused),
            (401, false, true, Refused),
            (402, false, true, Refused),
            (403, false, true, Refused),
            (404, false, true, Refused),
            (408, true, true, Failed),
            (409, true, true, Refused),
            (413, false, false, Refused),
            (422, false, false, Refused),
            (429, true, true, Failed),
            (499, false, true, Refused),
            (500, true, true, Failed),
            (503, true, true, Failed),
            (529, true, true, Failed),
        ] {
            let verdict = Verdict { retryable, goes_on, outcome };
            assert_eq!(Verdict::of(status, None), verdict, "{status}");
            assert_eq!(Verdict::of(status, Some(&detail("no"))), verdict, "{status}");
        }
    }

    #[test]
    fn a_bad_request_may_be_a_good_one_elsewhere() {
        for said in [
            "The model `gpt-9` does not exist or you do not have access to it.",
            "Model Not Exist",
            "x/y is not a valid model ID",
            "This model's maximum context length is 8192 tokens.",
            "the request exceeds the available context size. try increasing the context size",
            "API key not valid. Please pass a valid API key.",
            "Your credit balance is too low",
        ] {
            for status in [400, 422] {
                let verdict = Verdict::of(status, Some(&detail(said)));
                assert!(verdict.goes_on && !verdict.retryable, "{said}");
            }
        }
        let code = Some("context_length_exceeded".into());
        assert!(Verdict::of(400, Some(&ErrorDetail { code, ..detail("no") })).goes_on);
        for said in ["'temperature' must be at most 2", "messages[0].role: unknown", ""] {
            assert!(!Verdict::of(400, Some(&detail(said))).goes_on, "{said}");
        }
    }

    #[test]
    fn a_500_may_be_about_the_body() {
        let said = "[{'type': 'list_type', 'loc': ('body', 'messages'), 'msg': 'Input should be"
            .to_owned();
        assert_eq!(Verdict::of(500, Some(&detail(&said))), Verdict::BAD_REQUEST);
        assert_eq!(Verdict::of(502, Some(&detail(&said))), Verdict::TROUBLE);
    }

    #[test]
    fn the_servers_own_word_stands() {
        assert!(!Verdict::of(429, None).told(Some(false)).retryable);
        assert!(Verdict::of(429, None).told(Some(false)).goes_on);
        let told = Verdict::of(400, None).told(Some(true));
        assert!(told.retryable && told.goes_on);
        assert_eq!(Verdict::of(400, None).told(None), Verdict::BAD_REQUEST);
    }

    #[test]
    fn errors_inside_an_answer_say_whose_they_are() {
        let of = |code: Option<serde_json::Value>, kind: Option<&str>| {
            let kind = kind.map(str::to_owned);
            Verdict::of_broken(&ErrorDetail { code, kind, ..ErrorDetail::default() })
        };
        assert_eq!(of(None, None), Verdict::TROUBLE);
        assert_eq!(of(Some(502.into()), None), Verdict::TROUBLE);
        assert_eq!(of(Some("400".into()), None), Verdict::BAD_REQUEST);
        assert_eq!(of(None, Some("invalid_request_error")), Verdict::BAD_REQUEST);
        assert_eq!(of(Some("overloaded".into()), Some("server_error")), Verdict::TROUBLE);
    }
}
