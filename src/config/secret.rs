//! An API key: read at the moment that it is needed, never kept in the configuration.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use secrecy::SecretString;

use super::models::Provider;
use super::tools::Service;

/// Bytes of a file with an API key at most.
const KEY_BYTES_MAX: u64 = 16 << 10;

/// Where an API key is: at most one of the three is set.
struct Place<'a> {
    env: Option<&'a str>,
    file: Option<&'a Path>,
    credential: Option<&'a str>,
}

impl Provider {
    /// The API key, from wherever the configuration says: nothing if it says nothing. Reads a
    /// file, so call it at a process's edge; `env` looks up a variable.
    ///
    /// The error is one sentence that names the variable or the file, never its content.
    pub fn api_key(
        &self,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<SecretString>, String> {
        let place = Place {
            env: self.api_key_env.as_deref(),
            file: self.api_key_file.as_deref(),
            credential: self.api_key_credential.as_deref(),
        };
        key_at(&place, env)
    }
}

impl Service {
    /// The API key, as [`Provider::api_key`] says.
    pub fn api_key(
        &self,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<SecretString>, String> {
        let place = Place {
            env: self.api_key_env.as_deref(),
            file: self.api_key_file.as_deref(),
            credential: self.api_key_credential.as_deref(),
        };
        key_at(&place, env)
    }
}

fn key_at(
    place: &Place<'_>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Option<SecretString>, String> {
    if let Some(name) = place.env {
        let setting = format!("api_key_env: the environment variable {name}");
        let text = env(name).ok_or_else(|| format!("{setting} is not set"))?;
        return key_of(&text, &setting).map(Some);
    }
    if let Some(path) = place.file {
        return key_of_file(path, "api_key_file").map(Some);
    }
    if let Some(name) = place.credential {
        let folder = env("CREDENTIALS_DIRECTORY").ok_or_else(|| {
            format!(
                "api_key_credential: there is no CREDENTIALS_DIRECTORY: run under systemd with LoadCredential={name}:PATH"
            )
        })?;
        return key_of_file(&Path::new(&folder).join(name), "api_key_credential").map(Some);
    }
    Ok(None)
}

fn key_of_file(path: &Path, setting: &str) -> Result<SecretString, String> {
    let place = format!("{setting}: {}", path.display());
    let failed = |error: std::io::Error| format!("{place} cannot be read: {error}");
    // A pipe or a device could block the reader for ever.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(format!("{place} is not a regular file"));
    }
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(KEY_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(failed)?;
    if text.len() as u64 > KEY_BYTES_MAX {
        return Err(format!("{place} is larger than {KEY_BYTES_MAX} bytes"));
    }
    key_of(&text, &place)
}

/// A key that can stand in a header: what cannot would fail later with its value in the message.
fn key_of(text: &str, place: &str) -> Result<SecretString, String> {
    let key = text.trim();
    if key.is_empty() {
        return Err(format!("{place} is empty"));
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "{place} holds more than a key: one line of visible ASCII is expected"
        ));
    }
    Ok(SecretString::from(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn read(provider: &Provider, env: &[(&str, &str)]) -> Result<Option<String>, String> {
        let lookup = |name: &str| {
            env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let key = provider.api_key(lookup)?;
        Ok(key.map(|key| key.expose_secret().to_owned()))
    }

    #[test]
    fn no_key_is_no_error() {
        assert_eq!(read(&Provider::default(), &[]), Ok(None));
    }

    #[test]
    fn from_the_environment() {
        let provider = Provider { api_key_env: Some("KEY".to_owned()), ..Provider::default() };
        assert_eq!(read(&provider, &[("KEY", " sk-1\n")]), Ok(Some("sk-1".to_owned())));
        let error = |env: &[(&str, &str)]| read(&provider, env).unwrap_err();
        assert_eq!(error(&[]), "api_key_env: the environment variable KEY is not set");
        assert_eq!(error(&[("KEY", " ")]), "api_key_env: the environment variable KEY is empty");
        assert!(!error(&[("KEY", "sk-1\nsk-2")]).contains("sk-"));
    }

    #[test]
    fn services_have_keys_too() {
        let service = Service { api_key_env: Some("KEY".to_owned()), ..Service::default() };
        let key = service.api_key(|_| Some("sk-1".to_owned())).unwrap().unwrap();
        assert_eq!(key.expose_secret(), "sk-1");
        assert!(Service::default().api_key(|_| None).unwrap().is_none());
    }

    #[test]
    fn from_a_file_or_a_credential() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "sk-file\n").unwrap();
        let env = [("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap())];

        let file = Provider { api_key_file: Some(path), ..Provider::default() };
        assert_eq!(read(&file, &[]), Ok(Some("sk-file".to_owned())));
        let named = Provider { api_key_credential: Some("key".to_owned()), ..Provider::default() };
        assert_eq!(read(&named, &env), Ok(Some("sk-file".to_owned())));
        assert!(read(&named, &[]).unwrap_err().contains("LoadCredential=key:PATH"));

        let bad = Provider { api_key_file: Some(folder.path().to_owned()), ..Provider::default() };
        assert!(read(&bad, &[]).unwrap_err().ends_with("is not a regular file"));
    }
}
