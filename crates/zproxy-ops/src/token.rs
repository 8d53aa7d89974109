//! The shared token: where it is found, and how the gateway makes one.
//!
//! The bytes leave this module only through [`Secret::expose`] and [`Secret::shared`]; no error and no
//! log line has them, and every copy that is made here is wiped.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;
use zproxy_proto::auth;
use zproxy_proto::limits::{TOKEN_LEN_MAX, TOKEN_LEN_MIN, TOKEN_RANDOM_SIZE};

use crate::{Exit, state};

/// The environment variable that may hold the token itself.
pub const VARIABLE: &str = "ZPROXY_TOKEN";

/// The name of the file in the state directory.
pub const FILE_NAME: &str = "token";

/// Bytes that must not be shown, and are wiped when the last copy goes.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// The bytes, for the handshake alone.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The token as the handshake wants it.
    ///
    /// # Errors
    /// When its length is not that of a token.
    pub fn shared(&self) -> Result<auth::Token, Exit> {
        let text = Zeroizing::new(String::from_utf8_lossy(&self.0).into_owned());
        auth::Token::parse(&text).map_err(|error| Exit::usage(error.to_string()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where the settings say that the token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// In this file.
    File(PathBuf),
    /// In the variable [`VARIABLE`].
    Variable,
    /// Nobody said.
    Unnamed,
}

/// A token that was found or made.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token.
    pub secret: Secret,
    /// Where it is.
    pub place: TokenPlace,
    /// What the operator should know, one line each.
    pub warnings: Vec<String>,
}

/// Where a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenPlace {
    /// In a file that was there.
    File(PathBuf),
    /// In the variable [`VARIABLE`].
    Variable,
    /// In a file that has just been made.
    Made(PathBuf),
}

/// Why there is no token. The operator must act.
#[derive(Debug)]
pub enum TokenError {
    /// Neither a flag, nor the environment, nor the file names one.
    Missing,
    /// The file cannot be read.
    Unreadable(PathBuf, io::Error),
    /// The token at this place is too short, with its length in bytes.
    Short(String, usize),
    /// The file at this place is too large to be a token.
    Large(PathBuf),
    /// No token could be stored in the state directory.
    Unstored(PathBuf, io::Error),
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(
                f,
                "there is no token: copy the gateway's token file here and pass --token-file FILE, \
                 or set {VARIABLE}"
            ),
            Self::Unreadable(path, error) => write!(
                f,
                "the token file {} cannot be read: {error}; check --token-file and the file's owner",
                path.display()
            ),
            Self::Short(place, size) => write!(
                f,
                "the token in {place} has {size} bytes; it needs at least {TOKEN_LEN_MIN} (make \
                 one with: head -c 32 /dev/urandom | base64)"
            ),
            Self::Large(path) => write!(
                f,
                "{} is larger than {TOKEN_LEN_MAX} bytes, so it is not a token file; check \
                 --token-file",
                path.display()
            ),
            Self::Unstored(path, error) => write!(
                f,
                "a new token cannot be stored as {}: {error}; pass --token-file, set {VARIABLE}, \
                 or name a writable --state-dir",
                path.display()
            ),
        }
    }
}

impl std::error::Error for TokenError {}

impl From<TokenError> for Exit {
    fn from(error: TokenError) -> Self {
        match error {
            // Something is wrong with a file or directory, not with what was typed.
            TokenError::Unreadable(..) | TokenError::Unstored(..) => {
                Self::failed(error.to_string())
            }
            _ => Self::usage(error.to_string()),
        }
    }
}

/// The token that the settings name.
///
/// # Errors
/// When there is none, or it is unusable.
pub fn load(source: &TokenSource) -> Result<Token, TokenError> {
    match source {
        TokenSource::File(path) => load_file(path),
        TokenSource::Variable => {
            let bytes = std::env::var_os(VARIABLE).ok_or(TokenError::Missing)?.into_vec();
            let bytes = Zeroizing::new(bytes);
            let secret = checked(&bytes, || VARIABLE.to_owned())?;
            Ok(Token { secret, place: TokenPlace::Variable, warnings: Vec::new() })
        }
        TokenSource::Unnamed => Err(TokenError::Missing),
    }
}

/// As [`load`], but where nobody named a token, the one in the state directory is used, and made if
/// it is not there yet.
///
/// # Errors
/// When the named token is unusable, or none can be stored.
pub fn load_or_create(source: &TokenSource, state_dir: &Path) -> Result<Token, TokenError> {
    if *source != TokenSource::Unnamed {
        return load(source);
    }
    let path = state_dir.join(FILE_NAME);
    match load_file(&path) {
        Err(TokenError::Unreadable(_, error)) if error.kind() == io::ErrorKind::NotFound => {
            create(&path)
        }
        found => found,
    }
}

fn create(path: &Path) -> Result<Token, TokenError> {
    let unstored = |error| TokenError::Unstored(path.to_owned(), error);
    let mut random = Zeroizing::new([0u8; TOKEN_RANDOM_SIZE]);
    getrandom::fill(&mut *random).map_err(|error| unstored(io::Error::other(error.to_string())))?;
    // As large as it gets, so that it never moves and leaves a copy behind.
    let mut text = Zeroizing::new(Vec::with_capacity(2 * TOKEN_RANDOM_SIZE + 1));
    for byte in random.iter() {
        let digit = |value: u8| char::from_digit(value.into(), 16).map_or(b'0', |c| c as u8);
        text.extend([digit(byte >> 4), digit(byte & 0xf)]);
    }
    text.push(b'\n');
    state::ensure_dir(path.parent().unwrap_or(Path::new("."))).map_err(unstored)?;
    match state::create_atomically(path, &text) {
        Ok(()) => Ok(Token {
            secret: Secret(Zeroizing::new(text.trim_ascii().to_vec())),
            place: TokenPlace::Made(path.to_owned()),
            warnings: Vec::new(),
        }),
        // Another gateway with the same directory was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => load_file(path),
        Err(error) => Err(unstored(error)),
    }
}

fn load_file(path: &Path) -> Result<Token, TokenError> {
    let unreadable = |error| TokenError::Unreadable(path.to_owned(), error);
    let about = fs::metadata(path).map_err(unreadable)?;
    if about.len() > TOKEN_LEN_MAX as u64 {
        return Err(TokenError::Large(path.to_owned()));
    }
    let bytes = Zeroizing::new(fs::read(path).map_err(unreadable)?);
    let secret = checked(&bytes, || path.display().to_string())?;
    let mut warnings = Vec::new();
    // A pipe (`--token-file <(…)`) has no permissions that mean anything.
    if about.is_file() && about.permissions().mode() & 0o077 != 0 {
        let path = path.display();
        warnings.push(format!(
            "the token file {path} can be read by other users; run: chmod 600 {path}"
        ));
    }
    Ok(Token { secret, place: TokenPlace::File(path.to_owned()), warnings })
}

fn checked(bytes: &[u8], place: impl Fn() -> String) -> Result<Secret, TokenError> {
    let bytes = bytes.trim_ascii();
    if bytes.len() < TOKEN_LEN_MIN {
        return Err(TokenError::Short(place(), bytes.len()));
    }
    Ok(Secret(Zeroizing::new(bytes.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    /// A gateway without a token makes one, keeps it private, and finds it again.
    #[test]
    fn a_missing_token_is_made_once() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("state");
        let made = load_or_create(&TokenSource::Unnamed, &dir).unwrap();
        let path = dir.join("token");
        assert_eq!(made.place, TokenPlace::Made(path.clone()));
        assert_eq!((mode(&dir), mode(&path)), (0o700, 0o600));
        assert!(made.secret.expose().len() >= 32);
        let found = load_or_create(&TokenSource::Unnamed, &dir).unwrap();
        assert_eq!(found.place, TokenPlace::File(path.clone()));
        assert_eq!(found.secret.expose(), made.secret.expose());
        assert!(found.warnings.is_empty());
        let named = load(&TokenSource::File(path)).unwrap().secret;
        assert_eq!(named.expose(), made.secret.expose());
    }

    /// White space around a token is not part of it, and open permissions are worth a warning.
    #[test]
    fn files_are_trimmed_and_permissions_noticed() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("t");
        fs::write(&path, " 0123456789abcdef\r\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let token = load(&TokenSource::File(path.clone())).unwrap();
        assert_eq!(token.secret.expose(), b"0123456789abcdef");
        assert!(token.warnings[0].contains("chmod 600"), "{:?}", token.warnings);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(load(&TokenSource::File(path)).unwrap().warnings.is_empty());
    }

    /// Every unusable token is refused with what to do, and its bytes are never shown.
    #[test]
    fn unusable_tokens_are_refused_without_showing_them() {
        let top = tempfile::tempdir().unwrap();
        let short = top.path().join("short");
        fs::write(&short, "hunter2-hunter2\n").unwrap();
        let error = load(&TokenSource::File(short)).unwrap_err();
        assert!(matches!(error, TokenError::Short(_, 15)), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let large = top.path().join("large");
        fs::write(&large, [b'x'; 5000]).unwrap();
        assert!(matches!(load(&TokenSource::File(large)), Err(TokenError::Large(_))));
        let nowhere = load(&TokenSource::File(top.path().join("no"))).unwrap_err();
        assert!(nowhere.to_string().contains("--token-file"), "{nowhere}");
        let missing = load(&TokenSource::Unnamed).unwrap_err();
        assert!(missing.to_string().contains("ZPROXY_TOKEN"), "{missing}");
        let file = top.path().join("file");
        fs::write(&file, "").unwrap();
        let unstored = load_or_create(&TokenSource::Unnamed, &file.join("state")).unwrap_err();
        assert!(
            unstored.to_string().contains("--state-dir")
                || matches!(unstored, TokenError::Unreadable(..))
        );
        let secret = Secret(Zeroizing::new(b"0123456789abcdef".to_vec()));
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }
}
