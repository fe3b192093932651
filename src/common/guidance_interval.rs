//! Guidance in a part of the steps.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::InvalidValue;

/// The shares of the steps at which guidance begins and ends, each 0 to 1 ([Kynkäänniemi et al.](https://arxiv.org/abs/2404.07724)).
/// Outside the interval the guidance scale is 1 and a step costs half.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f64>", into = "[f64; 2]")]
pub struct GuidanceInterval {
    start: f64,
    stop: f64,
}

impl GuidanceInterval {
    /// Whether step `step` of `steps`, counted from 0, is guided. Shares are rounded down to steps, as in diffusers' guiders.
    #[must_use]
    pub fn contains(self, step: usize, steps: usize) -> bool {
        let after = |share: f64| (share * steps as f64) as usize;
        (after(self.start)..after(self.stop)).contains(&step)
    }

    /// Whether every step is guided.
    #[must_use]
    pub fn is_all(self) -> bool {
        self.start <= 0.0 && self.stop >= 1.0
    }
}

impl TryFrom<Vec<f64>> for GuidanceInterval {
    type Error = InvalidValue;

    fn try_from(shares: Vec<f64>) -> Result<Self, InvalidValue> {
        match shares[..] {
            [start, stop] if 0.0 <= start && start <= stop && stop <= 1.0 => Ok(Self { start, stop }),
            _ => {
                let allowed = "two numbers from 0 to 1, the second no less than the first";
                Err(InvalidValue::new("guidance_interval", format_args!("{shares:?}"), allowed))
            }
        }
    }
}

impl From<GuidanceInterval> for [f64; 2] {
    fn from(GuidanceInterval { start, stop }: GuidanceInterval) -> Self {
        [start, stop]
    }
}

/// `START,STOP`
impl FromStr for GuidanceInterval {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let shares: Result<Vec<f64>, _> = text.split(',').map(|share| share.trim().parse()).collect();
        shares.map_err(|_| InvalidValue::new("guidance_interval", text, "two numbers from 0 to 1, such as 0.2,0.8"))?.try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_down_to_steps() {
        let guided = |text: &str, steps: usize| {
            let interval: GuidanceInterval = text.parse().unwrap();
            (0..steps).filter(|step| interval.contains(*step, steps)).collect::<Vec<_>>()
        };
        assert_eq!(guided("0.2,0.8", 6), [1, 2, 3]);
        assert_eq!(guided("0, 0.5", 5), [0, 1]);
        assert_eq!(guided("0.5,1", 5), [2, 3, 4]);
        assert_eq!((guided("0,1", 1).len(), guided("0.3,0.3", 10).len(), guided("0.9,1", 1).len()), (1, 0, 1));
    }

    #[test]
    fn what_is_no_interval_is_refused() {
        for text in ["", "0.5", "0.8,0.2", "-0.1,1", "0,1.1", "NaN,1", "0,NaN", "0,0.5,1", "a,b"] {
            assert!(text.parse::<GuidanceInterval>().is_err(), "{text}");
        }
        let error = serde_json::from_str::<GuidanceInterval>("[0.5]").unwrap_err().to_string();
        assert_eq!(error, "must be two numbers from 0 to 1, the second no less than the first, not [0.5]");
    }
}
