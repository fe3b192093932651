//! Host names of this machine.

use std::net::IpAddr;

/// A host name in the form in which names are compared: lower case, without a final dot, and an address without brackets.
#[must_use]
pub fn normalised_host(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

/// Whether a normalised host is this machine, whatever a name server says ([RFC 6761](https://www.rfc-editor.org/rfc/rfc6761#section-6.3)).
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let is_address = host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    host == "localhost" || host.ends_with(".localhost") || is_address
}
