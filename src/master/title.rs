//! What `ps` and `top` show of a process.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};

/// Names this process: its `comm`, and its command line where that has room.
pub(super) fn set(title: &str) {
    if let Ok(name) = CString::new(title) {
        let _ = nix::sys::prctl::set_name(&name);
    }
    // A courtesy: a system that forbids it loses nothing else.
    let _ = overwrite_arguments(title);
}

/// Writes the title over the arguments that the process was started with, through its own memory
/// file. Too short a place is left as it is rather than filled with half a name.
fn overwrite_arguments(title: &str) -> std::io::Result<()> {
    let mut stat = String::new();
    File::open("/proc/self/stat")?.read_to_string(&mut stat)?;
    // Fields 48 and 49 of proc(5); the name, field 2, may hold spaces, and ends with ')'.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let address = |field: usize| fields.get(field - 3).and_then(|field| field.parse::<u64>().ok());
    let (Some(start), Some(end)) = (address(48), address(49)) else { return Ok(()) };
    let room = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
    if title.len() >= room {
        return Ok(());
    }
    let mut text = title.as_bytes().to_vec();
    text.resize(room, 0);
    let mut memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    memory.seek(SeekFrom::Start(start))?;
    memory.write_all(&text)
}
