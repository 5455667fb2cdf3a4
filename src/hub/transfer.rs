//! Downloads files of a hub over HTTP. Only the hub receives the token; hosts that the hub redirects to do not.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use ureq::http::{Response, Uri, header};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::settings::{HubSettings, Token, certificates};
use crate::Result as LibraryResult;

const MAX_REDIRECTS: usize = 10;
/// A download that brings less in the time of [`HubSettings::patience`] makes no progress.
const LEAST_PROGRESS: u64 = 16 << 10;
/// Limit for a server's own words in a message.
const MAX_WORDS: usize = 300;
/// Limit for a model's list of files; published lists are far shorter.
const MAX_INFO_BYTES: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Refused(Refusal),
    #[error("{0}")]
    Connection(Box<ureq::Error>),
    #[error("{0}")]
    Broken(io::Error),
    /// A local problem, such as a full disk.
    #[error("cannot be written: {0}")]
    Disk(io::Error),
    /// A response that does not come from a hub.
    #[error("{0}")]
    Answer(String),
}

/// A status other than success, with what the hub says about it.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub status: u16,
    /// The hub's name of the reason, such as `GatedRepo`.
    pub code: Option<String>,
    pub words: Option<String>,
    /// The time after which the server wants to be asked again.
    pub wait: Option<Duration>,
}

impl Refusal {
    fn of(response: &Response<Body>) -> Self {
        let words = text(response, "x-error-message").map(|words| {
            let words: String = words.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
            words.trim().trim_end_matches('.').to_owned()
        });
        Self {
            status: response.status().as_u16(),
            code: text(response, "x-error-code"),
            words: words.filter(|words| !words.is_empty()),
            // Hubs send seconds; of dates no use is made.
            wait: text(response, "retry-after").and_then(|wait| wait.trim().parse().ok()).map(Duration::from_secs),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the server answers with status {}", self.status)?;
        self.words.as_ref().map_or(Ok(()), |words| write!(f, " ({words})"))?;
        self.wait.map_or(Ok(()), |wait| write!(f, " and wants to be asked again after {} s", wait.as_secs()))
    }
}

impl Failure {
    /// No response, a broken response or a server error: another attempt may succeed.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Refused(Refusal { status, .. }) => *status >= 500 || *status == 429,
            Self::Connection(_) | Self::Broken(_) => true,
            Self::Disk(_) | Self::Answer(_) => false,
        }
    }

    /// The time after which the server wants to be asked again; zero where it names none.
    pub(super) fn wait(&self) -> Duration {
        match self {
            Self::Refused(Refusal { wait: Some(wait), .. }) => *wait,
            _ => Duration::ZERO,
        }
    }
}

/// A file as the hub describes it.
pub(super) struct Remote {
    pub commit: String,
    /// The SHA-256 of the content for large files.
    pub etag: String,
    pub size: u64,
    url: String,
}

/// The last response after all redirects, and its URL.
struct Answer {
    response: Response<Body>,
    url: String,
    /// The headers that [`Remote`] needs, each from the first response that has it.
    said: [Option<String>; 4],
}

pub(super) struct Transfer {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
    patience: Duration,
}

impl Transfer {
    /// # Errors
    /// Certificates that the environment names and that cannot be read.
    pub(super) fn new(settings: &HubSettings) -> LibraryResult<Self> {
        let HubSettings { endpoint, token, timeout, .. } = settings;
        let tls = TlsConfig::builder().root_certs(certificates()?).build();
        let config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("loraine/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .timeout_resolve(Some(*timeout))
            .timeout_connect(Some(*timeout))
            .timeout_recv_response(Some(*timeout))
            .timeout_per_read(Some(*timeout));
        Ok(Self {
            agent: config.build().into(),
            endpoint: endpoint.clone(),
            token: token.clone(),
            patience: settings.patience(),
        })
    }

    /// `limit` is the time for the whole answer; None is for files, which may take hours.
    fn once(&self, url: &str, range: Option<&str>, limit: Option<Duration>) -> Result<Response<Body>, Failure> {
        // Ranges count bytes of the compressed content, so compression must be off.
        let request = self.agent.get(url).config().timeout_per_call(limit).build();
        let mut request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Some(range) = range {
            request = request.header(header::RANGE, format!("bytes={range}"));
        }
        if let Some(token) = self.token.as_ref().filter(|_| same_origin(url, &self.endpoint)) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.text));
        }
        request.call().map_err(|e| Failure::Connection(Box::new(e)))
    }

    fn get(&self, url: &str, range: Option<&str>, limit: Option<Duration>) -> Result<Answer, Failure> {
        const NAMES: [&str; 4] = ["x-repo-commit", "x-linked-etag", "x-linked-size", "etag"];
        let mut url = url.to_owned();
        let mut said = [const { None }; 4];
        for _ in 0..=MAX_REDIRECTS {
            let response = self.once(&url, range, limit)?;
            for (said, name) in said.iter_mut().zip(NAMES) {
                *said = said.take().or_else(|| text(&response, name));
            }
            let status = response.status();
            if status.is_redirection() {
                let to = text(&response, "location");
                let to = to.ok_or_else(|| Failure::Answer("the server leads elsewhere but says not where".into()))?;
                url = target(&url, &to)?;
                continue;
            }
            // 416: the requested range starts at or after the end of the file, which may be empty.
            return match status.is_success() || status.as_u16() == 416 {
                true => Ok(Answer { response, url, said }),
                false => Err(Failure::Refused(Refusal::of(&response))),
            };
        }
        Err(Failure::Answer(format!("the server leads from one place to the next, {MAX_REDIRECTS} times")))
    }

    pub(super) fn json<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, Failure> {
        let mut response = self.get(url, None, Some(self.patience))?.response;
        let mut bytes = Vec::new();
        let mut body = response.body_mut().as_reader().take(MAX_INFO_BYTES);
        body.read_to_end(&mut bytes).map_err(Failure::Broken)?;
        serde_json::from_slice(&bytes).map_err(|e| Failure::Answer(format!("its answer is not a hub's: {e}")))
    }

    pub(super) fn find(&self, url: &str) -> Result<Remote, Failure> {
        let answer = self.get(url, Some("0-0"), Some(self.patience))?;
        let Answer { response, url, said: [commit, linked_etag, linked_size, etag] } = answer;
        let missing = |name: &str| Failure::Answer(format!("the answer has no {name}, so it is not a hub's"));
        let range = text(&response, "content-range");
        let of_range = range.as_deref().and_then(|range| range.rsplit('/').next()?.parse().ok());
        let whole = || text(&response, "content-length").filter(|_| range.is_none())?.parse().ok();
        let size = linked_size.and_then(|size| size.parse().ok()).or(of_range).or_else(whole);
        let etag = linked_etag.or(etag).ok_or_else(|| missing("ETag"))?;
        Ok(Remote {
            commit: commit.ok_or_else(|| missing("X-Repo-Commit"))?,
            etag: etag.trim_start_matches("W/").replace('"', ""),
            size: size.ok_or_else(|| missing("size"))?,
            url,
        })
    }

    /// Appends to `part` until it has the file's size. `alive` becomes the time of the last progress, and `progress` receives the
    /// bytes downloaded so far.
    pub(super) fn fill(
        &self,
        remote: &Remote,
        part: &Path,
        alive: &mut Instant,
        mut progress: impl FnMut(u64),
    ) -> Result<(), Failure> {
        let mut file = OpenOptions::new().append(true).create(true).open(part).map_err(Failure::Disk)?;
        let mut there = file.metadata().map_err(Failure::Disk)?.len();
        if there > remote.size {
            there = restart(&file)?;
        }
        if there == remote.size {
            return Ok(());
        }
        let mut response = self.get(&remote.url, Some(&format!("{there}-")), None)?.response;
        let begin = match text(&response, "content-range") {
            Some(range) => range.trim_start_matches("bytes ").split('-').next().and_then(|n| n.parse().ok()),
            None => Some(0),
        };
        match begin {
            Some(begin) if begin == there => {}
            Some(0) => there = restart(&file)?,
            _ => return Err(Failure::Answer("the server sends another part of the file than was asked for".into())),
        }
        progress(there);
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 16];
        let mut since_progress = 0;
        loop {
            let count = body.read(&mut buffer).map_err(Failure::Broken)?;
            since_progress += count as u64;
            if since_progress >= LEAST_PROGRESS {
                (*alive, since_progress) = (Instant::now(), 0);
            } else if count > 0 && alive.elapsed() > self.patience {
                let problem = format!("{since_progress} bytes came in {} seconds", self.patience.as_secs());
                return Err(Failure::Broken(io::Error::new(io::ErrorKind::TimedOut, problem)));
            }
            if count == 0 {
                return file.sync_all().map_err(Failure::Disk);
            }
            there += count as u64;
            if there > remote.size {
                return Err(Failure::Answer(format!(
                    "the server sends more than the {} bytes it announced",
                    remote.size
                )));
            }
            file.write_all(&buffer[..count]).map_err(Failure::Disk)?;
            progress(there);
        }
    }
}

fn restart(file: &File) -> Result<u64, Failure> {
    file.set_len(0).map(|()| 0).map_err(Failure::Disk)
}

fn text(response: &Response<Body>, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

fn same_origin(a: &str, b: &str) -> bool {
    let origin = |url: &str| {
        let uri: Uri = url.parse().ok()?;
        let port = uri.port_u16().or_else(|| Some(if uri.scheme_str()? == "https" { 443 } else { 80 }));
        Some((uri.scheme_str()?.to_owned(), uri.host()?.to_ascii_lowercase(), port?))
    };
    origin(a).is_some_and(|a| Some(a) == origin(b))
}

/// Resolves a redirect: `to` is a full URL, or a path on the same host. None leads from an encrypted connection to a plain one, on which
/// anybody could put other files in place of the hub's.
fn target(from: &str, to: &str) -> Result<String, Failure> {
    let parsed = |url: &str| url.parse::<Uri>().ok().filter(|uri| uri.host().is_some());
    if to.starts_with('/') && !to.starts_with("//") {
        if let Some((scheme, host)) =
            parsed(from).and_then(|u| Some((u.scheme_str()?.to_owned(), u.authority()?.to_string())))
        {
            return Ok(format!("{scheme}://{host}{to}"));
        }
    } else if let Some(scheme) = parsed(to).as_ref().and_then(Uri::scheme_str) {
        let encrypted = parsed(from).is_some_and(|uri| uri.scheme_str() == Some("https"));
        match scheme {
            "http" if encrypted => {
                return Err(Failure::Answer(format!("the server leads from https to `{to}`, which is not encrypted")));
            }
            "http" | "https" => return Ok(to.to_owned()),
            _ => {}
        }
    }
    Err(Failure::Answer(format!("the server leads to `{to}`, which is no address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_for_one_origin() {
        for (url, same) in [
            ("https://hub.example/a", true),
            ("https://HUB.example:443/b?c", true),
            ("https://hub.example:8443/a", false),
            ("http://hub.example/a", false),
            ("https://cdn.hub.example/a", false),
            ("https://hub.example.evil/a", false),
            ("https://hub.example@evil.example/a", false),
            ("nonsense", false),
        ] {
            assert_eq!(same_origin(url, "https://hub.example"), same, "{url}");
        }
    }

    #[test]
    fn redirects_lead_to_paths_and_addresses() {
        let from = "https://hub.example:8443/a/b?c=d";
        assert_eq!(target(from, "/x/y?z").unwrap(), "https://hub.example:8443/x/y?z");
        assert_eq!(target(from, "https://cdn.example/x").unwrap(), "https://cdn.example/x");
        assert_eq!(target("http://hub.example/a", "http://cdn.example/x").unwrap(), "http://cdn.example/x");
        assert!(target(from, "http://cdn.example/x").unwrap_err().to_string().contains("not encrypted"));
        for wrong in ["", "x/y", "//cdn.example/x", "file:///etc/passwd", "ftp://a/b", "\u{1f600}"] {
            assert!(target(from, wrong).is_err(), "{wrong}");
        }
    }
}
