//! Requests to other hosts. They go through the proxy that the environment names, by the rules of
//! [curl](https://curl.se/docs/manpage.html#ENVIRONMENT).

mod plain_proxy;

use std::{env, net::IpAddr};

use plain_proxy::{ThroughProxy, ToProxy};
use ureq::{
    Agent, Proxy, ProxyProtocol,
    config::ConfigBuilder,
    http::Uri,
    typestate::AgentScope,
    unversioned::transport::{Connector, TcpConnector},
};

use super::{is_loopback, normalised_host};

/// An invalid proxy address. The error does not show it, since it may contain a password.
#[derive(Debug, thiserror::Error)]
#[error("the proxy in the variable {0} cannot be used; it must be an address such as http://proxy.example.org:3128")]
pub struct BadProxy(String);

/// A URL without credentials: no user, no password, no query and no fragment.
#[must_use]
pub fn without_secrets(url: &str) -> String {
    let Ok(url) = url.parse::<Uri>() else { return "a URL that makes no sense".to_owned() };
    let (scheme, host, port) = (url.scheme_str().unwrap_or("http"), url.host().unwrap_or_default(), url.port());
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{}", url.path())
}

/// An agent for requests to the host of `url`. Another host may need another proxy, so the agent follows no redirects.
///
/// # Errors
/// When the proxy's address is invalid.
pub fn agent(url: &Uri, config: ConfigBuilder<AgentScope>) -> Result<Agent, BadProxy> {
    let config = config.max_redirects(0);
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    // ureq's own choice of a proxy ignores the URL's scheme.
    let Some((name, proxy)) = proxy_for(url, variable) else { return Ok(config.proxy(None).build().into()) };
    let proxy = Proxy::new(&proxy).map_err(|_| BadProxy(name))?;
    if url.scheme_str() == Some("http") && proxy.protocol() == ProxyProtocol::Http {
        // Proxies forward plain requests; most refuse to open a tunnel for them.
        let way = ().chain(TcpConnector::default()).chain(ThroughProxy(proxy.clone()));
        return Ok(Agent::with_parts(config.proxy(None).build(), way, ToProxy::new(proxy)));
    }
    Ok(config.proxy(Some(proxy)).build().into())
}

/// The proxy for a URL, with the variable that names it.
fn proxy_for(url: &Uri, variable: impl Fn(&str) -> Option<String>) -> Option<(String, String)> {
    let host = normalised_host(url.host().unwrap_or_default());
    let exceptions = variable("no_proxy").or_else(|| variable("NO_PROXY")).unwrap_or_default();
    if is_loopback(&host) || is_excepted(&host, &exceptions) {
        return None;
    }
    let own = format!("{}_proxy", url.scheme_str().unwrap_or("http"));
    // In a CGI program, `HTTP_PROXY` holds the client's header `proxy`, so curl does not read it.
    let capitals = (own != "http_proxy").then(|| own.to_uppercase());
    let names = [Some(own), capitals, Some("all_proxy".to_owned()), Some("ALL_PROXY".to_owned())];
    names.into_iter().flatten().find_map(|name| variable(&name).map(|proxy| (name, proxy)))
}

/// Whether `NO_PROXY` lists a host: by its name or a parent domain, its address or network, separated by commas or blanks; `*` is every
/// host.
fn is_excepted(host: &str, exceptions: &str) -> bool {
    let address = host.parse::<IpAddr>().ok();
    exceptions.trim() == "*"
        || exceptions.split([',', ' ', '\t']).filter(|exception| !exception.is_empty()).any(|exception| match address {
            Some(address) => is_in_network(address, exception),
            None => is_below(host, &normalised_host(exception.trim_start_matches('*').trim_start_matches('.'))),
        })
}

fn is_below(host: &str, name: &str) -> bool {
    !name.is_empty() && host.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether an address equals `network`, or is in it if `network` has a prefix length, as in `10.0.0.0/8`.
fn is_in_network(address: IpAddr, network: &str) -> bool {
    let (network, bits) = network.split_once('/').map_or((network, None), |(network, bits)| (network, Some(bits)));
    let Ok(network) = normalised_host(network).parse::<IpAddr>() else { return false };
    let (address, network, width) = match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => (u128::from(address.to_bits()), u128::from(network.to_bits()), 32),
        (IpAddr::V6(address), IpAddr::V6(network)) => (address.to_bits(), network.to_bits(), 128),
        _ => return false,
    };
    let bits = bits.map_or(Some(width), |bits| bits.parse::<u32>().ok().filter(|bits| *bits <= width));
    // With 0 bits, every address is in the network.
    bits.is_some_and(|bits| (address ^ network).checked_shr(width - bits).unwrap_or(0) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_url_lets_nobody_in() {
        for (url, shown) in [
            ("http://user:password@localhost:7833/a/b?token=t#part", "http://localhost:7833/a/b"),
            ("https://example.org/x", "https://example.org/x"),
            ("http://[::1]:80", "http://[::1]:80/"),
            ("user:password@", "a URL that makes no sense"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }

    fn proxy(url: &str, variables: &[(&str, &str)]) -> Option<String> {
        let variable = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        proxy_for(&url.parse().unwrap(), variable).map(|(_, proxy)| proxy)
    }

    /// As curl 7.88 goes, tried with each.
    #[test]
    fn a_proxy_is_for_its_scheme() {
        for (variables, plain, secure) in [
            (&[][..], None, None),
            (&[("HTTPS_PROXY", "p")], None, Some("p")),
            (&[("https_proxy", "p"), ("HTTPS_PROXY", "q")], None, Some("p")),
            (&[("http_proxy", "p")], Some("p"), None),
            (&[("HTTP_PROXY", "p")], None, None),
            (&[("ALL_PROXY", "p")], Some("p"), Some("p")),
            (&[("all_proxy", "p"), ("ALL_PROXY", "q"), ("http_proxy", "r")], Some("r"), Some("p")),
            (&[("ALL_PROXY", "p"), ("NO_PROXY", "*")], None, None),
            (&[("ALL_PROXY", "p"), ("no_proxy", "b.example"), ("NO_PROXY", "*")], Some("p"), Some("p")),
        ] {
            assert_eq!(proxy("http://a.example/x", variables).as_deref(), plain, "{variables:?}");
            assert_eq!(proxy("https://a.example:8443/x", variables).as_deref(), secure, "{variables:?}");
            for url in ["http://127.0.0.1:1", "http://127.1.2.3", "https://localhost", "http://a.localhost", "http://[::1]:80"] {
                assert_eq!(proxy(url, variables), None, "{url} is this machine");
            }
        }
    }

    /// As curl 7.88 goes, tried with each, but that it knows neither `*.a.example` nor networks of IPv6 or of no bits.
    #[test]
    fn exceptions_are_names_suffixes_and_networks() {
        for (host, exceptions) in [
            ("a.example", "a.example"),
            ("a.example.", "b, A.EXAMPLE."),
            ("x.a.example", "a.example"),
            ("x.a.example", ".a.example"),
            ("a.example", ".a.example"),
            ("x.a.example", "*.a.example"),
            ("10.1.2.3", "10.1.2.3"),
            ("10.1.2.3", "a\t10.0.0.0/8"),
            ("10.1.2.3", "0.0.0.0/0"),
            ("192.168.17.9", "192.168.16.0/20"),
            ("2001:db8::1", "[2001:db8::1]"),
            ("2001:db8::1", "2001:db8::/32"),
            ("2001:db8::1", "::/0"),
        ] {
            assert!(is_excepted(&normalised_host(host), exceptions), "{host} {exceptions}");
        }
        for (host, exceptions) in [
            ("a.example", ""),
            ("a.example", " , ."),
            ("xa.example", "a.example"),
            ("a.example.org", "a.example"),
            ("a.example", "x.a.example"),
            ("a.example", "b,*"),
            ("10.1.2.3", "11.0.0.0/8"),
            ("10.1.2.3", "10.0.0.0/33"),
            ("10.1.2.3", "10.0.0.0/x"),
            ("10.1.2.3", "::/0"),
            ("10.1.2.3", "2.3"),
            ("192.168.32.1", "192.168.16.0/20"),
        ] {
            assert!(!is_excepted(&normalised_host(host), exceptions), "{host} {exceptions}");
        }
    }
}
