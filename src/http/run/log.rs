//! The log of a run: what the engine has said, as far as it is kept.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use crate::{
    backend::{Complete, EncodedImage, Progress},
    http::api_error::ApiError,
};

/// The most progress entries. New progress makes the old worthless.
const MAX_PROGRESS: usize = 256;
/// The most bytes of previews, for the same reason.
const MAX_PREVIEW_BYTES: usize = 64 << 20;

/// The status of a run.
#[derive(Debug, Clone, Default)]
pub(in crate::http) enum Status {
    #[default]
    Queued,
    Running,
    Completed,
    Failed(ApiError),
    Cancelled,
}

/// An event of a run. Entries are numbered from 0.
#[derive(Debug, Clone)]
pub(in crate::http) enum Entry {
    Progress(Progress),
    Preview {
        index: u8,
        step: usize,
        image: Arc<EncodedImage>,
    },
    Complete(Arc<Complete>),
    /// The last entry of a run that failed or was cancelled.
    Failed(ApiError),
}

/// The log and the status of a run.
#[derive(Debug, Default)]
pub(super) struct Log {
    entries: VecDeque<(u64, Entry)>,
    next_id: u64,
    pub(super) progress: Option<Progress>,
    pub(super) status: Status,
    pub(super) ended_at: Option<Instant>,
    pub(super) followers: usize,
    /// How many followers have left so far.
    pub(super) departures: u64,
}

impl Status {
    /// The status as the API names it.
    pub(in crate::http) fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Entry {
    /// Its size in memory, which is mostly a picture's file.
    pub(in crate::http) fn bytes(&self) -> usize {
        match self {
            Self::Progress(_) | Self::Failed(_) => 0,
            Self::Preview { image, .. } => image.bytes.len(),
            Self::Complete(complete) => complete.image.bytes.len() + complete.warnings.iter().map(String::len).sum::<usize>(),
        }
    }

    fn is_progress(&self) -> bool {
        matches!(self, Self::Progress(_))
    }

    fn is_preview(&self) -> bool {
        matches!(self, Self::Preview { .. })
    }
}

impl Log {
    pub(super) fn push(&mut self, entry: Entry) {
        if let Entry::Progress(progress) = &entry {
            self.progress = Some(*progress);
            if self.entries.iter().filter(|(_, entry)| entry.is_progress()).count() >= MAX_PROGRESS {
                self.forget_oldest(Entry::is_progress);
            }
        }
        if entry.is_preview() {
            let room = MAX_PREVIEW_BYTES.saturating_sub(entry.bytes());
            while self.preview_bytes() > room && self.forget_oldest(Entry::is_preview) {}
        }
        self.entries.push_back((self.next_id, entry));
        self.next_id += 1;
    }

    /// The size of all entries, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.entries.iter().map(|(_, entry)| entry.bytes()).sum()
    }

    fn preview_bytes(&self) -> usize {
        self.entries.iter().map(|(_, entry)| entry).filter(|entry| entry.is_preview()).map(Entry::bytes).sum()
    }

    /// The pictures that are done, in their order.
    pub(super) fn pictures(&self) -> impl Iterator<Item = &Arc<Complete>> {
        self.entries.iter().filter_map(|(_, entry)| if let Entry::Complete(complete) = entry { Some(complete) } else { None })
    }

    /// The latest preview of a picture that is not done.
    pub(super) fn latest_preview(&self) -> Option<Arc<EncodedImage>> {
        let latest =
            self.entries.iter().rev().map(|(_, entry)| entry).find(|entry| !matches!(entry, Entry::Progress(_) | Entry::Failed(_)));
        if let Some(Entry::Preview { image, .. }) = latest { Some(Arc::clone(image)) } else { None }
    }

    /// Removes the oldest entry of a kind. Returns false if there is none.
    fn forget_oldest(&mut self, is_one: fn(&Entry) -> bool) -> bool {
        let oldest = self.entries.iter().position(|(_, entry)| is_one(entry));
        oldest.and_then(|oldest| self.entries.remove(oldest)).is_some()
    }

    /// A client that comes after the end wants the pictures, not their previews.
    pub(super) fn forget_previews(&mut self) {
        if self.followers == 0 && self.ended_at.is_some() {
            self.entries.retain(|(_, entry)| !entry.is_preview());
        }
    }

    /// Ends the run. Only the first end counts; returns whether this was the first.
    pub(super) fn end(&mut self, status: Status) -> bool {
        if self.ended_at.is_some() {
            return false;
        }
        match &status {
            Status::Failed(error) => self.push(Entry::Failed(error.clone())),
            Status::Cancelled => self.push(Entry::Failed(ApiError::cancelled())),
            Status::Queued | Status::Running | Status::Completed => {}
        }
        self.status = status;
        self.ended_at = Some(Instant::now());
        self.forget_previews();
        true
    }

    /// The first entry from number `id` on.
    pub(super) fn from(&self, id: u64) -> Option<&(u64, Entry)> {
        self.entries.get(self.entries.partition_point(|(other, _)| *other < id))
    }
}
