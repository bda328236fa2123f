//! What a template names: found by its tokens, since the engine knows neither lines nor, before it
//! comes across them, which filters and tests there are.

/// Something that a template names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Use {
    /// The line, from 1.
    pub(super) line: usize,
    pub(super) what: Named,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// A variable and what of it, such as `steps`, `plot`, `text`.
    Variable(Vec<String>),
    Filter(String),
    Test(String),
}

/// All that a template names (an expression, if it is `code` from its first character).
pub(super) fn uses(source: &str, code: bool) -> Vec<Use> {
    let mut found = Vec::new();
    code_of(source, code).iter().for_each(|tokens| name_all(tokens, &mut found));
    found
}

/// The tokens of each piece of code in it, with their lines.
pub(super) fn code_of(source: &str, code: bool) -> Vec<Vec<(usize, Token<'_>)>> {
    let mut lexer = Lexer { rest: source, line: 1 };
    if code {
        return vec![lexer.tokens("")];
    }
    let mut pieces = Vec::new();
    while let Some(end) = lexer.open() {
        let tokens = lexer.tokens(end);
        if matches!(tokens.first(), Some((_, Token::Word("raw")))) && end == "%}" {
            lexer.skip_raw();
        }
        pieces.push(tokens);
    }
    pieces
}

/// Bytes of a template that are code.
pub(super) fn code_bytes(source: &str, code: bool) -> usize {
    if code {
        return source.len();
    }
    let mut lexer = Lexer { rest: source, line: 1 };
    let mut bytes = 0;
    while let Some(end) = lexer.open() {
        let before = lexer.rest.len();
        lexer.tokens(end);
        bytes += before - lexer.rest.len();
    }
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token<'a> {
    Word(&'a str),
    Text(&'a str),
    Sign(char),
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Lexer<'a> {
    fn skip(&mut self, bytes: usize) -> &'a str {
        let (skipped, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.line += skipped.matches('\n').count();
        self.rest = rest;
        skipped
    }

    /// Goes behind the next brace that begins code; what will end it.
    fn open(&mut self) -> Option<&'static str> {
        loop {
            let start = self.rest.find('{')?;
            self.skip(start);
            let second = self.rest.chars().nth(1);
            match second {
                Some('{' | '%') => {
                    self.skip(2);
                    // What says that the blanks in front go.
                    let trims = self.rest.starts_with(['-', '+']);
                    self.skip(usize::from(trims));
                    return Some(if second == Some('{') { "}}" } else { "%}" });
                }
                Some('#') => {
                    let end = self.rest.find("#}").map_or(self.rest.len(), |at| at + 2);
                    self.skip(end);
                }
                _ => {
                    self.skip(1);
                }
            }
        }
    }

    /// Goes to what ends raw text.
    fn skip_raw(&mut self) {
        while let Some(at) = self.rest.find("{%") {
            self.skip(at + 2);
            if self.rest.trim_start_matches(['-', '+']).trim_start().starts_with("endraw") {
                return;
            }
        }
        self.rest = "";
    }

    /// The tokens up to `end`, or all if that is empty.
    fn tokens(&mut self, end: &str) -> Vec<(usize, Token<'a>)> {
        let mut tokens = Vec::new();
        let mut depth = 0_usize;
        while let Some(c) = self.rest.chars().next() {
            if depth == 0 && !end.is_empty() && self.rest.starts_with(end) {
                self.skip(end.len());
                break;
            }
            let line = self.line;
            match c {
                '"' | '\'' => {
                    let text = self.quoted(c);
                    tokens.push((line, Token::Text(text)));
                    continue;
                }
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            let part = |c: char| c == '_' || c.is_alphanumeric();
            if part(c) {
                let len = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
                let word = self.skip(len);
                tokens.push((line, Token::Word(word)));
            } else {
                self.skip(c.len_utf8());
                if !c.is_whitespace() {
                    tokens.push((line, Token::Sign(c)));
                }
            }
        }
        tokens
    }

    /// Goes behind the quotes; what is in between.
    fn quoted(&mut self, quote: char) -> &'a str {
        let mut escaped = false;
        let inside = self.rest.get(1..).unwrap_or("");
        let end = inside.find(|c| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let len = end.unwrap_or(inside.len());
        self.skip(len + 2);
        inside.get(..len).unwrap_or("")
    }
}

fn name_all(tokens: &[(usize, Token<'_>)], found: &mut Vec<Use>) {
    let token = |i: usize| tokens.get(i).map(|(_, token)| *token);
    let mut at = 0;
    while let Some(&(line, token_here)) = tokens.get(at) {
        at += 1;
        let Token::Word(word) = token_here else { continue };
        let before = at.checked_sub(2).and_then(token);
        let what = match before {
            Some(Token::Sign('.')) => continue,
            Some(Token::Sign('|')) => Named::Filter(dotted(word, tokens, &mut at)),
            Some(Token::Word("filter")) if at == 2 => Named::Filter(word.to_owned()),
            _ if word == "is" => {
                at += usize::from(token(at) == Some(Token::Word("not")));
                let Some(Token::Word(test)) = token(at) else { continue };
                at += 1;
                Named::Test(dotted(test, tokens, &mut at))
            }
            _ if word.starts_with(|c: char| c.is_ascii_digit()) => continue,
            _ => Named::Variable(path(word, tokens, &mut at)),
        };
        found.push(Use { line, what });
    }
}

/// A filter's or test's name may have dots in it.
fn dotted(word: &str, tokens: &[(usize, Token<'_>)], at: &mut usize) -> String {
    let mut name = word.to_owned();
    while let (Some((_, Token::Sign('.'))), Some((_, Token::Word(next)))) =
        (tokens.get(*at), tokens.get(*at + 1))
    {
        name.push('.');
        name.push_str(next);
        *at += 2;
    }
    name
}

/// A variable with the attributes that follow, `.name` or `["name"]`.
fn path(word: &str, tokens: &[(usize, Token<'_>)], at: &mut usize) -> Vec<String> {
    let mut path = vec![word.to_owned()];
    let token = |i: usize| tokens.get(i).map(|(_, token)| *token);
    loop {
        match (token(*at), token(*at + 1), token(*at + 2)) {
            (Some(Token::Sign('.')), Some(Token::Word(name)), _) => {
                path.push(name.to_owned());
                *at += 2;
            }
            (Some(Token::Sign('[')), Some(Token::Text(name)), Some(Token::Sign(']'))) => {
                path.push(name.to_owned());
                *at += 3;
            }
            _ => return path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(source: &str, code: bool) -> Vec<String> {
        uses(source, code)
            .into_iter()
            .map(|Use { line, what }| match what {
                Named::Variable(path) => format!("{line} {}", path.join(".")),
                Named::Filter(name) => format!("{line} |{name}"),
                Named::Test(name) => format!("{line} is {name}"),
            })
            .collect()
    }

    #[test]
    fn what_is_named_is_found() {
        for (source, expected) in [
            ("plain { text } steps.a", vec![]),
            ("{{ steps.a.text }}", vec!["1 steps.a.text"]),
            ("a\n{{ steps['a']\n[\"b\"].c[0] | upper }}", vec!["2 steps.a.b.c", "3 |upper"]),
            ("{# {{ steps.a }}\n #}{{ x }}", vec!["2 x"]),
            ("{% raw %}{{ steps.a }}{% endraw %}{{ x }}", vec!["1 raw", "1 x"]),
            ("{{ {'a': {'b': x}} }}{{ y }}", vec!["1 x", "1 y"]),
            ("{{ '}}' ~ 'it\\'s steps.q' ~ x }}", vec!["1 x"]),
            ("{{ x is not defined }}", vec!["1 x", "1 is defined"]),
            ("{%- filter upper -%}x{% endfilter %}", vec!["1 filter", "1 |upper", "1 endfilter"]),
            ("{%- raw -%}{{ steps.a }}{%- endraw %}{{ x }}", vec!["1 raw", "1 x"]),
            ("{% filter upper %}x{% endfilter %}", vec!["1 filter", "1 |upper", "1 endfilter"]),
            ("{% set x %}{{ steps.a }}{% endset %}", vec!["1 set", "1 x", "1 steps.a", "1 endset"]),
            ("{{ 章.名 }}", vec!["1 章.名"]),
        ] {
            assert_eq!(told(source, false), expected, "{source}");
        }
        assert_eq!(told("steps.a.json < 70\nand b", true), ["1 steps.a.json", "2 and", "2 b"]);
    }

    #[test]
    fn code_is_measured() {
        assert_eq!(code_bytes("some {{ a }} and {% if b %}", false), 5 + 8);
        assert_eq!(code_bytes("a == b", true), 6);
    }

    #[test]
    fn odd_text_ends() {
        for source in
            ["{{", "{%", "{#", "{{ '", "{{ 'é", "{% raw %}", "{{ a['", "{{ a is", "{", "{é"]
        {
            drop(uses(source, false));
            drop(uses(source, true));
        }
    }
}
