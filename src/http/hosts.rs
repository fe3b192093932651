//! The host names by which a worker on loopback may be addressed.
//!
//! A web page can point a domain of its own to loopback ([DNS rebinding](https://en.wikipedia.org/wiki/DNS_rebinding)). Its requests then
//! come from this machine, and the browser treats them as the page's own; only the host name gives them away.

use axum::{
    extract::Request,
    http::{header, uri::Authority},
};

use crate::common::{is_loopback, normalised_host};

/// Allowed hosts besides the names of loopback.
#[derive(Debug, Clone, Default)]
pub struct AllowedHosts(Vec<String>);

impl AllowedHosts {
    /// Parses hosts as their owner writes them; a port is ignored.
    ///
    /// # Errors
    /// The first text that is no host.
    pub fn new(hosts: &[String]) -> Result<Self, String> {
        let host = |text: &String| match text.trim().parse::<Authority>() {
            Ok(authority) if !authority.as_str().contains('@') && !authority.host().is_empty() => Ok(normalised_host(authority.host())),
            _ => Err(text.clone()),
        };
        hosts.iter().map(host).collect::<Result<_, _>>().map(Self)
    }

    /// The host that a request names, if it is not allowed. A request without one passes: browsers always send it.
    pub(super) fn disallowed<'a>(&self, request: &'a Request) -> Option<&'a str> {
        authorities(request).find(|authority| !self.allows(authority))
    }

    fn allows(&self, authority: &str) -> bool {
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        let host = normalised_host(authority.host());
        is_loopback(&host) || self.0.contains(&host)
    }
}

/// The host and port that a request names: `:authority` in HTTP/2, the header `host` in HTTP/1.
pub(super) fn authority(request: &Request) -> Option<&str> {
    authorities(request).next()
}

/// Every host that a request names; it may name several. A header that is not text is an unknown host.
fn authorities(request: &Request) -> impl Iterator<Item = &str> {
    let named = request.headers().get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or_default());
    request.uri().authority().map(Authority::as_str).into_iter().chain(named)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn names_of_loopback_are_known_however_they_are_written() {
        let hosts = AllowedHosts::new(&["Worker.Example:8080".to_owned(), "[2001:db8::1]".to_owned()]).unwrap();
        for name in ["localhost", "LOCALHOST:1", "localhost.:80", "a.b.localhost", "127.0.0.1:8080", "127.9.9.9", "[::1]", "[::1]:8080"] {
            assert!(hosts.allows(name), "{name}");
        }
        for name in ["worker.example", "worker.example.:1", "[2001:db8::1]:8080", "[::ffff:127.0.0.1]"] {
            assert!(hosts.allows(name), "{name}");
        }
        for name in
            ["", "evil.example", "localhost.evil.example", "notlocalhost", "127.0.0.1.evil.example", "x.worker.example", "10.0.0.1", "a b"]
        {
            assert!(!hosts.allows(name), "{name}");
        }
        for name in ["", "http://a", "a/b", "user@a", "a b"] {
            assert_eq!(AllowedHosts::new(&[name.to_owned()]).unwrap_err(), name);
        }
    }

    /// Whichever of them a proxy goes by.
    #[test]
    fn every_host_of_a_request_counts() {
        let request = |uri: &str, hosts: &[&str]| {
            let request = Request::builder().uri(uri);
            hosts.iter().fold(request, |request, host| request.header("host", *host)).body(Body::empty()).unwrap()
        };
        let hosts = AllowedHosts::default();
        assert_eq!(hosts.disallowed(&request("/", &[])), None);
        assert_eq!(hosts.disallowed(&request("http://evil.example/", &["localhost"])), Some("evil.example"));
        assert_eq!(hosts.disallowed(&request("/", &["localhost", "evil.example"])), Some("evil.example"));
        assert_eq!(hosts.disallowed(&request("http://localhost:1/", &["[::1]"])), None);
    }
}
