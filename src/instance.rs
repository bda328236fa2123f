//! Which instance a verb speaks to, and what its files are called.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::cli::CliError;

/// The control socket of the system's service.
const SYSTEM_SOCKET: &str = "/run/forq/forq.sock";
/// The state of the system's service.
const SYSTEM_STATE_DIR: &str = "/var/lib/forq";
/// How an operator starts the system's service.
const SYSTEM_START_COMMAND: &str = "systemctl start forq";
/// The longest path that a socket address holds, without its closing zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// One instance: a folder, and the files in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The folder, as an absolute path. It may not exist yet.
    pub state_dir: PathBuf,
    /// The configuration file, where an option or the environment names one.
    pub named_config: Option<PathBuf>,
    /// The CLI's socket.
    pub control_socket: PathBuf,
    /// How a user would start a daemon here.
    pub(crate) start_command: String,
}

impl Instance {
    /// The instance in `state_dir`, which is made absolute.
    pub fn at(state_dir: &Path) -> Self {
        // `absolute` fails for an empty path only, which is no folder to find either.
        let state_dir = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        Self {
            control_socket: state_dir.join("forq.sock"),
            named_config: None,
            start_command: "forq serve".to_owned(),
            state_dir,
        }
    }

    /// The configuration file: the one that was named, which then must exist, or else
    /// `forq.toml`, which need not.
    pub fn config(&self) -> PathBuf {
        self.named_config.clone().unwrap_or_else(|| self.state_dir.join("forq.toml"))
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.state_dir.join("forq.db")
    }

    /// The workers' socket.
    pub fn worker_socket(&self) -> PathBuf {
        self.state_dir.join("worker.sock")
    }

    /// The file that a daemon holds locked.
    pub fn lock(&self) -> PathBuf {
        self.state_dir.join("forq.lock")
    }

    /// Whether somebody listens on its socket.
    pub(crate) fn is_live(&self) -> bool {
        SocketPath::of(&self.control_socket)
            .and_then(|socket| UnixStream::connect(socket.as_path()))
            .is_ok()
    }

    /// What the master last wrote about itself.
    pub fn status(&self) -> PathBuf {
        self.state_dir.join("status.json")
    }
}

/// The system's service, as its clients know it.
fn system() -> Instance {
    Instance {
        control_socket: PathBuf::from(SYSTEM_SOCKET),
        start_command: SYSTEM_START_COMMAND.to_owned(),
        ..Instance::at(Path::new(SYSTEM_STATE_DIR))
    }
}

/// What names an instance: the global options, and the environment.
pub(crate) struct Naming<'a> {
    pub(crate) state_dir: Option<&'a Path>,
    pub(crate) config: Option<&'a Path>,
    pub(crate) env: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Naming<'_> {
    /// The instance that `serve` starts: option, environment, then the user's default folder.
    pub(crate) fn to_serve(&self) -> Result<Instance, CliError> {
        match self.named() {
            Some(instance) => Ok(self.configured(instance)),
            None => Ok(self.configured(Instance::at(&self.default_dir()?))),
        }
    }

    /// The instance that `run` starts: option, environment, then a folder of its own.
    pub(crate) fn to_run(
        &self,
        private_dir: impl FnOnce() -> Result<PathBuf, CliError>,
    ) -> Result<Instance, CliError> {
        match self.named() {
            Some(instance) => Ok(self.configured(instance)),
            None => Ok(self.configured(Instance::at(&private_dir()?))),
        }
    }

    fn configured(&self, mut instance: Instance) -> Instance {
        instance.named_config = self.config.map(Path::to_owned).or_else(|| self.env("FORQ_CONFIG"));
        instance
    }

    /// The instance that a client verb means: option, environment, the user's own if it is up,
    /// the system's if it is there. If none is, the one that is likely meant, for the error to name.
    pub(crate) fn to_ask(&self) -> Result<Instance, CliError> {
        self.to_ask_beside(system())
    }

    fn to_ask_beside(&self, mut system: Instance) -> Result<Instance, CliError> {
        let own = self.to_serve();
        if self.named().is_some() || own.as_ref().is_ok_and(Instance::is_live) {
            return own;
        }
        // One that refuses us is there all the same: its refusal says more than "no daemon".
        let is_there = system.control_socket.exists();
        // Who never started one of their own, on a machine that has the service, means that.
        let is_installed =
            || system.state_dir.exists() && !own.as_ref().is_ok_and(|own| own.state_dir.exists());
        if is_there || is_installed() {
            system.named_config = own.ok().and_then(|own| own.named_config);
            return Ok(system);
        }
        own
    }

    fn named(&self) -> Option<Instance> {
        if let Some(dir) = self.state_dir {
            let mut instance = Instance::at(dir);
            instance.start_command = format!("forq serve --state-dir {}", dir.display());
            return Some(instance);
        }
        self.env("FORQ_STATE_DIR").map(|dir| Instance::at(&dir))
    }

    fn default_dir(&self) -> Result<PathBuf, CliError> {
        if let Some(listed) = self.env("STATE_DIRECTORY") {
            // systemd lists several, separated by colons; the first is ours.
            let first = listed.as_os_str().as_bytes().split(|byte| *byte == b':').next();
            return Ok(PathBuf::from(std::ffi::OsStr::from_bytes(first.unwrap_or_default())));
        }
        if let Some(state_home) = self.env("XDG_STATE_HOME") {
            return Ok(state_home.join("forq"));
        }
        match self.env("HOME") {
            Some(home) => Ok(home.join(".local/state/forq")),
            None => Err(CliError::invalid(
                "no state folder: give --state-dir, or set FORQ_STATE_DIR or HOME",
            )),
        }
    }

    /// A variable that is set to nothing counts as not set.
    fn env(&self, name: &str) -> Option<PathBuf> {
        (self.env)(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }
}

/// A socket's path in a form that fits a socket address. It must outlive the bind or connect.
pub(crate) struct SocketPath {
    path: PathBuf,
    // Open for as long as the path that goes through it.
    _dir: Option<OwnedFd>,
}

impl SocketPath {
    /// Paths that are too long are reached through a descriptor of their folder.
    pub(crate) fn of(socket: &Path) -> io::Result<Self> {
        if socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
            return Ok(Self { path: socket.to_owned(), _dir: None });
        }
        let (Some(parent), Some(name)) = (socket.parent(), socket.file_name()) else {
            return Err(io::ErrorKind::InvalidFilename.into());
        };
        let dir =
            open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _dir: Some(dir) })
    }

    pub(crate) fn as_path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    type Env<'a> = &'a [(&'a str, &'a str)];

    fn served(state_dir: Option<&str>, env: Env<'_>) -> Option<String> {
        let env = |name: &str| {
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        let naming = Naming { state_dir: state_dir.map(Path::new), config: None, env: &env };
        naming.to_serve().ok().map(|instance| instance.state_dir.to_string_lossy().into_owned())
    }

    #[test]
    fn the_nearest_name_wins() {
        let home = ("HOME", "/h");
        let xdg = ("XDG_STATE_HOME", "/x");
        let systemd = ("STATE_DIRECTORY", "/s:/t");
        let own = ("FORQ_STATE_DIR", "/e");
        let table: [(Option<&str>, Env<'_>, Option<&str>); 7] = [
            (None, &[], None),
            (None, &[home], Some("/h/.local/state/forq")),
            (None, &[home, xdg], Some("/x/forq")),
            (None, &[home, xdg, systemd], Some("/s")),
            (None, &[home, xdg, systemd, own], Some("/e")),
            (Some("/o"), &[home, own], Some("/o")),
            (None, &[home, ("FORQ_STATE_DIR", "")], Some("/h/.local/state/forq")),
        ];
        for (option, env, expected) in table {
            assert_eq!(served(option, env).as_deref(), expected, "{option:?} {env:?}");
        }
    }

    #[test]
    fn the_configuration_is_named_by_option_then_environment() {
        let env = |name: &str| (name == "FORQ_CONFIG").then(|| OsString::from("/e.toml"));
        let mut naming = Naming {
            state_dir: Some(Path::new("/d")),
            config: Some(Path::new("/o.toml")),
            env: &env,
        };
        assert_eq!(naming.to_serve().unwrap().config(), Path::new("/o.toml"));
        naming.config = None;
        assert_eq!(naming.to_serve().unwrap().config(), Path::new("/e.toml"));
        naming.env = &|_| None;
        assert_eq!(naming.to_serve().unwrap().config(), Path::new("/d/forq.toml"));
    }

    #[test]
    fn a_client_finds_its_own_daemon_before_the_systems() {
        let temp = tempfile::tempdir().unwrap();
        let [home, run, lib] = ["home", "run", "lib"].map(|name| temp.path().join(name));
        let own = home.join(".local/state/forq");
        let env = |name: &str| (name == "HOME").then(|| home.clone().into_os_string());
        let named = |name: &str| (name == "FORQ_STATE_DIR").then(|| OsString::from("/e"));
        let asked = |env: &dyn Fn(&str) -> Option<OsString>| {
            let control_socket = run.join("forq.sock");
            let system = Instance { control_socket, ..Instance::at(&lib) };
            let naming = Naming { state_dir: None, config: None, env };
            naming.to_ask_beside(system).ok().map(|instance| instance.state_dir)
        };
        let nobody = |_: &str| None;
        assert_eq!(asked(&env).as_deref(), Some(&*own));
        assert_eq!(asked(&nobody), None);
        // Installed, and not up.
        std::fs::create_dir(&lib).unwrap();
        assert_eq!(asked(&env).as_deref(), Some(&*lib));
        std::fs::create_dir_all(&own).unwrap();
        assert_eq!(asked(&env).as_deref(), Some(&*own));
        // Up, also for who has no home.
        std::fs::create_dir(&run).unwrap();
        let _system = UnixListener::bind(run.join("forq.sock")).unwrap();
        assert_eq!(asked(&env).as_deref(), Some(&*lib));
        assert_eq!(asked(&nobody).as_deref(), Some(&*lib));
        assert_eq!(asked(&named).as_deref(), Some(Path::new("/e")));
        let _own = UnixListener::bind(own.join("forq.sock")).unwrap();
        assert_eq!(asked(&env).as_deref(), Some(&*own));
    }

    #[test]
    fn a_long_path_is_reached_through_its_folder() {
        let temp = tempfile::tempdir().unwrap();
        let deep = temp.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let socket = deep.join("forq.sock");
        assert!(UnixStream::connect(&socket).is_err());
        let bound = SocketPath::of(&socket).unwrap();
        let _listener = UnixListener::bind(bound.as_path()).unwrap();
        drop(bound);
        let connected = SocketPath::of(&socket).unwrap();
        UnixStream::connect(connected.as_path()).unwrap();
    }
}
