//! How long the steps to come will take.

use std::time::Duration;

use crate::backend::StepKind;

/// How long the latest step of each kind took, that of the latest step last.
#[derive(Debug, Default)]
pub(super) struct StepTimes(Vec<(StepKind, Duration)>);

impl StepTimes {
    pub(super) fn note(&mut self, kind: StepKind, time: Duration) {
        self.0.retain(|(other, _)| *other != kind);
        self.0.push((kind, time));
    }

    /// The time that steps of these kinds take, if each takes as long as the latest of its kind.
    pub(super) fn of_all(&self, to_come: &[StepKind]) -> Duration {
        to_come.iter().map(|kind| self.of(*kind)).sum()
    }

    /// That of a kind that there was not yet follows from its work, and from the latest step that was as shallow or as full, if there was one.
    fn of(&self, kind: StepKind) -> Duration {
        let latest = |is_like: fn(StepKind, StepKind) -> bool| self.0.iter().rfind(|(other, _)| is_like(kind, *other));
        let known = latest(|kind, other| kind == other).or_else(|| latest(|kind, other| kind.is_shallow == other.is_shallow));
        let by_work = |(other, time): &(StepKind, Duration)| time.mul_f64(kind.work() as f64 / other.work().max(1) as f64);
        known.or_else(|| self.0.last()).map(by_work).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::ImageSize;

    #[test]
    fn each_step_takes_as_long_as_the_latest_of_its_kind() {
        let full = StepKind { size: ImageSize::new(64, 64).unwrap(), samples: 2, is_shallow: false };
        let (shallow, alone) = (StepKind { is_shallow: true, ..full }, StepKind { samples: 1, ..full });
        let (mut times, seconds) = (StepTimes::default(), Duration::from_secs);
        assert_eq!(times.of_all(&[full]), Duration::ZERO);
        times.note(full, seconds(8));
        assert_eq!(times.of_all(&[full, shallow, alone]), seconds(8 + 8 + 4), "by its work");
        times.note(shallow, seconds(2));
        assert_eq!(times.of_all(&[shallow, full, shallow]), seconds(2 + 8 + 2));
        assert_eq!(times.of_all(&[alone]), seconds(4), "half of the full one, though the latest was shallow");
        times.note(full, seconds(10));
        assert_eq!(times.of_all(&[shallow, full, alone]), seconds(2 + 10 + 5));
    }
}
