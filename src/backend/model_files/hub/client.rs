//! What the worker asks a hub, as [Python's client](https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/file_download.py)
//! asks it.

use std::{
    fs::{self, File},
    io::{self, IsTerminal, Write},
    path::Path,
    thread::sleep,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use tracing::debug;
use ureq::{
    Agent, Body,
    http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header},
};

use crate::common::{self, error_chain};

/// How often a download is resumed after a break.
const RETRIES: u32 = 4;
/// The wait before the first of these. Each wait is twice as long as the one before.
const FIRST_WAIT: Duration = Duration::from_millis(300);
/// A hub that is silent for this long counts as gone.
const SILENCE: Duration = Duration::from_mins(1);
const MAX_REDIRECTS: usize = 10;

/// Why a request to a hub failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::backend::model_files) enum HubError {
    /// The hub answered with an error.
    #[error("{url} answers {status}")]
    Status {
        /// The address.
        url: String,
        /// The answer's status.
        status: StatusCode,
    },
    /// The answer is not that of a hub.
    #[error("{url} {what}")]
    Answer {
        /// The address.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// The hub cannot be reached.
    #[error(transparent)]
    Unreachable(#[from] ureq::Error),
    /// The proxy or the address is invalid.
    #[error(transparent)]
    Proxy(#[from] common::BadProxy),
    /// The cache cannot be written, or the connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl HubError {
    fn answer(url: &Uri, what: impl Into<String>) -> Self {
        Self::Answer { url: shown(url), what: what.into() }
    }

    /// Whether another try may succeed.
    fn may_pass(&self) -> bool {
        match self {
            Self::Status { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::Unreachable(_) => true,
            Self::Io(error) => error.kind() != io::ErrorKind::StorageFull,
            Self::Answer { .. } | Self::Proxy(_) => false,
        }
    }
}

/// A hub, and the user's access to it.
#[derive(Debug)]
pub(super) struct Client {
    /// Its address, without a slash at the end.
    pub(super) endpoint: String,
    /// The user's token.
    pub(super) token: Option<String>,
}

/// A repository at a revision.
#[derive(Debug, Deserialize)]
pub(super) struct Revision {
    /// The commit.
    pub(super) sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Revision {
    /// The names of its files.
    pub(super) fn files(&self) -> Vec<String> {
        self.siblings.iter().map(|file| file.rfilename.clone()).collect()
    }
}

/// A file, as a hub announces it.
#[derive(Debug)]
pub(super) struct RemoteFile {
    url: Uri,
    /// SHA-256 of large files, another hash of small ones.
    pub(super) hash: String,
    /// In bytes, if the hub says so.
    pub(super) size: Option<u64>,
}

impl Client {
    /// The files of a repository at a revision.
    pub(super) fn revision(&self, repository: &str, revision: &str) -> Result<Revision, HubError> {
        let url = self.url(&format!("api/models/{repository}/revision/{}", revision.replace('/', "%2F")))?;
        let (url, mut response) = self.follow(&Method::GET, url, &HeaderMap::new(), |_, _| true)?;
        let text = response.body_mut().read_to_string()?;
        let found: Revision =
            serde_json::from_str(&text).map_err(|error| HubError::answer(&url, format!("answers with no list of files: {error}")))?;
        // The commit becomes the name of a folder.
        let is_name = !found.sha.is_empty() && found.sha.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if is_name { Ok(found) } else { Err(HubError::answer(&url, "answers with a commit that is none")) }
    }

    /// A file of a commit, as announced by the hub itself, and not by the host that it may redirect to.
    pub(super) fn file(&self, repository: &str, commit: &str, file: &str) -> Result<RemoteFile, HubError> {
        let url = self.url(&format!("{repository}/resolve/{commit}/{file}"))?;
        let (asked, response) =
            self.follow(&Method::HEAD, url.clone(), &HeaderMap::new(), |from, to| from.authority() == to.authority())?;
        let headers = response.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let hash = text("x-linked-etag").or_else(|| text("etag")).map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        // The hash becomes the name of a file.
        let is_name = |hash: &&str| !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let hash = hash.filter(is_name).ok_or_else(|| HubError::answer(&asked, "has no etag that could be a file's name: is it a hub?"))?;
        // The length of a compressed answer is not the file's.
        let length = if headers.contains_key(header::CONTENT_ENCODING) || response.status().is_redirection() {
            None
        } else {
            text("content-length")
        };
        let size = text("x-linked-size").or(length).and_then(|size| size.parse().ok());
        Ok(RemoteFile { url, hash: hash.to_owned(), size })
    }

    /// Downloads a file to `path`, and resumes an earlier download of it.
    pub(super) fn download(&self, file: &RemoteFile, name: &str, path: &Path) -> Result<(), HubError> {
        let bar = progress_bar(file.size, name);
        let mut tries = 0;
        loop {
            match self.download_rest(file, path, &bar) {
                Ok(()) => break,
                Err(error) if tries < RETRIES && error.may_pass() => {
                    debug!(error = error_chain(&error), name, "the download broke off");
                    sleep(FIRST_WAIT * 2_u32.pow(tries));
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn download_rest(&self, file: &RemoteFile, path: &Path, bar: &ProgressBar) -> Result<(), HubError> {
        let mut part = File::options().append(true).create(true).open(path)?;
        let mut start = part.metadata()?.len();
        if file.size.is_some_and(|size| start > size) {
            part.set_len(0)?;
            start = 0;
        }
        if start > 0 && Some(start) == file.size {
            return Ok(());
        }
        let mut headers = HeaderMap::new();
        if start > 0 {
            headers.insert(header::RANGE, format!("bytes={start}-").try_into().map_err(io::Error::other)?);
        }
        let (url, response) = match self.follow(&Method::GET, file.url.clone(), &headers, |_, _| true) {
            // The file on disk is longer than the hub's: it is another file.
            Err(HubError::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, .. }) if start > 0 => {
                fs::remove_file(path)?;
                return Err(io::Error::other("the download begins anew").into());
            }
            other => other?,
        };
        if let Some(encoding) = response.headers().get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
            return Err(HubError::answer(&url, format!("sends it in the encoding {encoding:?}, which was not asked for")));
        }
        if !goes_on_from(&response, start) {
            // The hub ignored the range and sends all of it.
            part.set_len(0)?;
            start = 0;
        }
        bar.set_position(start);
        let written = io::copy(&mut bar.wrap_read(response.into_body().into_reader()), &mut part)?;
        part.flush()?;
        match file.size {
            Some(size) if start + written < size => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the line broke").into()),
            Some(size) if start + written > size => {
                fs::remove_file(path)?;
                Err(HubError::answer(&url, format!("sends {} bytes of a file that has {size}", start + written)))
            }
            _ => Ok(()),
        }
    }

    fn url(&self, path: &str) -> Result<Uri, HubError> {
        let url = format!("{}/{}", self.endpoint, path.replace(' ', "%20"));
        url.parse().map_err(|error| HubError::Answer { url, what: format!("is no address: {error}") })
    }

    /// Sends a request and follows redirects while `goes` allows it. The token goes to the hub itself alone.
    fn follow(
        &self,
        method: &Method,
        mut url: Uri,
        headers: &HeaderMap,
        goes: impl Fn(&Uri, &Uri) -> bool,
    ) -> Result<(Uri, Response<Body>), HubError> {
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(method, &url, headers)?;
            let status = response.status();
            if status.is_success() {
                return Ok((url, response));
            }
            if !status.is_redirection() {
                return Err(HubError::Status { url: shown(&url), status });
            }
            let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
            let next = location.and_then(|location| resolve(&url, location));
            let next = next.ok_or_else(|| HubError::answer(&url, "leads to nowhere"))?;
            if !goes(&url, &next) {
                return Ok((url, response));
            }
            url = next;
        }
        Err(HubError::answer(&url, "leads on and on"))
    }

    fn send(&self, method: &Method, url: &Uri, headers: &HeaderMap) -> Result<Response<Body>, HubError> {
        let config = Agent::config_builder().http_status_as_error(false).max_redirects_will_error(false).timeout_connect(Some(SILENCE));
        let agent = common::agent(url, config.timeout_recv_response(Some(SILENCE)).timeout_per_read(Some(SILENCE)))?;
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        // A compressed answer has no ranges, and another length than the file.
        request = request.header(header::ACCEPT_ENCODING, "identity");
        request = request.header(header::USER_AGENT, concat!("sd-worker/", env!("CARGO_PKG_VERSION")));
        let is_hub = self.endpoint.parse::<Uri>().is_ok_and(|hub| hub.authority() == url.authority() && hub.scheme() == url.scheme());
        if let Some(token) = self.token.as_ref().filter(|_| is_hub) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        Ok(agent.run(request.body(()).map_err(ureq::Error::from)?)?)
    }
}

/// Whether an answer continues at this byte.
fn goes_on_from(response: &Response<Body>, start: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let first = range.and_then(|range| range.trim_start_matches("bytes").trim().split('-').next()?.parse::<u64>().ok());
    response.status() == StatusCode::PARTIAL_CONTENT && first == Some(start)
}

/// The target of a redirect from `base`.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    if location.contains("://") {
        return location.parse().ok();
    }
    let mut parts = base.clone().into_parts();
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{}://{rest}", base.scheme_str()?).parse().ok();
    }
    let path = if location.starts_with('/') { location.to_owned() } else { format!("{}/{location}", base.path().rsplit_once('/')?.0) };
    parts.path_and_query = Some(path.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// An address without its query, which may hold secrets.
fn shown(url: &Uri) -> String {
    common::without_secrets(&url.to_string())
}

/// A progress bar, if stderr is a terminal.
fn progress_bar(size: Option<u64>, name: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = size.map_or_else(ProgressBar::no_length, ProgressBar::new).with_message(name.to_owned());
    match ProgressStyle::with_template("{msg} {bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} to go") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
