//! Text and lists that a template writes out and multiplies. The engine works such a product out when
//! it compiles the template, and keeps it: a few letters of code could be gigabytes.

use super::names::Token;

/// Words of an expression that name nothing.
const WORDS: [&str; 10] =
    ["and", "or", "not", "in", "true", "false", "none", "True", "False", "None"];

/// The line of the first product of text or a list that is written out, if there is one.
pub(super) fn multiplied(tokens: &[(usize, Token<'_>)]) -> Option<usize> {
    let is_star = |at: usize| matches!(tokens.get(at), Some((_, Token::Sign('*'))));
    let is_product = |at: usize| {
        let power = is_star(at + 1) || at.checked_sub(1).is_some_and(is_star);
        is_star(at) && !power
    };
    (0..tokens.len()).filter(|at| is_product(*at)).find_map(|at| {
        let (before, after) = (tokens.get(..at)?, tokens.get(at + 1..)?);
        (is_literal(last(before)) || is_literal(first(after))).then_some(tokens.get(at)?.0)
    })
}

/// The text, or what stands in brackets, at the end. An index or a call is a value's, and no literal.
fn last<'a, 't>(tokens: &'a [(usize, Token<'t>)]) -> &'a [(usize, Token<'t>)] {
    let mut depth = 0_usize;
    let start = tokens.iter().rposition(|(_, token)| {
        depth = match token {
            Token::Sign(')' | ']' | '}') => depth + 1,
            Token::Sign('(' | '[' | '{') => depth.saturating_sub(1),
            _ => depth,
        };
        depth == 0
    });
    let start = start.unwrap_or(0);
    let before = start.checked_sub(1).and_then(|at| tokens.get(at)).map(|(_, token)| *token);
    let is_of_value = match before {
        Some(Token::Word(word)) => !WORDS.contains(&word),
        Some(Token::Text(_) | Token::Sign(')' | ']' | '}')) => true,
        _ => false,
    };
    if is_of_value { &[] } else { tokens.get(start..).unwrap_or(&[]) }
}

/// The same at the beginning.
fn first<'a, 't>(tokens: &'a [(usize, Token<'t>)]) -> &'a [(usize, Token<'t>)] {
    let mut depth = 0_usize;
    let end = tokens.iter().position(|(_, token)| {
        depth = match token {
            Token::Sign('(' | '[' | '{') => depth + 1,
            Token::Sign(')' | ']' | '}') => depth.saturating_sub(1),
            _ => depth,
        };
        depth == 0
    });
    end.and_then(|end| tokens.get(..=end)).unwrap_or(tokens)
}

/// Whether it has text or a list in it, and names nothing.
fn is_literal(tokens: &[(usize, Token<'_>)]) -> bool {
    let named =
        |word: &str| !word.starts_with(|c: char| c.is_ascii_digit()) && !WORDS.contains(&word);
    let long = |token: &Token<'_>| matches!(token, Token::Text(_) | Token::Sign('['));
    tokens.iter().any(|(_, token)| long(token))
        && !tokens.iter().any(|(_, token)| matches!(token, Token::Word(word) if named(word)))
}

#[cfg(test)]
mod tests {
    use super::super::names::code_of;
    use super::*;

    #[test]
    fn products_of_literals_are_found() {
        for (source, found) in [
            ("'x' * 9", true),
            ("9 * 'x'", true),
            ("9 *\n ('x' ~ 'y')", true),
            ("(('x')) * 9", true),
            ("[1, 2] * 9", true),
            ("(1, 'x') * 9 * 9", true),
            ("a and ['x', true] * 9", true),
            ("a * 9", false),
            ("a['x'] * 9", false),
            ("a.b[0] * (b['x'] + 1)", false),
            ("f('x') * 2", false),
            ("(2 + 3) * 4.5", false),
            ("2 ** 8", false),
            ("'*'", false),
            ("a * (9", false),
            ("*", false),
            ("* 'x", true),
        ] {
            let tokens = code_of(source, true).concat();
            assert_eq!(multiplied(&tokens).is_some(), found, "{source}");
        }
        assert_eq!(multiplied(&code_of("1 +\n'x' * 2", true).concat()), Some(2));
    }
}
