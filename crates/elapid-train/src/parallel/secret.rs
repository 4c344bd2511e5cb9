//! The secret that the ranks of a run share: whoever knows it may join.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use elapid_kernels::os;
use hmac::{Hmac, KeyInit};
use sha2::Sha256;
use tempfile::NamedTempFile;

use crate::{Error, Result};

/// The environment variable that holds the secret.
pub const SECRET: &str = "ELAPID_SECRET";
/// The environment variable that names a file with the secret.
pub const SECRET_FILE: &str = "ELAPID_SECRET_FILE";

/// How to make one, for messages.
pub(super) const HOW: &str = "set ELAPID_SECRET, or ELAPID_SECRET_FILE to a file that only you can read, to the same \
                              secret in every process (`openssl rand -hex 32` makes one)";

/// Minimum size of a secret in bytes, as guesses can be tested against a recorded handshake.
const LEAST: usize = 16;
/// Maximum size of a secret in bytes.
const MOST: usize = 4096;

/// A secret of at least 16 bytes, the same at every rank of a run. It is never sent: ranks prove that they know it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// From `ELAPID_SECRET`, or the file that `ELAPID_SECRET_FILE` names. `None` if neither is set.
    ///
    /// # Errors
    /// If both are set, the file cannot be read or can be read by others, or the secret is too short or too long.
    pub fn from_env() -> Result<Option<Self>> {
        Self::read(&|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn read(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<Self>> {
        match (env(SECRET), env(SECRET_FILE)) {
            (None, None) => Ok(None),
            (Some(secret), None) => Self::new(secret.as_encoded_bytes()).map(Some),
            (None, Some(file)) => Self::from_file(Path::new(&file)).map(Some),
            (Some(_), Some(_)) => {
                Err(wrong(format!("{SECRET} and {SECRET_FILE} are both set"), "leave one of them out"))
            }
        }
    }

    /// A secret; white space around it is ignored.
    ///
    /// # Errors
    /// If it has fewer than 16 or more than 4096 bytes.
    pub fn new(secret: &[u8]) -> Result<Self> {
        Self::checked(secret, SECRET)
    }

    /// The secret in a file, which only its owner may read.
    ///
    /// # Errors
    /// If it is not a regular file, others can read or write it, or the secret is too short or too long.
    pub fn from_file(path: &Path) -> Result<Self> {
        let failed = |source| Error::Io { doing: "read the secret in", path: path.to_owned(), source };
        let name = format!("{SECRET_FILE} {}", path.display());
        let check = |metadata: &Metadata| match unfit(metadata) {
            None => Ok(()),
            Some((what, fix)) => Err(wrong(format!("{name} {what}"), fix)),
        };
        // Opening a pipe would block until its other end is open.
        check(&fs::metadata(path).map_err(failed)?)?;
        let file = File::open(path).map_err(failed)?;
        check(&file.metadata().map_err(failed)?)?;
        let mut bytes = Vec::new();
        file.take(MOST as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        Self::checked(&bytes, &name)
    }

    fn checked(bytes: &[u8], name: &str) -> Result<Self> {
        let secret = bytes.trim_ascii();
        if bytes.len() > MOST || secret.len() < LEAST {
            let what = format!("{name} has {} bytes", if bytes.len() > MOST { bytes.len() } else { secret.len() });
            let fix = format!("a secret has {LEAST} to {MOST} bytes; `openssl rand -hex 32` makes one");
            return Err(wrong(what, &fix));
        }
        Ok(Self(secret.to_vec()))
    }

    /// The key of a message authentication code. Without a secret everybody knows it, and the code is only a checksum.
    pub(super) fn key(secret: Option<&Self>) -> Hmac<Sha256> {
        key(secret.map_or(&[], |secret| &secret.0))
    }
}

/// The key of a message authentication code.
pub(super) fn key(bytes: &[u8]) -> Hmac<Sha256> {
    match Hmac::new_from_slice(bytes) {
        Ok(key) => key,
        Err(_) => unreachable!("HMAC takes keys of any length"),
    }
}

/// Why a file cannot hold a secret, and the fix.
fn unfit(metadata: &Metadata) -> Option<(&'static str, &'static str)> {
    if !metadata.is_file() {
        return Some(("is not a regular file", "name a file that holds the secret"));
    }
    if !os::files::is_private(metadata) {
        return Some(("can be read or written by other users", "run `chmod 600` on it, and change the secret"));
    }
    None
}

fn wrong(what: String, fix: &str) -> Error {
    Error::World { what, fix: fix.to_owned() }
}

/// A file of mode 0600 with a random secret, removed when dropped.
pub(super) struct SecretFile(NamedTempFile);

impl SecretFile {
    pub(super) fn new() -> io::Result<Self> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        // On Unix only the owner may read a temporary file.
        let mut file = tempfile::Builder::new().prefix("elapid-secret-").tempfile()?;
        let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        file.write_all(digits.as_bytes())?;
        Ok(Self(file))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = "0123456789abcdef";

    fn read(variables: &[(&str, &str)]) -> Result<Option<Secret>> {
        Secret::read(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn secrets_of_the_environment() {
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[(SECRET, LONG)]).unwrap(), Some(Secret(LONG.into())));
        let message = |variables: &[(&str, &str)]| read(variables).unwrap_err().to_string();
        assert!(message(&[(SECRET, LONG), (SECRET_FILE, "/x")]).contains("both set"));
        assert!(message(&[(SECRET, "short")]).contains("ELAPID_SECRET has 5 bytes"));
        assert!(message(&[(SECRET, &"x".repeat(5000))]).contains("5000 bytes"));
        assert!(message(&[(SECRET_FILE, "/no/such/file")]).contains("/no/such/file"));
        assert!(!format!("{:?}", Secret::new(LONG.as_bytes())).contains(LONG), "it is not shown");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, format!("{LONG}\n")).unwrap();
        let with_mode = |mode: u32| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Secret::from_file(&path)
        };
        assert_eq!(with_mode(0o600).unwrap(), Secret(LONG.into()), "the end of the line is no part of it");
        assert!(with_mode(0o400).is_ok());
        for mode in [0o644, 0o640, 0o604, 0o620, 0o601] {
            let message = with_mode(mode).unwrap_err().to_string();
            assert!(message.contains("other users") && message.contains("chmod 600"), "{mode:o}: {message}");
        }
        for not_a_file in [dir.path(), Path::new("/dev/zero")] {
            let message = Secret::from_file(not_a_file).unwrap_err().to_string();
            assert!(message.contains("not a regular file"), "{message}");
        }
    }

    #[test]
    fn files_of_the_launcher() {
        let (one, two) = (SecretFile::new().unwrap(), SecretFile::new().unwrap());
        let path = one.path();
        assert_ne!(Secret::from_file(&path).unwrap(), Secret::from_file(&two.path()).unwrap());
        drop(one);
        assert!(!path.exists());
    }
}
