//! Steps that reuse what an earlier step made of the latents.

use std::{fmt, str::FromStr};

use super::{ControlWindow, InvalidValue, invalid_value};

/// How a text names a cache.
const SPELLING: &str = "deep,interval=3 or deep,threshold=0.1, each with ,start=0.2 or ,end=0.8 if not all steps may be shallow";

/// A cache of features between steps: which evaluations of the network are full, and which are shallow and reuse the features of the latest
/// full one. The first is always full.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeatureCache {
    kind: CacheKind,
    refresh: Refresh,
    window: ControlWindow,
}

/// Which features are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// What enters the last layer of a UNet ([Ma et al.](https://arxiv.org/abs/2312.00858)).
    Deep,
}

/// When an evaluation is full.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Refresh {
    /// So many evaluations after the latest full one, 2 to [`FeatureCache::MAX_INTERVAL`].
    Interval(usize),
    /// When the latents, as the network sees them, have changed by more than this share since the latest full one, 0 to 1.
    Threshold(f64),
}

/// What a cache is made of, before it is checked.
#[derive(Debug, Clone, Default)]
pub struct CacheParts {
    /// The name of a [`CacheKind`].
    pub kind: Option<String>,
    /// That of [`Refresh::Interval`].
    pub interval: Option<i64>,
    /// That of [`Refresh::Threshold`].
    pub threshold: Option<f64>,
    /// The share of the steps before which all are full; 0 where it is left out.
    pub start: Option<f64>,
    /// The share of the steps after which all are full; 1 where it is left out.
    pub end: Option<f64>,
}

impl FeatureCache {
    /// The largest interval.
    pub const MAX_INTERVAL: i64 = 20;

    /// Which features are kept.
    #[must_use]
    pub fn kind(self) -> CacheKind {
        self.kind
    }

    /// When an evaluation is full.
    #[must_use]
    pub fn refresh(self) -> Refresh {
        self.refresh
    }

    /// The shares of the steps between which an evaluation may be shallow.
    #[must_use]
    pub fn window(self) -> ControlWindow {
        self.window
    }

    /// Whether evaluation `step` of `steps`, counted from 0, may be shallow.
    #[must_use]
    pub fn may_skip(self, step: usize, steps: usize) -> bool {
        step > 0 && self.window.contains(step, steps)
    }

    /// Whether any of so many evaluations may be shallow.
    #[must_use]
    pub fn may_skip_any(self, steps: usize) -> bool {
        (0..steps).any(|step| self.may_skip(step, steps))
    }
}

impl CacheKind {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Deep];

    /// The name in requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Deep => "deep",
        }
    }
}

impl TryFrom<CacheParts> for FeatureCache {
    type Error = InvalidValue;

    fn try_from(CacheParts { kind, interval, threshold, start, end }: CacheParts) -> Result<Self, InvalidValue> {
        let kind = kind.ok_or_else(|| InvalidValue::new("kind", "left out", invalid_value::one_of(&CacheKind::ALL)))?.parse()?;
        let refresh = match (interval, threshold) {
            (Some(interval), None) => match usize::try_from(interval) {
                Ok(steps) if (2..=Self::MAX_INTERVAL).contains(&interval) => Refresh::Interval(steps),
                _ => return Err(InvalidValue::new("interval", interval, format!("a whole number from 2 to {}", Self::MAX_INTERVAL))),
            },
            (None, Some(threshold)) if (0.0..=1.0).contains(&threshold) => Refresh::Threshold(threshold),
            (None, Some(threshold)) => return Err(InvalidValue::new("threshold", threshold, "a number from 0 to 1")),
            (None, None) => return Err(InvalidValue::new("cache", "neither", "given with interval or threshold, such as deep,interval=3")),
            (Some(_), Some(_)) => return Err(InvalidValue::new("cache", "both", "given with interval or threshold")),
        };
        let window = ControlWindow::new(start.unwrap_or(0.0), end.unwrap_or(1.0))?;
        Ok(Self { kind, refresh, window })
    }
}

impl FromStr for CacheKind {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| InvalidValue::new("kind", format_args!("\"{text}\""), invalid_value::one_of(&Self::ALL)))
    }
}

/// `KIND,interval=3` or `KIND,threshold=0.1`, then `,start=0.2` and `,end=0.8`, in any order.
impl FromStr for FeatureCache {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let unread = || InvalidValue::new("cache", format_args!("\"{text}\""), SPELLING);
        let mut options = text.split(',').map(str::trim);
        let mut parts = CacheParts { kind: options.next().map(str::to_owned), ..CacheParts::default() };
        for option in options {
            let number = |value: &str| value.parse().map_err(|_| unread());
            let is_second = match option.split_once('=').ok_or_else(unread)? {
                ("interval", value) => parts.interval.replace(value.parse().map_err(|_| unread())?).is_some(),
                ("threshold", value) => parts.threshold.replace(number(value)?).is_some(),
                ("start", value) => parts.start.replace(number(value)?).is_some(),
                ("end", value) => parts.end.replace(number(value)?).is_some(),
                _ => return Err(unread()),
            };
            if is_second {
                return Err(unread());
            }
        }
        parts.try_into()
    }
}

impl fmt::Display for CacheKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// As it is read.
impl fmt::Display for FeatureCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, refresh, window } = self;
        match refresh {
            Refresh::Interval(steps) => write!(f, "{kind},interval={steps}")?,
            Refresh::Threshold(share) => write!(f, "{kind},threshold={share}")?,
        }
        if *window == ControlWindow::ALL {
            return Ok(());
        }
        write!(f, ",start={},end={}", window.start(), window.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_written_as_it_is_read() {
        for text in ["deep,interval=2", "deep,interval=20", "deep,threshold=0.1", "deep,interval=3,start=0.2,end=0.8"] {
            assert_eq!(text.parse::<FeatureCache>().unwrap().to_string(), text);
        }
        let cache: FeatureCache = "deep, end=0.5, interval=3".parse().unwrap();
        assert_eq!((cache.refresh(), cache.window().end()), (Refresh::Interval(3), 0.5));
    }

    #[test]
    fn what_is_no_cache_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "must be deep, not \"\""),
            ("ucache,interval=3", "must be deep, not \"ucache\""),
            ("deep", "must be given with interval or threshold, such as deep,interval=3, not neither"),
            ("deep,interval=3,threshold=0.1", "must be given with interval or threshold, not both"),
            ("deep,interval=1", "must be a whole number from 2 to 20, not 1"),
            ("deep,interval=21", "from 2 to 20, not 21"),
            ("deep,interval=2.5", "must be deep,interval=3 or deep,threshold=0.1"),
            ("deep,threshold=-0.1", "must be a number from 0 to 1, not -0.1"),
            ("deep,threshold=NaN", "must be a number from 0 to 1, not NaN"),
            ("deep,interval=3,start=0.8,end=0.2", "the second no less than the first"),
            ("deep,3", "must be deep,interval=3 or"),
            ("deep,interval=3,interval=4", "must be deep,interval=3 or"),
            ("deep,depth=3", "must be deep,interval=3 or"),
        ] {
            let error = text.parse::<FeatureCache>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_step_and_those_outside_of_the_window_are_full() {
        let skipped = |text: &str, steps| {
            let cache: FeatureCache = text.parse().unwrap();
            (0..steps).filter(|step| cache.may_skip(*step, steps)).collect::<Vec<_>>()
        };
        assert_eq!(skipped("deep,interval=2", 4), [1, 2, 3]);
        assert_eq!(skipped("deep,interval=2,start=0.2,end=0.6", 10), [2, 3, 4, 5]);
        let late: FeatureCache = "deep,interval=2,start=0.9".parse().unwrap();
        assert_eq!((late.may_skip_any(1), late.may_skip_any(4), late.may_skip_any(10)), (false, false, true));
    }
}
