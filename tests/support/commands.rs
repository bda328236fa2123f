//! Inputs of `exec` tasks.

use std::path::Path;

use super::{Value, json};

/// A shell script with its arguments.
pub(crate) fn shell(script: &str, arguments: &[&str]) -> Value {
    let argv: Vec<&str> =
        ["sh", "-c", script, "sh"].into_iter().chain(arguments.iter().copied()).collect();
    json!({ "argv": argv })
}

/// Appends `line` to `file` in one write, after `seconds`.
pub(crate) fn append(file: &Path, line: &str, seconds: f64) -> Value {
    let (file, seconds) = (file.to_string_lossy(), seconds.to_string());
    shell(r#"sleep "$3"; echo "$2" >> "$1""#, &[&file, line, &seconds])
}

/// Waits until the file `gate` is there, then appends `line` to `file` in one write.
pub(crate) fn append_after(gate: &Path, file: &Path, line: &str) -> Value {
    let (gate, file) = (gate.to_string_lossy(), file.to_string_lossy());
    let script = r#"while [ ! -e "$3" ]; do sleep 0.05; done; echo "$2" >> "$1""#;
    shell(script, &[&file, line, &gate])
}

/// Prints the numbers from 1 to `lines`, one every `seconds`.
pub(crate) fn stream(lines: u32, seconds: f64) -> Value {
    let script = r#"i=0; while [ $i -lt "$1" ]; do i=$((i+1)); echo "line $i"; sleep "$2"; done"#;
    shell(script, &[&lines.to_string(), &seconds.to_string()])
}

/// Writes its own pid to `file`, and runs until it is ended, in another session too.
pub(crate) fn family(file: &Path) -> Value {
    let script = r#"setsid sleep 600 & echo $$ > "$1.new"; mv "$1.new" "$1"; sleep 600"#;
    shell(script, &[&file.to_string_lossy()])
}

/// Kills the worker that runs it.
pub(crate) fn poison() -> Value {
    // The worker is the parent of the guard, which is the parent of the command.
    let script = r#"
        pid=$$
        while read -r name < /proc/$pid/comm; do
            case $name in "forq: worker"*) kill -9 $pid; sleep 60;; esac
            while read -r field value rest; do
                [ "$field" = PPid: ] && parent=$value
            done < /proc/$pid/status
            pid=$parent
        done"#;
    shell(script, &[])
}
