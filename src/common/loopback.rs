//! Names of this machine itself.

use std::net::IpAddr;

/// A host as hosts are compared: in small letters, without the dot that a name may end with, and without the brackets of an address.
#[must_use]
pub fn normalised_host(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

/// Whether a normalised host is this machine whatever a name server says ([RFC 6761](https://www.rfc-editor.org/rfc/rfc6761#section-6.3)).
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let is_address = host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    host == "localhost" || host.ends_with(".localhost") || is_address
}
