//! Settings of the hub client, read from the environment variables that huggingface_hub reads.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::Cache;
use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

use crate::{Error, Result};

/// The longest wait for the headers of an answer, or for the next bytes of a file.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Files or directories of certificates in PEM; the first variable that is set counts, and the system's certificates do not.
const CERTIFICATES: [&str; 4] = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"];

/// A token of the hub, and the variable or file that it comes from. Its text is in no debug output.
#[derive(Clone)]
pub struct Token {
    /// The token itself.
    pub text: String,
    /// The variable or the file that it was read from.
    pub source: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("source", &self.source).finish_non_exhaustive()
    }
}

/// The hub to download from and the cache to download to.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// Address of the hub, without a slash at its end.
    pub endpoint: String,
    /// Access token for private and gated models. Only the hub itself receives it.
    pub token: Option<Token>,
    /// The variable that forbids requests: the cache alone is used.
    pub offline: Option<&'static str>,
    /// Directory that downloads are kept in, laid out as huggingface_hub lays it out.
    pub cache: Cache,
    /// The longest wait for the headers of an answer, or for the next bytes of a file.
    pub timeout: Duration,
}

/// The value of an environment variable; an empty one counts as absent.
fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

impl HubSettings {
    /// `HF_ENDPOINT`, `HF_TOKEN` (or `HUGGING_FACE_HUB_TOKEN`, or the file of `HF_TOKEN_PATH`), `HF_HUB_OFFLINE` (or
    /// `TRANSFORMERS_OFFLINE`), `HF_HUB_CACHE`, `HF_HOME` and `HF_HUB_DOWNLOAD_TIMEOUT`, as huggingface_hub reads them.
    pub fn from_env() -> Self {
        let home = home();
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
        let seconds = set("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.trim().parse().ok());
        let yes = |name: &&str| {
            set(name).is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        Self {
            endpoint: set("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".into())
                .trim_end_matches('/')
                .into(),
            token: token(&home),
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(yes),
            cache: Cache::new(cache.unwrap_or_else(|| home.join("hub"))),
            timeout: seconds.filter(|s| (1..=3600).contains(s)).map_or(TIMEOUT, Duration::from_secs),
        }
    }

    /// The time after which a request without any progress is given up.
    pub(super) fn patience(&self) -> Duration {
        2 * self.timeout
    }
}

/// The directory of the cache and of the token's file.
fn home() -> PathBuf {
    let below = |name: &str, path: &str| set(name).map(|dir| Path::new(&dir).join(path));
    set("HF_HOME")
        .map(PathBuf::from)
        .or_else(|| below("XDG_CACHE_HOME", "huggingface"))
        .or_else(|| below("HOME", ".cache/huggingface"))
        .or_else(|| below("USERPROFILE", ".cache/huggingface"))
        .unwrap_or_else(|| PathBuf::from(".cache/huggingface"))
}

fn token(home: &Path) -> Option<Token> {
    let clean = |text: String| Some(text.trim().replace(['\r', '\n'], "")).filter(|text| !text.is_empty());
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(text) = set(name).and_then(clean) {
            return Some(Token { text, source: name.to_owned() });
        }
    }
    let path = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
    let text = fs::read_to_string(&path).ok().and_then(clean)?;
    Some(Token { text, source: path.display().to_string() })
}

/// The certificates that servers are checked with: those of the environment, else the system's, else Mozilla's.
///
/// # Errors
/// A variable that names a file without certificates.
pub(super) fn certificates() -> Result<RootCerts> {
    for name in CERTIFICATES {
        if let Some(path) = set(name).map(PathBuf::from) {
            let found = certificates_at(&path)
                .map_err(|e| Error::file(&path, format!("cannot be read, and {name} names it: {e}")))?;
            if found.is_empty() {
                let problem = format!("holds no certificate in PEM, and {name} names it");
                return Err(Error::file(&path, problem));
            }
            return Ok(RootCerts::from(found));
        }
    }
    let found = rustls_native_certs::load_native_certs().certs;
    Ok(match found.is_empty() {
        true => RootCerts::WebPki,
        false => RootCerts::from(found.iter().map(|der| Certificate::from_der(der).to_owned())),
    })
}

/// The certificates of a file, or of the files of a directory.
fn certificates_at(path: &Path) -> std::io::Result<Vec<Certificate<'static>>> {
    let files = match path.is_dir() {
        false => vec![path.to_owned()],
        true => fs::read_dir(path)?.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect(),
    };
    let mut found = Vec::new();
    for file in files {
        found.extend(parse_pem(&fs::read(file)?).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        }));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_in_no_debug_output() {
        let token = Token { text: "hf_secret".to_owned(), source: "HF_TOKEN".to_owned() };
        let settings = HubSettings { token: Some(token), ..HubSettings::from_env() };
        let shown = format!("{settings:?}");
        assert!(shown.contains("HF_TOKEN") && !shown.contains("hf_secret"), "{shown}");
    }

    #[test]
    fn files_without_certificates_have_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.pem"), "no certificate\n").unwrap();
        assert!(certificates_at(dir.path()).unwrap().is_empty());
        assert!(certificates_at(&dir.path().join("missing.pem")).is_err());
    }
}
