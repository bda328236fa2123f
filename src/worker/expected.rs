//! Whether an output is what its task expects, whatever its kind. Pure.

use serde_json::Value;

use crate::expect::{Expect, unexpected};
use crate::handler::{HandlerError, Output};

/// Where the kinds have their text, first come first served: models, commands, HTTP calls.
const TEXTS: [&str; 3] = ["text", "stdout", "body"];

/// Lets an output pass whose text is as expected. Of an output without one it is all of its JSON.
pub(super) fn as_expected(expect: &Expect, output: Output) -> Result<Output, HandlerError> {
    let json = output.json.get();
    let fields: Option<Value> = serde_json::from_str(json).ok();
    let text =
        |fields: &Value| TEXTS.iter().find_map(|name| Some(fields[name].as_str()?.to_owned()));
    let text = fields.as_ref().and_then(text);
    match expect.check(text.as_deref().unwrap_or(json)) {
        Ok(_) => Ok(output),
        Err(mistake) => Err(HandlerError::retryable(unexpected(&mistake))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::task::Usage;
    use crate::worker::handlers::testing::raw;

    #[test]
    fn the_text_of_each_kind_is_checked() {
        let expect = Expect::read(&json!({"schema": {"maximum": 5}})).unwrap();
        for (output, mistake) in [
            (json!({"text": "5", "stdout": "6"}), None),
            (json!({"text": "6"}), Some("6 is greater than the maximum of 5")),
            (json!({"stdout": "6\n", "body": "5"}), Some("6 is greater than the maximum of 5")),
            (json!({"body": "```json\n5\n```"}), None),
            // A text is one only if it is a string.
            (json!({"text": 6, "stdout": "4"}), None),
            (json!({"status": 200, "body": {"x": 6}}), None),
            (json!(6), Some("6 is greater than the maximum of 5")),
            (json!({"text": ""}), Some("the answer is not JSON: it is empty")),
        ] {
            let usage = Some(Usage { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 });
            let given = Output { json: raw(output.to_string()), usage };
            match (as_expected(&expect, given), mistake) {
                (Ok(passed), None) => {
                    assert_eq!((passed.json.get(), passed.usage), (&*output.to_string(), usage));
                }
                (Err(error), Some(mistake)) => {
                    assert!(error.retryable);
                    assert_eq!(error.message, unexpected(mistake));
                }
                (result, _) => panic!("{output}: {result:?}"),
            }
        }
    }
}
