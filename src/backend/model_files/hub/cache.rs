//! The hub's cache on disk, in the
//! [layout](https://huggingface.co/docs/huggingface_hub/guides/manage-cache) of Python's client: files by their hash in `blobs`, links to
//! them in `snapshots/COMMIT`, and commits by the names of branches and tags in `refs`.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use hf_hub::{CacheRepo, Repo, RepoType};

/// The directory of Python's client.
pub(super) fn home() -> PathBuf {
    let given = env::var_os("HF_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    given.unwrap_or_else(|| env::home_dir().unwrap_or_default().join(".cache/huggingface"))
}

/// The cache of one repository. Its folders are `hf_hub`'s. Its downloads are not used: they need ranges, which some mirrors
/// do not have.
#[derive(Debug)]
pub(super) struct Cache {
    repository: String,
    hub: hf_hub::Cache,
    folder: PathBuf,
}

impl Cache {
    pub(super) fn of(repository: &str) -> Self {
        let hub = hf_hub::Cache::new(home().join("hub"));
        let folder = hub.path().join(Repo::model(repository.to_owned()).folder_name());
        Self { repository: repository.to_owned(), hub, folder }
    }

    fn at(&self, revision: &str) -> CacheRepo {
        self.hub.repo(Repo::with_revision(self.repository.clone(), RepoType::Model, revision.to_owned()))
    }

    /// The directory of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.at(commit).pointer_path(commit)
    }

    /// The commit of a branch or a tag at the last look.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        fs::read_to_string(self.folder.join("refs").join(revision)).ok().map(|commit| commit.trim().to_owned())
    }

    pub(super) fn set_commit_of(&self, revision: &str, commit: &str) -> io::Result<()> {
        self.at(revision).create_ref(commit)
    }

    /// The path of the file with this hash, whether or not it is there.
    pub(super) fn blob(&self, hash: &str) -> PathBuf {
        self.folder.join("blobs").join(hash)
    }

    /// The path of a download under way, and the lock that keeps other processes off it.
    pub(super) fn incomplete(&self, hash: &str) -> io::Result<(PathBuf, File)> {
        fs::create_dir_all(self.folder.join("blobs"))?;
        let lock = File::create(self.blob(&format!("{hash}.lock")))?;
        lock.lock()?;
        Ok((self.blob(&format!("{hash}.incomplete")), lock))
    }

    /// Links a file of a commit to the file with this hash.
    pub(super) fn link(&self, commit: &str, file: &str, hash: &str) -> io::Result<()> {
        let path = self.snapshot(commit).join(file);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        // Up from the file's folders and from snapshots/COMMIT.
        let up = "../".repeat(file.split('/').count() + 1);
        // An old link may be dangling or wrong, or another process may be making the same link.
        let new = path.with_added_extension(format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&new);
        symlink(Path::new(&up).join("blobs").join(hash), &new)?;
        fs::rename(new, path)
    }
}
