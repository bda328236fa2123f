//! What somebody may have meant by a key that there is none of.

use std::fmt::Display;

/// Slips of the pen that are still taken for a known name.
const SLIPS_MAX: usize = 2;
/// Bytes of a name past which nothing is compared: no key is that long.
const NAME_BYTES_MAX: usize = 40;

/// The sentence about an unknown key, whose last part is `name`: with the nearest of `known`, or all
/// of them.
pub(super) fn unknown(key: impl Display, name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(name) => format!("unknown key {key}; did you mean {name}?"),
        None => format!("unknown key {key}; allowed here: {}", known.join(", ")),
    }
}

/// The one of `known` that somebody may have meant by `name`.
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    known
        .iter()
        .map(|&candidate| (distance(name, candidate), candidate))
        .filter(|&(slips, candidate)| slips <= SLIPS_MAX && slips < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in bytes: insertions, deletions and replacements.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let best = (diagonal + usize::from(x != y)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, best);
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, slips) in [
            ("", "", 0),
            ("min", "mn", 1),
            ("kitten", "sitting", 3),
            ("", "abc", 3),
            ("max", "min", 2),
        ] {
            assert_eq!(distance(a, b), slips, "{a} {b}");
            assert_eq!(distance(b, a), slips, "{b} {a}");
        }
    }

    #[test]
    fn far_names_get_the_list() {
        let known = ["min", "concurrency"];
        let said = |name: &str| unknown(format!("workers.{name}"), name, &known);
        assert_eq!(said("mn"), "unknown key workers.mn; did you mean min?");
        assert_eq!(said("x"), "unknown key workers.x; allowed here: min, concurrency");
    }
}
