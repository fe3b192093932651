//! Plain HTTP through a proxy: the request goes to the proxy's address, with the whole URL in its first line ([RFC 9112,
//! 3.2.2](https://www.rfc-editor.org/rfc/rfc9112#section-3.2.2)).

use std::io;

use base64::{Engine, prelude::BASE64_STANDARD};
use ureq::{
    Error, Proxy,
    config::Config,
    http::Uri,
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport},
    },
};

/// Resolves every host to the proxy's address; the proxy resolves the host itself.
#[derive(Debug)]
pub(super) struct ToProxy {
    proxy: Proxy,
    resolver: DefaultResolver,
}

impl ToProxy {
    pub(super) fn new(proxy: Proxy) -> Self {
        Self { proxy, resolver: DefaultResolver::default() }
    }
}

impl Resolver for ToProxy {
    fn resolve(&self, _: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        self.resolver.resolve(self.proxy.uri(), config, timeout)
    }
}

/// Puts the host into the first line of each request on a connection to the proxy.
#[derive(Debug)]
pub(super) struct ThroughProxy(pub(super) Proxy);

impl<In: Transport> Connector<In> for ThroughProxy {
    type Out = Forwarded<In>;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let origin = format!("http://{}", details.uri.authority().map_or("", |authority| authority.as_str()));
        let password = self.0.username().map(|user| format!("{user}:{}", self.0.password().unwrap_or_default()));
        let header = password.map(|password| format!("proxy-authorization: Basic {}\r\n", BASE64_STANDARD.encode(password)));
        let forwarded = |inner| Forwarded { inner, origin, header: header.unwrap_or_default(), is_next: true };
        Ok(chained.map(forwarded))
    }
}

/// A connection to a proxy.
pub(super) struct Forwarded<In> {
    inner: In,
    /// The scheme and the host, which precede the path in a request's first line.
    origin: String,
    /// The header that follows the first line.
    header: String,
    /// Whether the next bytes begin a request, because the last answer has been read.
    is_next: bool,
}

impl<In> std::fmt::Debug for Forwarded<In> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Forwarded(…)")
    }
}

impl<In: Transport> Forwarded<In> {
    /// Completes the head of a request in the output buffer, and returns its new length. ureq sends a head as a whole.
    fn complete(&mut self, amount: usize) -> io::Result<usize> {
        let output = self.inner.buffers().output();
        let head = &output[..amount];
        let path = head.iter().position(|byte| *byte == b' ').map(|space| space + 1);
        let line = head.windows(2).position(|bytes| bytes == b"\r\n").map(|end| end + 2);
        let (Some(path), Some(line)) = (path, line) else { return Err(io::Error::other("a request has no first line")) };
        let whole = [&head[..path], self.origin.as_bytes(), &head[path..line], self.header.as_bytes(), &head[line..]].concat();
        let room = output.get_mut(..whole.len()).ok_or_else(|| io::Error::other("a request is too long for a proxy"))?;
        room.copy_from_slice(&whole);
        Ok(whole.len())
    }
}

impl<In: Transport> Transport for Forwarded<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let amount = if std::mem::take(&mut self.is_next) { self.complete(amount)? } else { amount };
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.is_next = true;
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}
