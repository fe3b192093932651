//! A folder of adapter files, by their names.

use std::{
    collections::HashMap,
    fs,
    io::{self, Cursor},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tracing::warn;

use super::{AdapterError, AdapterFile, AdapterInfo, Effect, hash::hash_of_tensors};
use crate::common::{error_chain, open_regular};

/// How deep subfolders are searched.
const MAX_DEPTH: usize = 8;
/// The most files that are listed.
const MAX_FILES: usize = 10_000;
/// How often a name that is not there leads to another look at the folder.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The number of the next file.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// What tells a file from an older one of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
    /// Device, number, and time of the latest change of anything, where the system has them: copies may keep the other two.
    identity: (u64, u64, i64, i64),
}

/// A file of the folder.
#[derive(Debug)]
pub struct AdapterEntry {
    name: String,
    path: PathBuf,
    stamp: Stamp,
    /// The file itself, if it is in the binary.
    embedded: Option<&'static [u8]>,
    info: Result<AdapterInfo, String>,
    hash: OnceLock<String>,
    /// A number that no other content of any file has.
    id: u64,
    effect: OnceLock<Result<Effect, String>>,
}

/// A folder of `.safetensors` files and its subfolders, or files in the binary. A file's name is its stem; the name under which it was trained is an alias, unless
/// two files have it. Names are exact, as in A1111, and never paths.
#[derive(Debug)]
pub struct AdapterFolder {
    /// `None` for files in the binary.
    folder: Option<PathBuf>,
    listing: Mutex<Listing>,
}

#[derive(Debug, Default)]
struct Listing {
    entries: Vec<Arc<AdapterEntry>>,
    /// Places in the list. A name comes before an alias.
    places: HashMap<String, usize>,
    looked: Option<Instant>,
}

impl AdapterEntry {
    /// The file's stem.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's size in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.stamp.len
    }

    /// Whether the file is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When the file was changed.
    #[must_use]
    pub fn modified(&self) -> Option<SystemTime> {
        self.stamp.modified
    }

    /// What the file says of itself.
    ///
    /// # Errors
    /// Why the file cannot be used, in one line.
    pub fn info(&self) -> Result<&AdapterInfo, &str> {
        self.info.as_ref().map_err(String::as_str)
    }

    /// Opens the file, if it is the one that was listed.
    ///
    /// # Errors
    /// As [`AdapterFile::open`], and when another file has taken its place.
    pub fn open(&self) -> Result<AdapterFile, AdapterError> {
        let file = if self.is_as_listed() { Some(self.read()?) } else { None };
        file.filter(|_| self.is_as_listed()).ok_or_else(|| AdapterError::Replaced { path: self.path.clone() })
    }

    fn is_as_listed(&self) -> bool {
        self.embedded.is_some() || fs::metadata(&self.path).is_ok_and(|now| stamp(&now) == self.stamp)
    }

    fn read(&self) -> Result<AdapterFile, AdapterError> {
        self.embedded.map_or_else(|| AdapterFile::open(&self.path), |bytes| AdapterFile::embedded(&self.path, bytes))
    }

    /// A number that no other content of any file has.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// What the file does to the model, or why it cannot be used. `check` finds it out the first time.
    ///
    /// # Errors
    /// As [`AdapterEntry::open`]. These are not remembered: the next request may have more luck.
    pub(super) fn effect(
        &self,
        check: impl FnOnce(&AdapterFile) -> Result<Effect, String>,
    ) -> Result<Result<Effect, String>, AdapterError> {
        if let Some(known) = self.effect.get() {
            return Ok(known.clone());
        }
        let found = check(&self.open()?);
        Ok(self.effect.get_or_init(|| found).clone())
    }

    /// Whether [`AdapterEntry::short_hash`] reads nothing.
    pub(super) fn has_hash(&self) -> bool {
        self.hash.get().is_some() || self.info.as_ref().is_ok_and(|info| info.short_hash.is_some())
    }

    /// The hash by which A1111 and Civitai call the file: 12 hexadecimal digits, from its header or, where that has none, of its tensors.
    /// Reads all of the file in the latter case, the first time.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn short_hash(&self) -> Result<String, AdapterError> {
        if let Some(hash) = self.info.as_ref().ok().and_then(|info| info.short_hash.as_ref()).or_else(|| self.hash.get()) {
            return Ok(hash.clone());
        }
        let hash = match self.embedded {
            Some(bytes) => hash_of_tensors(Cursor::new(bytes)),
            None => open_regular(&self.path).and_then(|(file, _)| hash_of_tensors(file)),
        };
        let hash = hash.map_err(|source| AdapterError::Unreadable { path: self.path.clone(), source })?;
        Ok(self.hash.get_or_init(|| hash).clone())
    }

    fn new(path: PathBuf, stamp: Stamp, embedded: Option<&'static [u8]>) -> Self {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (id, info) = (NEXT_ID.fetch_add(1, Ordering::Relaxed), Err(String::new()));
        let entry = Self { name, path, stamp, embedded, info, hash: OnceLock::new(), id, effect: OnceLock::new() };
        let info = entry.read().map(|file| file.info().clone()).map_err(|error| error_chain(&error));
        Self { info, ..entry }
    }

    fn alias(&self) -> Option<&str> {
        self.info.as_ref().ok()?.alias.as_deref().filter(|alias| *alias != self.name)
    }
}

impl AdapterFolder {
    /// Looks at a folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn new(folder: &Path) -> Result<Self, AdapterError> {
        let folder = Self { folder: Some(folder.to_owned()), listing: Mutex::default() };
        folder.refresh()?;
        Ok(folder)
    }

    /// Files in the binary, which messages call by these paths.
    #[must_use]
    pub fn embedded(files: &[(&str, &'static [u8])]) -> Self {
        let entry = |(path, bytes): &(&str, &'static [u8])| {
            let stamp = Stamp { len: bytes.len() as u64, ..Stamp::NONE };
            Arc::new(AdapterEntry::new(Path::new("builtin").join(path), stamp, Some(bytes)))
        };
        Self { folder: None, listing: Mutex::new(Listing::new(files.iter().map(entry).collect())) }
    }

    /// Looks at the folder again. Files that are as they were are not read again.
    ///
    /// # Errors
    /// When the folder cannot be read. The list stays as it was.
    pub fn refresh(&self) -> Result<(), AdapterError> {
        self.look(&mut self.listing())
    }

    /// The files, sorted by their paths; broken ones too, and those whose name another one has.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<AdapterEntry>> {
        self.listing().entries.clone()
    }

    /// The file of this name or alias. A file that has changed leads to a look at the folder, and so does a name that is not there, once a
    /// second at most.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<AdapterEntry>> {
        let mut listing = self.listing();
        let found = listing.find(name);
        let is_current = found.as_ref().is_some_and(|entry| entry.is_as_listed());
        let is_recent = listing.looked.is_some_and(|looked| looked.elapsed() < LOOK_AGAIN);
        if is_current || found.is_none() && is_recent {
            return found;
        }
        if let Err(error) = self.look(&mut listing) {
            warn!("{}", error_chain(&error));
        }
        listing.find(name)
    }

    fn listing(&self) -> MutexGuard<'_, Listing> {
        // A list is replaced as a whole.
        self.listing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, listing: &mut Listing) -> Result<(), AdapterError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        listing.looked = Some(Instant::now());
        let files = files_in(folder).map_err(|source| AdapterError::Unreadable { path: folder.clone(), source })?;
        let known: HashMap<&Path, &Arc<AdapterEntry>> = listing.entries.iter().map(|entry| (entry.path(), entry)).collect();
        let read = |(path, stamp): (PathBuf, Stamp)| match known.get(path.as_path()) {
            Some(entry) if entry.stamp == stamp => Arc::clone(entry),
            _ => Arc::new(AdapterEntry::new(path, stamp, None)),
        };
        *listing = Listing::new(files.into_iter().map(read).collect());
        Ok(())
    }
}

impl Listing {
    fn new(entries: Vec<Arc<AdapterEntry>>) -> Self {
        Self { places: places(&entries), entries, looked: Some(Instant::now()) }
    }

    fn find(&self, name: &str) -> Option<Arc<AdapterEntry>> {
        self.places.get(name).and_then(|place| self.entries.get(*place)).cloned()
    }
}

/// Where the file of each name and alias is.
fn places(entries: &[Arc<AdapterEntry>]) -> HashMap<String, usize> {
    let mut places: HashMap<String, usize> = HashMap::new();
    for (place, entry) in entries.iter().enumerate() {
        let first = *places.entry(entry.name.clone()).or_insert(place);
        if first != place {
            warn!("{}: left out, since {} has the same name", entry.path.display(), entries[first].path.display());
        }
    }
    let mut aliases: HashMap<&str, Vec<usize>> = HashMap::new();
    for (place, entry) in entries.iter().enumerate() {
        if let Some(alias) = entry.alias() {
            aliases.entry(alias).or_default().push(place);
        }
    }
    for (alias, of) in aliases {
        if let [place] = of.as_slice() {
            places.entry(alias.to_owned()).or_insert(*place);
        }
    }
    places
}

/// Files below a folder, sorted by their paths. Links to files are followed, links to folders are not.
fn files_in(folder: &Path) -> io::Result<Vec<(PathBuf, Stamp)>> {
    let mut files = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if depth == 0 => return Err(error),
            Err(error) => {
                warn!("{}: left out: {error}", folder.display());
                continue;
            }
        };
        // One more than are listed tells that there are too many.
        for entry in entries.flatten().take(MAX_FILES + 1) {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if depth < MAX_DEPTH {
                    folders.push((path, depth + 1));
                }
            } else if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("safetensors"))
                && !fs::metadata(&path).is_ok_and(|of| of.is_dir())
            {
                let stamp = fs::metadata(&path).map_or(Stamp::NONE, |metadata| stamp(&metadata));
                files.push((path, stamp));
            }
        }
        if files.len() > MAX_FILES {
            warn!("{}: has more than {MAX_FILES} adapters; the rest is left out", folder.display());
            break;
        }
    }
    files.sort();
    files.truncate(MAX_FILES);
    Ok(files)
}

impl Stamp {
    const NONE: Self = Self { modified: None, len: 0, identity: (0, 0, 0, 0) };
}

fn stamp(metadata: &fs::Metadata) -> Stamp {
    #[cfg(unix)]
    let identity = {
        use std::os::unix::fs::MetadataExt;
        (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
    };
    #[cfg(not(unix))]
    let identity = (0, 0, 0, 0);
    Stamp { modified: metadata.modified().ok(), len: metadata.len(), identity }
}
