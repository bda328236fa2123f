//! The reserve: a file that holds room on the disk, given up when there is none left, so that
//! results can still be kept.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// The room that is held back.
const RESERVE_BYTES: i64 = 8 << 20;

/// The file `forq.reserve` of an instance.
pub(crate) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// Names the file; nothing is done yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Takes the room once there is twice as much of it, so that a disk on the brink does not go
    /// back and forth.
    pub(crate) fn take_again(&self) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(&self.path);
        let disk = nix::sys::statvfs::statvfs(folder)?;
        let free_bytes = disk.blocks_available().saturating_mul(disk.fragment_size());
        if free_bytes < 2 * RESERVE_BYTES as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.take()
    }

    /// Takes the room, or says that there is none. Succeeds if it is taken already.
    pub(crate) fn take(&self) -> io::Result<()> {
        let taken = self.allocate();
        if taken.is_err() {
            self.give_up();
        }
        taken
    }

    fn allocate(&self) -> io::Result<()> {
        let file: File = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)?;
        nix::fcntl::posix_fallocate(&file, 0, RESERVE_BYTES)?;
        Ok(())
    }

    /// Gives the room up.
    pub(crate) fn give_up(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
