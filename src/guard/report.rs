//! What a guard tells its worker: one short line per fact.

use std::fmt;
use std::str::FromStr;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With this code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// One line on the lifeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// It runs; the number names both the process and its group.
    Started(i32),
    /// Its folder cannot be entered; an errno.
    NoCwd(i32),
    /// It cannot be started; an errno.
    NoStart(i32),
    /// It is over, and nothing of it is left.
    Ended(Ended),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, number) = match *self {
            Report::Started(pid) => ("pid", pid),
            Report::NoCwd(errno) => ("cwd", errno),
            Report::NoStart(errno) => ("start", errno),
            Report::Ended(Ended::Exit(code)) => ("exit", code),
            Report::Ended(Ended::Signal(signal)) => ("signal", signal),
        };
        writeln!(f, "{word} {number}")
    }
}

impl FromStr for Report {
    type Err = ();
    fn from_str(line: &str) -> Result<Self, ()> {
        let (word, number) = line.trim_end().split_once(' ').ok_or(())?;
        let number = number.parse().map_err(|_| ())?;
        Ok(match word {
            "pid" => Report::Started(number),
            "cwd" => Report::NoCwd(number),
            "start" => Report::NoStart(number),
            "exit" => Report::Ended(Ended::Exit(number)),
            "signal" => Report::Ended(Ended::Signal(number)),
            _ => return Err(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_read_back_as_written() {
        for report in [
            Report::Started(4_194_304),
            Report::NoCwd(2),
            Report::NoStart(13),
            Report::Ended(Ended::Exit(255)),
            Report::Ended(Ended::Signal(11)),
        ] {
            assert_eq!(report.to_string().parse(), Ok(report));
        }
        for line in ["", "pid", "pid x", "pid 1 2", "quit 3"] {
            assert_eq!(line.parse::<Report>(), Err(()), "{line}");
        }
    }
}
