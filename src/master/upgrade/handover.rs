//! What one image of the master leaves to the next in the same process: descriptors by number,
//! children by pid, and what is to be remembered. It travels as JSON in a memory file, since both
//! images may be of different builds.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::broker::store::schema::SCHEMA_VERSION;
use crate::master::fork;
use crate::master::lifeline::Lifeline;
use crate::protocol::lifeline::Exit;

/// The version of this document. A build reads its own and the one before it.
pub(crate) const HANDOVER_PROTOCOL: u32 = 1;
/// The environment's name for the memory file's number.
pub(crate) const HANDOVER_VARIABLE: &str = "FORQ_HANDOVER";
/// Beside it: the number of a lifeline. The new image only checks what it would get, says so, and
/// ends.
pub(crate) const CHECK_VARIABLE: &str = "FORQ_HANDOVER_CHECK";
/// Beside it: the upgrade came to nothing, and this is why; the old image takes over again.
pub(crate) const FAILED_VARIABLE: &str = "FORQ_HANDOVER_FAILED";
/// A document is far smaller: a thousand workers, and a configuration of a MiB.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// Everything that is handed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Handover {
    pub(crate) protocol: u32,
    /// The build that hands over, for people.
    pub(crate) version: String,
    /// The schema of the store that it left.
    pub(crate) schema: i64,
    /// The instance's number.
    pub(crate) number: i64,
    /// The configuration file as it was read for this; absent if there is none.
    pub(crate) config: Option<String>,
    /// The configuration file that this image was under, for the way back: the new one may be what
    /// only the new build understands. A build before this field knows no way back.
    #[serde(default)]
    pub(crate) config_before: Option<String>,
    pub(crate) lock: RawFd,
    pub(crate) control: RawFd,
    pub(crate) worker: RawFd,
    /// The image that hands over, to go back to; absent where there is no way back.
    pub(crate) image: Option<RawFd>,
    pub(crate) last_serial: u64,
    pub(crate) last_drain: u32,
    pub(crate) generation: u32,
    /// The bounds of the pool where an operator has moved them.
    pub(crate) moved: Option<(u32, u32)>,
    pub(crate) want: u32,
    /// Deaths that no broker has dealt with.
    pub(crate) exits: Vec<Exit>,
    /// Requests of clients that are done.
    pub(crate) done: Vec<(u128, u32)>,
    pub(crate) broker: SlotLeft,
    pub(crate) workers: Vec<SlotLeft>,
}

/// A slot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SlotLeft {
    pub(crate) number: u32,
    pub(crate) restarts: u32,
    pub(crate) last_exit: Option<String>,
    pub(crate) child: Option<ChildLeft>,
}

/// A child that lives on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ChildLeft {
    pub(crate) pid: i32,
    pub(crate) serial: u64,
    pub(crate) lifeline: RawFd,
    pub(crate) generation: u32,
    pub(crate) ready: bool,
    pub(crate) drain: u32,
}

impl Handover {
    /// Writes it to a memory file, from which any number of images may read it.
    pub(crate) fn write(&self) -> io::Result<File> {
        let mut file = File::from(memfd_create(c"forq-handover", MFdFlags::MFD_CLOEXEC)?);
        serde_json::to_writer(&mut file, self)?;
        file.flush()?;
        file.rewind()?;
        Ok(file)
    }

    /// Reads it from a memory file, from its beginning; the error is one sentence.
    pub(crate) fn read(file: &mut File) -> Result<Self, String> {
        let mut text = String::new();
        file.rewind()
            .and_then(|()| file.take(DOCUMENT_BYTES_MAX).read_to_string(&mut text))
            .map_err(|error| format!("cannot read what is handed over: {error}"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            protocol: u32,
            version: String,
        }
        let cannot = |error| format!("cannot understand what is handed over: {error}");
        let from: Version = serde_json::from_str(text).map_err(cannot)?;
        let mine = env!("CARGO_PKG_VERSION");
        if from.protocol != HANDOVER_PROTOCOL {
            return Err(format!(
                "forq {mine} cannot take over from forq {}: stop that one and start this one",
                from.version
            ));
        }
        let handover: Self = serde_json::from_str(text).map_err(cannot)?;
        if handover.schema > SCHEMA_VERSION {
            return Err(format!(
                "forq {mine} cannot read the database of forq {}, which is newer",
                handover.version
            ));
        }
        Ok(handover)
    }
}

impl ChildLeft {
    /// The child's pid and the master's end of its lifeline.
    pub(crate) fn take(&self) -> nix::Result<(Pid, Lifeline)> {
        Ok((Pid::from_raw(self.pid), Lifeline::over(fork::adopt(self.lifeline)?)))
    }
}

/// What this process runs and how it was started, to do it once more.
pub(crate) struct Image {
    /// The path that it was started by, where a newer build may lie by now.
    pub(crate) path: CString,
    pub(crate) arguments: Vec<CString>,
    /// This very build, whatever lies at the path.
    pub(crate) own: OwnedFd,
}

impl Image {
    /// This process's own. Must come before the process gives itself a title, which overwrites
    /// the arguments.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let own = File::open("/proc/self/exe")?.into();
        let arguments: Vec<CString> =
            std::env::args_os().map(c_string).collect::<io::Result<_>>()?;
        let path = c_string(started_by()?.into_os_string())?;
        Ok(Self { path, arguments, own })
    }

    /// The path to this very build.
    pub(crate) fn own_path(fd: impl AsFd) -> io::Result<CString> {
        c_string(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).into())
    }
}

/// The path that this process was started by, not what it led to: of a link that is changed to
/// point to a new version, the link counts.
fn started_by() -> io::Result<std::path::PathBuf> {
    let first = std::env::args_os().next().unwrap_or_default();
    let first = std::path::Path::new(&first);
    if first.components().count() > 1 {
        return std::path::absolute(first);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(first)).find(|p| p.is_file());
    found.map_or_else(std::env::current_exe, Ok)
}

/// This process's environment without what is about handing over, and with these.
pub(crate) fn environment(with: &[(&str, String)]) -> io::Result<Vec<CString>> {
    let ours = [HANDOVER_VARIABLE, CHECK_VARIABLE, FAILED_VARIABLE];
    let kept = std::env::vars_os().filter(|(name, _)| ours.iter().all(|ours| name != ours));
    let mut all = Vec::new();
    for (mut entry, value) in kept {
        entry.push("=");
        entry.push(value);
        all.push(c_string(entry)?);
    }
    for (name, value) in with {
        all.push(c_string(format!("{name}={value}").into())?);
    }
    Ok(all)
}

fn c_string(text: std::ffi::OsString) -> io::Result<CString> {
    use std::os::unix::ffi::OsStringExt;
    CString::new(text.into_vec()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document as version 1 writes it. A build that cannot read it any more needs another
    /// version, and a test that it still takes over from this one.
    const VERSION_1: &str = r#"{"protocol":1,"version":"0.1.0","schema":1,"number":42,
        "config":"[workers]\nmin = 1\n","lock":3,"control":4,"worker":5,"image":6,
        "last_serial":9,"last_drain":2,"generation":3,"moved":[1,5],"want":1,
        "exits":[{"serial":8,"pid":77,"cause":{"signal":"SIGKILL","exit_code":null,"reason":"crash"}}],
        "done":[[340282366920938463463374607431768211455,3]],
        "broker":{"number":0,"restarts":1,"last_exit":"exit code 1","child":{"pid":70,"serial":1,
            "lifeline":7,"generation":1,"ready":true,"drain":0}},
        "workers":[{"number":1,"restarts":0,"last_exit":null,"child":null}]}"#;

    #[test]
    fn version_1_is_read_and_written() {
        let handover = Handover::parse(VERSION_1).unwrap();
        assert_eq!((handover.number, handover.moved), (42, Some((1, 5))));
        assert_eq!(handover.broker.child.as_ref().map(|child| child.lifeline), Some(7));
        let mut file = handover.write().unwrap();
        for _ in 0..2 {
            assert_eq!(Handover::read(&mut file).unwrap(), handover, "as often as it takes");
        }
    }

    #[test]
    fn what_cannot_be_taken_over_is_told() {
        let later = VERSION_1.replace("\"protocol\":1", "\"protocol\":2");
        let error = Handover::parse(&later).unwrap_err();
        assert!(error.contains("cannot take over from forq 0.1.0"), "{error}");
        let newer = VERSION_1.replace("\"schema\":1", "\"schema\":99");
        let error = Handover::parse(&newer).unwrap_err();
        assert!(error.contains("cannot read the database"), "{error}");
        for garbage in ["", "{}", "null", &VERSION_1[..200]] {
            assert!(Handover::parse(garbage).is_err());
        }
    }
}
