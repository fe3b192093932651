//! Origins of web pages as browsers send them: a scheme, a host, and the port unless it is the scheme's default ([RFC
//! 6454](https://www.rfc-editor.org/rfc/rfc6454#section-6.2)).

use axum::http::{HeaderValue, Uri};

/// Parses an origin as a person writes it, with any capitals, a slash at the end or the default port. Returns `None` for text that no
/// browser sends.
#[must_use]
pub fn origin(text: &str) -> Option<HeaderValue> {
    let uri: Uri = text.trim().parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let default_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    // `Uri` drops the fragment after `#`.
    let is_bare = uri.path() == "/" && uri.query().is_none() && !text.contains('#') && !authority.as_str().contains('@');
    let (host, rest) = authority.as_str().split_at(authority.host().len());
    let port = match rest {
        "" => None,
        port => Some(port.strip_prefix(':')?.parse::<u16>().ok()?),
    };
    let port = port.filter(|port| *port != default_port).map(|port| format!(":{port}")).unwrap_or_default();
    let origin = format!("{scheme}://{}{port}", host.to_ascii_lowercase());
    (is_bare && !host.is_empty() && origin.is_ascii()).then(|| HeaderValue::try_from(origin).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_as_browsers_write_it_or_none() {
        for (text, right) in [
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://localhost:3000/", "http://localhost:3000"),
            (" HTTPS://Example.ORG:443/ ", "https://example.org"),
            ("http://example.org:80", "http://example.org"),
            ("http://example.org:443", "http://example.org:443"),
            ("http://[::1]:0080/", "http://[::1]"),
        ] {
            assert_eq!(origin(text).unwrap(), right, "{text}");
        }
        for text in [
            "",
            "*",
            "null",
            "localhost",
            "example.org:443",
            "ftp://example.org",
            "http://",
            "http://:80",
            "http://example.org/app",
            "http://example.org/?a",
            "http://example.org#a",
            "http://user@example.org",
            "http://exämple.org",
            "http://example.org:",
            "http://example.org:70000",
            "http://a,http://b",
        ] {
            assert_eq!(origin(text), None, "{text}");
        }
    }
}
