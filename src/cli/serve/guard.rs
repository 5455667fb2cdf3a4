//! Who may use the server: the names it is called by, the pages that call it, and the key.
//!
//! A page that a browser shows can send requests to this machine, and a page whose name was made to point to this machine can read
//! the answers too (DNS rebinding). So a server that listens on this machine alone answers to its own names only, and requests of
//! pages are refused unless their origin is allowed.

use std::net::IpAddr;

use anyhow::{Result, bail, ensure};
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use loraine::serve::refusal::Refusal;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Who may use the server.
pub struct Guard {
    api_key: Option<String>,
    /// Origins of pages that may use it; `None` allows all.
    origins: Option<Vec<String>>,
    /// The names that it is called by; `None` allows all.
    hosts: Option<Vec<String>>,
}

impl Guard {
    pub fn new(host: IpAddr, api_key: Option<&str>, origins: &[String], hosts: &[String]) -> Result<Self> {
        if let Some(key) = api_key {
            let plain = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
            ensure!(plain, "--api-key is empty or has characters beside ASCII letters, digits and signs");
        }
        let all = origins.iter().any(|origin| origin == "*");
        let list = origins.iter().filter(|origin| *origin != "*").map(|origin| checked_origin(origin));
        let list = list.collect::<Result<Vec<_>>>()?;
        let own = ["localhost".to_owned(), "127.0.0.1".to_owned(), "[::1]".to_owned(), written(host)];
        let hosts = host.is_loopback().then(|| hosts.iter().map(|host| host.to_lowercase()).chain(own).collect());
        Ok(Self { api_key: api_key.map(str::to_owned), origins: (!all).then_some(list), hosts })
    }

    /// The layer that lets browsers show answers to the allowed pages.
    pub fn cors(&self) -> CorsLayer {
        let origins = match &self.origins {
            None => AllowOrigin::any(),
            Some(origins) => AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
        };
        let methods = [Method::GET, Method::POST];
        CorsLayer::new().allow_origin(origins).allow_methods(methods).allow_headers(AllowHeaders::mirror_request())
    }

    /// Refuses a request that may not use the server.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap) -> std::result::Result<(), Refusal> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let host = uri.authority().map(|authority| authority.as_str()).or_else(|| text(header::HOST));
        if let (Some(known), Some(host)) = (&self.hosts, host)
            && !known.contains(&without_port(host).to_lowercase())
        {
            let message = format!("the server is not called {host}; start it with --allow-host for further names");
            return Err(Refusal::new(403, "permission_error", message));
        }
        if let (Some(allowed), Some(origin)) = (&self.origins, text(header::ORIGIN)) {
            let own = origin.split_once("://").is_some_and(|(_, authority)| Some(authority) == host);
            if !own && !allowed.iter().any(|allowed| allowed == origin) {
                let message = format!("pages of {origin} may not use the server; start it with --cors {origin}");
                return Err(Refusal::new(403, "permission_error", message));
            }
        }
        let open = matches!(uri.path(), "/health" | "/v1/health");
        let bearer = text(header::AUTHORIZATION).and_then(|value| value.split_once(' '));
        let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key.trim());
        let given = bearer.or_else(|| headers.get("x-api-key").and_then(|key| key.to_str().ok()));
        match &self.api_key {
            Some(key) if !open && !given.is_some_and(|given| equal(given, key)) => {
                let message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`";
                Err(Refusal::new(401, "authentication_error", message))
            }
            _ => Ok(()),
        }
    }
}

/// Compares in a time that does not depend on the place of the first difference.
fn equal(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

/// An address as it stands in a URL.
fn written(host: IpAddr) -> String {
    match host {
        IpAddr::V4(host) => host.to_string(),
        IpAddr::V6(host) => format!("[{host}]"),
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn checked_origin(origin: &str) -> Result<String> {
    let origin = origin.trim_end_matches('/');
    match origin.parse::<Uri>() {
        Ok(uri)
            if uri.scheme().is_some() && uri.authority().is_some() && uri.path() == "/" && uri.query().is_none() =>
        {
            Ok(origin.to_owned())
        }
        _ => bail!("--cors {origin} is no origin; give scheme, name and port, such as http://localhost:3000, or *"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The status of a refusal; 200 where there is none.
    fn status(guard: &Guard, path: &str, headers: &[(&'static str, &'static str)]) -> u16 {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        guard.check(&path.parse().unwrap(), &headers.collect()).map_or_else(|refusal| refusal.status, |()| 200)
    }

    #[test]
    fn only_known_names_pages_and_keys_get_in() {
        let open = |host: &str| Guard::new(host.parse().unwrap(), None, &[], &["box.lan".to_owned()]).unwrap();
        let local = open("127.0.0.1");
        for (host, want) in [
            ("127.0.0.1:8080", 200),
            ("LocalHost", 200),
            ("[::1]:80", 200),
            ("box.lan:1", 200),
            ("evil.example:8080", 403),
            ("127.0.0.1.evil.example", 403),
            ("localhost:evil", 403),
        ] {
            assert_eq!(status(&local, "/v1/models", &[("host", host)]), want, "{host}");
        }
        assert_eq!(status(&open("0.0.0.0"), "/", &[("host", "anything")]), 200);
        for (origin, want) in [("http://localhost:8080", 200), ("http://localhost:3000", 403), ("null", 403)] {
            let headers = [("host", "localhost:8080"), ("origin", origin)];
            assert_eq!(status(&local, "/v1/models", &headers), want, "{origin}");
        }
        let pages = ["http://localhost:3000/".to_owned()];
        let guard = Guard::new("127.0.0.1".parse().unwrap(), Some("sesame"), &pages, &[]).unwrap();
        let of_page = ("origin", "http://localhost:3000");
        assert_eq!(status(&guard, "/v1/models", &[of_page, ("authorization", "Bearer sesame")]), 200);
        assert_eq!(status(&guard, "/v1/models", &[of_page, ("x-api-key", "sesame")]), 200);
        for key in ["Bearer sesam", "Bearer sesame2", "Basic sesame", "sesame"] {
            assert_eq!(status(&guard, "/v1/models", &[("authorization", key)]), 401, "{key}");
        }
        assert_eq!(status(&guard, "/health", &[]), 200);
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let host = "127.0.0.1".parse().unwrap();
        for origin in ["localhost:3000", "http://a/b", "a b"] {
            assert!(Guard::new(host, None, &[origin.to_owned()], &[]).is_err(), "{origin}");
        }
        for key in ["", "with space", "schlüssel"] {
            assert!(Guard::new(host, Some(key), &[], &[]).is_err(), "{key}");
        }
        assert!(Guard::new(host, None, &["*".to_owned()], &[]).is_ok());
    }
}
